"""One job of a sweep: what it runs, and what became of it, both kept in its own folder."""

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cnn_train import atomic
from cnn_train.runs import folder as run_folder
from cnn_train.sweep.axes import REPEATS

RECORD = "job.json"
STATES = ("waiting", "running", "done", "failed", "stopped", "pruned")


@dataclass
class Job:
    """`point` is what the job shares with its repeats under other seeds and folds."""

    number: int
    changes: list[str]  # the overrides that differ between jobs
    overrides: list[str]
    digest: str = ""  # of the config
    params: dict[str, Any] = field(default_factory=dict)  # that a sampler drew
    epochs: int = 0  # that it trains
    threads: int = 0  # of its process; 0: as many as it likes
    state: str = "waiting"
    exit_code: int | None = None
    seconds: float = 0.0  # over all its starts
    error: str = ""  # why it failed or was pruned
    tries: int = 0  # failed starts since the sweep began or was continued
    started: bool = False  # once at least: the next start resumes
    folder: Path = Path()
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join(self.changes) or "(no changes)"

    @property
    def point(self) -> tuple[str, ...]:
        return tuple(word for word in self.changes if word.partition("=")[0] not in REPEATS)

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "pruned")

    def record(self) -> dict[str, Any]:
        """The job as plain data."""
        names = [f.name for f in fields(self) if f.name not in ("folder", "metrics", "seconds")]
        return {
            "folder": self.folder.name,
            "seconds": round(self.seconds, 1),
            **{name: getattr(self, name) for name in names},
        }

    def save(self) -> None:
        """Write what became of the job into its folder."""
        atomic.write_json(self.folder / RECORD, self.record())

    def read_state(self, owned: bool = False) -> None:
        """Set the state by the folder: `owned` says whether the sweep's own process is alive.

        Final metrics mean done. A job that was running when its sweep was killed is stopped; one that still saves its
        state is `running`.
        """
        known = read_json(self.folder / RECORD)
        for name in ("exit_code", "seconds", "error", "started", "tries", "params", "epochs", "threads"):
            if name in known:
                setattr(self, name, known[name])
        self.state = known.get("state", "waiting")
        if self.state not in STATES:
            self.state = "waiting"
        self.metrics = read_metrics(self.folder)
        if self.metrics and self.state != "failed":
            self.state, self.exit_code, self.error = "done", 0, ""
        elif self.state == "done":  # its results are gone
            self.state = "waiting"
        elif self.state == "running" and not owned and run_folder.is_free(self.folder):
            self.state = "stopped"
        if self.state == "running":  # recorded when it began
            self.seconds += max(time.time() - (self.folder / RECORD).stat().st_mtime, 0.0)

    def settle(self) -> None:
        """Write down what became of the job while no sweep was there to do so."""
        if self.folder.is_dir() and read_json(self.folder / RECORD).get("state") != self.state:
            self.save()


def from_record(record: dict[str, Any], folder: Path) -> Job:
    """A job of a sweep's folder by its record. Raises KeyError, TypeError or ValueError for one that is damaged."""
    job = Job(int(record["number"]), [*map(str, record["changes"])], [*map(str, record["overrides"])])
    job.digest, job.epochs = str(record.get("digest", "")), int(record.get("epochs", 0))
    job.params = dict(record.get("params", {}))
    job.folder = folder / Path(str(record["folder"])).name
    return job


def read_json(path: Path) -> dict[str, Any]:
    """A file's mapping; {} if it is absent or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_metrics(folder: Path) -> dict[str, float]:
    """A run's final metrics; {} if it has none yet."""
    found = read_json(folder / "metrics.json")
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def read_curve(folder: Path, metric: str) -> dict[int, float]:
    """A metric by epoch from a run's metrics.csv, as far as it has come."""
    curve = {}
    try:
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    curve[int(row["epoch"])] = float(row[metric])
                except (KeyError, TypeError, ValueError):
                    continue
    except OSError:
        pass
    return curve


def by_point(jobs: Sequence[Job]) -> dict[tuple[str, ...], list[Job]]:
    """The jobs of each point, in the order of the first."""
    points: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        points.setdefault(job.point, []).append(job)
    return points
