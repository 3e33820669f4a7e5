"""Several labels an image: mean average precision, and F1 by a threshold for each class that validation chooses."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from cnn_train.data.data import Batch, Data
from cnn_train.errors import ConfigError
from cnn_train.tasks import losses
from cnn_train.tasks.pictures import Picture, multilabel_panel
from cnn_train.tasks.task import Measured, Task

OF_ONE_LABEL = (
    losses.CrossEntropy, losses.Focal, losses.MultiClassHinge, losses.Dice, losses.Jaccard, losses.LovaszSoftmax,
    losses.OHEM,
)  # fmt: skip


class MultiLabel(Task):
    """Scores (N, K), one sigmoid a class, against targets (N, K) of 0 and 1.

    A class is predicted where its probability is at least its threshold: 0.5 until a validation has chosen it. The
    confusion matrix counts images: row c and column d, those that show c and for which d is predicted.
    """

    metric_names = ("loss", "map", "macro_f1", "micro_f1")
    shown_metrics = ("map", "macro_f1", "loss")
    train_metric = "label_acc"
    thresholds: Tensor

    def __init__(self, loss: nn.Module, data: Data, aux_weight: float = 0.0):
        super().__init__(loss, data, aux_weight)
        wrong = next((part for part in loss.modules() if isinstance(part, OF_ONE_LABEL)), None)
        if wrong is not None:
            raise ConfigError(
                f"{type(wrong).__name__} is a loss for one label an image, but {data.name} has several; loss=bce"
            )
        self.register_buffer("thresholds", torch.full((data.num_classes,), 0.5, dtype=torch.float64))
        self.seen = SeenScores(data.num_classes, max(map(data.size, data.splits)))

    def count(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        correct = (scores > 0) == (targets > 0.5)
        return correct.sum(), correct.new_full((), correct.numel(), dtype=torch.int64)

    def reset(self) -> None:
        self.seen.reset()

    def predicted(self, scores: Tensor) -> Tensor:
        """Which classes are predicted: (N, K) of bool."""
        return scores.double().sigmoid() >= self.thresholds.to(scores.device)

    def update(self, scores: Tensor, batch: Batch) -> Tensor:
        self.seen.update(scores, batch.targets, batch.indices)
        right = (self.predicted(scores) == (batch.targets > 0.5)).double().mean(1)
        return torch.stack([torch.full_like(right, torch.nan)] * 2 + [right], 1)

    def choose(self) -> None:
        scores, targets = self.seen.compute()
        self.thresholds = best_thresholds(scores.double().sigmoid(), targets).to(self.thresholds.device)

    def chosen(self) -> dict[str, Any]:
        return {"thresholds": self.thresholds.tolist()}

    def restore(self, chosen: dict[str, Any]) -> None:
        if "thresholds" in chosen:
            self.thresholds = self.thresholds.new_tensor(chosen["thresholds"])

    def compute(self) -> Measured:
        scores, targets = self.seen.compute()
        predicted = self.predicted(scores)
        precision = average_precision(scores, targets)
        each, micro = f1_scores(predicted, targets)
        metrics = {
            "map": float(precision.nanmean()),
            "macro_f1": float(each.nanmean()),
            "micro_f1": float(micro),
        }
        table = {
            "average precision": precision.tolist(),
            "F1": each.tolist(),
            "threshold": self.thresholds.tolist(),
            "true images": targets.sum(0).tolist(),
            "predicted images": predicted.sum(0).tolist(),
        }
        return Measured(metrics, table, (targets.double().T @ predicted.double()).long().cpu())

    def panel(self, images: Tensor, targets: Tensor, scores: Tensor) -> Picture:
        return multilabel_panel(images, targets > 0.5, self.predicted(scores), self.data.class_names)


class SeenScores(Metric):
    """The scores and targets of every sample, each in its own row, over all processes."""

    full_state_update = False
    scores: Tensor  # (samples, K) float32
    targets: Tensor  # (samples, K) int64
    present: Tensor  # (samples) int64

    def __init__(self, num_classes: int, samples: int):
        super().__init__()
        self.add_state("scores", torch.zeros(samples, num_classes), "sum")
        self.add_state("targets", torch.zeros(samples, num_classes, dtype=torch.int64), "sum")
        self.add_state("present", torch.zeros(samples, dtype=torch.int64), "sum")

    def update(self, scores: Tensor, targets: Tensor, indices: Tensor) -> None:
        self.scores[indices] = scores.detach().float()
        self.targets[indices] = (targets > 0.5).long()
        self.present[indices] = 1

    def compute(self) -> tuple[Tensor, Tensor]:
        """Scores (N, K) and targets (N, K) of 0 and 1."""
        present = self.present > 0
        return self.scores[present], self.targets[present]


def ranked(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each class's scores from the highest down, how many hits are up to each, and which are the last of equal ones."""
    values, order = scores.sort(dim=0, descending=True, stable=True)
    hits = targets.gather(0, order).cumsum(0)
    last = torch.ones_like(values, dtype=torch.bool)
    last[:-1] = values[1:] != values[:-1]
    return values, hits, last


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision of each class (K) by scores and targets (N, K); NaN for classes that no image shows.

    The sum over thresholds of precision times the gain in recall, without interpolation, as scikit-learn's
    `average_precision_score`; images of equal scores share a threshold.
    """
    _, hits, last = ranked(scores, targets)
    rank = torch.arange(1, len(scores) + 1, device=scores.device).unsqueeze(1)
    precision = hits.double() / rank
    before = torch.zeros_like(hits)
    before[1:] = torch.where(last, hits, 0).cummax(0).values[:-1]  # hits up to the threshold above
    gained = torch.where(last, hits - before, 0)
    return (precision * gained).sum(0) / targets.sum(0)


def f1_scores(predicted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """F1 = 2 TP / (2 TP + FP + FN) of each class (K), NaN where it is neither shown nor predicted, and of all."""
    hits = (predicted & (targets > 0)).sum(0).double()
    total = predicted.sum(0).double() + targets.sum(0)
    return 2 * hits / total, 2 * hits.sum() / total.sum()


def best_thresholds(probabilities: Tensor, targets: Tensor) -> Tensor:
    """The threshold of each class (K) with the highest F1, the highest of equal ones; 0.5 where no image shows it.

    A threshold lies in the middle between two probabilities that it parts.
    """
    values, hits, last = ranked(probabilities, targets)
    rank = torch.arange(1, len(values) + 1, device=values.device).unsqueeze(1)
    f1 = torch.where(last, 2 * hits.double() / (rank + targets.sum(0)), -1.0)
    best = f1.argmax(0, keepdim=True)
    below = torch.cat([values[1:], torch.zeros_like(values[:1])])
    middle = (values.gather(0, best) + below.gather(0, best))[0] / 2
    return torch.where(targets.sum(0) > 0, middle, 0.5)
