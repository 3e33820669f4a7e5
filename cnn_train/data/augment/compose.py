"""What an augmentation is, several in a row, and which of them data workers may do."""

from collections.abc import Sequence
from typing import Protocol, cast

from torch import Tensor

from cnn_train.data.augment.sample import PerSample
from cnn_train.data.targets import EVERY_KIND, Targets, TargetSpec
from cnn_train.errors import DataError


class Augment(Protocol):
    """Changes a uint8 batch (N, C, H, W) and its targets; what it draws for a sample depends on (seed, epoch, index).

    `supports` are the kinds of targets that stay true; others are refused before training. With `mixes` a sample
    depends on the others of its batch, so that each batch is changed by itself; without, several may be joined.
    """

    supports: frozenset[Targets]
    mixes: bool

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]: ...


class Compose:
    """One augmentation after another; lists of lists are flattened."""

    def __init__(self, augments: Sequence[Augment]):
        self.augments: list[Augment] = []
        for augment in augments:
            self.augments += augment.augments if isinstance(augment, Compose) else [augment]
        self.supports = EVERY_KIND.intersection(*(augment.supports for augment in self.augments))
        self.mixes = any(augment.mixes for augment in self.augments)

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        for augment in self.augments:
            images, targets = augment(images, targets, indices, epoch, seed, spec)
        return images, targets


def check_support(name: str, targets: Targets, augment: Augment | None) -> None:
    """Raise DataError if the augmentation would leave the targets of the data set `name` untrue."""
    if augment is None or targets in augment.supports:
        return
    parts = augment.augments if isinstance(augment, Compose) else [augment]
    wrong = next(part for part in parts if targets not in part.supports)
    kind = {"maps": "label maps", "labels": "class labels"}.get(targets, targets)
    raise DataError(
        f"{type(wrong).__name__} of the chosen augment cannot change {kind}, which {name} has; "
        "choose augment=flip, shift or another"
    )


def split_stages(augment: Augment | None) -> tuple[list[PerSample], Augment | None]:
    """The sample-by-sample augmentations that come first, for the data workers, and the rest, for whole batches."""
    parts = augment.augments if isinstance(augment, Compose) else [] if augment is None else [augment]
    count = 0
    while count < len(parts) and isinstance(parts[count], PerSample):
        count += 1
    first = cast(list[PerSample], list(parts[:count]))
    return first, Compose(parts[count:]) if parts[count:] else None
