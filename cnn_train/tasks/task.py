"""What a kind of task says of a network's outputs: their loss, what counts as right, metrics, pictures."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from cnn_train.data.data import Batch, Data
from cnn_train.tasks.pictures import Picture


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
    best. `train_metric` names what `count` counts in training.
    """

    metric_names: tuple[str, ...] = ("loss",)
    shown_metrics: tuple[str, ...] = ("loss",)
    train_metric = "acc"

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

    def infer(self, network: nn.Module, images: Tensor) -> Tensor:
        """Scores in evaluation."""
        return network(images)

    def count(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Correct predictions and countable targets of a training batch, as tensors on the device."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what was counted."""
        raise NotImplementedError

    def update(self, scores: Tensor, batch: Batch) -> Tensor:
        """Count an evaluation batch; label, prediction and share that is right of each sample, (N, 3) float64.

        NaN where a sample has no single label.
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

    def panel(self, images: Tensor, targets: Tensor, scores: Tensor) -> Picture:
        """A picture of predictions; images (N, C, H, W) in [0, 1]."""
        raise NotImplementedError
