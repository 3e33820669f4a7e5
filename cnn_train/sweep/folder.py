"""A sweep's folder: all that is known of the sweep.

    outputs/sweeps/<date>_<time>_<n>/
      sweep.json     what was asked, and the jobs; written when jobs are planned, and when the sweep ends or stops
      command.txt    what was typed
      git.diff       uncommitted changes when it began, if any
      sweep.csv      the jobs as a table, when the sweep ends or stops
      0/ 1/ ...      run folders; job.json tells what became of the job, log.txt what it printed

The truth about a job is in its own folder. A damaged sweep.json is made anew from the job.json of all folders.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnn_train import atomic
from cnn_train.errors import ConfigError
from cnn_train.runs import secrets
from cnn_train.sweep.axes import command, without
from cnn_train.sweep.job import RECORD, Job, from_record, read_json
from cnn_train.sweep.system import is_locked

PLAN = "sweep.json"
# How a sweep runs, which changes nothing of what it runs.
FREE = ("sweep.jobs", "sweep.fresh", "sweep.on_failure", "sweep.engine", "sweep.cpus", "sweep.gpus", "sweep.memory",
        "sweep.partition", "sweep.time", "sweep.slurm")  # fmt: skip


@dataclass
class Sweep:
    """A sweep's folder, read. `threads` are those of each job on a CPU; they stay, since they decide about bits."""

    folder: Path
    words: list[str]
    config_dir: str | None = None
    threads: int | None = None
    jobs: list[Job] = field(default_factory=list)

    @property
    def command(self) -> str:
        return command(self.words, self.config_dir)

    def save(self) -> None:
        record: dict[str, Any] = {
            "command": secrets.mask(self.command),
            "words": [secrets.mask(word) for word in self.words],
            "config_dir": self.config_dir,
            "threads": self.threads,
            "jobs": [job.record() for job in self.jobs],
        }
        atomic.write_json(self.folder / PLAN, record)

    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs if job.state not in ("done", "pruned")]

    @property
    def next_line(self) -> str:
        """The command that continues the sweep."""
        return f"continue: cnn-train resume {shlex.quote(str(self.folder))}"


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's, also if its sweep.json is lost."""
    return not (folder / "config.yaml").exists() and (
        (folder / PLAN).exists() or next(folder.glob(f"*/{RECORD}"), None) is not None
    )


def read(folder: Path, owned: bool | None = None) -> Sweep:
    """A sweep by its folder, with the state of every job. Raises ConfigError for a folder that is none.

    `owned` says whether the sweep's own process runs; None: whether its lock is held.
    """
    if not folder.is_dir():
        raise ConfigError(f"no sweep at {folder.absolute()}; {newest_sweep()}")
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} is the folder of one run, not of a sweep; a sweep's holds {PLAN}")
    record = read_json(folder / PLAN)
    try:
        sweep = Sweep(folder, [*map(str, record["words"])], record.get("config_dir"), record.get("threads"))
        sweep.jobs = [from_record(job, folder) for job in record["jobs"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        sweep = rebuilt(folder)
    owned = is_locked(folder) if owned is None else owned
    for job in sweep.jobs:
        job.read_state(owned)
    return sweep


def rebuilt(folder: Path) -> Sweep:
    """A sweep whose sweep.json is damaged or missing, from the folders of its jobs, which it tells."""
    jobs = []
    for path in folder.glob(f"*/{RECORD}"):
        try:
            jobs.append(from_record({**read_json(path), "folder": path.parent.name}, folder))
        except (KeyError, TypeError, ValueError):
            print(f"{path} is damaged: its job is left out", file=sys.stderr)
    if not jobs:
        raise ConfigError(
            f"{folder} is no sweep: it has no readable {PLAN}, and no job's folder in it; {newest_sweep()}"
        )
    print(f"{folder / PLAN} was damaged and is made anew from the folders of {len(jobs)} jobs", file=sys.stderr)
    words, config_dir = typed(folder)
    threads = max(read_json(job.folder / RECORD).get("threads", 0) for job in jobs) or None
    sweep = Sweep(folder, words, config_dir, threads, sorted(jobs, key=lambda job: job.number))
    sweep.save()
    return sweep


def typed(folder: Path) -> tuple[list[str], str | None]:
    """The words of the sweep's command.txt, and its --config-dir."""
    try:
        words = shlex.split((folder / "command.txt").read_text(encoding="utf-8"))[2:]
    except (OSError, ValueError):
        return [], None
    if "--config-dir" in words:
        at = words.index("--config-dir")
        return words[:at] + words[at + 2 :], next(iter(words[at + 1 : at + 2]), None)
    return words, None


def newest_sweep(parent: Path = Path("outputs/sweeps")) -> str:
    found = sorted(parent.glob(f"*/{PLAN}"), key=lambda path: path.stat().st_mtime)
    return f"the newest here is {found[-1].parent}" if found else f"there is none in ./{parent}"


def same_line(parent: Path, words: Sequence[str]) -> Path | None:
    """The newest sweep in `parent` of this very command line; how many jobs run at once may differ."""
    free = (*FREE, "resume")
    wanted = sorted(secrets.mask(word) for word in without(words, *free))
    for path in sorted(parent.glob(f"*/{PLAN}"), reverse=True):
        found = read_json(path).get("words")
        if isinstance(found, list) and sorted(without([*map(str, found)], *free)) == wanted:
            return path.parent
    return None
