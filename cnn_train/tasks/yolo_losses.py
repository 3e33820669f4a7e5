"""The losses of YOLOv2 and YOLOv3, after the releases' code (darknet, https://pjreddie.com/darknet/yolo/)."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_train.boxes import area, iou, overlap, shape_iou, to_centres
from cnn_train.models.detection.priors import Cells, Outputs, Priors
from cnn_train.tasks.box_losses import Assigned, BoxLoss, BoxTerm, Picked, box_terms, focal, ignorable, real


class YOLO(BoxLoss):
    """What YOLOv2's and v3's losses share: an object belongs to the anchor of its shape at the cell of its centre.

    Of all anchors the one of highest IoU by shape alone counts, on the level that it is of; where several objects meet,
    the last wins. Anchors with a shape IoU of `match` besides it learn the object, too. Predictions whose box has an
    IoU above `ignore` with any object are no negatives. Divided by the number of images.
    """

    def __init__(
        self,
        *,
        ignore: float,
        box: BoxTerm = "squared",
        match: float = 1.0,
        object_weight: float = 1.0,
        no_object_weight: float = 1.0,
        box_weight: float = 1.0,
        class_weight: float = 1.0,
    ):
        super().__init__()
        self.box = box
        self.ignore = ignore
        self.match = match
        self.weights = {
            "boxes": box_weight,
            "objects": object_weight,
            "background": no_object_weight,
            "classes": class_weight,
        }

    def assign(self, targets: Tensor, priors: Priors) -> Assigned:
        limit = priors.boxes.new_tensor([priors.size[1], priors.size[0]])
        centred = to_centres(targets[..., :4])
        centres = torch.minimum(centred[..., :2].clamp(min=0), limit - 1e-3)[:, None]  # (N, 1, M, 2)
        corner = (priors.boxes[:, :2] - priors.strides[:, None] / 2)[:, None]
        inside = ((centres >= corner) & (centres < corner + priors.strides[:, None, None])).all(-1)  # (N, P, M)
        sizes = centred[..., 2:].clamp(min=1e-3)
        shape = shape_iou(priors.boxes[:, 2:], sizes.flatten(0, 1)).view(len(priors), *sizes.shape[:2])
        shape = shape.transpose(0, 1)  # (N, P, M)
        here = inside & real(targets)[:, None]
        fitting = torch.where(here, shape, -1.0)
        best = fitting.argmax(1)  # (N, M)
        number = torch.arange(len(priors), device=targets.device)
        also = here & (shape > self.match)
        mine = ((best[:, None] == number[:, None]) & here) | also
        # The best anchor of one object goes before the further one of another, the last object before the others.
        first = ((best[:, None] == number[:, None]) & here) * targets.size(1)
        rank = mine * (torch.arange(1, mine.size(-1) + 1, device=targets.device) + first)
        top, row = rank.max(-1)
        ignored = (inside & ignorable(targets)[:, None]).any(-1) & (top == 0)
        return Assigned(torch.where(top > 0, row, -1), ignored)

    def count(self, targets: Tensor, assigned: Assigned) -> Tensor:
        return targets.new_full((), len(targets), dtype=torch.float32)

    @torch.no_grad()
    def negatives(self, outputs: Outputs, targets: Tensor, priors: Priors, assigned: Assigned) -> Tensor:
        """Predictions (N, P) that are to find no object."""
        valid = (targets[..., 4] >= 0)[:, None]
        found = iou(priors.decode(outputs.codes), targets[..., :4]).masked_fill(~valid, 0.0).amax(-1)
        return ~assigned.positive & ~assigned.ignored & (found <= self.ignore)


def relative_area(boxes: Tensor, priors: Priors) -> Tensor:
    """Areas (n) as parts of the image's."""
    return area(boxes) / (priors.size[0] * priors.size[1])


class YOLOv2(YOLO):
    """The release's loss of YOLOv2 (Redmon & Farhadi 2017; darknet's region layer), without its first 12,800 images.

    Objectness learns the IoU of the predicted box by half of the squared error, with `object_weight`, or 0, with
    `no_object_weight`. Half of the squared errors of the codes are weighted by 2 - the object's part of the image.
    """

    def __init__(
        self,
        *,
        classes: Literal["softmax"] = "softmax",
        ignore: float = 0.6,
        object_weight: float = 5.0,
        **options: Any,
    ):
        super().__init__(ignore=ignore, object_weight=object_weight, **options)
        if classes != "softmax":
            raise ValueError(f"loss.classes must be softmax for a YOLOv2, which decodes by it, got {classes!r}")

    def sums(
        self, outputs: Outputs, targets: Tensor, priors: Priors, assigned: Assigned, picked: Picked
    ) -> dict[str, Tensor]:
        assert outputs.quality is not None
        at = picked.images, picked.priors
        theirs = priors[picked.priors]
        codes, found = outputs.codes[at], outputs.quality.sigmoid()
        with torch.no_grad():
            reached = overlap(priors.decode(outputs.codes)[at], picked.boxes)
        boxes = box_terms(self.box, codes, picked.boxes, theirs) * (2 - relative_area(picked.boxes, priors))
        negatives = self.negatives(outputs, targets, priors, assigned)
        return {
            "boxes": (boxes / 2 if self.box == "squared" else boxes).sum(),
            "objects": (found[at] - reached).square().sum() / 2,
            "background": found.square().masked_fill(~negatives, 0.0).sum() / 2,
            "classes": F.cross_entropy(outputs.classes[at], picked.labels, reduction="sum"),
        }


class YOLOv3(YOLO):
    """The release's loss of YOLOv3 (Redmon & Farhadi 2018; darknet's yolo layer).

    Cross-entropy of the objectness, of each class and of the centre in its cell, half of the squared error of the
    logarithmic size; box terms are weighted by 2 - the object's part of the image. With `classes="focal"` the classes
    and the background have the focal factor.
    """

    def __init__(self, *, classes: Literal["bce", "focal"] = "bce", ignore: float = 0.7, **options: Any):
        super().__init__(ignore=ignore, **options)
        if classes not in ("bce", "focal"):
            raise ValueError(
                f"loss.classes must be bce or focal for a YOLOv3, whose classes are logistic, got {classes!r}"
            )
        self.classes = classes

    def sums(
        self, outputs: Outputs, targets: Tensor, priors: Priors, assigned: Assigned, picked: Picked
    ) -> dict[str, Tensor]:
        assert outputs.quality is not None
        at = picked.images, picked.priors
        theirs, codes = priors[picked.priors], outputs.codes[at]
        if self.box == "squared" and isinstance(priors.coding, Cells):
            wanted = theirs.encode(picked.boxes)
            inside = wanted[:, :2].clamp(0, 1)
            boxes = F.binary_cross_entropy_with_logits(codes[:, :2], inside, reduction="none").sum(-1)
            boxes = boxes + (codes[:, 2:] - wanted[:, 2:]).square().sum(-1) / 2
        else:
            boxes = box_terms(self.box, codes, picked.boxes, theirs)
        negatives = self.negatives(outputs, targets, priors, assigned)
        quality = outputs.quality
        ones = torch.ones_like(quality[at])
        background = F.softplus(quality)
        if self.classes == "focal":
            background = background * quality.sigmoid().square()
        return {
            "boxes": (boxes * (2 - relative_area(picked.boxes, priors))).sum(),
            "objects": F.binary_cross_entropy_with_logits(quality[at], ones, reduction="sum"),
            "background": background.masked_fill(~negatives, 0.0).sum(),
            "classes": self.class_terms(outputs.classes[at], picked.labels).sum(),
        }

    def class_terms(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Of n positive priors: (n, K), (n) -> (n, K)."""
        wanted = F.one_hot(labels, scores.size(-1)).to(scores)
        if self.classes == "focal":
            return focal(scores, wanted, alpha=-1, gamma=2.0)
        return F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
