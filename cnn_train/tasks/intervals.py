"""Metrics of a confusion matrix, and how far off they may be on another sample of images."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

NORMAL = 1.959963985  # the normal distribution's 97.5 % quantile


def precision(confusion: Tensor) -> Tensor:
    """The share of right ones among those predicted as each class (..., K); NaN for a class never predicted.

    `confusion` is (..., K, K), rows true and columns predicted.
    """
    return confusion.diagonal(dim1=-2, dim2=-1) / confusion.sum(-2)


def recall(confusion: Tensor) -> Tensor:
    """The share of each class (..., K) that is found; NaN for a class that is not there."""
    return confusion.diagonal(dim1=-2, dim2=-1) / confusion.sum(-1)


def f1(confusion: Tensor) -> Tensor:
    """Harmonic mean of precision and recall (..., K); NaN for a class neither present nor predicted."""
    return 2 * confusion.diagonal(dim1=-2, dim2=-1) / (confusion.sum(-1) + confusion.sum(-2))


def accuracy(confusion: Tensor) -> Tensor:
    return confusion.diagonal(dim1=-2, dim2=-1).sum(-1) / confusion.sum((-2, -1))


def balanced_accuracy(confusion: Tensor) -> Tensor:
    """The mean of the recalls of the classes that are there."""
    return recall(confusion).nanmean(-1)


def macro_f1(confusion: Tensor) -> Tensor:
    """The mean of the F1 of the classes that are there or predicted."""
    return f1(confusion).nanmean(-1)


def kappa(confusion: Tensor) -> Tensor:
    """Agreement beyond chance (Cohen 1960): (p - e) / (1 - e) with e the agreement of the two margins."""
    total = confusion.sum((-2, -1))
    chance = (confusion.sum(-1) * confusion.sum(-2)).sum(-1) / total.square()
    return (accuracy(confusion) - chance) / (1 - chance)


# By the names that a split's metrics have.
OF_CONFUSION: dict[str, Callable[[Tensor], Tensor]] = {
    "acc": accuracy, "mean_class_acc": balanced_accuracy, "f1": macro_f1, "kappa": kappa,
}  # fmt: skip


def intervals(confusion: Tensor, resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of the metrics of a confusion matrix (K, K), for images drawn anew from where these came from.

    Of the accuracy by Wilson (1927), which holds near 0 and 1 too; of the others by the bootstrap over images (Efron
    1979), which for functions of the counts is a multinomial draw of the matrix.
    """
    total = int(confusion.sum())
    places = confusion.flatten().nonzero().squeeze(1)
    shares = confusion.flatten()[places].double() / total
    draws = np.random.default_rng(seed).multinomial(total, (shares / shares.sum()).numpy(), size=resamples)
    bootstrapped = {name: metric for name, metric in OF_CONFUSION.items() if name != "acc"}
    values: dict[str, list[float]] = {name: [] for name in bootstrapped}
    for draw in torch.from_numpy(draws).double():
        counts = torch.zeros(confusion.numel(), dtype=torch.float64).index_copy_(0, places, draw).view_as(confusion)
        for name, metric in bootstrapped.items():
            values[name].append(float(metric(counts)))
    found = {"acc": wilson(int(confusion.diagonal().sum()), total)}
    for name, sample in values.items():
        low, high = np.nanquantile(sample, [0.025, 0.975])
        found[name] = float(low), float(high)
    return found


def wilson(hits: int, total: int, z: float = NORMAL) -> tuple[float, float]:
    """The interval of a share by Wilson's score."""
    share, scale = hits / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return middle - half, middle + half
