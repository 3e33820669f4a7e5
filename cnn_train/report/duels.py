"""One setting against another, sample by sample: the paired bootstrap over test samples."""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnn_train.report.runs import Run, predictions
from cnn_train.report.settings import Setting, word

RESAMPLES = 2000
CONFIDENCE = 0.95
BATCH = 4_000_000  # numbers drawn at once: 32 MB

Predictions = Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """Share of test samples that A gets right minus B's, with the interval over resampled test samples."""

    mean: float
    low: float
    high: float
    samples: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Pair:
    """A run of A and a run of B."""

    seed_a: Any
    seed_b: Any
    difference: Difference


@dataclass(frozen=True)
class Duel:
    """A against B: the mean over pairs of runs, and each pair."""

    a: Setting
    b: Setting
    difference: Difference
    pairs: tuple[Pair, ...]
    same_seeds: bool  # the pairs share their seed; otherwise each run of A meets each of B

    @property
    def wins(self) -> int:
        """The pairs in which A is better."""
        return sum(pair.difference.mean > 0 for pair in self.pairs)


def load(settings: Sequence[Setting]) -> dict[Run, Predictions]:
    """The predictions of the runs that are done and left some."""
    runs = [run for setting in settings for run in setting.done]
    return {run: found for run in runs if (found := predictions(run.folder))}


def duel(a: Setting, b: Setting, known: Mapping[Run, Predictions], each: bool = True) -> Duel | None:
    """Compare two settings on the test samples that both saw; None if no pair of runs shares two samples.

    `each` says whether each pair of runs gets an interval of its own, which takes as long as that of their mean.
    """
    of_a, of_b = ([run for run in setting.done if run in known] for setting in (a, b))
    by_seed = {word(run.seed): run for run in of_b}
    couples = [(run, by_seed[word(run.seed)]) for run in of_a if word(run.seed) in by_seed]
    same_seeds = bool(couples)
    couples = couples or [(one, other) for one in of_a for other in of_b]
    pairs = []
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])  # of A, of B, pairs that have the sample
    for one, other in couples:
        left, right = known[one], known[other]
        common = [sample for sample in left if sample in right]
        if len(common) < 2:
            continue
        for sample in common:
            total = sums[sample]
            total[0] += left[sample]
            total[1] += right[sample]
            total[2] += 1
        scores = np.array([(left[sample], right[sample]) for sample in common])
        if each:
            pairs.append(Pair(one.seed, other.seed, difference(scores[:, 0], scores[:, 1])))
    if not sums:
        return None
    totals = np.array(list(sums.values()))
    return Duel(a, b, difference(totals[:, 0] / totals[:, 2], totals[:, 1] / totals[:, 2]), tuple(pairs), same_seeds)


def difference(a: Any, b: Any) -> Difference:
    """Mean of `a` - `b` over samples, (N,) each, with its 95% percentile interval; no randomness between calls."""
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all differences equal: the interval is a point
        found = stats.bootstrap(
            (a, b),
            lambda a, b, axis: (a - b).mean(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(BATCH // len(a), 1),
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    interval = found.confidence_interval
    return Difference(float((a - b).mean()), float(interval.low), float(interval.high), len(a))
