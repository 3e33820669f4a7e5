"""A sweep: every combination of lists of values, each trained by a fresh process in a folder of its own.

    outputs/sweeps/<date>_<time>_<n>/
      sweep.json   jobs with overrides, state, metrics; rewritten at every change
      sweep.csv    the same as a table, when all is done
      0/ 1/ ...    run folders; log.txt holds what the job printed

`plan` decides what to run, `prepare` writes the frozen configs, `Runner` runs them, `report` ranks them: a sampler only
has to replace the first, continuing a sweep the second.
"""

import csv
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnn_train import run_folder, signals
from cnn_train.choices import Choices
from cnn_train.config import Composer, parse
from cnn_train.errors import ConfigError

GRACE = 20.0  # seconds that a stopped job has to save its state
WORKER = (sys.executable, "-m", "cnn_train.worker")  # takes a run folder


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


def run(overrides: Sequence[str], config_dir: str | Path | None = None, worker: Sequence[str] = WORKER) -> int:
    """Plan, run and report a sweep; the exit code is 0 only if every job succeeded."""
    jobs = plan(overrides, config_dir)
    folder = prepare(jobs)
    code = Runner(jobs, folder, worker).run()
    report(jobs, folder)
    return code or int(any(job.state != "done" for job in jobs))


# -- what to run ------------------------------------------------------------------------------------------------------


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


# -- running ----------------------------------------------------------------------------------------------------------


def slots(configs: Sequence[DictConfig]) -> list[dict[str, str]]:
    """The environment of each place where a job can run, all at once: one per GPU, or one per two cores."""
    wanted = configs[0].sweep.jobs
    gpus = [] if all(config.trainer.accelerator in ("cpu", "mps") for config in configs) else visible_gpus()
    trainers = [config.trainer for config in configs]
    spread = any(trainer.devices not in ("auto", 1, "1") or trainer.strategy != "auto" for trainer in trainers)
    if spread:  # each job takes several devices
        return [{} for _ in range(1 if wanted == "auto" else wanted)]
    if gpus:
        count = len(gpus) if wanted == "auto" else wanted
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(cores // 2, 1) if wanted == "auto" else wanted
    threads = os.environ.get("OMP_NUM_THREADS", str(max(cores // count, 1)))
    return [{"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} for _ in range(count)]


def visible_gpus() -> list[str]:
    """NVIDIA GPUs by the names that CUDA_VISIBLE_DEVICES takes, found without torch."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU (\d+):", listed.stdout, re.MULTILINE)


class Runner:
    """Runs jobs as processes, as many at once as fit; a job that fails stops no other."""

    def __init__(self, jobs: Sequence[Job], folder: Path, worker: Sequence[str] = WORKER):
        self.jobs = jobs
        self.folder = folder
        self.worker = worker
        self.free = slots([job.config for job in jobs])
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.places: dict[int, dict[str, str]] = {}
        self.started: dict[int, float] = {}

    def run(self) -> int:
        """0, or 130 and 143 if the sweep was interrupted or terminated."""
        with signals.keyboard_interrupts():
            return self._run()

    def _run(self) -> int:
        self.save()
        show = progress(self.jobs, self.folder, len(self.free))
        try:
            with terminable(), show:
                while any(job.state in ("waiting", "running") for job in self.jobs):
                    for job in self.jobs:
                        if job.state == "waiting" and self.free:
                            self.start(job)
                            show.changed(job)
                        elif job.state == "running" and self.finished(job):
                            show.changed(job)
                    show.tick()
                    time.sleep(0.1)
        except KeyboardInterrupt:
            self.stop()
            return 130
        except Terminated:
            self.stop()
            return 143
        return 0

    def start(self, job: Job) -> None:
        place = self.free.pop(0)
        with (job.folder / "log.txt").open("ab") as log:
            self.processes[job.number] = subprocess.Popen(
                [*self.worker, str(job.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **place},
                start_new_session=True,  # a Ctrl-C is ours: we ask the jobs to save and stop
            )
        self.places[job.number] = place
        self.started[job.number] = time.monotonic()
        job.state = "running"
        self.save()

    def finished(self, job: Job) -> bool:
        """Note the end of a running job."""
        job.seconds = time.monotonic() - self.started[job.number]
        code = self.processes[job.number].poll()
        if code is None:
            return False
        self.free.append(self.places.pop(job.number))
        job.exit_code = code
        job.metrics = read_metrics(job.folder / "metrics.json")
        job.state = "done" if code == 0 else "failed"
        if code == 0 and not job.metrics:
            job.state, job.error = "failed", "it ended without metrics.json"
        elif code < 0:
            job.error = f"killed by {signal.Signals(-code).name}" + (" (memory?)" if code == -signal.SIGKILL else "")
        elif code:
            job.error = last_line(job.folder / "log.txt", "error:").removeprefix("error: ") or f"exit code {code}"
        self.save()
        return True

    def stop(self) -> None:
        """Ask every running job to save its state and end; kill those that do not in time."""
        running = [job for job in self.jobs if job.state == "running"]
        if running:
            print(f"stopping {len(running)} running jobs; Ctrl-C again kills them", file=sys.stderr)
        deadline = time.monotonic() + GRACE
        try:
            for job in running:
                self.signal(job, signal.SIGTERM)
            for job in running:
                try:
                    self.processes[job.number].wait(max(deadline - time.monotonic(), 0))
                except subprocess.TimeoutExpired:
                    self.signal(job, signal.SIGKILL)
        except KeyboardInterrupt:
            for job in running:
                self.signal(job, signal.SIGKILL)
        for job in running:
            job.exit_code = self.processes[job.number].wait()
            job.metrics = read_metrics(job.folder / "metrics.json")
            job.state = "done" if job.exit_code == 0 and job.metrics else "stopped"
        self.save()

    def signal(self, job: Job, number: signal.Signals) -> None:
        """To the job's whole process group: its ranks and workers too."""
        with suppress(ProcessLookupError):
            os.killpg(self.processes[job.number].pid, number)

    def save(self) -> None:
        record = {"jobs": [job.record() for job in self.jobs]}
        run_folder.write_json(self.folder / "sweep.json", record)


class Terminated(Exception):
    """SIGTERM."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within: SIGTERM raises Terminated, so that no job is left behind."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def read_metrics(path: Path) -> dict[str, float]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def last_line(path: Path, start: str = "") -> str:
    """The last line of a log that begins with `start` (the last of all if none does), without escape codes."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 8192, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]+", text)]
    lines = [line for line in lines if line]
    return next((line for line in reversed(lines) if line.startswith(start)), lines[-1] if lines else "")


# -- progress on stderr -----------------------------------------------------------------------------------------------


class PlainProgress:
    """A line when a job starts and when it ends, and one at least every 30 s."""

    interval = 30.0

    def __init__(self, jobs: Sequence[Job], folder: Path, places: int):
        self.jobs = jobs
        self.last = time.monotonic()
        print(f"sweep of {len(jobs)} jobs, {places} at once, in {folder}", file=sys.stderr)

    def __enter__(self) -> "PlainProgress":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def changed(self, job: Job) -> None:
        ending = {"done": f"done in {duration(job.seconds)}", "failed": f"failed: {job.error}"}
        self.say(f"[{job.number + 1}/{len(self.jobs)}] {job.name}: {ending.get(job.state, 'started')}")

    def tick(self) -> None:
        if time.monotonic() - self.last >= self.interval:
            for job in self.jobs:
                if job.state == "running":
                    self.say(f"[{job.number + 1}/{len(self.jobs)}] {job.name}: {last_line(job.folder / 'log.txt')}")

    def say(self, text: str) -> None:
        self.last = time.monotonic()
        print(text, file=sys.stderr, flush=True)


class LiveProgress(PlainProgress):
    """On a terminal: one line per running job, renewed in place, below the plain lines."""

    interval = 0.5

    def __enter__(self) -> "LiveProgress":
        from rich.console import Console
        from rich.live import Live

        self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def say(self, text: str) -> None:
        self.live.console.print(text, highlight=False, markup=False)

    def tick(self) -> None:
        if time.monotonic() - self.last < self.interval:
            return
        from rich.table import Table

        self.last = time.monotonic()
        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(no_wrap=True, overflow="ellipsis")
        for job in self.jobs:
            if job.state == "running":
                table.add_row(job.name, duration(job.seconds), last_line(job.folder / "log.txt"))
        states = [job.state for job in self.jobs]
        table.add_row(
            f"{states.count('done')} done, {states.count('failed')} failed, {states.count('waiting')} waiting", "", ""
        )
        self.live.update(table, refresh=True)


def progress(jobs: Sequence[Job], folder: Path, places: int) -> PlainProgress:
    wanted = jobs[0].config.trainer.progress
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    live = wanted == "rich" or (wanted == "auto" and terminal)
    return (LiveProgress if live else PlainProgress)(jobs, folder, places)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


# -- the result -------------------------------------------------------------------------------------------------------


def objective(jobs: Iterable[Job]) -> tuple[str | None, bool]:
    """The metric that ranks the jobs, and whether more is better."""
    jobs = list(jobs)
    config = jobs[0].config
    known = {name for job in jobs for name in job.metrics}
    wanted = config.sweep.metric or config.monitor
    usual = ("val/miou", "val/acc", "val/loss")
    metric = wanted or next((name for name in usual if name in known), None)
    if config.sweep.mode != "auto":
        return metric, config.sweep.mode == "max"
    return metric, metric is None or not re.search(r"loss|error|perplexity", metric)


def best(jobs: Sequence[Job]) -> Job | None:
    metric, most = objective(jobs)
    ranked = [job for job in jobs if job.state == "done" and metric in job.metrics]
    ranked = [job for job in ranked if job.metrics[str(metric)] == job.metrics[str(metric)]]  # not NaN
    return (max if most else min)(ranked, key=lambda job: job.metrics[str(metric)], default=None)


def report(jobs: Sequence[Job], folder: Path) -> None:
    """Write sweep.csv and print the table and the best job."""
    metric, _ = objective(jobs)
    names = sorted({name for job in jobs for name in job.metrics})
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["job", "changes", "state", "seconds", *names, "folder", "error"])
    for job in jobs:
        values = [job.metrics.get(name, "") for name in names]
        writer.writerow([job.number, job.name, job.state, f"{job.seconds:.1f}", *values, job.folder, job.error])
    run_folder.write_text(folder / "sweep.csv", text.getvalue())

    shown = [name for name in (metric, "test/miou", "test/acc", "test/loss") if name in names]
    winner = best(jobs)
    rows = [["", "job", "overrides", *map(str, shown), "state", "time", "folder"]]
    for job in jobs:
        numbers = [f"{job.metrics[name]:.4f}" if name in job.metrics else "-" for name in map(str, shown)]
        mark = "*" if job is winner else ""
        state = f"{job.state} ({job.exit_code})" if job.state == "failed" else job.state
        rows.append([mark, str(job.number), job.name, *numbers, state, duration(job.seconds), str(job.folder)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    for job in jobs:
        if job.error:
            print(f"job {job.number} ({job.name}): {job.error}; see {job.folder / 'log.txt'}", file=sys.stderr)
    if winner:
        print(f"best by {metric}: {winner.name}, {winner.metrics[str(metric)]:.4f}, {winner.folder}")
    elif metric and names:
        print(f"no job has {metric}, by which sweep.metric ranks; they have {', '.join(names)}", file=sys.stderr)
    print(f"table: {folder / 'sweep.csv'}")
