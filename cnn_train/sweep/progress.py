"""A sweep on the terminal while it runs, and its jobs as a table."""

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cnn_train.sweep.job import Job, read_curve

CURVE = 2.0  # seconds between two looks at a job's curve


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


def standing(job: Job, metric: str | None) -> str:
    """How far a running job has come: epoch, metric, and the time left by the pace of its epochs."""
    curve = read_curve(job.folder, metric or "train/loss") or read_curve(job.folder, "train/loss")
    if not curve:
        return last_line(job.folder / "log.txt")
    epoch = max(curve)
    parts = [f"epoch {epoch}/{job.epochs or '?'}", f"{metric or 'train/loss'} {curve[epoch]:.4f}"]
    if epoch and job.epochs >= epoch:
        parts.append(f"{duration(job.seconds / epoch * (job.epochs - epoch))} left")
    return ", ".join(parts)


def describe(job: Job, metric: str | None) -> str:
    """What there is to say of a job besides its state."""
    if job.state == "running":
        return standing(job, metric)
    if job.state == "done" and metric in job.metrics:
        return f"{metric} {job.metrics[str(metric)]:.4f}"
    return job.error or (last_line(job.folder / "log.txt") if job.state == "stopped" else "")


def counts(jobs: Sequence[Job]) -> str:
    """How many jobs are in each state: `3 done, 1 failed, 4 waiting`."""
    states = [job.state for job in jobs]
    order = ("done", "failed", "pruned", "stopped", "running", "waiting")
    return ", ".join(f"{states.count(state)} {state}" for state in order if state in states)


class PlainProgress:
    """A line when a job starts and when it ends, and one at least every 30 s."""

    interval = 30.0

    def __init__(self, jobs: list[Job], title: str, metric: str | None):
        self.jobs = jobs
        self.metric = metric
        self.last = time.monotonic()
        print(title, file=sys.stderr, flush=True)

    def __enter__(self) -> "PlainProgress":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def changed(self, job: Job) -> None:
        ending = {
            "done": f"done in {duration(job.seconds)}",
            "failed": f"failed: {job.error}",
            "pruned": f"pruned: {job.error}",
            "running": "started",
        }
        self.say(f"[{job.number + 1}/{len(self.jobs)}] {job.name}: {ending.get(job.state, job.state)}")

    def tick(self) -> None:
        if time.monotonic() - self.last >= self.interval:
            for job in self.jobs:
                if job.state == "running":
                    self.say(f"[{job.number + 1}/{len(self.jobs)}] {job.name}: {standing(job, self.metric)}")

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
        self.known: dict[int, tuple[float, str]] = {}
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
                table.add_row(job.name, duration(job.seconds), self.standing(job))
        table.add_row(counts(self.jobs), "", "")
        self.live.update(table, refresh=True)

    def standing(self, job: Job) -> str:
        """`standing`, read from the files now and then only."""
        since, text = self.known.get(job.number, (0.0, ""))
        if self.last - since > CURVE:
            text = standing(job, self.metric)
            self.known[job.number] = self.last, text
        return text


def progress(jobs: list[Job], title: str, metric: str | None, wanted: str) -> PlainProgress:
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    live = wanted == "rich" or (wanted == "auto" and terminal)
    return (LiveProgress if live else PlainProgress)(jobs, title, metric)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
