"""Run folders as plain data: what was set, what came out, how each run ended. Only reads files.

A run folder is one that holds config.yaml. Of the rest, each file may be missing or damaged:

metrics.json      final metrics; a run that has them is done     cost.json        seconds, memory, parameters
metrics.csv       one row per epoch                              predictions.csv  one row per test sample
log.txt           how the run ended                              pictures/        PNG files
command.txt, environment.json

Its job.json, or the sweep's sweep.json one folder above, adds the state and the cause of a job that is not done.
"""

import csv
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cnn_train.errors import ConfigError

DEPTH = 6  # folders below the one named in which runs are looked for
TAIL = 16384  # bytes at the end of log.txt that tell how a run ended
COSTS = ("seconds", "seconds_per_step", "peak_memory_bytes", "parameters")
COST_TITLES = {
    "seconds": "time",
    "seconds_per_step": "time per step",
    "peak_memory_bytes": "peak memory",
    "parameters": "parameters",
}


@dataclass(frozen=True, eq=False)  # hashed by identity
class Run:
    """One run folder. `state`: done, failed, stopped, pruned, unfinished, waiting or unreadable."""

    folder: Path
    state: str
    cause: str = ""  # of a run that is not done
    config: Mapping[str, Any] = field(default_factory=dict)  # leaves by dotted key
    typed: frozenset[str] = frozenset()  # keys and groups named on the command line
    command: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)  # may be NaN or infinite
    curve: Sequence[Mapping[str, float]] = ()  # of each epoch: epoch, step, lr, metrics
    cost: Mapping[str, float] = field(default_factory=dict)  # of COSTS
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def seed(self) -> Any:
        """What tells the run from its repeats: its seed and, in cross-validation, its fold."""
        seed, fold = self.config.get("seed"), self.config.get("data.fold")
        return seed if self.config.get("data.folds") is None else f"{seed}, fold {fold}"

    @property
    def epoch(self) -> int:
        """The last epoch in metrics.csv, 0 without one."""
        return max((int(row["epoch"]) for row in self.curve if row.get("epoch", math.nan) >= 0), default=0)

    def pictures(self) -> list[Path]:
        return sorted((self.folder / "pictures").glob("*.png"))


@dataclass(frozen=True)
class Study:
    """The runs below some folders, and remarks about what was damaged."""

    folders: tuple[Path, ...]
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()
    command: str = ""  # the sweep's own line, where sweep.json has it
    sampler: str = ""  # grid, random, tpe, list; "" where unknown


def read(folders: Iterable[str | Path]) -> Study:
    """Read every run in or below `folders`. Raises ConfigError if one does not exist or holds no run."""
    paths = tuple(Path(folder) for folder in folders)
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"no folder {path.absolute()}; name a sweep's folder, a run's, or one that holds some")
        below = list(run_folders(path))
        if not below:
            raise ConfigError(f"no runs in {path.absolute()}: no folder in it holds a config.yaml")
        found.update(dict.fromkeys(folder.resolve() for folder in below))
    notes: list[str] = []
    sweeps = {folder: read_sweep(folder, notes) for folder in dict.fromkeys(folder.parent for folder in found)}
    jobs = {folder: _job(sweeps[folder.parent], folder) for folder in found}
    runs = tuple(read_run(folder, jobs[folder]) for folder in found)
    one = next(iter(sweeps.values())) if len(sweeps) == 1 else {}
    return Study(paths, runs, tuple(notes), _text(one.get("command")), _text(one.get("sampler")))


def run_folders(folder: Path, depth: int = DEPTH) -> Iterable[Path]:
    """Folders with a config.yaml, in natural order (2 before 10); does not look inside of runs."""
    if (folder / "config.yaml").is_file():
        yield folder
    elif depth:
        try:
            below = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return
        for path in sorted(below, key=lambda path: natural(path.name)):
            if not path.name.startswith("."):
                yield from run_folders(path, depth - 1)


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sorting key that takes numbers in a name for numbers."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def read_sweep(folder: Path, notes: list[str]) -> dict[str, Any]:
    """sweep.json as a dict; {} where there is none, and with a note where it is damaged."""
    path = folder / "sweep.json"
    if not path.exists():
        return {}
    record = _json(path)
    if isinstance(record, dict) and isinstance(record.get("jobs", []), list):
        return record
    notes.append(f"{path} is damaged; the sweep was rebuilt from its run folders.")
    return {}


def _job(sweep: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What its job.json, or else sweep.json, says of the run in `folder`."""
    if own := _json(folder / "job.json"):
        return own
    records = (job for job in sweep.get("jobs", []) if isinstance(job, dict))
    return next((job for job in records if Path(_text(job.get("folder"))).name == folder.name), {})


def read_run(folder: Path, job: Mapping[str, Any] | None = None) -> Run:
    """Read one run folder; `job` is its record in sweep.json."""
    job = job or {}
    command = _read(folder / "command.txt").strip()
    config = _yaml(folder / "config.yaml")
    curve = read_curve(folder / "metrics.csv")
    metrics = _numbers(_json(folder / "metrics.json"))
    state, cause = ending(folder, job, bool(metrics))
    if not config:
        state, cause = "unreadable", "config.yaml is damaged"
    cost = {name: value for name, value in _numbers(_json(folder / "cost.json")).items() if name in COSTS}
    if state == "done" and (seconds := _numbers(job).get("seconds")) is not None:
        cost.setdefault("seconds", seconds)
    environment = _json(folder / "environment.json")
    return Run(
        folder,
        state,
        cause,
        dict(leaves(config)),
        typed_keys(command),
        command,
        metrics if state == "done" else {},
        curve,
        cost,
        environment if isinstance(environment, dict) else {},
    )


def ending(folder: Path, job: Mapping[str, Any], finished: bool) -> tuple[str, str]:
    """State and cause of a run: from its own files first, then from sweep.json."""
    if finished:
        return "done", ""
    state, cause = _text(job.get("state")), _text(job.get("error")) or _text(job.get("reason"))
    if state in ("failed", "pruned") or (state == "stopped" and cause):
        return state, cause or state
    log = _read(folder / "log.txt", TAIL)
    if not log:
        return "waiting", "not started"
    for line in reversed(re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", log))):
        if error := re.match(r"(?:error: |[\w.]*(?:Error|Exception): )(.+)", line):
            return "failed", error[1].strip()
        if stop := re.search(r"\] (stopped by SIG\w+.*|stopped)$", line):
            return "stopped", stop[1]
        if re.search(r"\] cnn-train\b", line):
            break  # the last start: nothing tells its end
    return "unfinished", "the log tells no end: it runs still, or was killed"


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv with a number as epoch, empty cells and words left out; NaN and inf stay."""
    rows = []
    for row in _rows(path):
        numbers = {name: value for name, text in row.items() if name and (value := _float(text)) is not None}
        if math.isfinite(numbers.get("epoch", math.nan)):
            rows.append(numbers)
    return rows


def predictions(folder: Path) -> dict[str, float] | None:
    """How right each test sample was in predictions.csv, 0 to 1, by its name; None without the file.

    Columns: sample, label, prediction, correct, loss. Only `sample` and `correct` are read here.
    """
    correct = {row.get("sample") or "": _float(row.get("correct")) for row in _rows(folder / "predictions.csv")}
    right = {sample: value for sample, value in correct.items() if value is not None and math.isfinite(value)}
    return right or None


def leaves(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys with their values; a list is one value."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, json.dumps(node, default=str) if isinstance(node, list | Mapping) else node


def typed_keys(command: str) -> frozenset[str]:
    """The keys and groups that a command line sets, as it names them."""
    try:
        words = shlex.split(command)
    except ValueError:
        return frozenset()
    return frozenset(word.partition("=")[0].lstrip("+~") for word in words if "=" in word)


def _read(path: Path, tail: int | None = None) -> str:
    """A file's text, or its last `tail` bytes; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            if tail is not None:
                file.seek(max(path.stat().st_size - tail, 0))
            return file.read().decode("utf-8", "replace").replace("\0", "")
    except OSError:
        return ""


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; [] if it cannot be read."""
    try:
        return list(csv.DictReader(_read(path).splitlines()))
    except csv.Error:
        return []


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path) or "null")
    except (ValueError, RecursionError):
        return None


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(_read(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _numbers(content: Any) -> dict[str, float]:
    """The entries of a dict that are numbers."""
    if not isinstance(content, dict):
        return {}
    return {k: float(v) for k, v in content.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _float(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
