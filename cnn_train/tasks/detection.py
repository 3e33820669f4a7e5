"""Detection: losses part by part, mean average precision, best F1 and confusion of a whole split."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from cnn_train.data.data import Batch, Data
from cnn_train.models.detection.priors import Outputs, Priors
from cnn_train.postprocess.nms import NMS
from cnn_train.tasks.average_precision import SCALARS, BoxMetrics
from cnn_train.tasks.box_losses import BoxLoss, wide
from cnn_train.tasks.pictures import Picture, detection_panel
from cnn_train.tasks.task import Learned, Measured, Task

SHOWN = 0.3  # the least score of a detection in pictures, before an evaluation has found the best


class Detector(Protocol):
    """What a detection network offers besides being called (`cnn_train.models.detection`)."""

    def priors(self, size: Sequence[int], device: torch.device | None = None) -> Priors: ...

    def decode(self, outputs: Outputs, priors: Priors) -> tuple[Tensor, Tensor]: ...


class Detection(Task):
    """What a `detector` says of its priors against boxes (N, M, 6) of objects, as `cnn_train.data.boxes` has them.

    In evaluation detections come from `postprocess`. Losses are sums, so that an update is divided by what all of its
    images count together, and an evaluation by all of the split's.
    """

    shown_metrics = ("map", "map50", "loss")
    train_metric = "iou"  # of the boxes that were learned with their objects

    def __init__(
        self, loss: nn.Module, data: Data, aux_weight: float = 0.0, *, detector: Detector, postprocess: NMS
    ):  # fmt: skip
        super().__init__(loss, data, aux_weight)
        assert isinstance(loss, BoxLoss)
        self.terms = loss.terms
        # Bound methods, not the network: its weights are not the task's.
        self.priors, self.decode = detector.priors, detector.decode
        self.postprocess = postprocess
        self.loss_parts = tuple(loss.weights)
        self.metric_names = ("loss", *SCALARS, *(f"loss_{name}" for name in self.loss_parts))
        self.metrics = BoxMetrics(data.num_classes, math.prod(data.image_size))
        self.thresholds = [SHOWN] * data.num_classes

    @property
    def confusion_names(self) -> list[str]:
        return [*self.data.class_names, "background"]

    def learn(self, outputs: Outputs, targets: Tensor, size: Sequence[int]) -> Learned:
        terms = self.terms(outputs, targets, self.priors(size, targets.device))
        parts = torch.stack(list(terms.sums.values()))
        return Learned(parts.sum(), terms.overlap, terms.positive, terms.divisor, parts.detach())

    def detect(self, outputs: Outputs, size: Sequence[int]) -> Tensor:
        """Detections (N, D, 6) in images of (height, width): x1, y1, x2, y2, class, score; the class is -1 in none."""
        boxes, scores = self.decode(wide(outputs), self.priors(size, outputs.codes.device))
        return self.postprocess(boxes, scores, size)

    def reset(self) -> None:
        self.metrics.reset()

    def update(self, scores: Outputs, batch: Batch) -> Tensor:
        self.metrics.update(self.detect(scores, batch.images.shape[-2:]), batch.targets, batch.indices)
        return torch.full((len(batch.images), 3), math.nan, dtype=torch.float64, device=batch.images.device)

    def compute(self) -> Measured:
        result = self.metrics.compute()
        self.thresholds = result.table["threshold"]
        worst = sorted(result.images, key=lambda index: (result.images[index], index))
        samples = {index: [math.nan, math.nan, value] for index, value in result.images.items()}
        return Measured(dict(result.values), result.table, result.confusion, worst, samples=samples)

    def panel(self, images: Tensor, targets: Tensor, scores: Outputs) -> Picture:
        found = self.detect(scores, images.shape[-2:])
        least = found.new_tensor(self.thresholds)[found[..., 4].long().clamp(min=0)]
        shown = torch.where((found[..., 5] >= least)[..., None], found, found.new_tensor([0, 0, 0, 0, -1, 0]))
        return detection_panel(images, targets, shown, self.data.class_names)
