"""What a classifier's probabilities say beyond its answers: AUROC, temperature, and how far off the metrics may be."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cnn_train.tasks.intervals import OF_CONFUSION

BINS = 15  # of the confidence, for the calibration error
CLASSES = 20  # AUROC is told of up to so many
CHUNK = 50  # resamples at once
LARGEST = 200_000  # scores up to which AUROC is resampled, and cells of a confusion matrix


class Kept(NamedTuple):
    """What was found of each image: its index in the split (N), label (N), and scores (N, K) float32; on the CPU."""

    indices: Tensor
    labels: Tensor
    scores: Tensor


def auroc(values: Tensor, positive: Tensor, weights: Tensor | None = None) -> Tensor:
    """The area under the receiver's operating curve of values (N) for samples that are `positive` or not (N).

    It is the share of pairs of a positive and a negative sample that the values order rightly, half of the ties
    counted (Mann & Whitney 1947). `weights` (R, N) are how often each sample counts; then one number for each row. NaN
    without a positive or a negative sample.
    """
    weights = torch.ones(1, len(values)) if weights is None else weights
    levels, place = values.unique(return_inverse=True)
    empty = torch.zeros(len(weights), len(levels), dtype=torch.float64)
    hits = empty.index_add(1, place, weights.double() * positive)
    misses = empty.index_add(1, place, weights.double() * ~positive)
    below = misses.cumsum(1) - misses / 2
    return ((hits * below).sum(1) / (hits.sum(1) * misses.sum(1))).squeeze(0)


def macro_auroc(probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean over classes of each against the rest; classes that are not there do not count."""
    every = [auroc(probabilities[:, k], labels == k, weights) for k in range(probabilities.size(1))]
    return torch.stack(every).nanmean(0)


def temperature(scores: Tensor, labels: Tensor) -> float:
    """The T that makes softmax(scores / T) most likely for the labels (Guo et al. 2017, section 4.2).

    The likelihood is concave in 1 / T, so the root of its slope is found by halving, between T = 0.01 and 100.
    """
    scores, low, high = scores.double(), -2.0, 2.0
    own = scores.gather(1, labels[:, None]).mean()
    for _ in range(60):
        middle = (low + high) / 2  # log10 of 1 / T
        slope = own - ((scores * 10**middle).softmax(1) * scores).sum(1).mean()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return 10 ** -((low + high) / 2)


def resampled(
    kept: Kept, groups: Sequence[Hashable] | None = None, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of a classifier's metrics by the bootstrap (Efron 1979), over images or over whole `groups` (N).

    A resample draws as many images, or groups, as there are, with replacement.
    """
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))} if groups is not None else None
    group_of = np.array([number[group] for group in groups]) if number and groups else np.arange(len(kept.labels))
    units = int(group_of.max()) + 1
    random = np.random.default_rng(seed)
    values: dict[str, list[float]] = {}
    for first in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - first)
        drawn = random.multinomial(units, np.full(units, 1 / units), size=rows)
        for name, found in weighted_metrics(kept, torch.from_numpy(drawn[:, group_of]).double()).items():
            values.setdefault(name, []).extend(found.tolist())
    quantiles = {name: np.nanquantile(sample, [0.025, 0.975]) for name, sample in values.items()}
    return {name: (float(low), float(high)) for name, (low, high) in quantiles.items()}


def weighted_metrics(kept: Kept, weights: Tensor) -> dict[str, Tensor]:
    """Metrics (R) of images that count as often as each row of `weights` (R, N) says."""
    probabilities, labels = kept.scores.double().softmax(1), kept.labels
    classes, total = probabilities.size(1), weights.sum(1)
    confidence, predicted = kept.scores.softmax(1).max(1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(len(weights), BINS, dtype=torch.float64)
    gaps = gaps.index_add(1, bins, weights * (confidence.double() - (predicted == labels).double()))
    own = probabilities.gather(1, labels[:, None]).squeeze(1)
    found = {
        "ece": gaps.abs().sum(1) / total,
        "brier": weights @ (probabilities.square().sum(1) - 2 * own + 1) / total,
    }
    if classes >= 6:
        top = probabilities.topk(5, dim=1).indices
        found["top5"] = weights @ (top == labels[:, None]).any(1).double() / total
    if classes**2 <= LARGEST:
        cells = torch.zeros(len(weights), classes**2, dtype=torch.float64)
        confusion = cells.index_add(1, labels * classes + predicted, weights).view(-1, classes, classes)
        found |= {name: metric(confusion) for name, metric in OF_CONFUSION.items()}
    if classes <= CLASSES and probabilities.numel() <= LARGEST:
        found["auroc"] = macro_auroc(probabilities, labels, weights)
    return found
