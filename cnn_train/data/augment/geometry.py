"""Augmentations of whole batches that move pixels."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cnn_train.data.augment.draws import draws
from cnn_train.data.augment.moves import Mirror, Move, Warp, Window, affine, apply
from cnn_train.data.targets import EVERY_KIND, TargetSpec
from cnn_train.errors import DataError


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with a probability."""

    probability: float = 0.5
    supports = EVERY_KIND
    mixes = False

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        chosen = draws(self, seed, epoch, indices, 1)[:, 0] < self.probability
        return apply(Mirror(chosen), images, targets, spec)


@dataclass(frozen=True)
class PadCrop:
    """Pad by some pixels and cut the old size out again anywhere (He et al. 2016, section 4.2)."""

    padding: int = 4
    mode: Literal["zeros", "reflect"] = "zeros"
    supports = EVERY_KIND
    mixes = False

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        if self.mode == "reflect" and self.padding >= min(images.shape[-2:]):
            size = f"{images.size(-2)}x{images.size(-1)}"
            raise DataError(f"augment.padding={self.padding} cannot be reflected from images of {size}")
        offsets = (draws(self, seed, epoch, indices, 2) * (2 * self.padding + 1)).long()
        return apply(Window(offsets, self.padding, self.mode), images, targets, spec)


@dataclass(frozen=True)
class Shift:
    """Turn by up to `degrees`, move by `translate` of the sides, scale by 1 +- `scale`, slant by `shear`."""

    degrees: float = 10.0
    translate: float = 0.08
    scale: float = 0.1
    shear: float = 0.1
    supports = EVERY_KIND
    mixes = False

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        return apply(self._move(draws(self, seed, epoch, indices, 5) * 2 - 1, height, width), images, targets, spec)

    def _move(self, numbers: Tensor, height: int, width: int) -> Move:
        """The move that random numbers (N, 5) in [-1, 1) say."""
        angle = numbers[:, 0] * math.radians(self.degrees)
        size = 1 + numbers[:, 1] * self.scale
        cos, sin = angle.cos() / size, angle.sin() / size
        slant = numbers[:, 4] * (self.shear * height / width)
        right, down = numbers[:, 2] * (2 * self.translate), numbers[:, 3] * (2 * self.translate)

        def each(values: Tensor) -> Tensor:
            return values.view(-1, 1, 1)

        # Pixel centres in [-1, 1]. Written out, since a batched matrix product may round differently in other batches.
        x = ((torch.arange(width, device=numbers.device) * 2 + 1) / width - 1).view(1, 1, -1)
        y = ((torch.arange(height, device=numbers.device) * 2 + 1) / height - 1).view(1, -1, 1)
        x = x + each(slant) * y
        grid_x = each(cos) * x + each(sin) * (height / width) * y + each(right)
        grid_y = each(cos) * y - each(sin) * (width / height) * x + each(down)
        grid = torch.stack([grid_x, grid_y], -1).float()  # where double is the default type, the ranges are double
        across, along = sin * (height / width), -sin * (width / height)
        return Warp(grid, affine(cos, cos * slant + across, right, along, cos + along * slant, down))
