"""Splits in files, read by workers batch after batch."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cnn_train.data.augment import Augment, PerSample, RandomResizedCrop, apply, split_stages
from cnn_train.data.augment.moves import resized_part, whole
from cnn_train.data.boxes import pack_boxes
from cnn_train.data.cache import DECODED, cache_folder, remember, remember_pixels
from cnn_train.data.checking import shown
from cnn_train.data.decode import read_header
from cnn_train.data.images import Reader, bring_to_size
from cnn_train.data.room import Cache, check_disk, check_shared_memory, memory_for_images
from cnn_train.data.source import Held, InMemory, Source, channel_histograms, counts, histogram_statistics
from cnn_train.data.targets import TargetSpec
from cnn_train.data.team import Team
from cnn_train.errors import DataError

log = logging.getLogger(__name__)


class ReadMask(Protocol):
    def __call__(self, path: str) -> Tensor:
        """Label map (H, W) uint8 of a mask's file."""
        ...


@dataclass
class OnDisk:
    """A split in files: `samples` are an image's path and its target.

    The target is a class number, numbers for multi-labels, a mask's path that `read_mask` reads, or boxes (n, 6).
    Workers decode and bring to size, in training by `augments`, otherwise as `how` says (see `bring_to_size`).
    """

    samples: list[tuple[str, Any]]
    size: tuple[int, int]
    how: str
    reader: Reader
    spec: TargetSpec
    read_mask: ReadMask | None = None
    augments: list[PerSample] = field(default_factory=list)
    workers: int = 0
    one_size: bool = True  # whether images that are left as they are can make a batch
    cache_dir: str | None = None
    scaled: bool = False  # whether JPEGs may be decoded smaller; where the targets do not depend on the size
    keeps: bool = False  # whether what was decoded is kept in the cache's folder

    def __post_init__(self) -> None:
        boxes = [len(target) for _, target in self.samples] if self.spec.kind == "boxes" else []
        self._most_boxes = max(boxes, default=0)
        self._team: Team | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int, epoch: int | None, seed: int) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) uint8 and target of one sample, as in an epoch, or unaltered."""
        augments = [] if epoch is None else self.augments
        if self.scaled and not self.keeps and augments and isinstance(augments[0], RandomResizedCrop):
            image, target = self._cropped(augments[0], index, epoch or 0, seed)
            augments = augments[1:]
        else:
            image, target = self._unaltered(index, not any(augment.brings_to_size for augment in augments))
        for augment in augments:
            image, target = augment.one(image, target, self.size, index, epoch or 0, seed, self.spec)
        return image.contiguous(), target.contiguous()

    def _unaltered(self, index: int, fit: bool) -> tuple[Tensor, Tensor]:
        """A sample as `_decoded` makes it, or as it was kept."""
        if not self.keeps:
            return self._decoded(index, fit)
        path, raw = self.samples[index]
        maps = self.spec.kind == "maps"

        def decode() -> Tensor:
            image, target = self._decoded(index, fit)
            return torch.cat([image, target[None]]) if maps else image

        size = f"{self.size} {self.how}{' scaled' * self.scaled}" if fit else "whole"
        files = [path, raw] if maps else [path]
        made = remember_pixels(
            self.cache_dir, files, f"{size} {self.reader} {self.read_mask}", self.reader.num_channels + maps, decode
        )
        return (made[:-1], made[-1]) if maps else (made, self._target(raw))

    def _decoded(self, index: int, fit: bool) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) uint8 and target of one sample, at the size of training if it is to `fit`."""
        path, raw = self.samples[index]
        if self.scaled and fit:
            return self._reduced(path), self._target(raw)
        image, target = self.reader(path), self._target(raw)
        own = image.size(1), image.size(2)
        if self.spec.kind == "maps" and target.shape != own:
            raise DataError(sizes_differ(path, raw, own, tuple(target.shape)))
        if fit and own != self.size:
            image, target = apply(bring_to_size(own, self.size, self.how), image, target, self.spec)
        return image, target

    def _reduced(self, path: str) -> Tensor:
        """An image at the size of training, decoded no smaller than it is scaled to."""
        header = read_header(path, self.reader.max_pixels)
        move = bring_to_size((header.height, header.width), self.size, self.how)
        image = self.reader.reduced(path, move.scaled)
        return replace(move, part=whole(image.shape[-2:])).images(image)

    def _cropped(self, crop: RandomResizedCrop, index: int, epoch: int, seed: int) -> tuple[Tensor, Tensor]:
        """A sample's part as `crop` cuts it, from an image in which the part is no smaller than training needs it."""
        path, raw = self.samples[index]
        header = read_header(path, self.reader.max_pixels)
        own = header.height, header.width
        part = crop.part(own, index, epoch, seed)
        least = math.ceil(own[0] * self.size[0] / part[2]), math.ceil(own[1] * self.size[1] / part[3])
        image = self.reader.reduced(path, least)
        down, right = image.size(1) / own[0], image.size(2) / own[1]
        (top, left, height, width), box = part, (right, down, right, down)
        edges = [edge * scale for edge, scale in zip((left, top, left + width, top + height), box, strict=True)]
        return resized_part(image, edges, self.size), self._target(raw)

    def _target(self, raw: Any) -> Tensor:
        if self.spec.kind == "maps":
            assert self.read_mask is not None
            return self.read_mask(raw)
        if self.spec.kind == "boxes":
            return pack_boxes([raw], self._most_boxes)[0]
        return torch.tensor(raw)

    def batches(
        self, indices: Sequence[Tensor], epoch: int | None, seed: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self._samples(indices, epoch, seed, device):
            yield images.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    def _samples(
        self, indices: Sequence[Tensor], epoch: int | None, seed: int, device: torch.device, stays: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and targets of the samples at each index tensor, by workers that live as long as the split."""
        keys = [[(number, epoch, seed) for number in index.tolist()] for index in indices]
        pins, workers = torch.device(device).type == "cuda", min(self.workers, len(indices))
        self._check_memory(workers, indices)
        if not workers or not stays or (self._team is not None and self._team.busy):
            return Team(_Samples(self), _Joined(_stack), workers, self.workers, pins).run(keys)
        if self._team is None or self._team.dead or self._team.pins != pins:
            self._team = Team(_Samples(replace(self)), _Joined(_stack), workers, self.workers, pins, stays=True)
        return self._team.run(keys)

    def _loaded(self, samples: Dataset, indices: Sequence[Tensor], join: Callable[[list[Any]], Any]) -> Iterator[Any]:
        """What workers make of the samples at each index tensor, joined, on the CPU."""
        workers = min(self.workers, len(indices))
        self._check_memory(workers, indices)
        return Team(samples, _Joined(join), workers, self.workers).run([index.tolist() for index in indices])

    def _check_memory(self, workers: int, indices: Sequence[Tensor]) -> None:
        if workers:
            pixels = self.reader.num_channels * self.size[0] * self.size[1]
            check_shared_memory(workers, max(map(len, indices)) * pixels)

    def augmented(self, augment: Augment | None) -> tuple[Source, Augment | None]:
        first, rest = split_stages(augment)
        if self.how == "own" and not self.one_size and not any(part.brings_to_size for part in first):
            raise DataError(
                "data.resize=own leaves the training images in different sizes; choose augment=scale_crop_flip, which "
                "crops them, or data.resize=pad"
            )
        return replace(self, augments=first), rest

    def paths(self) -> list[str]:
        return [path for path, _ in self.samples]

    def files(self) -> list[str]:
        """The files that the images are read from."""
        return self.paths()

    def in_memory(self) -> InMemory:
        """The split decoded at once, unaltered."""
        every, images, targets = torch.arange(len(self)).split(256), torch.empty(0), torch.empty(0)
        # Its workers end with it: nothing is read again.
        made = self._samples(every, None, 0, torch.device("cpu"), stays=False)
        for index, (some, their) in zip(shown(every, "decode images", len(self)), made, strict=True):
            if not len(images):
                images = torch.empty(len(self), *some.shape[1:], dtype=some.dtype)
                targets = torch.empty(len(self), *their.shape[1:], dtype=their.dtype)
            images[index], targets[index] = some, their
        return InMemory(images, targets)

    def statistics(self, most: int = 1000) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel (C), of values in [0, 1]; from `most` images evenly spread.

        Padding does not count. They are computed once for the same files and settings.
        """
        chosen = torch.linspace(0, len(self) - 1, min(most, len(self))).round().long().split(64)

        def compute() -> list[list[float]]:
            loaded = self._loaded(_Histograms(self), chosen, _sum)
            return [
                values.tolist() for values in histogram_statistics(sum(loaded, torch.zeros(1, 1, dtype=torch.int64)))
            ]

        settings = f"{self.size} {self.how} {self.reader} {len(self)}"
        mean, std = remember(self.cache_dir, "statistics", self.files(), settings, compute)
        return torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)

    def class_counts(self, num_classes: int) -> Tensor:
        """Samples, boxes, or pixels of the masks as they are stored, of each class (K)."""
        if self.read_mask is not None:
            return sum((counts(self.read_mask(path), num_classes) for _, path in self.samples), torch.zeros(1).long())
        targets = [raw for _, raw in self.samples]
        return counts(torch.cat(targets)[None] if self.spec.kind == "boxes" else torch.tensor(targets), num_classes)

    def labels(self) -> Tensor:
        return torch.tensor([raw for _, raw in self.samples])


class _Samples(Dataset):
    def __init__(self, source: OnDisk):
        self.source = source

    def __getitem__(self, key: tuple[int, int | None, int]) -> tuple[Tensor, Tensor] | DataError:
        try:
            return self.source.load(*key)
        except DataError as error:
            # Returned, not raised: a worker would bury the message in its traceback.
            return DataError(str(error))


class _Histograms(Dataset):
    """How often each value occurs in an image of the size of training (C, 256), padding left out."""

    def __init__(self, source: OnDisk):
        self.source = source

    def __getitem__(self, index: int) -> Tensor | DataError:
        source = self.source
        try:
            image = source.reader(source.samples[index][0])
        except DataError as error:
            return DataError(str(error))
        move = bring_to_size((image.size(1), image.size(2)), source.size, "crop" if source.how == "own" else source.how)
        if source.how == "pad":
            move = replace(move, border=(0, 0, 0, 0))
        return channel_histograms(move.images(image)[None])


class _Joined:
    """Joins the samples of a batch, or gives the first error among them."""

    def __init__(self, join: Callable[[list[Any]], Any]):
        self.join = join

    def __call__(self, samples: list[Any]) -> Any:
        return next((sample for sample in samples if isinstance(sample, DataError)), None) or self.join(samples)


def _stack(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(targets)


def _sum(histograms: list[Tensor]) -> Tensor:
    return torch.stack(histograms).sum(0)


def num_workers(workers: int | None) -> int:
    """What a config says, or as many as there are cores, 8 at most."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def as_sources(
    splits: Mapping[str, list[tuple[str, Any]]], common: OnDisk, cache: Cache, in_memory: bool, notes: list[str]
) -> dict[str, Source]:
    """The splits as sources like `common`, with what is decoded kept as `cache` says.

    "auto" holds in memory what takes at most `memory_for_images`, "ram" whatever it takes, "disk" writes it
    into the cache's folder. Each gives the same bits as "none": a training split whose augmentation crops whole images
    stays in files unless it is on "disk". `in_memory` is "ram" with crops from images of the size of training.
    """
    sources = {split: replace(common, samples=samples) for split, samples in splits.items()}
    masks = common.spec.kind == "maps"
    pixels = common.size[0] * common.size[1] * (common.reader.num_channels + masks)
    needed = pixels * sum(map(len, splits.values()))
    if cache == "disk" and not in_memory:
        folder = cache_folder(common.cache_dir)
        check_disk(folder, needed)
        notes.append(f"decoded images are kept in {folder / DECODED}")
        return {split: replace(common, samples=samples, keeps=True) for split, samples in splits.items()}
    small = common.how != "own" and needed <= memory_for_images()
    if (in_memory or cache == "ram") and common.how == "own" and not common.one_size:
        raise DataError("data.resize=own leaves images in different sizes; choose data.in_memory=false data.cache=none")
    if in_memory or cache == "ram" or (cache == "auto" and small):
        return {split: Held(source, exact=not in_memory) for split, source in sources.items()}
    return dict(sources)


def sizes_differ(image: str, mask: str, image_size: tuple[int, ...], mask_size: tuple[int, ...]) -> str:
    sizes = ["x".join(map(str, size)) for size in (image_size, mask_size)]
    return f"{image} is {sizes[0]} (height x width) but its mask {mask} is {sizes[1]}; they must be of one size"


def warn_of_absent(counts: Mapping[str, Sequence[int]], class_names: Sequence[str], unit: str) -> None:
    """Log the classes of which a split holds nothing: their score would be empty."""
    for split, numbers in counts.items():
        absent = [name for name, number in zip(class_names, numbers, strict=True) if not number]
        if absent:
            few = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
            log.warning("the %s split has no %s of %d class(es): %s", split, unit, len(absent), few)
