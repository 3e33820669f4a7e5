"""The order in which an epoch goes through the training samples: a function of (seed, epoch)."""

import torch
from torch import Tensor

from cnn_train.data.random import generator


def uniform_order(samples: int, seed: int, epoch: int) -> Tensor:
    """Every sample once (N)."""
    return torch.randperm(samples, generator=generator(seed, epoch))


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
