"""Segmentation: pixel accuracy and intersection over union from one confusion matrix over the whole split."""

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from cnn_train.data.data import Batch
from cnn_train.tasks.pictures import Picture, segmentation_panel
from cnn_train.tasks.task import Task


class Segmentation(Task):
    """Scores (N, K, H, W) against label maps (N, H, W); pixels of the data's ignore label count nowhere."""

    metric_names = ("loss", "miou", "pixel_acc", "mean_class_acc", "fw_iou")
    shown_metrics = ("miou", "pixel_acc", "loss")
    per_class_metric = "IoU"

    def setup(self, stage: str) -> None:
        self.confusion = MulticlassConfusionMatrix(
            self.data.num_classes, ignore_index=self.data.ignore_index, validate_args=False
        )

    def count_correct(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        counted = targets != self.data.ignore_index
        return ((scores.argmax(1) == targets) & counted).sum(), counted.sum()

    def panel(self, images: Tensor, targets: Tensor, scores: Tensor) -> Picture:
        return segmentation_panel(images, targets, scores.argmax(1), self.data.num_classes)

    def reset_metrics(self) -> None:
        self.confusion.reset()

    def update_metrics(self, scores: Tensor, batch: Batch) -> None:
        self.confusion.update(scores, batch.targets)

    def compute_metrics(self) -> dict[str, float]:
        self.confusion_matrix = self.confusion.compute().cpu()
        values, iou = segmentation_metrics(self.confusion_matrix)
        self.per_class = dict(zip(self.data.class_names, iou.tolist(), strict=True))
        return values


def segmentation_metrics(confusion: Tensor) -> tuple[dict[str, float], Tensor]:
    """Metrics of a confusion matrix (K, K) of pixel counts, rows true and columns predicted; and IoU per class (K).

    IoU = TP / (TP + FP + FN) (Everingham et al. 2010). A class that is neither there nor predicted has IoU NaN and does
    not enter the mean; frequency-weighted IoU weighs by true pixels (Long et al. 2015, section 5).
    """
    counts = confusion.double()
    true, hit = counts.sum(1), counts.diag()
    iou = hit / (true + counts.sum(0) - hit)
    total = counts.sum()
    values = {
        "miou": float(iou.nanmean()),
        "pixel_acc": float(hit.sum() / total),
        "mean_class_acc": float((hit / true).nanmean()),
        "fw_iou": float(torch.nansum(true / total * iou)),
    }
    return values, iou
