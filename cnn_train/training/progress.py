"""Where training stands: steps and epochs, the sums of an epoch, the curve of losses, the best epochs."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from cnn_train.training.gradient import Totals


@dataclass
class Progress:
    """Counts of what was trained; `step` counts the batches of all epochs."""

    epoch: int = 0
    step: int = 0
    steps_per_epoch: int = 0
    total_steps: int = 0
    images: int = 0

    @property
    def step_in_epoch(self) -> int:
        return self.step - self.epoch * self.steps_per_epoch

    def updates(self, accumulate: int) -> int:
        """Updates of the weights, each after `accumulate` steps or at the end of an epoch."""
        return self.epoch * -(-self.steps_per_epoch // accumulate) + -(-self.step_in_epoch // accumulate)


@dataclass
class Sums:
    """Totals over the steps of an epoch so far, on the device; those of the loss are to be divided by `weight`."""

    loss: Tensor
    correct: Tensor
    count: Tensor
    weight: Tensor
    parts: Tensor  # (P) of the loss

    @classmethod
    def zero(cls, device: torch.device, parts: int = 0) -> "Sums":
        return cls(*(torch.zeros(size, dtype=torch.float64, device=device) for size in (1, 1, 1, 1, parts)))

    def add(self, batch: Totals) -> None:
        """Take in a batch."""
        self.loss += batch.total
        self.correct += batch.correct
        self.count += batch.count
        self.weight += batch.weight
        if batch.parts is not None:
            self.parts += batch.parts

    @classmethod
    def of(cls, rows: Tensor, rank: int, world_size: int, device: torch.device) -> "Sums":
        """One process's of the sums (processes, 4 + P) that a checkpoint holds; all of them in the first process where
        the number of processes has changed."""
        row = rows[rank] if len(rows) == world_size else rows.sum(0) * (rank == 0)
        return cls(*row.to(device).split([1, 1, 1, 1, len(row) - 4]))

    def values(self) -> list[Tensor]:
        return [getattr(self, f.name) for f in fields(self)]


class Curve:
    """Step, learning rate, loss and gradient norm of each update since the last flush; on the device until asked for.

    `losses` are those of all updates before the flush.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.waiting: list[tuple[int, float, Tensor, Tensor]] = []

    def add(self, step: int, lr: float, loss: Tensor, norm: Tensor) -> None:
        self.waiting.append((step, lr, loss, norm))

    def points(self) -> list[tuple[int, float, float, float]]:
        """What waits, as numbers."""
        if not self.waiting:
            return []
        losses = torch.stack([loss for _, _, loss, _ in self.waiting]).tolist()
        norms = torch.stack([norm for _, _, _, norm in self.waiting]).tolist()
        return [(step, lr, *values) for (step, lr, _, _), *values in zip(self.waiting, losses, norms, strict=True)]

    def first_not_finite(self, norms_count: bool) -> int | None:
        """The first step whose loss, or gradient norm if that counts, is not finite; it and what follows is dropped."""
        for index, (step, _, loss, norm) in enumerate(self.points()):
            if not (math.isfinite(loss) and (not norms_count or math.isfinite(norm))):
                del self.waiting[index:]
                return step
        return None

    def flush(self) -> dict[str, float]:
        """The means since the last flush, under the names of the loggers' curves; {} if nothing came."""
        points = self.points()
        self.waiting.clear()
        if not points:
            return {}
        self.losses += [loss for _, _, loss, _ in points]
        loss, norm = (sum(point[i] for point in points) / len(points) for i in (2, 3))
        return {"train/loss_step": loss, "train/lr": points[-1][1], "train/gradient_norm": norm}

    def restore(self, points: list[list[Any]], device: torch.device) -> None:
        self.waiting = [
            (step, lr, torch.tensor(loss, device=device), torch.tensor(norm, device=device))
            for step, lr, loss, norm in points
        ]


@dataclass
class Best:
    """The best epochs by the metric `monitor`; a tie keeps the earlier epoch."""

    monitor: str
    lower_is_better: bool
    keep: int = 1
    kept: list[tuple[float, int]] = field(default_factory=list)  # (value, epoch), best first
    dropped: list[int] = field(default_factory=list)  # epochs that the last one displaced
    since: int = 0  # validations after the best

    @property
    def value(self) -> float | None:
        return self.kept[0][0] if self.kept else None

    @property
    def epoch(self) -> int | None:
        return self.kept[0][1] if self.kept else None

    def rank(self, value: float, epoch: int) -> None:
        """Take in a validated epoch; NaN is never among the best."""
        before, sign = self.epoch, 1.0 if self.lower_is_better else -1.0
        if value == value:
            self.kept = sorted([*self.kept, (value, epoch)], key=lambda entry: (sign * entry[0], entry[1]))
        self.dropped = [old for _, old in self.kept[self.keep :]]
        self.kept = self.kept[: self.keep]
        self.since = 0 if self.epoch != before else self.since + 1

    def state(self) -> dict[str, Any]:
        kept = [list(entry) for entry in self.kept]
        return {"monitor": self.monitor, "value": self.value, "epoch": self.epoch, "kept": kept, "since": self.since}

    def restore(self, state: dict[str, Any]) -> None:
        self.kept = [(value, epoch) for value, epoch in state["kept"]]
        self.since = state["since"]
