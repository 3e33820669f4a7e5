"""Augmentations of uint8 batches, each a pure function of (seed, epoch, sample index).

All are called as `augment(images, targets, indices, epoch, seed, ignore_index=..., num_classes=...)` with images
(N, C, H, W) uint8 and targets (N) or (N, H, W) int64, on any device. Whatever moves pixels moves the label map with
them, by the nearest pixel, and fills what comes in from outside with `ignore_index`. The cheap and common ones work on
the whole batch; those of torchvision.transforms.v2 on a sample at a time, under a generator seeded for that sample, so
that a data worker may apply them too (see `split_stages`).
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_train.data.data import Augment
from cnn_train.data.random import key, uniform
from cnn_train.errors import DataError


class Compose:
    """One augmentation after another; lists of lists are flattened."""

    def __init__(self, augments: Sequence[Augment]):
        self.augments: list[Augment] = []
        for augment in augments:
            self.augments += augment.augments if isinstance(augment, Compose) else [augment]

    @property
    def labels_only(self) -> bool:
        """Whether it cannot change label maps."""
        return any(getattr(augment, "labels_only", False) for augment in self.augments)

    @property
    def mixes(self) -> bool:
        """Whether a sample depends on the others of its batch."""
        return any(getattr(augment, "mixes", False) for augment in self.augments)

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, **options: Any
    ) -> tuple[Tensor, Tensor]:
        for augment in self.augments:
            images, targets = augment(images, targets, indices, epoch, seed, **options)
        return images, targets


# -- On the whole batch ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with a probability."""

    probability: float = 0.5

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, **_: Any
    ) -> tuple[Tensor, Tensor]:
        chosen = _draws(self, seed, epoch, indices, 1)[:, 0] < self.probability
        images = torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)
        if targets.ndim == 3:
            targets = torch.where(chosen.view(-1, 1, 1), targets.flip(-1), targets)
        return images, targets


@dataclass(frozen=True)
class PadCrop:
    """Pad by some pixels and cut the old size out again anywhere (He et al. 2016, section 4.2)."""

    padding: int = 4
    mode: Literal["zeros", "reflect"] = "zeros"

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, *, ignore_index: int, **_: Any
    ) -> tuple[Tensor, Tensor]:
        if self.mode == "reflect" and self.padding >= min(images.shape[-2:]):
            raise DataError(f"augment.padding={self.padding} cannot be reflected from images of {_size(images)}")
        places = 2 * self.padding + 1
        offsets = (_draws(self, seed, epoch, indices, 2) * places).long()
        sample = torch.arange(len(images), device=images.device)
        outer = (self.padding,) * 4
        # Every crop is a view of the padded images, of which one indexing copies the chosen ones.
        padded = F.pad(images, outer, mode="reflect") if self.mode == "reflect" else F.pad(images, outer)
        crops = padded.unfold(2, images.size(2), 1).unfold(3, images.size(3), 1)
        images = crops[sample, :, offsets[:, 0], offsets[:, 1]]
        if targets.ndim == 3:
            maps = F.pad(targets, outer, value=ignore_index)
            crops = maps.unfold(1, targets.size(1), 1).unfold(2, targets.size(2), 1)
            targets = crops[sample, offsets[:, 0], offsets[:, 1]]
        return images, targets


@dataclass(frozen=True)
class Shift:
    """Turn by up to `degrees`, move by `translate` of the sides, scale by 1 +- `scale`, slant by `shear`."""

    degrees: float = 10.0
    translate: float = 0.08
    scale: float = 0.1
    shear: float = 0.1

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, *, ignore_index: int, **_: Any
    ) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        draws = (_draws(self, seed, epoch, indices, 5) * 2 - 1).view(-1, 5, 1, 1).unbind(1)
        angle = draws[0] * math.radians(self.degrees)
        size = 1 + draws[1] * self.scale
        cos, sin = angle.cos() / size, angle.sin() / size
        # Pixel centres in [-1, 1]. Written out, since a batched matrix product may round differently in other batches.
        x = ((torch.arange(width, device=images.device) * 2 + 1) / width - 1).view(1, 1, -1)
        y = ((torch.arange(height, device=images.device) * 2 + 1) / height - 1).view(1, -1, 1)
        x = x + draws[4] * (self.shear * height / width) * y
        grid_x = cos * x + sin * (height / width) * y + draws[2] * (2 * self.translate)
        grid_y = cos * y - sin * (width / height) * x + draws[3] * (2 * self.translate)
        grid = torch.stack([grid_x, grid_y], -1).float()  # where double is the default type, the ranges are double
        moved = F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
        if targets.ndim == 3:
            # Outside grid_sample puts 0: that stands for ignore_index here.
            maps = (targets - ignore_index).unsqueeze(1).float()
            maps = F.grid_sample(maps, grid, mode="nearest", align_corners=False)
            targets = maps.squeeze(1).round().to(targets.dtype) + ignore_index
        return moved.round_().to(torch.uint8), targets


@dataclass(frozen=True)
class Erase:
    """Paint over a rectangle with a probability (Zhong et al. 2020): `area` of the image, height to width in `ratio`.

    `fill` is "color", drawn for each rectangle, or "zero". In a label map the rectangle is ignored.
    """

    probability: float = 0.5
    area: Sequence[float] = (0.02, 0.4)
    ratio: Sequence[float] = (0.3, 1 / 0.3)
    fill: Literal["color", "zero"] = "color"

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, *, ignore_index: int, **_: Any
    ) -> tuple[Tensor, Tensor]:
        channels, height, width = images.shape[1:]
        draws = _draws(self, seed, epoch, indices, 5 + channels)
        area = _between(draws[:, 1], self.area) * (height * width)
        ratio = _between(draws[:, 2], [math.log(side) for side in self.ratio]).exp()
        box_height = (area * ratio).sqrt().round().clamp(max=height)
        box_width = (area / ratio).sqrt().round().clamp(max=width)
        top = (draws[:, 3] * (height - box_height + 1)).floor()
        left = (draws[:, 4] * (width - box_width + 1)).floor()
        inside = _boxes(top, left, box_height, box_width, images) & (draws[:, 0] < self.probability).view(-1, 1, 1)
        colour = (draws[:, 5:] * 256).to(torch.uint8) if self.fill == "color" else torch.zeros_like(images[:, :, 0, 0])
        images = torch.where(inside.unsqueeze(1), colour.view(-1, channels, 1, 1), images)
        return images, targets.masked_fill(inside, ignore_index) if targets.ndim == 3 else targets


@dataclass(frozen=True)
class Lighting:
    """Add multiples of the principal components of ImageNet's colours, drawn from N(0, std) (Krizhevsky et al. 2012).

    Section 4.1. Eigenvalues and -vectors of RGB in [0, 1], as in the fb.resnet.torch release.
    """

    std: float = 0.1

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, **_: Any
    ) -> tuple[Tensor, Tensor]:
        if images.size(1) != 3:
            raise DataError(f"augment=lighting needs RGB images, got {images.size(1)} channels; choose another")
        values = torch.tensor([0.2175, 0.0188, 0.0045], device=images.device)
        vectors = torch.tensor(
            [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], device=images.device
        )
        draws = _draws(self, seed, epoch, indices, 6)
        # Box and Muller (1958): two uniform numbers give a normal one.
        normal = (-2 * (1 - draws[:, :3]).log()).sqrt() * (2 * math.pi * draws[:, 3:]).cos() * self.std
        offset = (vectors * (normal * values).unsqueeze(1)).sum(-1) * 255
        return (images + offset.view(-1, 3, 1, 1)).round_().clamp_(0, 255).to(torch.uint8), targets


@dataclass(frozen=True)
class MixUp:
    """Mean of an image and the one before it in the batch, weighted by Beta(alpha, alpha) (Zhang et al. 2018).

    Gives soft targets (N, num_classes). The weight belongs to the sample, the partner to the batch.
    """

    alpha: float = 0.2
    labels_only = True
    mixes = True

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, *, num_classes: int, **_: Any
    ) -> tuple[Tensor, Tensor]:
        share = _beta(_draws(self, seed, epoch, indices, 1)[:, 0], self.alpha)
        weight = share.view(-1, 1, 1, 1)
        mixed = images * weight + images.roll(1, 0) * (1 - weight)
        return mixed.round_().to(torch.uint8), _mix_targets(targets, share, num_classes)


@dataclass(frozen=True)
class CutMix:
    """Put a rectangle of the image before it in the batch into an image (Yun et al. 2019).

    Its area is 1 - Beta(alpha, alpha). Gives soft targets (N, num_classes), by the area that is left. The rectangle
    belongs to the sample, the partner to the batch.
    """

    alpha: float = 1.0
    probability: float = 1.0
    labels_only = True
    mixes = True

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, *, num_classes: int, **_: Any
    ) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        draws = _draws(self, seed, epoch, indices, 4)
        side = (1 - _beta(draws[:, 0], self.alpha)).sqrt() * (draws[:, 1] < self.probability)
        box_height, box_width = (side * height).floor(), (side * width).floor()
        # Centred anywhere, so that it may reach beyond the border (algorithm 1 of the appendix).
        top = (draws[:, 2] * height - box_height / 2).floor()
        left = (draws[:, 3] * width - box_width / 2).floor()
        inside = _boxes(top, left, box_height, box_width, images)
        images = torch.where(inside.unsqueeze(1), images.roll(1, 0), images)
        share = 1 - inside.float().mean((1, 2))
        return images, _mix_targets(targets, share, num_classes)


def _draws(augment: object, seed: int, epoch: int, indices: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each sample (N, count), others for each kind of augmentation."""
    return uniform(seed, _name_key(type(augment).__name__), epoch, indices=indices, count=count)


@cache
def _name_key(name: str) -> int:
    return zlib.crc32(name.encode())


def _between(draw: Tensor, bounds: Sequence[float]) -> Tensor:
    return bounds[0] + draw * (bounds[1] - bounds[0])


def _boxes(top: Tensor, left: Tensor, height: Tensor, width: Tensor, images: Tensor) -> Tensor:
    """Where the rectangles (N) are: (N, H, W) bool."""
    y = torch.arange(images.size(2), device=images.device)
    x = torch.arange(images.size(3), device=images.device)
    rows = (y >= top.unsqueeze(1)) & (y < (top + height).unsqueeze(1))
    columns = (x >= left.unsqueeze(1)) & (x < (left + width).unsqueeze(1))
    return rows.unsqueeze(2) & columns.unsqueeze(1)


def _mix_targets(targets: Tensor, share: Tensor, num_classes: int) -> Tensor:
    """Soft targets (N, K): `share` (N) of each sample's own, the rest of the one before it."""
    if targets.ndim == 1:
        targets = F.one_hot(targets, num_classes).float()
    share = share.unsqueeze(1)
    return targets * share + targets.roll(1, 0) * (1 - share)


def _beta(draw: Tensor, alpha: float) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at uniform numbers."""
    table = torch.tensor(_beta_quantiles(alpha), device=draw.device)
    position = draw * (len(table) - 1)
    index = position.long()
    return torch.lerp(table[index], table[index + 1], position - index)


@cache
def _beta_quantiles(alpha: float, steps: int = 2048) -> tuple[float, ...]:
    """Quantiles at 2 * steps + 1 evenly spaced probabilities from 0 to 1."""
    if alpha <= 0:
        raise DataError(f"augment.alpha must be > 0, got {alpha:g}")
    # x = w ** (1 / alpha) takes away the density's pole at 0; the upper half mirrors the lower one.
    w = np.linspace(0, 0.5**alpha, 16 * steps + 1)
    density = (1 - w ** (1 / alpha)) ** (alpha - 1)
    cumulated = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    lower = np.interp(np.linspace(0, 1, steps + 1), cumulated / cumulated[-1], w) ** (1 / alpha)
    return tuple(np.concatenate([lower, 1 - lower[-2::-1]]).astype(np.float32).tolist())


def _size(images: Tensor) -> str:
    return f"{images.size(-2)}x{images.size(-1)}"


# -- Sample by sample --------------------------------------------------------------------------------------------------


class PerSample:
    """An augmentation that takes one sample: `change` is called under a seeded CPU generator.

    `brings_to_size` says that it takes images of any size and gives the wanted one.
    """

    brings_to_size = False

    def change(
        self, image: Tensor, label_map: Tensor | None, size: tuple[int, int], ignore_index: int
    ) -> tuple[Tensor, Tensor | None]:
        """Image (C, H, W) uint8 and label map (H, W) or None, changed."""
        raise NotImplementedError

    def one(
        self,
        image: Tensor,
        label_map: Tensor | None,
        size: tuple[int, int],
        index: int,
        epoch: int,
        seed: int,
        ignore_index: int,
    ) -> tuple[Tensor, Tensor | None]:
        """The sample as it comes in an epoch: what a data worker calls."""
        with _seeded(key(seed, _name_key(type(self).__name__), epoch, index)):
            return self.change(image, label_map, size, ignore_index)

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, *, ignore_index: int, **_: Any
    ) -> tuple[Tensor, Tensor]:
        maps = targets.ndim == 3
        size = (images.size(2), images.size(3))
        changed = []
        for row, index in enumerate(indices.tolist()):
            label_map = targets[row] if maps else None
            changed.append(self.one(images[row], label_map, size, index, epoch, seed, ignore_index))
        images = torch.stack([image for image, _ in changed])
        return images, torch.stack([cast(Tensor, label) for _, label in changed]) if maps else targets


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within: torch's CPU generator starts from the seed; afterwards it is as it was."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPU's generator, which nothing would set back.
        torch.default_generator.manual_seed(seed & (2**63 - 1))
        yield


class RandomResizedCrop(PerSample):
    """A part of the image of random area and shape, brought to size (Szegedy et al. 2015, section 6)."""

    brings_to_size = True

    def __init__(self, area: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)):
        self.area, self.ratio = tuple(area), tuple(ratio)

    def change(
        self, image: Tensor, label_map: Tensor | None, size: tuple[int, int], ignore_index: int
    ) -> tuple[Tensor, Tensor | None]:
        from torchvision.transforms import v2

        box = v2.RandomResizedCrop(size, scale=self.area, ratio=self.ratio).make_params([image])
        part = box["top"], box["left"], box["height"], box["width"]
        return _cut(image, *part, size), None if label_map is None else _cut_map(label_map, *part, size)


class ScaleCrop(PerSample):
    """Scale by a factor from `scale` and cut the wanted size out anywhere, padded where the image is smaller.

    As DeepLab trains (Chen et al. 2017, section 4.1); a label map is padded with `ignore_index`, an image with 0.
    """

    brings_to_size = True

    def __init__(self, scale: Sequence[float] = (0.5, 2.0)):
        self.scale = tuple(scale)

    def change(
        self, image: Tensor, label_map: Tensor | None, size: tuple[int, int], ignore_index: int
    ) -> tuple[Tensor, Tensor | None]:
        draws = torch.rand(3).tolist()
        factor = self.scale[0] + draws[0] * (self.scale[1] - self.scale[0])
        # Cut first, then scale: only what is kept is computed.
        start, length, scaled, before = [], [], [], []
        for have, want, draw in zip(image.shape[-2:], size, draws[1:], strict=True):
            part = min(max(round(want / factor), 1), have)
            result = want if part < have else min(max(round(have * factor), 1), want)
            start.append(int(draw * (have - part + 1)))
            length.append(part)
            scaled.append(result)
            before.append(int(draw * (want - result + 1)))
        after = [want - have - first for want, have, first in zip(size, scaled, before, strict=True)]
        part = start[0], start[1], length[0], length[1]
        border = (before[1], after[1], before[0], after[0])
        image = F.pad(_cut(image, *part, scaled), border)
        if label_map is not None:
            label_map = F.pad(_cut_map(label_map, *part, scaled), border, value=ignore_index)
        return image, label_map


def _cut(image: Tensor, top: int, left: int, height: int, width: int, size: Sequence[int]) -> Tensor:
    """A part of an image (C, H, W) brought to size, bilinear with antialiasing."""
    from torchvision.transforms.v2.functional import resized_crop

    return resized_crop(image, top, left, height, width, list(size), antialias=True)


def _cut_map(label_map: Tensor, top: int, left: int, height: int, width: int, size: Sequence[int]) -> Tensor:
    """The same of a label map (H, W), by the nearest pixel."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    # Not as a tv_tensors.Mask: for that torchvision takes the pixel above and left, half a pixel beside the image's.
    exact = InterpolationMode.NEAREST_EXACT
    return resized_crop(label_map.unsqueeze(0), top, left, height, width, list(size), exact).squeeze(0)


class ColorJitter(PerSample):
    """Change brightness, contrast, saturation by up to the given factors and hue by up to the given part of a turn."""

    def __init__(self, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.1):
        from torchvision.transforms import v2

        self.transform = v2.ColorJitter(brightness, contrast, saturation, hue)

    def change(
        self, image: Tensor, label_map: Tensor | None, size: tuple[int, int], ignore_index: int
    ) -> tuple[Tensor, Tensor | None]:
        return self.transform(image), label_map


class RandAugment(PerSample):
    """`num_ops` of 14 operations, all of one `magnitude` out of 30 (Cubuk et al. 2020)."""

    labels_only = True  # it moves pixels, and torchvision's does not move a label map with them

    def __init__(self, num_ops: int = 2, magnitude: int = 9):
        from torchvision.transforms import InterpolationMode, v2

        self.transform = v2.RandAugment(num_ops, magnitude, interpolation=InterpolationMode.BILINEAR)

    def change(
        self, image: Tensor, label_map: Tensor | None, size: tuple[int, int], ignore_index: int
    ) -> tuple[Tensor, Tensor | None]:
        return self.transform(image), label_map


class TrivialAugment(PerSample):
    """One operation of random strength, of a wide range (Müller & Hutter 2021)."""

    labels_only = True

    def __init__(self) -> None:
        from torchvision.transforms import InterpolationMode, v2

        self.transform = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)

    def change(
        self, image: Tensor, label_map: Tensor | None, size: tuple[int, int], ignore_index: int
    ) -> tuple[Tensor, Tensor | None]:
        return self.transform(image), label_map


def split_stages(augment: Augment | None) -> tuple[list[PerSample], Augment | None]:
    """The sample-by-sample augmentations that come first, for the data workers, and the rest, for whole batches."""
    parts = augment.augments if isinstance(augment, Compose) else [] if augment is None else [augment]
    count = 0
    while count < len(parts) and isinstance(parts[count], PerSample):
        count += 1
    first = cast(list[PerSample], list(parts[:count]))
    return first, Compose(parts[count:]) if parts[count:] else None


# -- Named in conf/augment ---------------------------------------------------------------------------------------------


def flip_crop(padding: int = 4, mode: Literal["zeros", "reflect"] = "zeros", flip: float = 0.5) -> Compose:
    """Padded random crop and mirror image (He et al. 2016, section 4.2)."""
    return Compose([PadCrop(padding, mode), Flip(flip)])


def random_resized_crop(
    area: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3), flip: float = 0.5
) -> Compose:
    """A random part brought to size, and mirror image (Szegedy et al. 2015)."""
    return Compose([RandomResizedCrop(area, ratio), Flip(flip)])


def scale_crop_flip(scale: Sequence[float] = (0.5, 2.0), flip: float = 0.5) -> Compose:
    """Random scale, crop and mirror image for segmentation (Chen et al. 2017)."""
    return Compose([ScaleCrop(scale), Flip(flip)])
