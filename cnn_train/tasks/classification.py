"""Classification: top-1, top-5 and per-class accuracy from one confusion matrix."""

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from cnn_train.data.data import Batch
from cnn_train.tasks.pictures import Picture, classification_panel
from cnn_train.tasks.task import Task


class Classification(Task):
    """Scores (N, K) against labels (N), or against soft targets (N, K) in training."""

    metric_names = ("loss", "acc", "top5", "mean_class_acc")
    shown_metrics = ("acc", "loss")
    per_class_metric = "accuracy"

    def setup(self, stage: str) -> None:
        classes = self.data.num_classes
        self.confusion = MulticlassConfusionMatrix(classes, validate_args=False)
        self.top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro", validate_args=False)

    def count_correct(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        labels = targets.argmax(1) if targets.ndim == 2 else targets
        correct = scores.argmax(1) == labels
        return correct.sum(), correct.new_tensor(len(labels), dtype=torch.int64)

    def panel(self, images: Tensor, targets: Tensor, scores: Tensor) -> Picture:
        return classification_panel(images, targets, scores.argmax(1), self.data.class_names)

    def reset_metrics(self) -> None:
        self.confusion.reset()
        self.top5.reset()

    def update_metrics(self, scores: Tensor, batch: Batch) -> None:
        self.confusion.update(scores, batch.targets)
        self.top5.update(scores, batch.targets)

    def compute_metrics(self) -> dict[str, float]:
        self.confusion_matrix = self.confusion.compute().cpu()
        counts = self.confusion_matrix.double()
        per_class = counts.diag() / counts.sum(1)
        values = {
            "acc": float(counts.diag().sum() / counts.sum()),
            "top5": float(self.top5.compute()),
            "mean_class_acc": float(per_class.nanmean()),
        }
        self.per_class = dict(zip(self.data.class_names, per_class.tolist(), strict=True))
        return values
