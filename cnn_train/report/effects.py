"""How much each key and each pair of keys matters: analysis of variance, and Optuna's importance for sampled sweeps."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn_train.report.settings import Comparison, is_number, word

Level = str
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """A key or a pair of keys: its sum of squares (type II), degrees of freedom and share of the whole variance."""

    keys: tuple[str, ...]
    squares: float
    freedom: int
    share: float
    chance: float  # the share that it would have on average if nothing mattered


@dataclass(frozen=True)
class Effects:
    """The variance of a metric over runs, taken apart. Of a balanced grid the shares add up to 1."""

    metric: str
    effects: tuple[Effect, ...]  # single keys in their order, then pairs
    total: float  # sum of squares around the grand mean
    rest: float | None  # share of what needs three or more keys; None where seeds cannot be told from it
    seeds: float | None  # share of what differs between runs of one setting; None without repeats
    left: float  # share of rest and seeds together
    balanced: bool
    n: int


def effects(comparison: Comparison, metric: str) -> Effects | None:
    """Take the variance of `metric` apart by the keys that differ; None if no key differs or too few runs are done."""
    rows = [
        (tuple(word(run.config.get(key)) for key in comparison.keys), value)
        for run in comparison.runs
        if run.done and math.isfinite(value := run.metrics.get(metric, math.nan))
    ]
    levels = [level for level, _ in rows]
    if not comparison.keys or len(set(levels)) < 2:
        return None
    return analyse(comparison.keys, levels, np.array([value for _, value in rows]), metric)


def analyse(keys: Sequence[str], levels: Sequence[tuple[Level, ...]], y: Matrix, metric: str = "") -> Effects:
    """Type II sums of squares of keys and pairs: `levels` has one tuple per run, in the order of `keys`.

    The squares of a term are what it explains beyond all terms that do not contain it (Langsrud 2003). In a balanced
    grid they are those of the means.
    """
    columns: dict[tuple[str, ...], Matrix] = {
        (key,): _dummies([level[i] for level in levels])
        for i, key in enumerate(keys)
        if len({v[i] for v in levels}) > 1
    }
    singles = [term[0] for term in columns]
    for pair in itertools.combinations(singles, 2):
        first, second = (columns[key,] for key in pair)
        columns[pair] = (first[:, :, None] * second[:, None, :]).reshape(len(y), -1)
    total = float(((y - y.mean()) ** 2).sum())
    found = []
    for term in columns:
        others = [columns[other] for other in columns if not set(term) <= set(other)]
        without, rank_without = _residual(others, y)
        with_it, rank_with = _residual([*others, columns[term]], y)
        if freedom := rank_with - rank_without:
            squares = max(without - with_it, 0.0)
            found.append(Effect(term, squares, freedom, _share(squares, total), freedom / (len(y) - 1)))
    cells = defaultdict(list)
    for level, value in zip(levels, y, strict=True):
        cells[level].append(value)
    within = float(sum(((np.array(cell) - np.mean(cell)) ** 2).sum() for cell in cells.values()))
    residual, _ = _residual(list(columns.values()), y)
    repeats = any(len(cell) > 1 for cell in cells.values())
    full = math.prod(len({level[i] for level in levels}) for i in range(len(keys)))
    return Effects(
        metric,
        tuple(found),
        total,
        _share(max(residual - within, 0.0), total) if repeats else None,
        _share(within, total) if repeats else None,
        _share(residual, total),
        len(cells) == full and len({len(cell) for cell in cells.values()}) == 1,
        len(y),
    )


def _share(squares: float, total: float) -> float:
    return squares / total if total > 0 else math.nan


def _dummies(levels: Sequence[Level]) -> Matrix:
    """One 0/1 column for each level but the first."""
    names = list(dict.fromkeys(levels))
    return np.array([[float(level == name) for name in names[1:]] for level in levels])


def _residual(terms: Sequence[Matrix], y: Matrix) -> tuple[float, int]:
    """Sum of squares that a least-squares fit of a constant and these columns leaves, and the rank of the fit."""
    design = np.column_stack([np.ones(len(y)), *terms])
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=1e-10)
    return float(((y - design @ solution) ** 2).sum()), int(rank)


def is_sampled(comparison: Comparison, sampler: str = "") -> bool:
    """Whether values were drawn rather than laid out in a grid: several keys, one with mostly distinct numbers."""
    if sampler in ("random", "tpe"):
        return True
    count = len(comparison.settings)
    levels = [comparison.levels(key) for key in comparison.keys]
    drawn = [values for values in levels if all(map(is_number, values)) and 2 * len(values) > count]
    return len(levels) > 1 and count > 5 and bool(drawn)


def importance(comparison: Comparison, metric: str) -> dict[str, float] | None:
    """Optuna's importance (PED-ANOVA) of each key for a metric's means, in shares; None if Optuna is missing.

    Too few settings (under 10), or keys that Optuna cannot order, give {}.
    """
    try:
        import optuna
    except ImportError:
        return None
    known = [setting for setting in comparison.settings if math.isfinite(setting.mean(metric))]
    if len(known) < 10:
        return {}
    space: dict[str, optuna.distributions.BaseDistribution] = {}
    for key in comparison.keys:
        levels = comparison.levels(key)
        if all(is_number(value) for value in levels):
            low, high = float(min(levels)), float(max(levels))
            space[key] = optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low >= 100)
        else:
            space[key] = optuna.distributions.CategoricalDistribution([word(level) for level in levels])
    with _quiet(optuna.logging):
        study = optuna.create_study(direction="maximize" if comparison.better_is_higher(metric) else "minimize")
    for setting in known:
        params = {
            key: float(value) if isinstance(space[key], optuna.distributions.FloatDistribution) else word(value)
            for key, value in setting.values.items()
        }
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=setting.mean(metric)))
    try:
        found = optuna.importance.get_param_importances(study)
    except (RuntimeError, ValueError):
        return {}
    return {key: float(found.get(key, 0.0)) for key in sorted(space, key=lambda key: -found.get(key, 0.0))}


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep Optuna from announcing a study that lives in memory."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
