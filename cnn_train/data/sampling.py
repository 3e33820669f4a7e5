"""The order in which an epoch goes through the training samples: a function of (seed, epoch)."""

import torch
from torch import Tensor

from cnn_train.data.random import generator


def uniform_order(samples: int, seed: int, epoch: int) -> Tensor:
    """Every sample once (N)."""
    return torch.randperm(samples, generator=generator(seed, epoch))


def weighted_order(weights: Tensor, seed: int, epoch: int) -> Tensor:
    """As many draws as there are samples (N), each sample in proportion to its weight (N).

    A sample that is due 2.3 times comes 2 or 3 times, and with equal weights each comes once: systematic sampling
    (Madow 1949), which adds no more noise than rounding does.
    """
    random = generator(seed, epoch)
    mixed = torch.randperm(len(weights), generator=random)  # so that who is rounded up depends on no neighbour
    ends = weights.double()[mixed].cumsum(0)
    ends = ends / ends[-1] * len(weights)
    points = torch.arange(len(weights), dtype=torch.float64) + torch.rand(1, generator=random, dtype=torch.float64)
    drawn = mixed[torch.searchsorted(ends, points, right=True).clamp_max(len(weights) - 1)]
    return drawn[torch.randperm(len(drawn), generator=random)]


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """As many draws as there are samples (N), the same number for each class, but for one where that does not go up.

    `labels` are class numbers (N), or 0 and 1 for each class (N, K): then a class is drawn from the images that show
    it, and those that show none are a class of their own. Within a class no sample is drawn once more before each has
    been. Classes without samples are not drawn.
    """
    random = generator(seed, epoch)
    if labels.ndim == 1:
        members = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    else:
        shown = torch.cat([labels > 0.5, ~(labels > 0.5).any(1, keepdim=True)], 1)
        members = [column.nonzero()[:, 0] for column in shown.unbind(1) if bool(column.any())]
    each, rest = divmod(len(labels), len(members))
    more = torch.randperm(len(members), generator=random)[:rest].tolist()
    drawn = []
    for number, own in enumerate(members):
        left = each + int(number in more)
        rounds = [own[torch.randperm(len(own), generator=random)] for _ in range(-(-left // len(own)))]
        drawn.append(torch.cat([*rounds, own[:0]])[:left])
    order = torch.cat(drawn)
    return order[torch.randperm(len(order), generator=random)]
