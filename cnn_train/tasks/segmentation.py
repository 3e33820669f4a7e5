"""Segmentation: everything from counts of pixels over a whole split, the same for any number of processes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from cnn_train.data.data import Batch, Data
from cnn_train.tasks.inference import Inference, Postprocess, labels_of
from cnn_train.tasks.pictures import Picture, segmentation_panel
from cnn_train.tasks.task import Measured, Task

BOUNDARY = 0.02  # width of a boundary, as a part of the image's diagonal (Cheng et al. 2021, section 4)


class Segmentation(Task):
    """Scores (N, K, H, W) against label maps (N, H, W); pixels of the data's ignore label count nowhere.

    In evaluation scores come from `inference`, and labels from `postprocess`, if any, of their softmax. `alternatives`
    are further post-processings, scored on the same network output.
    """

    metric_names = ("loss", "miou", "pixel_acc", "mean_class_acc", "fw_iou", "boundary_iou")
    shown_metrics = ("miou", "pixel_acc", "loss")

    def __init__(
        self,
        loss: nn.Module,
        data: Data,
        aux_weight: float = 0.0,
        *,
        inference: Inference = Inference(),  # noqa: B008  frozen
        postprocess: Postprocess | None = None,
        alternatives: Sequence[Postprocess | None] = (),
    ):
        super().__init__(loss, data, aux_weight)
        self.inference = inference
        self.postprocesses = (postprocess, *alternatives)
        samples = max(map(data.size, data.splits))
        self.counts = [PixelCounts(data.num_classes, data.ignore_index, samples) for _ in self.postprocesses]
        self.on_device = nn.ModuleList(self.counts)  # where this module is, they are

    def infer(self, network: nn.Module, images: Tensor) -> Tensor:
        return self.inference(network, images)

    def count(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        counted = targets != self.data.ignore_index
        return ((scores.argmax(1) == targets) & counted).sum(), counted.sum()

    def reset(self) -> None:
        for counts in self.counts:
            counts.reset()

    def update(self, scores: Tensor, batch: Batch) -> Tensor:
        counted = batch.targets != self.data.ignore_index
        # Only post-processing looks at the images.
        images = 255 * self.data.denormalize(batch.images) if any(self.postprocesses) else batch.images
        for postprocess, counts in zip(self.postprocesses, self.counts, strict=True):
            counts.update(labels_of(scores, images, postprocess, counted), batch.targets, batch.indices)
        right = self.counts[0].right
        return torch.stack([torch.full_like(right, math.nan)] * 2 + [right], 1)

    def compute(self) -> Measured:
        (metrics, table, confusion), *others = (counts.compute() for counts in self.counts)
        worst = self.counts[0].worst
        return Measured(metrics, table, confusion.cpu(), worst, [other for other, _, _ in others])

    def panel(self, images: Tensor, targets: Tensor, scores: Tensor) -> Picture:
        labels = labels_of(scores, 255 * images, self.postprocesses[0], targets != self.data.ignore_index)
        return segmentation_panel(images, targets, labels, self.data.class_names)


class PixelCounts(Metric):
    """Counts of pixels, summed over batches and processes: all in whole numbers, but for each image's own mean IoU."""

    full_state_update = False
    confusion: Tensor  # (K, K) rows true, columns predicted
    boundary: Tensor  # (2, K) intersection and union of boundaries
    image_iou: Tensor  # (samples)
    seen: Tensor  # (samples)
    worst: list[int]  # samples by their mean IoU, ascending, when last computed
    right: Tensor  # (N) share of right pixels in each image of the last batch, float64

    def __init__(self, num_classes: int, ignore_index: int, samples: int):
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        for name, shape in (("confusion", (num_classes, num_classes)), ("boundary", (2, num_classes))):
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), "sum")
        self.add_state("image_iou", torch.zeros(samples), "sum")
        self.add_state("seen", torch.zeros(samples, dtype=torch.int64), "sum")

    def update(self, labels: Tensor, targets: Tensor, indices: Tensor) -> None:
        """Count label maps (N, H, W) against their targets; `indices` (N) are the samples' numbers in the split."""
        number, classes = len(labels), self.num_classes
        counted = targets != self.ignore_index
        image = torch.arange(number, device=labels.device).view(-1, 1, 1)
        cell = ((image * classes + targets) * classes + labels)[counted]
        each = torch.bincount(cell, minlength=number * classes**2).view(number, classes, classes)
        self.right = each.diagonal(dim1=1, dim2=2).sum(1).double() / each.sum((1, 2))
        self.confusion += each.sum(0)
        self.boundary += boundary_counts(labels, targets, counted, classes)
        self.image_iou[indices] = class_iou(each).nanmean(1).nan_to_num(1.0).float()
        self.seen[indices] = 1

    def compute(self) -> tuple[dict[str, float], dict[str, list[float]], Tensor]:
        """Metrics, columns of the table of classes, the confusion matrix."""
        values, table = segmentation_metrics(self.confusion)
        intersection, union = self.boundary.double()
        boundary_iou = intersection / union
        values["boundary_iou"] = float(boundary_iou.nanmean())
        order = self.image_iou.argsort(stable=True)
        self.worst = order[self.seen[order] > 0].tolist()
        return values, table | {"boundary IoU": boundary_iou.tolist()}, self.confusion


def class_iou(counts: Tensor) -> Tensor:
    """IoU of each class (..., K) by confusion matrices (..., K, K); NaN for classes neither present nor predicted."""
    counts = counts.double()
    hit = counts.diagonal(dim1=-2, dim2=-1)
    return hit / (counts.sum(-1) + counts.sum(-2) - hit)


def boundary_counts(labels: Tensor, targets: Tensor, counted: Tensor, num_classes: int) -> Tensor:
    """Pixels in the intersection and in the union of the boundaries of each class: (2, K).

    Boundary IoU (Cheng et al., "Boundary IoU", CVPR 2021, https://arxiv.org/abs/2103.16562): as IoU, but of the pixels
    of a class that are within 2 % of the image's diagonal of its contour. Ignored pixels are outside of every class.
    """
    width = max(round(BOUNDARY * math.hypot(*labels.shape[-2:])), 1)
    true, predicted = (torch.where(counted, values, num_classes) for values in (targets, labels))
    at_true, at_predicted = (boundary(values, width) & counted for values in (true, predicted))

    def count(values: Tensor, where: Tensor) -> Tensor:
        return torch.bincount(values[where], minlength=num_classes)

    intersection = count(true, at_true & at_predicted & (true == predicted))
    return torch.stack([intersection, count(true, at_true) + count(predicted, at_predicted) - intersection])


def boundary(labels: Tensor, width: int) -> Tensor:
    """Where label maps (N, H, W) have another label, or the border, in the square of this radius: (N, H, W) of bool."""
    values = F.pad(labels.float(), (width,) * 4, value=-1)
    side = 2 * width + 1

    def highest(values: Tensor) -> Tensor:
        return F.max_pool2d(F.max_pool2d(values, (side, 1), stride=1), (1, side), stride=1)

    return (highest(values) != labels) | (highest(-values) != -labels)


def segmentation_metrics(confusion: Tensor) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Metrics of a confusion matrix (K, K) of pixel counts, rows true and columns predicted; and a table of classes.

    IoU = TP / (TP + FP + FN) (Everingham et al. 2010). A class neither present nor predicted has IoU NaN and does not
    enter the mean; frequency-weighted IoU weighs by true pixels (Long et al. 2015, section 5).
    """
    iou = class_iou(confusion)
    counts = confusion.double()
    true, hit, total = counts.sum(1), counts.diag(), counts.sum()
    accuracy = hit / true
    values = {
        "miou": float(iou.nanmean()),
        "pixel_acc": float(hit.sum() / total),
        "mean_class_acc": float(accuracy.nanmean()),
        "fw_iou": float(torch.nansum(true / total * iou)),
    }
    table = {"IoU": iou, "accuracy": accuracy, "true pixels": true, "predicted pixels": counts.sum(0)}
    return values, {name: column.tolist() for name, column in table.items()}
