"""Classification: accuracy, top-5, F1, kappa, precision and recall per class from one confusion matrix; calibration."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from cnn_train.data.data import Batch, Data
from cnn_train.tasks.calibration import Calibration
from cnn_train.tasks.inference import Inference
from cnn_train.tasks.intervals import OF_CONFUSION, f1, precision, recall
from cnn_train.tasks.pictures import Picture, classification_panel
from cnn_train.tasks.task import Measured, Task


class Classification(Task):
    """Scores (N, K) against labels (N), or against soft targets (N, K) in training."""

    metric_names = ("loss", "acc", "top5", "mean_class_acc", "f1", "kappa", "ece", "brier")
    shown_metrics = ("acc", "loss")

    def __init__(self, loss: nn.Module, data: Data, aux_weight: float = 0.0, *, inference: Inference | None = None):
        super().__init__(loss, data, aux_weight)
        classes = data.num_classes
        self.inference = inference or Inference()
        self.confusion = MulticlassConfusionMatrix(classes, validate_args=False)
        self.top5 = TopK(min(5, classes))
        self.calibration = Calibration()

    def infer(self, network: nn.Module, images: Tensor) -> Tensor:
        return self.inference.classify(network, images)

    def count(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        labels = targets.argmax(1) if targets.ndim == 2 else targets
        correct = scores.argmax(1) == labels
        return correct.sum(), correct.new_full((), len(labels), dtype=torch.int64)

    def reset(self) -> None:
        self.confusion.reset()
        self.top5.reset()
        self.calibration.reset()

    def update(self, scores: Tensor, batch: Batch) -> Tensor:
        self.confusion.update(scores, batch.targets)
        self.top5.update(scores, batch.targets)
        self.calibration.update(scores, batch.targets)
        predictions = scores.argmax(1)
        return torch.stack([batch.targets, predictions, predictions == batch.targets], 1).double()

    def compute(self) -> Measured:
        confusion = self.confusion.compute().cpu()
        counts = confusion.double()
        metrics = {name: float(metric(counts)) for name, metric in OF_CONFUSION.items()}
        best_five = {"top5": float(self.top5.compute())} if self.data.num_classes > 5 else {}  # 1 by definition below
        metrics = {"acc": metrics.pop("acc"), **best_five, **metrics}
        per_class = {
            "accuracy": recall(counts).tolist(),  # its recall
            "precision": precision(counts).tolist(),
            "f1": f1(counts).tolist(),
            "images": counts.sum(1).tolist(),
        }
        return Measured(metrics | self.calibration.compute(), per_class, confusion)

    def panel(self, images: Tensor, targets: Tensor, scores: Tensor) -> Picture:
        return classification_panel(images, targets, scores.argmax(1), self.data.class_names)


class TopK(Metric):
    """The share of images whose class is among the `k` of highest score; of equal scores the true class comes first.

    Written out: torchmetrics' takes ten times as long, which is a tenth of an evaluation of LeNet-5.
    """

    full_state_update = False
    right: Tensor
    images: Tensor

    def __init__(self, k: int):
        super().__init__()
        self.k = k
        self.add_state("right", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch: scores (N, K), labels (N)."""
        own = scores.gather(1, labels[:, None])
        higher = (~(scores <= own)).sum(1)  # a score that is not a number is higher than every other, also its own
        self.right += (higher < self.k).sum()
        self.images += len(labels)

    def compute(self) -> Tensor:
        return self.right / self.images
