"""Losses of detection networks: what they say of each prior against targets (N, M, 6) of objects.

A row of the targets is x1, y1, x2, y2 in pixels, class, 1 where the object is to be ignored; the class is -1 in rows
without an object. Priors on an object to be ignored are neither positive nor negative.

A loss is called as `loss(outputs, targets, priors)` and gives its parts by name, weighted, whose sum is the loss. Each
is a sum over images that is divided by one number, the `normalizer`, which depends on targets and priors alone: at
least 1, so that the loss is finite without any object. What is learned in parts, in accumulated steps or by several
processes is divided by the sum of all their normalizers: `terms` gives sums and normalizer.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_train.boxes import OVERLAPS, area, intersection, iou, overlap
from cnn_train.models.detection.priors import Outputs, Priors

BoxTerm = Literal["squared", "l1", "smooth_l1", "iou", "giou", "diou", "ciou"]


class Assigned(NamedTuple):
    """objects (N, P): the row of the targets that a prior learns, -1 none; ignored (N, P): those that count nowhere."""

    objects: Tensor
    ignored: Tensor

    @property
    def positive(self) -> Tensor:
        return self.objects >= 0


class Terms(NamedTuple):
    """Sums over the images, not yet divided by `divisor`, and the overlap of learned boxes."""

    sums: dict[str, Tensor]  # by name, weighted
    divisor: Tensor  # a scalar
    overlap: Tensor  # the sum of the IoU of the positive priors' boxes with their objects
    positive: Tensor  # the number of positive priors


class BoxLoss(nn.Module):
    """What all have in common; a loss says how objects are assigned to priors, and its sums."""

    weights: dict[str, float]  # of the parts, by name

    def assign(self, targets: Tensor, priors: Priors) -> Assigned:
        raise NotImplementedError

    def sums(
        self, outputs: Outputs, targets: Tensor, priors: Priors, assigned: Assigned, picked: "Picked"
    ) -> dict[str, Tensor]:
        """The parts, neither weighted nor divided; `picked` are the positive priors."""
        raise NotImplementedError

    def count(self, targets: Tensor, assigned: Assigned) -> Tensor:
        """What the sums of these images are divided by: here the positive priors."""
        return assigned.positive.sum().float()

    @torch.no_grad()
    def normalizer(self, targets: Tensor, priors: Priors) -> Tensor:
        """This part of what a whole batch's sums are divided by; a scalar."""
        targets = _some_rows(targets)
        return self.count(targets, self.assign(targets, priors))

    def forward(
        self, outputs: Outputs, targets: Tensor, priors: Priors, normalizer: Tensor | float | None = None
    ) -> dict[str, Tensor]:
        terms = self.terms(outputs, targets, priors)
        divisor = terms.divisor if normalizer is None else normalizer
        divisor = torch.as_tensor(divisor, dtype=torch.float32, device=targets.device).clamp(min=1)
        return {name: value / divisor for name, value in terms.sums.items()}

    def terms(self, outputs: Outputs, targets: Tensor, priors: Priors) -> Terms:
        """What the loss is made of."""
        targets = _some_rows(targets)
        outputs = wide(outputs)
        with torch.no_grad():
            assigned = self.assign(targets, priors)
            picked = pick(targets, assigned)
            codes = outputs.codes[picked.images, picked.priors]
            reached = overlap(priors[picked.priors].decode(codes), picked.boxes).sum()
            divisor = self.count(targets, assigned)
        sums = self.sums(outputs, targets, priors, assigned, picked)
        weighted = {name: self.weights[name] * value for name, value in sums.items()}
        return Terms(weighted, divisor, reached, assigned.positive.sum())


class Picked(NamedTuple):
    """The positive priors of a batch one after the other: n of them."""

    images: Tensor  # (n)
    priors: Tensor  # (n)
    boxes: Tensor  # (n, 4) of their objects
    labels: Tensor  # (n)


def pick(targets: Tensor, assigned: Assigned) -> Picked:
    images, priors = assigned.positive.nonzero(as_tuple=True)
    rows = targets[images, assigned.objects[images, priors]]
    return Picked(images, priors, rows[:, :4], rows[:, 4].long())


def box_terms(kind: str, codes: Tensor, boxes: Tensor, priors: Priors) -> Tensor:
    """How far codes (n, 4) of n priors are from boxes (n, 4), by the difference of codes or by overlap: (n)."""
    if kind in OVERLAPS:
        return 1 - overlap(priors.decode(codes), boxes, kind)
    difference = priors.coding.squash(codes) - priors.encode(boxes)
    if kind == "squared":
        return difference.square().sum(-1)
    if kind == "l1":
        return difference.abs().sum(-1)
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none").sum(-1)


def focal(scores: Tensor, wanted: Tensor, alpha: float, gamma: float) -> Tensor:
    """-alpha_t (1 - p_t)^gamma log p_t of each score (Lin et al. 2017, eq. 5); `alpha` below 0 leaves alpha_t out."""
    likelihood = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    miss = (wanted - scores.sigmoid()).abs()  # 1 - p_t
    terms = likelihood * (miss.square() if gamma == 2 else miss**gamma)
    return (
        terms if alpha < 0 else terms * torch.lerp(wanted.new_full((), 1 - alpha), wanted.new_full((), alpha), wanted)
    )


def class_targets(classes: Tensor, picked: Picked) -> Tensor:
    """(N, P, K) of 0, and 1 in the class of each positive prior."""
    wanted = torch.zeros_like(classes)
    wanted[picked.images, picked.priors, picked.labels] = 1.0
    return wanted


def real(targets: Tensor) -> Tensor:
    """Rows that hold an object to be learned: (N, M)."""
    return (targets[..., 4] >= 0) & (targets[..., 5] == 0)


def ignorable(targets: Tensor) -> Tensor:
    """Rows that hold an object to be ignored: (N, M)."""
    return (targets[..., 4] >= 0) & (targets[..., 5] != 0)


def on_ignored(targets: Tensor, priors: Priors) -> Tensor:
    """Priors (N, P) of whose area at least half is within one object to be ignored."""
    corners = priors.corners
    share = intersection(corners, targets[..., :4]) / area(corners)[:, None]
    return ((share >= 0.5) & ignorable(targets)[:, None]).any(-1)


class FCOS(BoxLoss):
    """Focal loss of all points, overlap and centerness of those in the middle of an object (Tian et al. 2019).

    A point is positive for objects that it is within, from whose centre it is less than `radius` strides away in x and
    y, and whose farthest side is between `reach` / 2 and `reach` strides away, without a lower bound on the first level
    and an upper one on the last; of several objects the smallest counts. Divided by the batch's positive points.
    """

    def __init__(
        self,
        *,
        box: BoxTerm = "giou",
        radius: float = 1.5,
        reach: float = 8.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        box_weight: float = 1.0,
        centerness_weight: float = 1.0,
    ):
        super().__init__()
        self.box = box
        self.radius = radius
        self.reach = reach
        self.alpha = alpha
        self.gamma = gamma
        self.weights = {"classes": 1.0, "boxes": box_weight, "centerness": centerness_weight}

    def assign(self, targets: Tensor, priors: Priors) -> Assigned:
        boxes = targets[:, None, :, :4]  # (N, 1, M, 4)
        points = priors.boxes[:, None, :2]  # (P, 1, 2)
        unit = priors.boxes[:, None, 2]  # (P, 1)
        centres = (boxes[..., :2] + boxes[..., 2:]) / 2
        near = (points - centres).abs().amax(-1) < self.radius * unit
        sides = torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)  # (N, P, M, 4)
        inside = sides.amin(-1) > 0
        farthest = sides.amax(-1)
        low, high = unit * self.reach / 2, unit * self.reach
        low = torch.where(priors.levels[:, None] == priors.levels.min(), torch.zeros_like(low), low)
        high = torch.where(priors.levels[:, None] == priors.levels.max(), torch.full_like(high, torch.inf), high)
        match = near & inside & (farthest > low) & (farthest < high) & real(targets)[:, None]
        areas = area(boxes).expand_as(match).masked_fill(~match, torch.inf)
        smallest, row = areas.min(-1)
        positive = smallest < torch.inf
        ignored = (inside & ignorable(targets)[:, None]).any(-1) & ~positive
        return Assigned(torch.where(positive, row, -1), ignored)

    def sums(
        self, outputs: Outputs, targets: Tensor, priors: Priors, assigned: Assigned, picked: "Picked"
    ) -> dict[str, Tensor]:
        assert outputs.quality is not None
        terms = focal(outputs.classes, class_targets(outputs.classes, picked), self.alpha, self.gamma)
        theirs = priors[picked.priors]
        codes = outputs.codes[picked.images, picked.priors]
        left, top, right, bottom = theirs.encode(picked.boxes).unbind(-1)
        centred = (
            torch.minimum(left, right) / torch.maximum(left, right) * torch.minimum(top, bottom)
        ) / torch.maximum(top, bottom)
        quality = outputs.quality[picked.images, picked.priors]
        return {
            "classes": terms.masked_fill(assigned.ignored[..., None], 0.0).sum(),
            "boxes": box_terms(self.box, codes, picked.boxes, theirs).sum(),
            "centerness": F.binary_cross_entropy_with_logits(quality, centred.sqrt(), reduction="sum"),
        }


def match_by_iou(
    targets: Tensor, priors: Priors, positive: float, negative: float, rescue: Literal["ties", "best"]
) -> Assigned:
    """Anchors with an IoU of `positive` with an object learn the best one; those from `negative` on are ignored.

    No object goes without: `rescue` gives it its best anchor, "best" even if that had another object (SSD), "ties" all
    of its best ones, which then learn the object that they fit best (RetinaNet).
    """
    wanted = real(targets)
    values = iou(priors.corners, targets[..., :4]).masked_fill(~wanted[:, None], -1.0)  # (N, P, M)
    best, row = values.max(-1)
    objects = torch.where(best >= positive, row, -1)
    ignored = (best >= negative) & (best < positive)
    top, where = values.max(1)  # (N, M)
    if rescue == "ties":
        forced = ((values == top[:, None]) & (values > 0)).any(-1)
        objects = torch.where(forced, row, objects)
    else:
        number = torch.arange(len(priors), device=targets.device)
        mine = (where[:, None] == number[:, None]) & wanted[:, None]  # (N, P, M)
        last = (mine * torch.arange(1, mine.size(-1) + 1, device=targets.device)).amax(-1)
        objects = torch.where(last > 0, last - 1, objects)
    free = objects < 0
    return Assigned(objects, (ignored | on_ignored(targets, priors)) & free)


class RetinaNet(BoxLoss):
    """Focal loss of all anchors but the ignored ones, and box terms of the positive ones (Lin et al. 2017).

    Each image's sums are divided by its positive anchors, at least 1, and averaged over the images, as in torchvision.
    """

    def __init__(
        self,
        *,
        box: BoxTerm = "smooth_l1",
        positive: float = 0.5,
        negative: float = 0.4,
        alpha: float = 0.25,
        gamma: float = 2.0,
        box_weight: float = 1.0,
    ):
        super().__init__()
        if negative > positive:
            raise ValueError(f"loss.negative must be at most loss.positive, got {negative} and {positive}")
        self.box = box
        self.positive = positive
        self.negative = negative
        self.alpha = alpha
        self.gamma = gamma
        self.weights = {"classes": 1.0, "boxes": box_weight}

    def assign(self, targets: Tensor, priors: Priors) -> Assigned:
        return match_by_iou(targets, priors, self.positive, self.negative, "ties")

    def count(self, targets: Tensor, assigned: Assigned) -> Tensor:
        return targets.new_full((), len(targets), dtype=torch.float32)

    def sums(
        self, outputs: Outputs, targets: Tensor, priors: Priors, assigned: Assigned, picked: "Picked"
    ) -> dict[str, Tensor]:
        share = 1 / assigned.positive.sum(1).clamp(min=1)  # (N)
        terms = focal(outputs.classes, class_targets(outputs.classes, picked), self.alpha, self.gamma)
        terms = terms.masked_fill(assigned.ignored[..., None], 0.0)
        boxes = box_terms(self.box, outputs.codes[picked.images, picked.priors], picked.boxes, priors[picked.priors])
        return {
            "classes": (terms.sum((1, 2)) * share).sum(),
            "boxes": (boxes * share[picked.images]).sum(),
        }


class MultiBox(BoxLoss):
    """SSD's loss: softmax over the classes and the background, the first column, and box terms (Liu et al. 2016).

    Each object has its best default box and all with an IoU above `positive`. Of the negatives, those with the highest
    loss count, up to `negatives` for each positive of their image; with `classes="focal"` all count, by the focal
    factor of the softmax. Divided by the batch's positives.
    """

    def __init__(
        self,
        *,
        box: BoxTerm = "smooth_l1",
        classes: Literal["softmax", "focal"] = "softmax",
        positive: float = 0.5,
        negatives: float = 3.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        box_weight: float = 1.0,
    ):
        super().__init__()
        if classes not in ("softmax", "focal"):
            raise ValueError(f"loss.classes must be softmax or focal for an SSD, got {classes!r}")
        self.box = box
        self.classes = classes
        self.positive = positive
        self.negatives = negatives
        self.alpha = alpha
        self.gamma = gamma
        self.weights = {"classes": 1.0, "boxes": box_weight}

    def assign(self, targets: Tensor, priors: Priors) -> Assigned:
        return match_by_iou(targets, priors, self.positive, self.positive, "best")

    def sums(
        self, outputs: Outputs, targets: Tensor, priors: Priors, assigned: Assigned, picked: "Picked"
    ) -> dict[str, Tensor]:
        labels = torch.zeros_like(assigned.objects)
        labels[picked.images, picked.priors] = picked.labels + 1
        terms = F.cross_entropy(outputs.classes.transpose(1, 2), labels, reduction="none")  # (N, P)
        boxes = box_terms(self.box, outputs.codes[picked.images, picked.priors], picked.boxes, priors[picked.priors])
        candidates = ~assigned.positive & ~assigned.ignored
        if self.classes == "focal":
            balance = torch.where(assigned.positive, self.alpha, 1 - self.alpha)
            terms = balance * (1 - (-terms).exp()) ** self.gamma * terms
            counted = assigned.positive | candidates
        else:
            with torch.no_grad():
                hardest = terms.masked_fill(~candidates, -torch.inf).argsort(dim=1, descending=True, stable=True)
                rank = torch.empty_like(hardest).scatter_(1, hardest, _positions(hardest))
                most = self.negatives * assigned.positive.sum(1, keepdim=True)
            counted = assigned.positive | (candidates & (rank < most))
        return {"classes": terms.masked_fill(~counted, 0.0).sum(), "boxes": boxes.sum()}


def _positions(like: Tensor) -> Tensor:
    return torch.arange(like.size(1), device=like.device).expand_as(like)


def _some_rows(targets: Tensor) -> Tensor:
    """The targets with at least one row, which holds no object."""
    return targets if targets.size(1) else F.pad(targets, (0, 0, 0, 1), value=-1.0)


def wide(outputs: Outputs) -> Outputs:
    """Outputs in at least single precision: half of it does not place a box to a pixel."""

    def at_least_single(values: Tensor) -> Tensor:
        return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values

    quality = None if outputs.quality is None else at_least_single(outputs.quality)
    return Outputs(at_least_single(outputs.codes), at_least_single(outputs.classes), quality)
