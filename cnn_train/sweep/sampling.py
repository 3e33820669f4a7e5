"""Optuna in the sweep's process: which combination to try next, and which job not to go on with.

Its studies live in memory and are told the history from the jobs' folders each time, so the folders are the only state.
A sampler is made anew for each question with a seed of its own: the answer does not depend on restarts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from cnn_train.errors import ConfigError
from cnn_train.sweep.axes import REPEATS, Axes, Axis
from cnn_train.sweep.job import Job, by_point, read_curve
from cnn_train.sweep.ranking import Objective, numbers

optuna.logging.set_verbosity(optuna.logging.WARNING)

COMPARED = 2  # finished runs that the median needs at least
FACTOR = 3  # hyperband keeps one of so many at each of its epochs


def distributions(axes: Axes) -> dict[str, BaseDistribution]:
    """What each axis draws from; seeds are repeats and are not drawn."""
    found = {key: distribution(axis) for key, axis in axes.axes.items() if key not in REPEATS}
    for key in REPEATS:
        if key in axes.axes and axes.axes[key].is_interval:
            raise ConfigError(f"{axes.axes[key].word}: {key} repeats each combination; list its values: {key}=0,1,2")
    if not found:
        raise ConfigError(
            "a sampler has nothing to draw: every axis is a seed; vary another setting, or use sweep=grid"
        )
    return found


def distribution(axis: Axis) -> BaseDistribution:
    if axis.low is None or axis.high is None:
        return CategoricalDistribution(axis.distinct)
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


class Sampler:
    """Draws combinations: `random` or `tpe` (tree-structured Parzen estimator)."""

    def __init__(self, kind: str, axes: Axes, goal: Objective, seed: int):
        self.kind = kind
        self.axes = axes
        self.goal = goal
        self.seed = seed
        self.space = distributions(axes)

    def ask(self, jobs: Sequence[Job], again: int = 0) -> dict[str, Any]:
        """The next combination, given all that was tried; with `again`, another one."""
        history = list(by_point(jobs).values())
        study = self.study(len(history) + 100_003 * again)
        for repeats in history:
            study.add_trial(self.trial(repeats))
        return study.ask(self.space).params

    def study(self, number: int) -> optuna.Study:
        seed = (1_000_003 * self.seed + number) % 2**32
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed)
        if self.kind == "tpe":
            sampler = optuna.samplers.TPESampler(seed=seed)
        return optuna.create_study(study_name="sweep", sampler=sampler, direction=direction(self.goal))

    def trial(self, repeats: Sequence[Job]) -> FrozenTrial:
        """What is known of a combination: the mean over its seeds, if all of them ended."""
        values = numbers(repeats, self.goal.metric)
        options: dict[str, Any] = {"state": TrialState.FAIL}
        if not all(job.ended for job in repeats):
            options = {"state": TrialState.RUNNING}
        elif any(job.state == "pruned" for job in repeats):
            curve = mean_curve(repeats, str(self.goal.metric))
            options = {"state": TrialState.PRUNED, "intermediate_values": curve}
        elif values:
            options = {"state": TrialState.COMPLETE, "value": sum(values) / len(values)}
        return create_trial(params=repeats[0].params, distributions=self.space, **options)

    def lines(self, params: Mapping[str, Any]) -> list[tuple[list[str], list[str]]]:
        """The jobs of a combination, one for each seed and fold, as their varied words and their whole lines."""
        values = {key: value if isinstance(value, str) else repr(value) for key, value in params.items()}
        return [self.axes.line({**values, **repeat}) for repeat in self.axes.repeats()]


class Pruner:
    """Says which running combinations are worse than others were at the same epoch: `median` or `hyperband`."""

    def __init__(self, kind: str, goal: Objective, epochs: int):
        self.kind = kind
        self.goal = goal
        self.epochs = epochs
        self.looked: dict[tuple[str, ...], int] = {}  # the last epoch that a point was judged at

    def to_prune(self, jobs: Sequence[Job]) -> list[tuple[Job, str]]:
        """The running and waiting jobs of each point that falls behind, with the reason."""
        found = []
        points = by_point(jobs)
        for point, repeats in points.items():
            if not any(job.state == "running" for job in repeats):
                continue
            curve = self.curve(repeats)
            epoch = max(curve if self.kind == "median" else at_rungs(curve), default=0)
            if epoch >= self.epochs or epoch <= self.looked.get(point, 0):
                continue
            self.looked[point] = epoch
            others = [each for key, each in points.items() if key != point]
            if reason := self.judge(list(points).index(point), curve, others):
                found += [(job, reason) for job in repeats if job.state in ("running", "waiting")]
        return found

    def curve(self, repeats: Sequence[Job]) -> dict[int, float]:
        return mean_curve(repeats, str(self.goal.metric))

    def judge(self, number: int, curve: Mapping[int, float], others: Sequence[Sequence[Job]]) -> str:
        """Why a point with this curve is to be pruned; "" if it is not."""
        study = optuna.create_study(study_name="sweep", direction=direction(self.goal), pruner=self.pruner())
        before = [(self.curve(repeats), all(job.state == "done" for job in repeats)) for repeats in others]
        epoch = max(curve)
        if self.kind == "median":
            for known, done in before:
                if done and known:
                    value = known[max(known)]
                    study.add_trial(create_trial(value=value, intermediate_values=known))
            same = [known[epoch] for known, done in before if done and epoch in known]
            rule = f"the median of {len(same)} others is {median(same):.4f}"
            prune = self.replay(study.ask(), curve)
        else:
            curve = at_rungs(curve)
            epoch = max(curve)
            prune = False
            before.insert(number, ({}, False))  # its own place: brackets go by numbers
            for index, (known, _) in enumerate(before):
                prune |= self.replay(study.ask(), curve if index == number else at_rungs(known)) and index == number
            rule = f"not among the best 1/{FACTOR} of its bracket"
        return f"{self.kind}: {self.goal.metric} {curve[epoch]:.4f} at epoch {epoch}, {rule}" if prune else ""

    def replay(self, trial: optuna.Trial, curve: Mapping[int, float]) -> bool:
        """Tell a trial its curve; whether its last value is one to stop at."""
        last = False
        for epoch in sorted(curve):
            trial.report(curve[epoch], epoch)
            if self.kind == "hyperband" or epoch == max(curve):
                last = trial.should_prune()
        return last

    def pruner(self) -> optuna.pruners.BasePruner:
        if self.kind == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=COMPARED, n_warmup_steps=1)
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=max(self.epochs, 1), reduction_factor=FACTOR)


def direction(goal: Objective) -> Literal["maximize", "minimize"]:
    return "maximize" if goal.most else "minimize"


def mean_curve(repeats: Sequence[Job], metric: str) -> dict[int, float]:
    """By epoch, the mean of a metric over the seeds that have come so far."""
    curves = [read_curve(job.folder, metric) for job in repeats]
    epochs = sorted({epoch for curve in curves for epoch in curve})
    means = {epoch: [curve[epoch] for curve in curves if epoch in curve] for epoch in epochs}
    means = {epoch: [value for value in values if math.isfinite(value)] for epoch, values in means.items()}
    return {epoch: sum(values) / len(values) for epoch, values in means.items() if values}


def at_rungs(curve: Mapping[int, float]) -> dict[int, float]:
    """The values at epochs 1, 3, 9, ...: the only ones at which hyperband decides."""
    rungs = {FACTOR**k for k in range(20)}
    return {epoch: value for epoch, value in curve.items() if epoch in rungs}


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-1 - middle]) / 2 if ordered else math.nan
