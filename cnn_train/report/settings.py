"""Settings: the runs that differ only in seed or fold, taken together. Which keys differ, which setting is best."""

import math
import operator
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnn_train.config.choices import nearest
from cnn_train.errors import ConfigError
from cnn_train.report.runs import COSTS, Run
from cnn_train.runs.metrics import lower_is_better

REPEATS = ("seed", "data.fold")  # what tells a run from others of its setting
# Where results go and how they are shown: no part of a setting.
IGNORED = re.compile(
    r"(output_dir|name|settings|choices\.(experiment|sweep|logger|debug)|(sweep|logger)(\..*)?|trainer\.progress)$"
)
# Choices that bring other choices with them.
BRINGS = ("choices.model", "choices.data", "choices.experiment")
USUAL = ("miou", "map", "acc", "loss")  # the metric to show, the first that the runs have


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of the finite values; `n` are these, `lost` the others."""

    mean: float
    std: float  # NaN for n < 2
    n: int
    lost: int = 0

    @classmethod
    def of(cls, values: Iterable[float]) -> "Summary":
        every = list(values)
        finite = [value for value in every if math.isfinite(value)]
        n = len(finite)
        mean = statistics.fmean(finite) if n else math.nan
        return cls(mean, statistics.stdev(finite) if n > 1 else math.nan, n, len(every) - n)

    def __str__(self) -> str:
        """`0.9625 ± 0.0177 (2)`, `0.9750 (1)`, `NaN (0 of 2)`."""
        of = f" of {self.n + self.lost}" if self.lost else ""
        return f"{self.value} ({self.n}{of})"

    @property
    def value(self) -> str:
        """Mean and deviation: `0.9625 ± 0.0177`."""
        if self.n < 2:
            return number(self.mean)
        fixed = 1e-3 <= abs(self.mean) < 1e4 and (self.std == 0 or self.std >= 5e-5)  # as many decimals as the mean
        return f"{number(self.mean)} ± {f'{self.std:.4f}' if fixed else number(self.std)}"


@dataclass(frozen=True, eq=False)  # hashed by identity
class Setting:
    """One value of each key that differs, and the runs that have them."""

    name: str
    values: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def done(self) -> list[Run]:
        return [run for run in self.runs if run.done]

    def summary(self, quantity: str) -> Summary:
        """Of a metric or a cost over the runs that are done."""
        return Summary.of(value for run in self.done if (value := quantity_of(run, quantity)) is not None)

    def mean(self, quantity: str) -> float:
        return self.summary(quantity).mean


@dataclass(frozen=True)
class Comparison:
    """All settings of some runs, with the metric that ranks them and the one to show."""

    keys: tuple[str, ...]  # that differ between settings
    settings: tuple[Setting, ...]  # the best first
    objective: str
    shown: str
    higher: bool  # is better, of the objective
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> list[Run]:
        return [run for setting in self.settings for run in setting.runs]

    @property
    def metrics(self) -> list[str]:
        """The metrics of any run: the objective, then test, validation, training."""
        names = dict.fromkeys(name for run in self.runs for name in run.metrics)
        order = {"test": 0, "val": 1, "train": 2}
        return sorted(names, key=lambda name: (name != self.objective, order.get(name.partition("/")[0], 3)))

    @property
    def costs(self) -> list[str]:
        return [name for name in COSTS if any(name in run.cost for run in self.runs if run.done)]

    def best(self, quantity: str) -> Setting | None:
        """The setting with the best mean of a metric or a cost; the earlier of two that tie."""
        known = [setting for setting in self.settings if math.isfinite(setting.mean(quantity))]
        sign = -1 if self.better_is_higher(quantity) else 1
        return min(known, key=lambda setting: sign * setting.mean(quantity), default=None)

    def best_means(self, quantities: Iterable[str]) -> dict[str, float]:
        """The best mean of each metric or cost: several may have it. NaN where there is nothing to choose."""
        best = {name: self.best(name) if len(self.settings) > 1 else None for name in quantities}
        return {name: setting.mean(name) if setting else math.nan for name, setting in best.items()}

    def better_is_higher(self, quantity: str) -> bool:
        return self.higher if quantity == self.objective else higher_is_better(quantity)

    def levels(self, key: str) -> list[Any]:
        """The values of a key: numbers by size, others in the order of the runs' folders."""
        runs = sorted(self.runs, key=lambda run: str(run.folder))
        return ordered(run.config.get(key) for run in runs)


def compare(runs: Sequence[Run], metric: str | None = None) -> Comparison:
    """Take the runs together by setting and rank the settings. `metric` is the one to show. Raises ConfigError."""
    notes: list[str] = []
    readable = [run for run in runs if run.state != "unreadable"]
    keys = differing(readable)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in readable:
        groups.setdefault(tuple(word(run.config.get(key)) for key in keys), []).append(run)
    every = [{key: members[0].config.get(key) for key in keys} for members in groups.values()]
    settings = []
    for name, values, members in zip(names_of(every), every, groups.values(), strict=True):
        kept, left = newest(members)
        settings.append(Setting(name, values, tuple(kept)))
        notes += [f"{run.folder} repeats the setting and seed of a newer run, and is left out." for run in left]
    objective, higher = objective_of(readable, notes)
    sign = -1 if higher else 1

    def rank(setting: Setting) -> tuple[bool, float]:
        mean = setting.mean(objective)
        return not math.isfinite(mean), sign * mean if math.isfinite(mean) else 0.0

    names = {name for run in readable for name in run.metrics}
    if metric is not None and metric not in names:
        raise unknown("metric", metric, names)
    shown = metric or usual(names, "test") or objective
    return Comparison(tuple(keys), tuple(sorted(settings, key=rank)), objective, shown, higher, tuple(notes))


def names_of(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each setting: `norm=bn lr=0.1`, with longer keys and more digits where they tell settings apart."""
    keys = [short(key) for key in next(iter(settings), {})]
    lasts = [key.rpartition(".")[2] for key in keys]
    labels = [last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)]

    def name(values: Mapping[str, Any], write: Callable[[Any], str]) -> str:
        words = (f"{label}={write(value)}" for label, value in zip(labels, values.values(), strict=True))
        return " ".join(words) or "the only setting"

    names = [name(values, brief) for values in settings]
    return names if len(set(names)) == len(names) else [name(values, word) for values in settings]


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys by which the runs differ, without the seed and without what follows from another choice.

    What a choice brings with it (`norm.num_groups` of `norm=gn`, `data` of `model=unet`) is left out unless typed.
    So is what only the program's version decides: a key that other runs do not have at all, and where a class stands.
    """
    typed = {name for run in runs for name in run.typed}
    differ = []
    for key in dict.fromkeys(key for run in runs for key in run.config):
        if key not in REPEATS and not IGNORED.match(key):
            named = short(key) in typed
            values = {word(run.config.get(key)) for run in runs if named or key in run.config}
            if len(values) > 1 and (named or not key.endswith("._target_")):
                differ.append(key)
    choices = [key for key in differ if key.startswith("choices.")]
    kept: list[str] = []
    for key in [*choices, *(key for key in differ if key not in choices)]:
        causes = [choice for choice in kept if choice in BRINGS or key.startswith(short(choice) + ".")]
        if short(key) in typed or not causes or not _follows(runs, key, causes):
            kept.append(key)
    return kept


def _follows(runs: Sequence[Run], key: str, choices: Sequence[str]) -> bool:
    """Whether the choices together decide the key in these runs."""
    pairs = {(tuple(word(run.config.get(choice)) for choice in choices), word(run.config.get(key))) for run in runs}
    return len(pairs) == len({chosen for chosen, _ in pairs})


def newest(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """One run of each seed, a done one before others, then the one started last; and the runs left out."""
    kept: dict[str, Run] = {}
    left = []
    for run in sorted(runs, key=lambda run: (run.done, str(run.environment.get("started", "")))):
        if (before := kept.pop(word(run.seed), None)) is not None:
            left.append(before)
        kept[word(run.seed)] = run
    rank = {word(seed): i for i, seed in enumerate(ordered(run.seed for run in kept.values()))}
    return sorted(kept.values(), key=lambda run: rank[word(run.seed)]), left


def objective_of(runs: Sequence[Run], notes: list[str]) -> tuple[str, bool]:
    """The metric that ranks, as most runs' sweep.metric or monitor says, and whether more is better."""
    wanted = Counter(str(run.config.get("sweep.metric") or run.config.get("monitor") or "") for run in runs)
    modes = Counter(str(run.config.get("sweep.mode") or "auto") for run in runs)
    metric = next((name for name, _ in wanted.most_common() if name), "")
    names = {name for run in runs for name in run.metrics}
    if len(wanted) > 1:
        notes.append(f"The runs watch different metrics ({', '.join(sorted(wanted))}); {metric} ranks them.")
    if names and metric not in names:
        fallback = usual(names, "val") or usual(names, "test") or min(names)
        if metric:
            notes.append(f"No run has {metric}, by which they should be ranked; {fallback} ranks them.")
        metric = fallback
    mode = modes.most_common(1)[0][0] if modes else "auto"
    return metric or "val/loss", higher_is_better(metric) if mode not in ("min", "max") else mode == "max"


def usual(names: Iterable[str], split: str) -> str | None:
    """The metric of a split that says most."""
    known = set(names)
    return next((f"{split}/{name}" for name in USUAL if f"{split}/{name}" in known), None)


def higher_is_better(quantity: str) -> bool:
    return quantity not in COSTS and not lower_is_better(quantity)


def quantity_of(run: Run, name: str) -> float | None:
    return run.cost.get(name) if name in COSTS else run.metrics.get(name)


def ordered(values: Iterable[Any]) -> list[Any]:
    """Distinct values: numbers by size, then the others as they come."""
    distinct = list({word(value): value for value in values}.values())
    numbers = [value for value in distinct if is_number(value)]
    return sorted(numbers) + [value for value in distinct if not is_number(value)]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def short(key: str) -> str:
    """A key as the command line names it."""
    return key.removeprefix("choices.")


def word(value: Any) -> str:
    """A value as the command line writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def brief(value: Any) -> str:
    """As `word`, a number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else word(value)


def number(value: float | None) -> str:
    """Four decimals, three digits where that says little, and NaN and inf by name."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}inf"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


# -- which runs: where=... --------------------------------------------------------------------------------------------

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


def where(runs: Sequence[Run], conditions: str) -> list[Run]:
    """The runs that fulfil every condition: `norm=bn|gn,optimizer.lr<0.1,test/acc>=0.9,state!=failed`.

    Raises ConfigError for a key that no run has, for words compared by size, and if no run is left.
    """
    left = list(runs)
    for condition in conditions.split(","):
        parts = re.fullmatch(r"\s*([^<>=!]+?)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", condition)
        if parts is None:
            raise ConfigError(
                f"where={conditions}: {condition!r} is no condition; write key=value, key!=value or key<1"
            )
        key, sign, values = parts.groups()
        known = {short(name) for run in runs for name in (*run.config, *run.metrics, *run.cost)} | {"state"}
        if key not in known:
            raise unknown("key", key, known)
        left = [run for run in left if _holds(run, key, sign, values.split("|"))]
    if not left:
        raise ConfigError(f"where={conditions}: none of the {len(runs)} runs fulfils it")
    return left


def _holds(run: Run, key: str, sign: str, values: Sequence[str]) -> bool:
    chosen = {short(name): value for name, value in run.config.items() if name.startswith("choices.")}
    places: tuple[Mapping[str, Any], ...] = (run.metrics, run.cost, {"state": run.state}, chosen, run.config)
    value = next((place[key] for place in places if key in place), None)
    compare = COMPARISONS[sign]
    if sign in ("=", "!="):
        return any(_same(value, other) for other in values) == (sign == "=")
    try:
        limit = float(values[0])
    except ValueError as error:
        raise ConfigError(f"where={key}{sign}{values[0]}: {sign} compares numbers; use = or !=") from error
    return is_number(value) and compare(value, limit)


def _same(value: Any, other: str) -> bool:
    if word(value) == other:
        return True
    try:
        return is_number(value) and float(value) == float(other)
    except ValueError:
        return False


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that no run has, with the nearest that some have."""
    names = sorted(set(known))
    near = nearest(name, names)
    there = f"Did you mean {near}?" if near else f"There are {', '.join(names[:12])}" if names else "There is none"
    return ConfigError(f"no run has the {kind} {name!r}. {there}")
