"""What a kind of task says of a network's outputs: their loss, what counts as right, metrics, pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.data.data import Batch, Data
from cnn_train.models.network import main_scores
from cnn_train.tasks.pictures import Picture


@dataclass(frozen=True)
class Learned:
    """What a task says of a batch, or of a part of one, that is learned or evaluated.

    `loss` is a mean over the images; or, with a `divisor`, a sum, to be divided by the divisors (at least 1) of all
    that is learned or evaluated together. `parts` (P) are those of the loss, in the same sense, without a gradient.
    """

    loss: Tensor
    correct: Tensor  # predictions that are right, of `count`
    count: Tensor
    divisor: Tensor | None = None
    parts: Tensor | None = None


@dataclass
class Measured:
    """What an evaluation found of a split, over all processes."""

    metrics: dict[str, float]
    per_class: dict[str, list[float]]  # columns of the table of classes; the first is shown
    confusion: Tensor  # (K, K), rows true and columns predicted
    worst: list[int] | None = None  # samples from the worst on; None where samples have no metric of their own
    alternatives: list[dict[str, float]] = field(default_factory=list)  # metrics of other post-processings
    samples: dict[int, list[float]] = field(default_factory=dict)  # by index: label, prediction, share that is right


class Task(nn.Module):
    """The loss and the metrics of one kind of task. A subclass says what `scores` are and how they are counted.

    `shown_metrics` are the validation metrics in an epoch's line; the first decides by default which checkpoint is
    best. `train_metric` names what `count` counts in training, `loss_parts` the parts of the loss that are logged.
    """

    metric_names: tuple[str, ...] = ("loss",)
    shown_metrics: tuple[str, ...] = ("loss",)
    train_metric = "acc"
    loss_parts: tuple[str, ...] = ()

    def __init__(self, loss: nn.Module, data: Data, aux_weight: float = 0.0):
        super().__init__()
        self.loss = loss
        self.data = data
        self.aux_weight = aux_weight

    def total_loss(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """The loss of the scores plus that of auxiliary heads, weighted as in the network's paper."""
        if isinstance(outputs, Tensor):
            return self.loss(outputs, targets)
        main, *auxiliary = (self.loss(scores, targets) for scores in outputs)
        return main + self.aux_weight * sum(auxiliary)

    @property
    def confusion_names(self) -> list[str]:
        """What the rows and columns of the confusion matrix are."""
        return self.data.class_names

    def learn(self, outputs: Any, targets: Tensor, size: Sequence[int]) -> Learned:
        """Loss and counts of a network's outputs, in training or evaluation, for images of this (height, width)."""
        loss = self.total_loss(outputs, targets)
        with torch.no_grad():
            return Learned(loss, *self.count(main_scores(outputs), targets))

    def infer(self, network: nn.Module, images: Tensor) -> Any:
        """Scores in evaluation, which `learn`, `update` and `panel` take."""
        return network(images)

    def count(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Correct predictions and countable targets of a training batch, as tensors on the device."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what was counted."""
        raise NotImplementedError

    def update(self, scores: Any, batch: Batch) -> Tensor:
        """Count an evaluation batch; label, prediction and share that is right of each sample, (N, 3) float64.

        NaN where a sample has no single label; all NaN where only `compute` can tell (`Measured.samples`).
        """
        raise NotImplementedError

    def choose(self) -> None:
        """Choose by the validation split, which has been counted, what predictions need, as thresholds."""

    def chosen(self) -> dict[str, Any]:
        """What `choose` chose, as plain data for a checkpoint."""
        return {}

    def restore(self, chosen: dict[str, Any]) -> None:
        """Inverse of `chosen`; what is not there stays as it is."""

    def compute(self) -> Measured:
        """Metrics of what was counted since `reset`, over all processes."""
        raise NotImplementedError

    def panel(self, images: Tensor, targets: Tensor, scores: Any) -> Picture:
        """A picture of predictions; images (N, C, H, W) in [0, 1]."""
        raise NotImplementedError
