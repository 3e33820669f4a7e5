"""Losses: scores (N, K) against labels (N), or scores (N, K, H, W) against label maps (N, H, W), to a scalar.

Every loss takes what a run knows (`num_classes`, `ignore_index`, `class_weights`) and its own options. Targets equal to
`ignore_index` count nowhere; where all are, the loss and its gradient are 0. Means over weighted samples are divided by
the sum of their weights, as in `torch.nn.CrossEntropyLoss`. Soft targets are floats of the shape of the scores; losses
that need labels refuse them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_train.tasks.class_weights import ClassWeights, weight_tensor


def _is_soft(scores: Tensor, targets: Tensor) -> bool:
    """Whether targets are a distribution over classes; raises ValueError if they fit the scores in neither form."""
    if targets.is_floating_point() and targets.shape == scores.shape:
        return True
    if not targets.is_floating_point() and targets.shape == (scores.size(0), *scores.shape[2:]):
        return False
    raise ValueError(
        f"targets of shape {tuple(targets.shape)} and type {targets.dtype} do not fit scores of shape "
        f"{tuple(scores.shape)}; give integer labels without the class axis, or floats of the scores' shape"
    )


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; 0 where all weights are 0."""
    return (values * weights).sum() / weights.sum().clamp(min=torch.finfo(values.dtype).tiny)


def _wide(scores: Tensor) -> Tensor:
    """Exponentials and long sums are not for half precision."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


class Loss(nn.Module):
    """What the losses of labels share: how many classes there are, the label that counts nowhere, weights by class."""

    class_weights: Tensor | None

    def __init__(self, *, num_classes: int, ignore_index: int = -100, class_weights: ClassWeights = None):
        super().__init__()
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", weight_tensor(class_weights, num_classes), persistent=False)

    def _labels(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Labels with ignored ones set to 0, and which of them count (bool)."""
        if _is_soft(scores, targets):
            raise ValueError(
                f"{type(self).__name__} needs integer labels, got soft targets; use cross_entropy, bce or focal "
                "with mixup and cutmix"
            )
        counted = targets != self.ignore_index
        return torch.where(counted, targets, 0), counted

    def _sample_weights(self, labels: Tensor, counted: Tensor, dtype: torch.dtype) -> Tensor:
        weights = counted.to(dtype)
        return weights if self.class_weights is None else weights * self.class_weights.to(dtype)[labels]

    def _regions(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax and one-hot targets, each (K, number of pixels), both 0 at ignored pixels."""
        labels, counted = self._labels(scores, targets)
        p = _wide(scores).softmax(1) * counted.unsqueeze(1)
        t = torch.zeros_like(p).scatter_(1, labels.unsqueeze(1), counted.unsqueeze(1).to(p.dtype))
        return p.transpose(0, 1).flatten(1), t.transpose(0, 1).flatten(1)

    def _present(self, t: Tensor) -> Tensor:
        """Weight of each class, 0 for those without a target."""
        present = (t.sum(1) > 0).to(t.dtype)
        return present if self.class_weights is None else present * self.class_weights.to(t.dtype)


class CrossEntropy(Loss):
    """Cross-entropy of the softmax, with label smoothing (Szegedy et al. 2016, section 7); takes soft targets.

    The value of `torch.nn.CrossEntropyLoss`, but 0 instead of NaN where every target is ignored.
    """

    def __init__(self, *, label_smoothing: float = 0.0, **shared: Any):
        super().__init__(**shared)
        self.label_smoothing = label_smoothing

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        scores = _wide(scores)
        weight = None if self.class_weights is None else self.class_weights.to(scores.dtype)
        if _is_soft(scores, targets):
            soft = targets.to(scores.dtype)
            return F.cross_entropy(scores, soft, weight=weight, label_smoothing=self.label_smoothing)
        total = F.cross_entropy(
            scores,
            targets,
            weight=weight,
            ignore_index=self.ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        counted = targets != self.ignore_index
        if weight is None:
            return total / counted.sum().clamp(min=1)
        labels = torch.where(counted, targets, 0)
        return total / (weight[labels] * counted).sum().clamp(min=torch.finfo(scores.dtype).tiny)

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}, ignore_index={self.ignore_index}"


class MultiClassHinge(Loss):
    """The linear SVM's loss: sum over the wrong classes of max(0, s_j - s_y + margin) (Weston & Watkins 1999).

    `squared` sums the squares (Tang 2013).
    """

    def __init__(self, *, margin: float = 1.0, squared: bool = False, **shared: Any):
        super().__init__(**shared)
        self.margin = margin
        self.squared = squared

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        scores = _wide(scores)
        labels, counted = self._labels(scores, targets)
        index = labels.unsqueeze(1)
        violations = (scores - scores.gather(1, index) + self.margin).clamp(min=0)
        violations = violations.scatter(1, index, 0.0)
        losses = (violations.square() if self.squared else violations).sum(1)
        return _mean(losses, self._sample_weights(labels, counted, scores.dtype))


class BCE(Loss):
    """One binary classifier per class: the mean over samples and classes of the sigmoid's cross-entropy.

    Integer labels are one-hot encoded; floats of the scores' shape are several labels at once (or soft ones), single
    entries of which may be `ignore_index`. `class_weights` weigh the classifiers, `positive_weights` multiply the loss
    of each classifier where its class is shown (`pos_weight` of `torch.nn.BCEWithLogitsLoss`).
    """

    positive_weights: Tensor | None

    def __init__(self, *, num_classes: int, positive_weights: ClassWeights = None, **shared: Any):
        super().__init__(num_classes=num_classes, **shared)
        positive = weight_tensor(positive_weights, num_classes, "positive_weights")
        self.register_buffer("positive_weights", positive, persistent=False)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        scores = _wide(scores)
        if _is_soft(scores, targets):
            counted = targets != self.ignore_index
            wanted = torch.where(counted, targets.to(scores.dtype), 0.0)
        else:
            labels, counted = self._labels(scores, targets)
            wanted = torch.zeros_like(scores).scatter_(1, labels.unsqueeze(1), 1.0)
            counted = counted.unsqueeze(1).expand_as(scores)
        weights, axes = counted.to(scores.dtype), [1] * (scores.ndim - 2)
        if self.class_weights is not None:
            weights = weights * self.class_weights.to(scores.dtype).view(1, -1, *axes)
        positive = None if self.positive_weights is None else self.positive_weights.to(scores.dtype).view(-1, *axes)
        losses = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none", pos_weight=positive)
        return _mean(losses, weights)


class Focal(Loss):
    """Cross-entropy of the softmax scaled by (1 - p)^gamma (Lin et al. 2017, eq. 4, for K classes); takes soft targets.

    `class_weights` are the paper's alpha; gamma 0 is cross-entropy.
    """

    def __init__(self, *, gamma: float = 2.0, **shared: Any):
        super().__init__(**shared)
        self.gamma = gamma

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        log_p = _wide(scores).log_softmax(1)
        if _is_soft(scores, targets):
            losses = self._focal(log_p) * targets.to(log_p.dtype)
            if self.class_weights is not None:
                losses = losses * self.class_weights.to(log_p.dtype).view(1, -1, *[1] * (scores.ndim - 2))
            return losses.sum(1).mean()
        labels, counted = self._labels(scores, targets)
        losses = self._focal(log_p.gather(1, labels.unsqueeze(1)).squeeze(1))
        return _mean(losses, self._sample_weights(labels, counted, log_p.dtype))

    def _focal(self, log_p: Tensor) -> Tensor:
        # expm1 keeps 1 - p exact near p = 1; the floor keeps the power's gradient finite there.
        return -((-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny) ** self.gamma) * log_p


class Dice(Loss):
    """1 - mean over classes of 2 sum(p t) / (sum(p) + sum(t)), p the softmax and t one-hot (Milletari et al. 2016).

    Sums run over the batch; classes without a target in it are left out of the mean. `squared` sums p^2 and t^2 in the
    denominator, as in the paper; `smooth` is added to numerator and denominator.
    """

    def __init__(self, *, smooth: float = 1.0, squared: bool = False, **shared: Any):
        super().__init__(**shared)
        self.smooth = smooth
        self.squared = squared

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        p, t = self._regions(scores, targets)
        sizes = p.square().sum(1) + t.sum(1) if self.squared else p.sum(1) + t.sum(1)
        dice = (2 * (p * t).sum(1) + self.smooth) / (sizes + self.smooth).clamp(min=torch.finfo(p.dtype).tiny)
        return _mean(1 - dice, self._present(t))


class Jaccard(Loss):
    """1 - mean over classes of the soft intersection over union (Rahman & Wang 2016), p the softmax, t one-hot.

    Sums run over the batch; classes without a target in it are left out of the mean. `smooth` is added to numerator and
    denominator.
    """

    def __init__(self, *, smooth: float = 1.0, **shared: Any):
        super().__init__(**shared)
        self.smooth = smooth

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        p, t = self._regions(scores, targets)
        intersection = (p * t).sum(1)
        union = p.sum(1) + t.sum(1) - intersection
        iou = (intersection + self.smooth) / (union + self.smooth).clamp(min=torch.finfo(p.dtype).tiny)
        return _mean(1 - iou, self._present(t))


class LovaszSoftmax(Loss):
    """The Lovász extension of the Jaccard loss (Berman et al. 2018, eq. 8-11), a mean over the classes in the batch."""

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        p, t = self._regions(scores, targets)
        counted = (targets != self.ignore_index).flatten()
        errors = (t - p).abs()
        # Ignored pixels come last, where their error of 0 moves nothing.
        order = torch.where(counted, errors, -1.0).detach().argsort(1, descending=True)
        errors, hit = errors.gather(1, order), t.gather(1, order)
        covered = hit.cumsum(1)
        iou_left = (covered[:, -1:] - covered) / (covered[:, -1:] + (1 - hit).cumsum(1))
        steps = torch.diff(1 - iou_left, dim=1, prepend=torch.zeros_like(iou_left[:, :1]))
        return _mean((errors * steps).sum(1), self._present(t))


class OHEM(Loss):
    """Cross-entropy over the hard examples only (Shrivastava et al. 2016): online hard example mining.

    Counted are the samples or pixels whose true class has a probability below `threshold` (None: no threshold), and at
    least the hardest `keep` of all, a share in (0, 1].
    """

    def __init__(self, *, keep: float = 0.25, threshold: float | None = 0.7, **shared: Any):
        super().__init__(**shared)
        if not 0 < keep <= 1:
            raise ValueError(f"keep is the share of examples that count, in (0, 1], got {keep}")
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"threshold is a probability in (0, 1) or null, got {threshold}")
        self.keep = keep
        self.threshold = threshold

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        scores = _wide(scores)
        labels, counted = self._labels(scores, targets)
        losses = F.cross_entropy(scores, labels, reduction="none").flatten()
        labels, counted = labels.flatten(), counted.flatten()
        hardness = torch.where(counted, losses.detach(), -1.0)
        order = hardness.argsort(descending=True)
        number = (self.keep * counted.sum()).ceil()
        hard = torch.empty_like(counted).scatter_(0, order, torch.arange(len(order), device=order.device) < number)
        if self.threshold is not None:
            hard = hard | (hardness > -math.log(self.threshold))
        return _mean(losses, self._sample_weights(labels, counted & hard, scores.dtype))


class Sum(nn.Module):
    """A weighted sum of losses, each given as a function of what a run knows (`_partial_: true` in YAML)."""

    def __init__(
        self,
        losses: Sequence[Callable[..., nn.Module]],
        weights: Sequence[float] | None = None,
        *,
        num_classes: int,
        ignore_index: int = -100,
        class_weights: ClassWeights = None,
    ):
        super().__init__()
        self.weights = [1.0] * len(losses) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(losses):
            raise ValueError(f"a sum of {len(losses)} losses needs as many weights, got {self.weights}")
        known: dict[str, Any] = {"num_classes": num_classes, "ignore_index": ignore_index}
        if class_weights is not None:
            known["class_weights"] = class_weights
        self.losses = nn.ModuleList(make(**known) for make in losses)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        parts = [weight * loss(scores, targets) for weight, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(parts).sum()

    def extra_repr(self) -> str:
        return f"weights={self.weights}"
