"""Augmentations of whole batches that change colours, or paint over."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from cnn_train.data.augment.draws import between, draws, normal
from cnn_train.data.boxes import covered_share
from cnn_train.data.targets import EVERY_KIND, TargetSpec
from cnn_train.errors import DataError


@dataclass(frozen=True)
class Erase:
    """Paint over a rectangle with a probability (Zhong et al. 2020): `area` of the image, height to width in `ratio`.

    `fill` is "color", drawn for each rectangle, or "zero". In a label map the rectangle is ignored, and so is a box of
    which the rectangle leaves too little visible.
    """

    probability: float = 0.5
    area: Sequence[float] = (0.02, 0.4)
    ratio: Sequence[float] = (0.3, 1 / 0.3)
    fill: Literal["color", "zero"] = "color"
    supports = EVERY_KIND
    mixes = False

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        channels, height, width = images.shape[1:]
        numbers = draws(self, seed, epoch, indices, 5 + channels)
        area = between(numbers[:, 1], self.area) * (height * width)
        ratio = between(numbers[:, 2], [math.log(side) for side in self.ratio]).exp()
        tall = (area * ratio).sqrt().round().clamp(max=height)
        wide = (area / ratio).sqrt().round().clamp(max=width)
        top = (numbers[:, 3] * (height - tall + 1)).floor()
        left = (numbers[:, 4] * (width - wide + 1)).floor()
        hit = numbers[:, 0] < self.probability
        inside = rectangles(top, left, tall, wide, images) & hit.view(-1, 1, 1)
        colour = (numbers[:, 5:] * 256).to(torch.uint8)
        if self.fill == "zero":
            colour = torch.zeros_like(colour)
        images = torch.where(inside.unsqueeze(1), colour.view(-1, channels, 1, 1), images)
        if spec.kind == "maps":
            targets = targets.masked_fill(inside, spec.ignore_index)
        elif spec.kind == "boxes":
            painted = torch.stack([left, top, left + wide, top + tall], 1) * hit.unsqueeze(1)
            hidden = (1 - covered_share(targets, painted) < spec.min_visible) & (targets[..., 4] >= 0)
            targets = torch.cat([targets[..., :5], torch.where(hidden, 1.0, targets[..., 5]).unsqueeze(-1)], -1)
        return images, targets


@dataclass(frozen=True)
class Lighting:
    """Add multiples of the principal components of ImageNet's colours, drawn from N(0, std) (Krizhevsky et al. 2012).

    Section 4.1. Eigenvalues and -vectors of RGB in [0, 1], as in the fb.resnet.torch release.
    """

    std: float = 0.1
    supports = EVERY_KIND
    mixes = False

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        if images.size(1) != 3:
            raise DataError(f"augment=lighting needs RGB images, got {images.size(1)} channels; choose another")
        values, vectors = _components(images.device)
        strength = normal(draws(self, seed, epoch, indices, 6)) * self.std
        offset = (vectors * (strength * values).unsqueeze(1)).sum(-1) * 255
        return (images + offset.view(-1, 3, 1, 1)).round_().clamp_(0, 255).to(torch.uint8), targets


@cache
def _components(device: torch.device) -> tuple[Tensor, Tensor]:
    """Eigenvalues (3) and, in columns, eigenvectors (3, 3)."""
    vectors = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    return torch.tensor([0.2175, 0.0188, 0.0045], device=device), torch.tensor(vectors, device=device)


def rectangles(top: Tensor, left: Tensor, height: Tensor, width: Tensor, images: Tensor) -> Tensor:
    """The pixels of one rectangle an image, of these corners and sides (N): (N, H, W) bool."""
    y = torch.arange(images.size(2), device=images.device)
    x = torch.arange(images.size(3), device=images.device)
    rows = (y >= top.unsqueeze(1)) & (y < (top + height).unsqueeze(1))
    columns = (x >= left.unsqueeze(1)) & (x < (left + width).unsqueeze(1))
    return rows.unsqueeze(2) & columns.unsqueeze(1)
