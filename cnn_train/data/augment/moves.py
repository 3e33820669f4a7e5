"""Moves of pixels: where each pixel of an image goes, computed once and applied to images, label maps and boxes.

A move is made from random draws, or from sizes, and knows nothing of targets; `apply` asks what kind the targets are.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_train.data.boxes import move_boxes
from cnn_train.data.targets import TargetSpec


class Move(Protocol):
    """One move for each image of a batch, or for one image: the leading (N) below is then left out."""

    def images(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) uint8, moved; what comes in from outside is 0."""
        ...

    def maps(self, maps: Tensor, ignore_index: int) -> Tensor:
        """Label maps (N, H, W) moved by the nearest pixel; what comes in from outside is `ignore_index`."""
        ...

    def matrix(self, size: tuple[int, int]) -> Tensor:
        """The new place of a point of an image of this size, as (N, 2, 3): x' and y' from x, y, 1 in pixels."""
        ...


def apply(move: Move, images: Tensor, targets: Tensor, spec: TargetSpec) -> tuple[Tensor, Tensor]:
    """Move images, and with them the targets that have a place in the picture."""
    moved = move.images(images)
    if spec.kind == "maps":
        return moved, move.maps(targets, spec.ignore_index)
    if spec.kind == "boxes":
        matrix = move.matrix((images.size(-2), images.size(-1)))
        return moved, move_boxes(targets, matrix, (moved.size(-2), moved.size(-1)), spec.min_visible)
    return moved, targets


@dataclass(frozen=True)
class Mirror:
    """Left and right exchanged for the `chosen` (N) bool."""

    chosen: Tensor

    def images(self, images: Tensor) -> Tensor:
        return torch.where(self.chosen.view(-1, 1, 1, 1), images.flip(-1), images)

    def maps(self, maps: Tensor, ignore_index: int) -> Tensor:
        return torch.where(self.chosen.view(-1, 1, 1), maps.flip(-1), maps)

    def matrix(self, size: tuple[int, int]) -> Tensor:
        kept, zero = (~self.chosen).float(), torch.zeros(len(self.chosen), device=self.chosen.device)
        return affine(1 - 2 * (1 - kept), zero, (1 - kept) * size[1], zero, zero + 1, zero)


@dataclass(frozen=True)
class Window:
    """A window of the image's own size, cut out of the image padded on all sides.

    `offsets` (N, 2) int64 are the window's first row and column in the padded image.
    """

    offsets: Tensor
    padding: int
    mode: Literal["zeros", "reflect"]

    def images(self, images: Tensor) -> Tensor:
        outer = (self.padding,) * 4
        padded = F.pad(images, outer, mode="reflect") if self.mode == "reflect" else F.pad(images, outer)
        # Every window is a view of the padded images, of which one indexing copies the chosen ones.
        windows = padded.unfold(2, images.size(2), 1).unfold(3, images.size(3), 1)
        return windows[self._samples(), :, self.offsets[:, 0], self.offsets[:, 1]]

    def maps(self, maps: Tensor, ignore_index: int) -> Tensor:
        padded = F.pad(maps, (self.padding,) * 4, value=ignore_index)
        windows = padded.unfold(1, maps.size(1), 1).unfold(2, maps.size(2), 1)
        return windows[self._samples(), self.offsets[:, 0], self.offsets[:, 1]]

    def matrix(self, size: tuple[int, int]) -> Tensor:
        down, right = (self.padding - self.offsets).float().unbind(1)
        zero = torch.zeros_like(down)
        return affine(zero + 1, zero, right, zero, zero + 1, down)

    def _samples(self) -> Tensor:
        return torch.arange(len(self.offsets), device=self.offsets.device)


@dataclass(frozen=True)
class Warp:
    """The grid (N, H, W, 2) of `torch.nn.functional.grid_sample`, and `back` (N, 2, 3), by which it was made.

    `back` gives the old place of a point (x, y, 1) of the new image; its coordinates reach from -1 to 1.
    """

    grid: Tensor
    back: Tensor

    def images(self, images: Tensor) -> Tensor:
        moved = F.grid_sample(images.float(), self.grid, mode="bilinear", align_corners=False)
        return moved.round_().to(torch.uint8)

    def maps(self, maps: Tensor, ignore_index: int) -> Tensor:
        # grid_sample puts 0 outside: that stands for ignore_index here.
        shifted = (maps - ignore_index).unsqueeze(1).float()
        moved = F.grid_sample(shifted, self.grid, mode="nearest", align_corners=False)
        return moved.squeeze(1).round().to(maps.dtype) + ignore_index

    def matrix(self, size: tuple[int, int]) -> Tensor:
        half = torch.tensor([size[1] / 2, size[0] / 2], dtype=torch.float64, device=self.back.device)
        back = self.back.double()
        turn = torch.linalg.inv(back[..., :2])
        offset = -(turn @ back[..., 2:])
        # From pixels to [-1, 1], moved, and back to pixels.
        turn = half.unsqueeze(1) * turn / half
        offset = half.unsqueeze(1) * (offset + 1) - turn @ half.unsqueeze(1)
        return torch.cat([turn, offset], -1).float()


@dataclass(frozen=True)
class Resample:
    """A part of one image (C, H, W), scaled and padded.

    `part` is top, left, height and width; `scaled` its new height and width; `border` what is added left, right, above
    and below, or cut off where it is negative; `fill` the value of pixels that are added.
    """

    part: tuple[int, int, int, int]
    scaled: tuple[int, int]
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    fill: int = 0

    def images(self, images: Tensor) -> Tensor:
        return self._padded(resized(self._cut(images), self.scaled), self.fill)

    def maps(self, maps: Tensor, ignore_index: int) -> Tensor:
        return self._padded(nearest(self._cut(maps)[None], self.scaled)[0], ignore_index)

    def matrix(self, size: tuple[int, int]) -> Tensor:
        top, left, height, width = self.part
        down, right = self.scaled[0] / height, self.scaled[1] / width
        return torch.tensor([[right, 0.0, self.border[0] - left * right], [0.0, down, self.border[2] - top * down]])

    def _cut(self, images: Tensor) -> Tensor:
        top, left, height, width = self.part
        return images[..., top : top + height, left : left + width]

    def _padded(self, images: Tensor, value: int) -> Tensor:
        return F.pad(images, self.border, value=value) if any(self.border) else images


@dataclass(frozen=True)
class Resize:
    """Images (N, C, H, W) brought to another size as a whole."""

    size: tuple[int, int]

    def images(self, images: Tensor) -> Tensor:
        return resized(images, self.size)

    def maps(self, maps: Tensor, ignore_index: int) -> Tensor:
        return nearest(maps, self.size)

    def matrix(self, size: tuple[int, int]) -> Tensor:
        down, right = self.size[0] / size[0], self.size[1] / size[1]
        return torch.tensor([[right, 0.0, 0.0], [0.0, down, 0.0]])


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (..., C, H, W) uint8 by antialiased bilinear interpolation: to the bits of torchvision's `resize`.

    Written out, because the import of torchvision takes as long as that of torch.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    batch = images.reshape(-1, *images.shape[-3:])
    vectors = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in (
        "aarch64",
        "arm64",
    )
    if vectors and images.device.type == "cpu":
        moved = F.interpolate(batch, size, mode="bilinear", antialias=True)
    else:
        moved = F.interpolate(batch.float(), size, mode="bilinear", antialias=True).round_().to(torch.uint8)
    return moved.reshape(*images.shape[:-2], *size)


def resized_part(image: Tensor, edges: Sequence[float], size: tuple[int, int]) -> Tensor:
    """A part of an image (C, H, W) uint8, whose edges (left, above, right, below) may lie within pixels, at `size`."""
    from PIL import Image

    left, above, right, below = edges
    box = (left, above, min(right, image.size(2)), min(below, image.size(1)))  # against rounding
    planes = [Image.fromarray(plane.numpy()) for plane in image.contiguous()]
    made = [plane.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box) for plane in planes]
    return torch.stack([torch.from_numpy(np.array(plane)) for plane in made])


def nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps (N, H, W) by the nearest pixel: the one under the centre, not the one above and left of it."""
    return F.interpolate(maps[:, None].float(), size, mode="nearest-exact")[:, 0].to(maps.dtype)


def affine(xx: Tensor, xy: Tensor, x: Tensor, yx: Tensor, yy: Tensor, y: Tensor) -> Tensor:
    """Matrices (N, 2, 3) of their entries (N): x' = xx * x + xy * y + x, and y' alike."""
    return torch.stack([torch.stack([xx, xy, x], -1), torch.stack([yx, yy, y], -1)], -2)


def whole(size: Sequence[int]) -> tuple[int, int, int, int]:
    """The `part` of `Resample` that is all of an image of this height and width."""
    return 0, 0, size[0], size[1]
