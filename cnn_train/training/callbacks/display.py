"""The terminal: a header, one progress line, one line per epoch that stays, a table at the end.

Progress goes to stderr and results to stdout. Where stderr is no terminal there are plain lines: one per epoch, and one
at least every 30 s.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Task as Row,
)
from rich.table import Column, Table
from rich.text import Text

from cnn_train.text import plain
from cnn_train.training.loop import Callback, Loop

PLAIN_SECONDS = 30.0
REDRAW_SECONDS = 0.2


def choose(progress: str) -> str:
    """How to show progress: `auto` is rich on a terminal and plain elsewhere."""
    if progress != "auto":
        return progress
    return "rich" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "plain"


def header(rows: Mapping[str, str]) -> None:
    """Print what runs, one aligned line each."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    width = max(map(len, rows))
    for name, value in rows.items():
        console.print(Text(f"{name:>{width}}  ", style="bold cyan") + Text(plain(value)))


class Rate(ProgressColumn):
    """Images per second over the last seconds."""

    def render(self, task: Row) -> Text:
        rate = task.fields.get("rate", 0.0)
        return Text(f"{rate:,.0f} img/s" if rate else "", style="cyan")


class Display(Callback):
    """Progress of training over all epochs, and a line that stays for each."""

    def __init__(self, mode: str):
        self.mode = mode
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, loop: Any) -> None:
        self.started = self.epoch_started = self.shown = time.monotonic()
        self.images, self.first_step = loop.progress.images, loop.progress.step

    def on_step(self, loop: Loop) -> None:
        now = time.monotonic()
        if self.mode != "none" and loop.progress.step == self.first_step + 1 and (waited := since_enter()) is not None:
            header({"started": f"{duration(waited)} from Enter to the first step"})
        if self.mode == "none" or now - self.shown < (REDRAW_SECONDS if self.mode == "rich" else PLAIN_SECONDS):
            return
        progress = loop.progress
        rate = (progress.images - self.images) / (now - self.shown)
        self.shown, self.images = now, progress.images
        if self.mode == "rich":
            self._redraw(loop, rate)
        else:
            per_step = (now - self.started) / (progress.step - self.first_step)
            left = per_step * (progress.total_steps - progress.step)
            self.console.print(
                f"epoch {progress.epoch + 1}/{loop.recipe.max_epochs}  step {progress.step_in_epoch}/"
                f"{progress.steps_per_epoch}  {rate:,.0f} img/s  {duration(left)} left"
            )

    def _redraw(self, loop: Loop, rate: float) -> None:
        progress = loop.progress
        if self.bar is None:
            columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), Rate()]
            columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
            self.bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
            self.row = self.bar.add_task("", total=progress.total_steps, completed=self.first_step)
            self.bar.start()
        description = f"epoch {progress.epoch + 1}/{loop.recipe.max_epochs}"
        self.bar.update(self.row, completed=progress.step, description=description, rate=rate, refresh=True)

    def on_epoch_end(self, loop: Loop) -> None:
        if self.mode == "none":
            return
        now = time.monotonic()
        epoch, last = loop.progress.epoch, loop.recipe.max_epochs
        parts = [f"epoch {epoch:>{len(str(last))}}/{last}"]
        for name, value in loop.metrics.items():
            split, _, metric = name.partition("/")
            if split == "train":
                shown = not metric.startswith("loss_")
            else:
                shown = split == "val" and loop.validated and metric in loop.task.shown_metrics
            if shown:
                parts.append(f"{name.replace('/', ' ')} {number(value)}")
        parts.append(duration(now - self.epoch_started))
        line = Text("  ".join(parts))
        if loop.best.epoch == epoch:
            line.append("  best", style="bold green")
        (self.bar.console if self.bar else self.console).print(line)
        self.epoch_started = self.shown = now
        self.images = loop.progress.images

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: object) -> None:
        """Take the progress line away; also when training ends by an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def results(
    title: str,
    metrics: Mapping[str, float],
    per_class: Mapping[str, float],
    per_class_name: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Print the table of final metrics to stdout, with 95 % intervals where they are given."""
    console = Console(highlight=False)
    table = Table("metric", Column("value", justify="right"), title=Text(plain(title)), title_justify="left")
    if intervals:
        table.add_column("95 %")
    for name, value in metrics.items():
        pair = (intervals or {}).get(name)
        between = [] if not intervals else ["" if pair is None else f"{pair[0]:.4f} to {pair[1]:.4f}"]
        table.add_row(Text(plain(name)), number(value), *between)
    if 0 < len(per_class) <= 30:
        table.add_section()
        for name, value in per_class.items():
            table.add_row(Text(plain(f"{per_class_name} {name}")), number(value))  # names come from files
    console.print(table)


def rows(title: str, lines: Sequence[Sequence[object]]) -> None:
    """Print a table to stdout, its head first."""
    table = Table(*(str(cell) for cell in lines[0]), title=Text(plain(title)), title_justify="left")
    for line in lines[1:]:
        table.add_row(*(Text(plain(str(cell))) for cell in line))
    Console(highlight=False).print(table)


def since_enter() -> float | None:
    """Seconds since `cnn-train` was started; None where the system does not say, and in another program."""
    if Path(sys.argv[0]).stem not in ("cnn-train", "__main__"):
        return None
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None


def number(value: float) -> str:
    """Four decimals; powers of ten where there would be none before or too many."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as people read them: 4.2 s, 3:05, 1:02:07."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
