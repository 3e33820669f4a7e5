"""Several splits as one source of samples, and a part of one."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Joined:
    """Several splits as one, in their order; only to evaluate on."""

    parts: Sequence[Any]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def batches(
        self, indices: Sequence[Tensor], epoch: int | None, seed: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        starts = [0, *itertools.accumulate(map(len, self.parts))]
        pieces = [[index[(index >= a) & (index < b)] - a for a, b in pairwise(starts)] for index in indices]
        asked = [[row[k] for row in pieces if len(row[k])] for k in range(len(self.parts))]
        made = [part.batches(of, epoch, seed, device) for part, of in zip(self.parts, asked, strict=True)]
        for row in pieces:
            images, targets = zip(*(next(made[k]) for k, piece in enumerate(row) if len(piece)), strict=True)
            yield torch.cat(images), torch.cat(targets)

    def augmented(self, augment: Any) -> tuple[Any, Any]:
        return self, augment

    def paths(self) -> list[str]:
        return [path for part in self.parts for path in part.paths()]

    def statistics(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("the data is normalized by its training images")

    def class_counts(self, num_classes: int) -> Tensor:
        return torch.stack([part.class_counts(num_classes) for part in self.parts]).sum(0)

    def labels(self) -> Tensor:
        return torch.cat([part.labels() for part in self.parts])


@dataclass(frozen=True)
class Part:
    """Samples of a split, by number, as a split; its statistics and class counts are those of the whole."""

    whole: Any
    samples: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def batches(
        self, indices: Sequence[Tensor], epoch: int | None, seed: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return self.whole.batches([self.samples.to(index.device)[index] for index in indices], epoch, seed, device)

    def augmented(self, augment: Any) -> tuple[Any, Any]:
        whole, rest = self.whole.augmented(augment)
        return Part(whole, self.samples), rest

    def paths(self) -> list[str]:
        paths = self.whole.paths()
        return [paths[number] for number in self.samples.tolist()] if paths else []

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self.whole.statistics()

    def class_counts(self, num_classes: int) -> Tensor:
        return self.whole.class_counts(num_classes)

    def labels(self) -> Tensor:
        return self.whole.labels()[self.samples]
