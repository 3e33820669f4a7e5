"""Augmentations that mix each sample with the one before it in the batch, and their labels alike."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_train.data.augment.colour import rectangles
from cnn_train.data.augment.draws import beta, draws
from cnn_train.data.targets import OF_WHOLE_IMAGES, TargetSpec


@dataclass(frozen=True)
class MixUp:
    """Mean of an image and the one before it in the batch, weighted by Beta(alpha, alpha) (Zhang et al. 2018).

    Gives soft targets (N, num_classes). The weight belongs to the sample, the partner to the batch.
    """

    alpha: float = 0.2
    supports = OF_WHOLE_IMAGES
    mixes = True

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        share = beta(draws(self, seed, epoch, indices, 1)[:, 0], self.alpha)
        weight = share.view(-1, 1, 1, 1)
        mixed = images * weight + images.roll(1, 0) * (1 - weight)
        return mixed.round_().to(torch.uint8), _mix_targets(targets, share, spec.num_classes)


@dataclass(frozen=True)
class CutMix:
    """Put a rectangle of the image before it in the batch into an image (Yun et al. 2019).

    Its area is 1 - Beta(alpha, alpha). Gives soft targets (N, num_classes), by the area that is left. The rectangle
    belongs to the sample, the partner to the batch.
    """

    alpha: float = 1.0
    probability: float = 1.0
    supports = OF_WHOLE_IMAGES
    mixes = True

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        numbers = draws(self, seed, epoch, indices, 4)
        side = (1 - beta(numbers[:, 0], self.alpha)).sqrt() * (numbers[:, 1] < self.probability)
        tall, wide = (side * height).floor(), (side * width).floor()
        # Centred anywhere, so that it may reach beyond the border (algorithm 1 of the appendix).
        top = (numbers[:, 2] * height - tall / 2).floor()
        left = (numbers[:, 3] * width - wide / 2).floor()
        inside = rectangles(top, left, tall, wide, images)
        images = torch.where(inside.unsqueeze(1), images.roll(1, 0), images)
        share = 1 - inside.float().mean((1, 2))
        return images, _mix_targets(targets, share, spec.num_classes)


def _mix_targets(targets: Tensor, share: Tensor, num_classes: int) -> Tensor:
    """Soft targets (N, K): `share` (N) of each sample's own, the rest of the one before it."""
    if targets.ndim == 1:  # class numbers; after a first mix they are soft already
        targets = F.one_hot(targets, num_classes).float()
    share = share.unsqueeze(1)
    return targets * share + targets.roll(1, 0) * (1 - share)
