"""Which job of a sweep is best, as a table."""

import csv
import io
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cnn_train import atomic
from cnn_train.sweep.plan import Job
from cnn_train.sweep.progress import duration


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
    atomic.write_text(folder / "sweep.csv", text.getvalue())

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
