"""What a sweep runs: every combination composed and checked, each in a folder with its frozen config."""

import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnn_train.config.choices import Choices
from cnn_train.config.compose import Composer
from cnn_train.config.overrides import parse
from cnn_train.errors import ConfigError
from cnn_train.runs import folder as run_folder


@dataclass
class Job:
    number: int
    changes: list[str]  # the overrides that differ between jobs
    overrides: list[str]
    config: DictConfig
    folder: Path = Path()
    state: str = "waiting"  # running, done, failed, stopped
    exit_code: int | None = None
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def name(self) -> str:
        return " ".join(self.changes) or "(no changes)"

    def record(self) -> dict[str, Any]:
        """The job as plain data, for sweep.json."""
        return {
            "number": self.number,
            "changes": self.changes,
            "overrides": self.overrides,
            "folder": self.folder.name,
            "state": self.state,
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 1),
            "metrics": self.metrics,
            "error": self.error,
        }


def plan(overrides: Sequence[str], config_dir: str | Path | None = None) -> list[Job]:
    """Compose and check every combination; a mistake in one is told before any is started."""
    composer = Composer(config_dir)
    jobs = []
    for number, (changes, line) in enumerate(expand(overrides, composer.choices)):
        try:
            jobs.append(Job(number, changes, line, composer.compose(line)))
        except ConfigError as error:
            if changes:
                error.add_note(f"in job {number}: {' '.join(changes)}")
            raise
    return jobs


def expand(overrides: Sequence[str], choices: Choices) -> Iterator[tuple[list[str], list[str]]]:
    """Each combination as its swept overrides and its whole line; later keys vary fastest.

    Lists are `a,b`, `choice(a,b)`, `range(1,4)`, and `glob(*)` for the choices of a group.
    """
    columns: list[list[str]] = []
    swept: list[bool] = []
    for override in parse(overrides):
        if override.is_interval_sweep():
            raise ConfigError(f"{override.input_line}: an interval has no list of values; use range() or choice()")
        if override.is_sweep_override():
            override.config_loader = _GroupOptions(choices)  # type: ignore[assignment]
            key = override.get_key_element()
            values = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not values:
                raise ConfigError(f"{override.input_line} gives no value")
            columns.append(values)
        else:
            columns.append([override.input_line or ""])
        swept.append(override.is_sweep_override())
    for combination in itertools.product(*columns):
        yield [word for word, changes in zip(combination, swept, strict=True) if changes], list(combination)


class _GroupOptions:
    """What Hydra's glob() asks for."""

    def __init__(self, choices: Choices):
        self.choices = choices

    def get_group_options(self, group: str, results_filter: object = None) -> list[str]:
        return self.choices.options(group)


def prepare(jobs: Sequence[Job]) -> Path:
    """Make the sweep's folder and in it each job's, holding its frozen config."""
    folder = run_folder.create(Path(jobs[0].config.output_dir) / "sweeps")
    width = len(str(len(jobs) - 1))
    for job in jobs:
        job.folder = folder / f"{job.number:0{width}}"
        job.folder.mkdir()
        command = shlex.join(["cnn-train", *job.overrides])
        run_folder.describe(job.folder, OmegaConf.to_yaml(job.config), command)
    return folder
