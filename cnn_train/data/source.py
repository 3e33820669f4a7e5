"""Splits: uint8 images and their targets by index, in memory or decoded into it when first asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cnn_train.data.augment import Augment
from cnn_train.data.augment.compose import split_stages


class Source(Protocol):
    """A split: uint8 images and targets by index, all of one size."""

    def __len__(self) -> int: ...

    def batches(
        self, indices: Sequence[Tensor], epoch: int | None, seed: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each index tensor (n): images (n, C, H, W) uint8 and targets on the device; epoch None: unaltered."""
        ...

    def augmented(self, augment: Augment | None) -> tuple["Source", Augment | None]:
        """The split that does the first part of an augmentation itself, and the rest, which is for whole batches."""
        ...

    def paths(self) -> list[str]:
        """The file of each image; empty if it has none of its own."""
        ...

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel (C), of values in [0, 1]."""
        ...

    def class_counts(self, num_classes: int) -> Tensor:
        """Samples, or pixels, of each class (K)."""
        ...

    def labels(self) -> Tensor:
        """Every sample's class number (N), or multi-labels (N, K); only where these are the targets."""
        ...


@dataclass
class InMemory:
    """A split held as images (N, C, H, W) uint8 and targets, moved to the device once if they fit."""

    images: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8 and len(self.images) == len(self.targets)

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, indices: Sequence[Tensor], epoch: int | None, seed: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if fits(self.images, device):
            self.images, self.targets = self.images.to(device), self.targets.to(device)
        for index in indices:
            here = index.to(self.images.device)
            yield self.images[here].to(device), self.targets[here].to(device)

    def augmented(self, augment: Augment | None) -> tuple[Source, Augment | None]:
        return self, augment

    def paths(self) -> list[str]:
        return []

    def statistics(self) -> tuple[Tensor, Tensor]:
        # By histogram: exact, and without a float copy of all images.
        return histogram_statistics(channel_histograms(self.images.cpu()))

    def class_counts(self, num_classes: int) -> Tensor:
        return counts(self.targets, num_classes)

    def labels(self) -> Tensor:
        return self.targets.cpu()


class Held:
    """A split in files that is decoded when it is first asked for, and from then on is in memory.

    `origin` is the split in files. With `exact` it stays there if an augmentation crops whole images, since those in
    memory are of the size of training.
    """

    def __init__(self, origin: "InFiles", exact: bool):
        self.origin, self.exact = origin, exact
        self._memory: InMemory | None = None

    def __len__(self) -> int:
        return len(self.origin)

    def batches(
        self, indices: Sequence[Tensor], epoch: int | None, seed: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self._memory is None:
            self._memory = self.origin.in_memory()
        return self._memory.batches(indices, epoch, seed, device)

    def augmented(self, augment: Augment | None) -> tuple[Source, Augment | None]:
        if self.exact and any(part.brings_to_size for part in split_stages(augment)[0]):
            return self.origin.augmented(augment)
        return self, augment

    def paths(self) -> list[str]:
        return self.origin.paths()

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self.origin.statistics()

    def class_counts(self, num_classes: int) -> Tensor:
        return self.origin.class_counts(num_classes)

    def labels(self) -> Tensor:
        return self.origin.labels()


class InFiles(Source, Protocol):
    def in_memory(self) -> InMemory:
        """The split decoded, unaltered."""
        ...


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether images may live on a device: on a GPU if they are there, or take at most a quarter of what is free."""
    device = torch.device(device)
    if device.type != "cuda" or images.device.type == "cuda":
        return True
    return images.nbytes <= torch.cuda.mem_get_info(device)[0] // 4


def channel_histograms(images: Tensor) -> Tensor:
    """How often each value occurs in each channel: images (N, C, H, W) uint8 -> (C, 256)."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def histogram_statistics(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, in [0, 1], from how often each value occurs: (C, 256) -> (C), (C)."""
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ values
    return mean, (share @ values.square() - mean.square()).clamp(min=0).sqrt()


def counts(targets: Tensor, num_classes: int) -> Tensor:
    """How often each class occurs (K) in labels or label maps, or in multi-labels or boxes, which hold floats."""
    if targets.is_floating_point():
        if targets.ndim == 2:
            return targets.sum(0).long()
        targets = targets[..., 4]
    flat = targets.flatten().long()
    return torch.bincount(flat[(flat >= 0) & (flat < num_classes)], minlength=num_classes)


def shared(splits: Mapping[str, list[Any]], make: Callable[[list[Any]], Source]) -> dict[str, Source]:
    """A source for each split; splits of the same samples share one, so that a union has each image once."""
    made: list[tuple[list[Any], Source]] = []
    sources = {}
    for split, samples in splits.items():
        known = next((source for other, source in made if other == samples), None)
        sources[split] = make(samples) if known is None else known
        made.append((samples, sources[split]))
    return sources
