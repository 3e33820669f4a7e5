"""The answer in words: which setting is best, how sure that is, what matters, and the line that repeats it."""

import itertools
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cnn_train.report.duels import Duel
from cnn_train.report.effects import Effects
from cnn_train.report.runs import COST_TITLES, Run, Study
from cnn_train.report.settings import Comparison, Setting, number, short, word
from cnn_train.report.tables import cost


@dataclass(frozen=True)
class Answer:
    """Sentences, the most important first, and whether the best setting is settled."""

    lead: str
    more: tuple[str, ...]
    verdict: str  # settled, not settled, one setting, no results
    interval: tuple[float, float] | None = None  # of the difference over seeds


def answer(comparison: Comparison, metric: str, duel: Duel | None, effects: Effects | None) -> Answer:
    """Say which setting is best by its mean and how far chance explains its lead."""
    ranked = [setting for setting in comparison.settings if math.isfinite(setting.mean(comparison.objective))]
    unfinished = _not_done(comparison.runs)
    if not ranked:
        return Answer("No run has results yet.", tuple(unfinished), "no results")
    best = ranked[0]
    if len(ranked) == 1:
        lead = f"{best.name}: {metric} {spoken(best, metric)}."
        alone = "No other setting has results to compare it with."
        return Answer(lead, (alone, *unfinished), "one setting")
    second = ranked[1]
    chosen = "" if metric == comparison.objective else f", chosen by {comparison.objective}"
    lead = f"{best.name} is best: {metric} {spoken(best, metric)}{chosen}."
    gap = best.mean(metric) - second.mean(metric)
    more = [f"The runner-up, {second.name}, has {spoken(second, metric)}: a difference of {signed(gap)}."]
    rival = comparison.best(metric)
    if rival is not None and rival is not best:
        more.append(
            f"{rival.name} has the best {metric}, {spoken(rival, metric)}, but not the best {comparison.objective}."
        )
    interval = over_seeds(best, second, metric)
    more += _certainty(best, second, metric, interval, duel)
    clear = interval is not None and (interval[0] > 0 if comparison.better_is_higher(metric) else interval[1] < 0)
    clear = clear and (duel is None or duel.difference.low > 0)
    more += _sources(effects) + _cheaper(comparison, ranked, metric) + unfinished
    return Answer(lead, tuple(more), "settled" if clear else "not settled", interval)


def spoken(setting: Setting, metric: str) -> str:
    """`0.9625 ± 0.0177 over 2 seeds`."""
    summary = setting.summary(metric)
    if summary.n < 2:
        return f"{number(summary.mean)} in {'its only run' if summary.n else 'no run'}"
    return f"{summary.value} over {summary.n} seeds"


def signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{number(abs(value))}"


def over_seeds(a: Setting, b: Setting, metric: str) -> tuple[float, float] | None:
    """The 95% interval of the difference of the means over seeds (Welch); None with under two runs each.

    A point where no seed makes a difference in either setting.
    """
    values = [
        [v for run in setting.done if math.isfinite(v := run.metrics.get(metric, math.nan))] for setting in (a, b)
    ]
    if min(map(len, values)) < 2:
        return None
    if not any(map(statistics.pvariance, values)):
        return values[0][0] - values[1][0], values[0][0] - values[1][0]
    from scipy import stats

    found = stats.ttest_ind(*values, equal_var=False).confidence_interval(0.95)
    return float(found.low), float(found.high)


def _certainty(
    best: Setting, second: Setting, metric: str, interval: tuple[float, float] | None, duel: Duel | None
) -> list[str]:
    lines = []
    if interval is None:
        lines.append("With one run of a setting nothing tells what another seed would give: repeat with seed=0,1,2.")
    else:
        counts = " and ".join(str(setting.summary(metric).n) for setting in (best, second))
        leaves_out = interval[0] * interval[1] > 0
        verdict = "which leaves out 0" if leaves_out else "which contains 0: the chance of seeds may explain it"
        lines.append(
            f"Over seeds ({counts} runs) the 95% interval of this difference is {signed(interval[0])} to "
            f"{signed(interval[1])}, {verdict}."
        )
    if duel is not None:
        d = duel.difference
        verdict = "so the test set is large enough to tell" if d.clear else "so the test set is too small to tell"
        lines.append(
            f"On the same {d.samples} test samples it gets {d.mean:+.4f} more right, 95% interval {d.low:+.4f} to "
            f"{d.high:+.4f}, {verdict}; it is better in {duel.wins} of {len(duel.pairs)} pairs of runs."
        )
    return lines


def _sources(effects: Effects | None) -> list[str]:
    """Where the variance comes from."""
    if effects is None or not effects.total:
        return []
    if not effects.effects:
        return ["The keys always change together, so nothing tells which of them matters."]
    ranked = sorted(effects.effects, key=lambda effect: -effect.share)[:3]
    parts = [f"{effect.share:.0%} from {' with '.join(map(short, effect.keys))}" for effect in ranked]
    parts[0] = parts[0].replace(" from ", " comes from ", 1)
    left = f"{effects.seeds:.0%} is left to seeds" if effects.seeds is not None else "seeds cannot be told apart"
    skewed = "" if effects.balanced else " (the grid is not balanced, so shares may overlap)"
    return [f"Of the variance of {effects.metric} over all runs, {', '.join(parts)}; {left}{skewed}."]


def _cheaper(comparison: Comparison, ranked: Sequence[Setting], metric: str) -> list[str]:
    """The cheapest setting within one standard deviation of the best."""
    names = [name for name in comparison.costs if len({setting.mean(name) for setting in ranked}) > 1]
    best, summary = ranked[0], ranked[0].summary(metric)
    if not names or summary.n < 2:
        return []
    near = [s for s in ranked if abs(s.mean(metric) - summary.mean) <= summary.std]
    cheapest = min(near, key=lambda s: s.mean(names[0]) if math.isfinite(s.mean(names[0])) else math.inf, default=best)
    if cheapest is best or not cheapest.mean(names[0]) < best.mean(names[0]):
        return []
    prices = f"{cost(names[0], cheapest.mean(names[0]))} instead of {cost(names[0], best.mean(names[0]))}"
    return [f"Within one standard deviation of it, {cheapest.name} is cheapest: {COST_TITLES[names[0]]} {prices}."]


def _not_done(runs: Sequence[Run]) -> list[str]:
    states = Counter(run.state for run in runs if not run.done)
    lost = sum(1 for run in runs if not_finite(run))
    lines = []
    if states:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        lines.append(f"Not done are {sum(states.values())} of {len(runs)} runs ({counts}); they are in no mean.")
    if lost:
        lines.append(f"Metrics of {lost} done {'run' if lost == 1 else 'runs'} are not finite; they are in no mean.")
    return lines


def not_finite(run: Run) -> list[str]:
    """The metrics of a run that are NaN or infinite."""
    return [name for name, value in run.metrics.items() if not math.isfinite(value)]


def again(study: Study) -> list[str]:
    """The command lines that repeat the runs: the sweep's own, one -m line with the same product, or every run's."""
    if study.command:
        return [study.command]
    lines = list(dict.fromkeys(run.command for run in study.runs if run.command))
    try:
        rows = [shlex.split(line) for line in lines]
    except ValueError:
        return lines
    keys = {tuple(part.partition("=")[0] for part in row) for row in rows}
    if len(rows) < 2 or len(keys) != 1:
        return lines
    columns = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    if set(itertools.product(*columns)) != {tuple(row) for row in rows}:
        return lines
    program, *settings = columns
    joined = [values[0].partition("=")[0] + "=" + ",".join(v.partition("=")[2] for v in values) for values in settings]
    plain = [values[0] if len(values) == 1 else line for values, line in zip(settings, joined, strict=True)]
    return [shlex.join([*program, "-m", *plain])]


def seeds(comparison: Comparison) -> str:
    """The seeds of all runs, in words."""
    found = sorted({word(run.seed) for run in comparison.runs}, key=lambda text: (len(text), text))
    return ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
