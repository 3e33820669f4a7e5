"""Augmentations of one sample at a time, under a generator seeded for it, so that a data worker may do them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cnn_train.data.augment.draws import seeded
from cnn_train.data.augment.moves import Move, Resample, apply
from cnn_train.data.targets import EVERY_KIND, OF_WHOLE_IMAGES, Targets, TargetSpec


class PerSample:
    """An augmentation of one sample: subclasses write `change`, which is called under a seeded CPU generator.

    With `brings_to_size` it takes images of any size and gives the wanted one. The rest is as in `Augment`.
    """

    supports: frozenset[Targets] = EVERY_KIND
    mixes = False
    brings_to_size = False

    def change(self, image: Tensor, target: Tensor, size: tuple[int, int], spec: TargetSpec) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) uint8 and its target, changed: a label, label map (H, W), or boxes (M, 6)."""
        raise NotImplementedError

    def one(
        self, image: Tensor, target: Tensor, size: tuple[int, int], index: int, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        """The sample as it is in an epoch: what a data worker calls."""
        with seeded(self, seed, epoch, index):
            return self.change(image, target, size, spec)

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        size = (images.size(2), images.size(3))
        changed = [
            self.one(image, target, size, index, epoch, seed, spec)
            for image, target, index in zip(images, targets, indices.tolist(), strict=True)
        ]
        return torch.stack([image for image, _ in changed]), torch.stack([target for _, target in changed])


class RandomResizedCrop(PerSample):
    """A part of the image of random area and shape, brought to size (Szegedy et al. 2015, section 6)."""

    brings_to_size = True

    def __init__(self, area: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)):
        self.area, self.ratio = tuple(area), tuple(ratio)

    def change(self, image: Tensor, target: Tensor, size: tuple[int, int], spec: TargetSpec) -> tuple[Tensor, Tensor]:
        return apply(Resample(self._part(image.size(-2), image.size(-1)), size), image, target, spec)

    def part(self, own: tuple[int, int], index: int, epoch: int, seed: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of what `one` cuts from an image of this height and width."""
        with seeded(self, seed, epoch, index):
            return self._part(*own)

    def _part(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width: of ten draws the first that fits, else the middle, as torchvision draws."""
        low, high = (math.log(ratio) for ratio in self.ratio)
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(*self.area).item()
            ratio = torch.empty(1).uniform_(low, high).exp().item()
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                top, left = (int(torch.randint(0, rest + 1, (1,))) for rest in (height - tall, width - wide))
                return top, left, tall, wide
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        wide, tall = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (height - tall) // 2, (width - wide) // 2, tall, wide


class ScaleCrop(PerSample):
    """Scale by a factor from `scale` and cut the wanted size out anywhere, padded where the image is smaller.

    As DeepLab trains (Chen et al. 2017, section 4.1); a label map is padded with `ignore_index`, an image with 0.
    """

    brings_to_size = True

    def __init__(self, scale: Sequence[float] = (0.5, 2.0)):
        self.scale = tuple(scale)

    def change(self, image: Tensor, target: Tensor, size: tuple[int, int], spec: TargetSpec) -> tuple[Tensor, Tensor]:
        return apply(self._move((image.size(-2), image.size(-1)), size), image, target, spec)

    def _move(self, own: tuple[int, int], size: tuple[int, int]) -> Move:
        random = torch.rand(3).tolist()
        factor = self.scale[0] + random[0] * (self.scale[1] - self.scale[0])
        # Cut first, then scale: only what is kept is computed.
        start, length, scaled, before = [], [], [], []
        for have, want, draw in zip(own, size, random[1:], strict=True):
            part = min(max(round(want / factor), 1), have)
            result = want if part < have else min(max(round(have * factor), 1), want)
            start.append(int(draw * (have - part + 1)))
            length.append(part)
            scaled.append(result)
            before.append(int(draw * (want - result + 1)))
        after = [want - have - first for want, have, first in zip(size, scaled, before, strict=True)]
        part = start[0], start[1], length[0], length[1]
        return Resample(part, (scaled[0], scaled[1]), (before[1], after[1], before[0], after[0]))


class ColorJitter(PerSample):
    """Change brightness, contrast, saturation by up to the given factors and hue by up to the given part of a turn."""

    def __init__(self, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.1):
        from torchvision.transforms import v2

        self.transform = v2.ColorJitter(brightness, contrast, saturation, hue)

    def change(self, image: Tensor, target: Tensor, size: tuple[int, int], spec: TargetSpec) -> tuple[Tensor, Tensor]:
        return self.transform(image), target


class RandAugment(PerSample):
    """`num_ops` of 14 operations, all of one `magnitude` out of 30 (Cubuk et al. 2020)."""

    supports = OF_WHOLE_IMAGES  # it moves pixels, and torchvision's does not move maps and boxes with them

    def __init__(self, num_ops: int = 2, magnitude: int = 9):
        from torchvision.transforms import InterpolationMode, v2

        self.transform = v2.RandAugment(num_ops, magnitude, interpolation=InterpolationMode.BILINEAR)

    def change(self, image: Tensor, target: Tensor, size: tuple[int, int], spec: TargetSpec) -> tuple[Tensor, Tensor]:
        return self.transform(image), target


class TrivialAugment(PerSample):
    """One operation of random strength, of a wide range (Müller & Hutter 2021)."""

    supports = OF_WHOLE_IMAGES

    def __init__(self) -> None:
        from torchvision.transforms import InterpolationMode, v2

        self.transform = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)

    def change(self, image: Tensor, target: Tensor, size: tuple[int, int], spec: TargetSpec) -> tuple[Tensor, Tensor]:
        return self.transform(image), target
