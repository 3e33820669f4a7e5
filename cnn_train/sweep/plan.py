"""What a sweep runs: every combination composed and checked, each in a folder with its frozen config."""

import hashlib
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnn_train.config.choices import Choices
from cnn_train.config.compose import Composer
from cnn_train.config.overrides import line_of, parse
from cnn_train.errors import ConfigError
from cnn_train.runs import folder as run_folder
from cnn_train.sweep.axes import Axes, command, without
from cnn_train.sweep.job import Job
from cnn_train.sweep.metrics import check_metric

Planned = tuple[Job, DictConfig]


class Planner:
    """Composes the jobs of one command line; equal configs become one job."""

    def __init__(self, words: Sequence[str], config_dir: str | Path | None = None, known: Iterable[Job] = ()):
        self.words = without(words, "resume")
        self.config_dir = None if config_dir is None else str(config_dir)
        self.composer = Composer(config_dir)
        self.axes = Axes.read(self.words, self.composer.choices, self.published())
        self.seen: set[str] = set()
        self.next = 0
        self.remember(known)

    def remember(self, jobs: Iterable[Job]) -> None:
        """Count jobs that exist: their configs are not planned again, nor their numbers used."""
        for job in jobs:
            self.seen.add(job.digest)
            self.next = max(self.next, job.number + 1)

    def published(self) -> dict[str, Any]:
        """The axes that the line's experiment holds in its YAML, as `sweep.axes`."""
        fixed = [line_of(override) for override in parse(self.words) if not override.is_sweep_override()]
        self.fault: ConfigError | None = None
        try:
            axes = OmegaConf.to_container(self.composer.compose(fixed).sweep.axes)
        except ConfigError as error:  # told when the jobs are composed, in the sweep's own words
            self.fault = error
            return {}
        assert isinstance(axes, dict)
        return {str(key): values for key, values in axes.items()}

    def settings(self) -> DictConfig:
        """The config of the first combination, which holds what concerns the whole sweep."""
        if not self.axes.axes and self.fault is not None:
            raise self.fault
        if not self.axes.axes:
            error = ConfigError("nothing to vary: a sweep needs a list of values for one setting at least")
            error.add_note(f"try: {command([*self.words, 'seed=0,1,2'], self.config_dir)}")
            raise error
        first = {key: axis.corners()[0] for key, axis in self.axes.axes.items()}
        _, config = self.job(*self.axes.line(first))
        if config.sweep.prune is not None:
            import cnn_train.sweep.sampling  # noqa: F401  is reported before there is a folder, if Optuna is missing

        if config.sweep.sampler in ("grid", "list"):
            self.axes.refuse_intervals()
        elif config.sweep.trials is None:
            raise ConfigError(f"sweep={config.sweep.sampler} draws sweep.trials combinations; say how many")
        check_metric(config)
        return config

    def all(self, sampler: str, progress: bool = True) -> list[Planned]:
        """Every combination of the lists; a mistake in one is reported before any is started."""
        lines = list(self.axes.zipped() if sampler == "list" else self.axes.product())
        planned = []
        for changes, line in shown(lines) if progress else lines:
            job, config = self.job(changes, line)
            if job.digest not in self.seen:
                planned.append(self.take(job, config))
        return planned

    def probe(self) -> None:
        """Check what a sampler may draw: each value of each list, and the ends of each interval."""
        from cnn_train.sweep.sampling import distributions

        distributions(self.axes)
        first = {key: axis.corners()[0] for key, axis in self.axes.axes.items()}
        for key, axis in self.axes.axes.items():
            for value in axis.corners():
                self.job(*self.axes.line({**first, key: value}))

    def typed(self, job: Job) -> bool:
        """Whether a job is one of this line's."""
        rest = [word for word in job.overrides if word not in job.changes]
        return self.axes.has(job.changes) and all(word in self.axes.words for word in rest)

    def take(self, job: Job, config: DictConfig) -> Planned:
        """Give a new job its number."""
        job.number = self.next
        self.seen.add(job.digest)
        self.next += 1
        return job, config

    def job(self, changes: list[str], line: list[str]) -> Planned:
        """Compose and check one combination. Raises ConfigError, which names it."""
        try:
            config = self.composer.compose(line)
        except ConfigError as error:
            raise self.in_terms_of_the_sweep(error, changes, line) from error
        config.sweep.axes = {}  # a job is one run, also where its experiment is a sweep
        return Job(self.next, changes, line, digest(config), epochs=config.trainer.max_epochs), config

    def in_terms_of_the_sweep(self, error: ConfigError, changes: list[str], line: list[str]) -> ConfigError:
        """The same error with -m and the lists in the line to try, and with the combination that it is in."""
        told = type(error)(str(error))
        for note in getattr(error, "__notes__", ()):
            words = shlex.split(note.removeprefix("try: cnn-train ")) if note.startswith("try: cnn-train ") else []
            if len(words) == len(line):
                note = f"try: {command(self.corrected(words, line), self.config_dir)}"
            told.add_note(note)
        if changes:
            told.add_note(f"in job {self.next}: {' '.join(changes)}")
        return told

    def corrected(self, words: Sequence[str], line: Sequence[str]) -> list[str]:
        """The sweep's own words with the correction that `words` make to one job's `line`."""
        found = []
        for typed, before, after in zip(self.axes.words, line, words, strict=True):
            if before == after:
                found.append(typed)
                continue
            (_, _, wrong), (key, _, right) = before.partition("="), after.partition("=")
            _, _, values = typed.partition("=")
            found.append(f"{key}=" + re.sub(rf"(?<![\w.-]){re.escape(wrong)}(?![\w.-])", lambda _, r=right: r, values))  # type: ignore[misc]
        return found


def plan(overrides: Sequence[str], config_dir: str | Path | None = None) -> list[Planned]:
    """The jobs of a grid or list with their configs, numbered from 0."""
    planner = Planner(overrides, config_dir)
    return planner.all(planner.settings().sweep.sampler, progress=False)


def digest(config: DictConfig) -> str:
    """Equal for configs that train the same: what concerns only the sweep and the place of the folder is left out."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    for name in ("sweep", "output_dir", "settings", "config_dir"):
        plain.pop(name, None)
    plain.get("choices", {}).pop("sweep", None)
    return hashlib.sha256(repr(plain).encode()).hexdigest()[:16]


def shown(lines: Sequence[Any]) -> Iterator[Any]:
    """The same, with a line on stderr every other second while it takes longer than that."""
    last = time.monotonic()
    for number, line in enumerate(lines):
        if time.monotonic() - last > 2:
            last = time.monotonic()
            print(f"planned {number} of {len(lines)} jobs", file=sys.stderr, flush=True)
        yield line


def prepare(planned: Sequence[Planned], git: tuple[str | None, str]) -> None:
    """Make each job's folder, holding its frozen config; the git state is the sweep's."""
    for job, config in planned:
        job.folder.mkdir(exist_ok=True)
        text = shlex.join(["cnn-train", *job.overrides])
        run_folder.describe(job.folder, OmegaConf.to_yaml(config), text, git)
        job.save()


def combined(old: Sequence[str], new: Sequence[str], planner: Planner) -> Axes:
    """The axes of a sweep with values added: those of `planner`'s line, and the values that `new` adds to each.

    A key that the sweep did not vary keeps its value as the first of the new axis. Raises ConfigError.
    """
    axes = deepcopy(planner.axes)
    added = Axes.read(new, planner.composer.choices)
    for word in added.words:
        key = word.partition("=")[0].lstrip("+")
        extra = added.axes.get(key)
        if extra is None and key in axes.axes:
            extra = Axes.read([f"{key}=choice({word.partition('=')[2]})"], planner.composer.choices).axes[key]
        if extra is None:
            typed = next((w for w in old if w.partition("=")[0].lstrip("+") == key), None)
            raise ConfigError(
                f"{word}: a sweep that goes on keeps its {typed or key}; a list of values adds to it ({key}=a,b), and "
                "another value alone is another sweep"
            )
        if key not in axes.axes:
            axes.words = [w for w in axes.words if w.partition("=")[0].lstrip("+") != key] + [extra.word]
            axes.axes[key] = extra
            continue
        axis = axes.axes[key]
        if axis.is_interval or extra.is_interval:
            raise ConfigError(f"{word}: an interval stays as it is; sweep.trials=N draws more from it")
        axis.values += [value for value in extra.values if value not in axis.values]
    return axes


def expand(overrides: Sequence[str], choices: Choices) -> Iterator[tuple[list[str], list[str]]]:
    """Each combination of the lists in a line as its varied words and its whole line; later keys vary fastest."""
    axes = Axes.read(overrides, choices)
    axes.refuse_intervals()
    return axes.product()
