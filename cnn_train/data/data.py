"""What training needs of data: splits of images and targets, and batches of them on the device.

Data that fits in memory lives on the device as uint8 and is indexed, augmented and normalized there, a batch at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_train.data.random import generator
from cnn_train.errors import DataError


class Batch(NamedTuple):
    """Normalized images (N, C, H, W), targets (N) or (N, H, W) int64 or soft (N, K), indices (N) into the split."""

    images: Tensor
    targets: Tensor
    indices: Tensor


class Augment(Protocol):
    """Changes a uint8 batch; what it draws depends on (seed, epoch, index) of each sample alone."""

    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        indices: Tensor,
        epoch: int,
        seed: int,
        *,
        ignore_index: int,
        num_classes: int,
    ) -> tuple[Tensor, Tensor]: ...


class Source(Protocol):
    """A split: uint8 images and targets by index, all of one size."""

    def __len__(self) -> int: ...

    def batches(
        self, indices: Sequence[Tensor], epoch: int | None, seed: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each index tensor (n): images (n, C, H, W) uint8 and targets on the device; epoch None: unaltered."""
        ...

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel (C), of values in [0, 1]."""
        ...

    def class_counts(self, num_classes: int) -> Tensor:
        """Samples, or pixels, of each class (K)."""
        ...


@dataclass
class InMemory:
    """A split held as images (N, C, H, W) uint8 and targets (N) or (N, H, W), moved to the device once."""

    images: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8 and len(self.images) == len(self.targets)

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, indices: Sequence[Tensor], epoch: int | None, seed: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        self.images, self.targets = self.images.to(device), self.targets.to(device)
        for index in indices:
            yield self.images[index], self.targets[index].long()

    def statistics(self) -> tuple[Tensor, Tensor]:
        # By histogram: exact, and without a float copy of all images.
        channels = self.images.cpu().unbind(1)
        return histogram_statistics(torch.stack([torch.bincount(c.flatten(), minlength=256) for c in channels]))

    def class_counts(self, num_classes: int) -> Tensor:
        flat = self.targets.flatten().long()
        return torch.bincount(flat[(flat >= 0) & (flat < num_classes)], minlength=num_classes)


class Data:
    """Three splits of one kind of image, and how they are batched.

    `batch_size` is that of all processes together. `normalize` is "standardize" (zero mean and unit deviation by `mean`
    and `std` per channel, computed from the training images where they are not given), "minmax" ([0, 1]) or "none" (0
    to 255). Targets equal to `ignore_index` count nowhere. `resize` says how images were brought to size: "stretch",
    "crop", "pad" or not, "own" (`cnn_train.data.files.bring_to_size`).
    """

    def __init__(
        self,
        name: str,
        task: str,
        splits: Mapping[str, Source],
        class_names: Sequence[str],
        *,
        in_channels: int,
        image_size: tuple[int, int],
        batch_size: int,
        eval_batch_size: int,
        seed: int = 0,
        augment: Augment | None = None,
        drop_last: bool = False,
        normalize: str = "standardize",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        ignore_index: int = -100,
        resize: str = "stretch",
    ):
        if normalize not in ("standardize", "minmax", "none"):
            raise DataError(f"data.normalize must be standardize, minmax or none, got {normalize!r}")
        for split in ("train", "val", "test"):
            if not len(splits[split]):
                raise DataError(f"{name}: the {split} split is empty")
        if task == "segmentation" and getattr(augment, "labels_only", False):
            raise DataError(
                f"the chosen augment does not change label maps; {name} needs augment=flip, shift or another"
            )
        self.name = name
        self.task = task
        self.splits = splits
        self.class_names = list(class_names)
        self.num_classes = len(self.class_names)
        self.in_channels = in_channels
        self.image_size = image_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.augment = augment
        self.drop_last = drop_last and len(splits["train"]) >= batch_size
        self.normalize = normalize
        self.ignore_index = ignore_index
        self.resize = resize
        if normalize != "standardize":
            mean, std = [0.0] * in_channels, [1.0 if normalize == "minmax" else 1 / 255] * in_channels
        elif mean is None or std is None:
            computed = splits["train"].statistics()
            mean, std = (values.tolist() for values in computed)
        self.normalize_by(mean, std)

    def normalize_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take these for each channel from now on, of values in [0, 1]: those of other data, or of weights."""
        self.mean, self.std = list(mean), [max(value, 1e-6) for value in std]
        self._scale, self._shift = scale_and_shift(self.mean, self.std)

    def size(self, split: str) -> int:
        """Number of samples."""
        return len(self.splits[split])

    def train_steps(self, world_size: int = 1) -> int:
        """Batches of an epoch, the same for every process; a rest smaller than the number of processes is left out."""
        full, rest = divmod(self.size("train"), self.batch_size)
        return full + (0 if self.drop_last else int(rest >= world_size))

    def train_batches(
        self, epoch: int, *, device: torch.device, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, or this process's part of each."""
        order = torch.randperm(self.size("train"), generator=generator(self.seed, epoch)).to(device)
        cuts = range(start * self.batch_size, self.train_steps(world_size) * self.batch_size, self.batch_size)
        indices = [order[cut : cut + self.batch_size][rank::world_size] for cut in cuts]
        together = self._steps_together()
        blocks = [indices[first : first + together] for first in range(0, len(indices), together)]
        joined = [torch.cat(block) for block in blocks]
        made = self.splits["train"].batches(joined, epoch, self.seed, device)
        for block, index, (images, targets) in zip(blocks, joined, made, strict=True):
            if self.augment is not None:
                images, targets = self.augment(
                    images,
                    targets,
                    index,
                    epoch,
                    self.seed,
                    ignore_index=self.ignore_index,
                    num_classes=self.num_classes,
                )
            sizes = [len(part) for part in block]
            yield from map(Batch, self.to_input(images).split(sizes), targets.split(sizes), block)

    def _steps_together(self) -> int:
        """How many small batches are made at once: what an operation costs at all is then paid once for them.

        Each sample's randomness is its own, so that changes nothing, but for augmentations that mix a batch's samples.
        """
        if not isinstance(self.splits["train"], InMemory) or getattr(self.augment, "mixes", False):
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
            yield Batch(self.to_input(images), targets, index)

    def samples(self, split: str, indices: Sequence[int], *, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) uint8 and targets of these samples, unaltered, padded to the size of the largest."""
        chosen = torch.as_tensor(list(indices), device=device).split(1)
        images, targets = zip(*self.splits[split].batches(chosen, None, self.seed, device), strict=True)
        height, width = (max(image.size(axis) for image in images) for axis in (-2, -1))

        def grown(maps: Tensor, value: int) -> Tensor:
            return F.pad(maps, (0, width - maps.size(-1), 0, height - maps.size(-2)), value=value)

        if self.task == "segmentation":
            targets = tuple(grown(target, self.ignore_index) for target in targets)
        return torch.cat([grown(image, 0) for image in images]), torch.cat(targets)

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

    def preprocessing(self) -> dict[str, Any]:
        """What an image must go through before the network, as plain data."""
        return {
            "task": self.task,
            "image_size": list(self.image_size),
            "resize": self.resize,
            "in_channels": self.in_channels,
            "normalize": self.normalize,
            "mean": self.mean,
            "std": self.std,
            "ignore_index": self.ignore_index,
        }


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """What values of 0..255 are multiplied by, and what is added, to standardize them; (C, 1, 1) each."""
    deviation = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
    middle = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
    return (1 / (255 * deviation)).float(), (-middle / deviation).float()


def check_augment(name: str, task: str, augment: Augment | None) -> None:
    if task == "segmentation" and getattr(augment, "labels_only", False):
        raise DataError(
            f"{name} has label maps, which the chosen augment does not change; choose augment=flip or shift"
        )


def histogram_statistics(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, in [0, 1], from how often each value occurs: (C, 256) -> (C), (C)."""
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ values
    return mean, (share @ values.square() - mean.square()).clamp(min=0).sqrt()


def as_size(image_size: int | Sequence[int] | None, default: int) -> tuple[int, int]:
    """(height, width) of what a config says: a side, two numbers, or None for the default."""
    if image_size is None:
        return default, default
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width
