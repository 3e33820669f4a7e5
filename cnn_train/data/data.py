"""What training needs of data: splits of images and targets, and batches of them on the device.

Data that fits in memory lives on the device as uint8 and is indexed, augmented and normalized there, a batch at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_train.data.augment import Augment, apply, check_support
from cnn_train.data.boxes import UNUSED
from cnn_train.data.joined import Joined, Part
from cnn_train.data.sampling import balanced_order, uniform_order, weighted_order
from cnn_train.data.scales import Scales
from cnn_train.data.source import Held, InMemory, Source
from cnn_train.data.splits import skipped_table, split_table
from cnn_train.data.targets import TASKS, Targets, TargetSpec
from cnn_train.errors import DataError


class Batch(NamedTuple):
    """Normalized images (N, C, H, W), their targets, and indices (N) into the split.

    Targets are as `cnn_train.data.targets` says; labels that were mixed are soft (N, K).
    """

    images: Tensor
    targets: Tensor
    indices: Tensor


@dataclass(frozen=True)
class DataSet:
    """What a builder found: three splits, and what holds for all of them.

    Targets equal to `ignore_index` count nowhere; `min_visible` is as in `TargetSpec`. `resize` says how images were
    brought to size (`cnn_train.data.images.bring_to_size`), `reading` how a file becomes an image, as plain data.
    With `one_by_one` the images of evaluation differ in size, so that a batch holds one. `notes` are remarks for the
    header of a run, `root` is the folder of its files, `skipped` are files that are left out, with the reason. `groups`
    are those of files that belong together, such as photographs of one patient; `weights` say how often training files
    are drawn, in proportion.
    """

    name: str
    targets: Targets
    splits: Mapping[str, Source]
    class_names: Sequence[str]
    in_channels: int
    image_size: tuple[int, int]
    ignore_index: int = -100
    min_visible: float = 0.25
    resize: str = "stretch"
    reading: Mapping[str, Any] = field(default_factory=dict)
    one_by_one: bool = False
    notes: Sequence[str] = ()
    root: Path | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)


class Data:
    """A data set, and how it is batched, augmented and normalized.

    `batch_size` is that of all processes together. `normalize` is "standardize" (zero mean and unit deviation by `mean`
    and `std` per channel, computed from the training images where they are not given), "minmax" ([0, 1]) or "none" (0
    to 255). `sampler` is "uniform", each training image once an epoch, or "balanced", each class as often as another.
    With `multi_scale`, training images get another shorter side within these bounds every ten steps.
    """

    def __init__(
        self,
        data_set: DataSet,
        *,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        seed: int = 0,
        augment: Augment | None = None,
        drop_last: bool = False,
        normalize: Literal["standardize", "minmax", "none"] = "standardize",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        sampler: Literal["uniform", "balanced"] = "uniform",
        multi_scale: Sequence[int] | None = None,
    ):
        self.name, self.class_names = data_set.name, list(data_set.class_names)
        self.num_classes, self.in_channels = len(self.class_names), data_set.in_channels
        self.image_size, self.resize = data_set.image_size, data_set.resize
        self.ignore_index, self.notes = data_set.ignore_index, tuple(data_set.notes)
        self.spec = TargetSpec(data_set.targets, self.num_classes, self.ignore_index, data_set.min_visible)
        self.batch_size, self.seed, self.normalize = batch_size, seed, normalize
        self.eval_batch_size = 1 if data_set.one_by_one else eval_batch_size
        self._reading, self._root, self.skipped = dict(data_set.reading), data_set.root, dict(data_set.skipped)
        self.groups = dict(data_set.groups)
        if normalize not in ("standardize", "minmax", "none"):
            raise DataError(f"data.normalize must be standardize, minmax or none, got {normalize!r}")
        for split in ("train", "val", "test"):
            if not len(data_set.splits[split]):
                raise DataError(f"{self.name}: the {split} split is empty")
        check_support(self.name, data_set.targets, augment)
        self._unaltered = data_set.splits
        train, self.augment = data_set.splits["train"].augmented(augment)
        self.splits: dict[str, Source] = {**data_set.splits, "train": train}
        self._order = self._sampling(sampler, data_set.weights)
        self._scales = None if multi_scale is None else Scales(multi_scale, self.image_size, seed)
        self.drop_last = drop_last and len(train) >= batch_size
        self.normalize_by(*self._normalization(mean, std))

    @property
    def targets(self) -> Targets:
        """The kind of the targets."""
        return self.spec.kind

    @property
    def task(self) -> str:
        """What a network does with such targets: classification, multilabel, segmentation or detection."""
        return TASKS[self.spec.kind]

    def _sampling(self, sampler: str, weights: Mapping[str, float]) -> Callable[[int, int], Tensor]:
        """What gives the indices of the training samples by seed and epoch."""
        train = self.splits["train"]
        if sampler != "balanced":
            if not weights:
                return partial(uniform_order, len(train))
            return partial(weighted_order, torch.tensor([weights[path] for path in train.paths()]))
        if weights:
            raise DataError(
                "data.sampler=balanced and a column weight both say how often an image is drawn; use data.sampler="
                "uniform, which follows the weights, or data.columns={weight: null} to pass them over"
            )
        if self.targets not in ("labels", "multilabels"):
            raise DataError(
                f"data.sampler=balanced is for labels of whole images, but {self.name} has {self.targets}; "
                "loss.class_weights=auto weighs classes of pixels"
            )
        return partial(balanced_order, train.labels())

    def _normalization(
        self, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> tuple[list[float], list[float]]:
        if self.normalize != "standardize":
            return [0.0] * self.in_channels, [1.0 if self.normalize == "minmax" else 1 / 255] * self.in_channels
        if mean is None or std is None:
            mean, std = (values.tolist() for values in self.splits["train"].statistics())
        for name, given in (("mean", mean), ("std", std)):
            if len(given) != self.in_channels:
                raise DataError(
                    f"data.{name} has {len(given)} numbers for {self.in_channels} channels; give one for each"
                )
        return list(mean), [max(value, 1e-6) for value in std]

    def normalize_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take these for each channel from now on, of values in [0, 1]: those of other data, or of weights."""
        self.mean, self.std = list(mean), list(std)
        self._scale, self._shift = scale_and_shift(self.mean, self.std)

    def fit_scales(self, multiple: int, least: int) -> None:
        """Draw sides that are multiples of a network's largest stride; `least` is the smallest that it takes."""
        if self._scales is not None:
            self._scales.fit(multiple, least)

    def size(self, split: str) -> int:
        """Number of samples."""
        return len(self.splits[split])

    def keep_batches(self, count: int) -> None:
        """Let every split be the images of the first so many training batches; normalization stays as it is."""
        first = self._order(self.seed, 0)[: count * self.batch_size].unique()
        part = Part(self.splits["train"], first)
        self.splits = self._unaltered = dict.fromkeys(("train", "val", "test"), part)
        self._order = partial(uniform_order, len(part))
        self.notes = (*self.notes, f"train, val and test are the same {len(part):,} images (trainer.overfit_batches)")

    def join(self) -> None:
        """Add the split `all`: every image once."""
        different: list[Any] = []
        for source in (self._unaltered[split] for split in ("train", "val", "test")):
            paths = source.paths()
            if not any(source is other or (paths and paths == other.paths()) for other in different):
                different.append(source)
        self.splits["all"] = Joined(different)

    def train_steps(self, world_size: int = 1) -> int:
        """Batches of an epoch, the same for every process.

        A last batch with fewer images than processes is dropped.
        """
        full, rest = divmod(self.size("train"), self.batch_size)
        return full + (0 if self.drop_last else int(rest >= world_size))

    def train_batches(
        self, epoch: int, *, device: torch.device, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, or this process's part of each."""
        order = self._order(self.seed, epoch).to(device)
        cuts = range(start * self.batch_size, self.train_steps(world_size) * self.batch_size, self.batch_size)
        indices = [order[cut : cut + self.batch_size][rank::world_size] for cut in cuts]
        together = self._steps_together()
        blocks = [indices[first : first + together] for first in range(0, len(indices), together)]
        joined = [torch.cat(block) for block in blocks]
        made = self.splits["train"].batches(joined, epoch, self.seed, device)
        for number, (block, index, (images, targets)) in enumerate(zip(blocks, joined, made, strict=True)):
            targets = self._typed(targets)
            if self.augment is not None:
                images, targets = self.augment(images, targets, index, epoch, self.seed, self.spec)
            sizes = [len(part) for part in block]
            if self._scales is not None:
                step = self.train_steps(world_size) * epoch + start + number
                images, targets = apply(self._scales.at(step), images, targets, self.spec)
            yield from map(Batch, self.to_input(images).split(sizes), targets.split(sizes), block)

    def _steps_together(self) -> int:
        """How many small batches are made at once, to share the fixed cost of each operation.

        Each sample's randomness is its own, so this changes nothing, except for augmentations that mix samples; and
        steps of several scales cannot be joined.
        """
        mixes = self.augment is not None and self.augment.mixes
        if mixes or self._scales is not None or not isinstance(self.splits["train"], InMemory | Held):
            return 1
        numbers = self.batch_size * self.in_channels * self.image_size[0] * self.image_size[1]
        return min(max(2**20 // numbers, 1), 16)

    def eval_batches(self, split: str, *, device: torch.device, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Every sample of a split once, in order, unaltered; each process gets its own."""
        mine = torch.arange(rank, self.size(split), world_size, device=device)
        indices = list(mine.split(self.eval_batch_size))
        for index, (images, targets) in zip(
            indices, self.splits[split].batches(indices, None, self.seed, device), strict=True
        ):
            yield Batch(self.to_input(images), self._typed(targets), index)

    def _typed(self, targets: Tensor) -> Tensor:
        return targets.long() if self.targets in ("labels", "maps") else targets.float()

    def samples(self, split: str, indices: Sequence[int], *, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) uint8 and targets of these samples, unaltered, padded to the size of the largest."""
        chosen = torch.as_tensor(list(indices), device=device).split(1)
        images, targets = zip(*self.splits[split].batches(chosen, None, self.seed, device), strict=True)
        targets = tuple(map(self._typed, targets))
        if self.targets == "maps":
            targets = _grown(targets, self.ignore_index)
        elif self.targets == "boxes":
            targets = _grown(targets, UNUSED[4])
        return torch.cat(_grown(images, 0)), torch.cat(targets)

    def to_input(self, images: Tensor) -> Tensor:
        """Normalize uint8 images (N, C, H, W) to what the network takes."""
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return (images * self._scale).add_(self._shift)

    def denormalize(self, images: Tensor) -> Tensor:
        """Inverse of `to_input`, as values in [0, 1]."""
        scale, shift = self._scale.to(images.device), self._shift.to(images.device)
        return ((images - shift) / scale / 255).clamp(0, 1)

    def class_counts(self, split: str) -> Tensor:
        """Samples, or pixels, of each class (K)."""
        return self.splits[split].class_counts(self.num_classes)

    def split_table(self) -> str | None:
        """Which file is in which split, as CSV; None for data that is not in files of its own."""
        paths = {split: source.paths() for split, source in self.splits.items()}
        return split_table(paths, self._root) if all(paths.values()) else None

    def skipped_table(self) -> str | None:
        """The files that were left out and why, as CSV; None if there are none."""
        return skipped_table(self.skipped) if self.skipped else None

    def preprocessing(self) -> dict[str, Any]:
        """What an image must go through before the network, as plain data."""
        return {
            "task": self.task,
            "targets": self.targets,
            "image_size": list(self.image_size),
            "resize": self.resize,
            "in_channels": self.in_channels,
            "normalize": self.normalize,
            "mean": self.mean,
            "std": self.std,
            "ignore_index": self.ignore_index,
            **self._reading,
        }


def _grown(tensors: Sequence[Tensor], value: float) -> tuple[Tensor, ...]:
    """Each (..., H, W) padded below and at the right to the size of the largest."""
    height, width = (max(tensor.size(axis) for tensor in tensors) for axis in (-2, -1))
    return tuple(F.pad(t, (0, width - t.size(-1), 0, height - t.size(-2)), value=value) for t in tensors)


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """What values of 0..255 are multiplied by, and what is added, to standardize them; (C, 1, 1) each."""
    deviation = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
    middle = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
    return (1 / (255 * deviation)).float(), (-middle / deviation).float()


def as_size(image_size: int | Sequence[int] | None, default: int) -> tuple[int, int]:
    """(height, width) of what a config says: a side, two numbers, or None for the default."""
    if image_size is None:
        return default, default
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width
