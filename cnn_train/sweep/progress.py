"""A sweep on the terminal while it runs."""

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cnn_train.sweep.plan import Job


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
