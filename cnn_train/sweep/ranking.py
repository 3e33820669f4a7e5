"""Which combination of a sweep is best, by the mean over its seeds, as a table."""

import csv
import io
import math
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from cnn_train import atomic
from cnn_train.sweep.folder import Sweep
from cnn_train.sweep.job import Job, by_point
from cnn_train.sweep.metrics import known_metrics
from cnn_train.sweep.progress import duration, table

USUAL = ("val/miou", "val/acc", "val/loss")


@dataclass(frozen=True)
class Objective:
    """The metric that ranks, and whether more is better."""

    metric: str | None
    most: bool

    def better(self, a: float, b: float) -> bool:
        return a > b if self.most else a < b


def objective(config: DictConfig, jobs: Sequence[Job] = ()) -> Objective:
    """What ranks the jobs: sweep.metric, else the monitor, else what is usual of those that jobs have."""
    known = {name for job in jobs for name in job.metrics} or known_metrics(config)
    metric = config.sweep.metric or config.monitor or next((name for name in USUAL if name in known), None)
    if config.sweep.mode != "auto":
        return Objective(metric, config.sweep.mode == "max")
    return Objective(metric, metric is None or not re.search(r"loss|error|perplexity", metric))


@dataclass(frozen=True)
class Point:
    """A combination with its repeats; `values` are those of the metric that are numbers."""

    jobs: Sequence[Job]
    values: Sequence[float]

    @property
    def name(self) -> str:
        return " ".join(self.jobs[0].point) or "(repeats only)"

    @property
    def complete(self) -> bool:
        """Whether every repeat is done and has a number."""
        return len(self.values) == len(self.jobs) and all(job.state == "done" for job in self.jobs)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)


def points(jobs: Sequence[Job], metric: str | None) -> list[Point]:
    return [Point(repeats, numbers(repeats, metric)) for repeats in by_point(jobs).values()]


def numbers(jobs: Sequence[Job], metric: str | None) -> list[float]:
    """The finite values of a metric in the jobs that are done."""
    found = [job.metrics.get(str(metric), math.nan) for job in jobs if job.state == "done"]
    return [value for value in found if math.isfinite(value)]


def best(jobs: Sequence[Job], goal: Objective) -> Point | None:
    """The point with the best mean among those whose repeats are all done; if there are none, with the most done."""
    ranked = [point for point in points(jobs, goal.metric) if point.values]
    most = max((len(point.values) for point in ranked), default=0)
    ranked = [point for point in ranked if point.complete] or [p for p in ranked if len(p.values) == most]
    return (max if goal.most else min)(ranked, key=lambda point: point.mean, default=None)


def report(sweep: Sweep, config: DictConfig) -> None:
    """Write sweep.csv and print the table and the best point; what failed is reported on stderr."""
    jobs = sweep.jobs
    goal = objective(config, jobs)
    write_csv(sweep)
    names = sorted({name for job in jobs for name in job.metrics})
    shown = [name for name in (goal.metric, "test/miou", "test/acc", "test/loss") if name in names]
    winner = best(jobs, goal)
    found = points(jobs, goal.metric)
    alone = len(found) == 1 or all(len(point.jobs) == 1 for point in found)
    print(table(rows_of_jobs(jobs, shown, winner) if alone else rows_of_points(jobs, goal, shown, winner)))
    for job in jobs:
        if job.state == "failed":
            print(f"job {job.number} ({job.name}): {job.error}; see {job.folder / 'log.txt'}", file=sys.stderr)
    if winner and len(found) == 1:
        means = (f"{name} {spread(numbers(winner.jobs, name))}" for name in shown)
        print(f"over the repeats: {', '.join(means)}")
    elif winner:
        where = f", {winner.jobs[0].folder}" if len(winner.jobs) == 1 else ""
        print(f"best by {goal.metric}: {winner.name}, {spread(winner.values)}{where}")
    elif goal.metric and names:
        print(f"no job has {goal.metric}, by which sweep.metric ranks; they have {', '.join(names)}", file=sys.stderr)
    print(f"table: {sweep.folder / 'sweep.csv'}")


def rows_of_jobs(jobs: Sequence[Job], shown: Sequence[str], winner: Point | None) -> list[list[str]]:
    """One row for each job, where no combination has repeats."""
    rows = [["", "job", "overrides", *shown, "state", "time", "folder"]]
    for job in jobs:
        values = [f"{job.metrics[name]:.4f}" if name in job.metrics else "-" for name in shown]
        mark = "*" if winner and len(winner.jobs) == 1 and job in winner.jobs else ""
        state = f"failed ({job.exit_code})" if job.state == "failed" else job.state
        rows.append([mark, str(job.number), job.name, *values, state, duration(job.seconds), str(job.folder)])
    return rows


def rows_of_points(jobs: Sequence[Job], goal: Objective, shown: Sequence[str], winner: Point | None) -> list[list[str]]:
    """One row for each combination, its metrics as mean ± standard deviation (n) over its seeds."""
    rows = [["", "jobs", "overrides", *shown, "state", "time"]]
    for point in points(jobs, goal.metric):
        mark = "*" if winner and point.jobs[0] in winner.jobs else ""
        states = [job.state for job in point.jobs]
        state = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
        values = [spread(numbers(point.jobs, name)) for name in shown]
        time = duration(sum(job.seconds for job in point.jobs))
        rows.append([mark, ",".join(str(job.number) for job in point.jobs), point.name, *values, state, time])
    return rows


def spread(values: Sequence[float]) -> str:
    """`0.9512 ± 0.0031 (3)`: mean, sample standard deviation and number; one value alone has no deviation."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f} ({len(values)})"


def write_csv(sweep: Sweep) -> None:
    """The jobs as a table with all their metrics."""
    names = sorted({name for job in sweep.jobs for name in job.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", "changes", "state", "seconds", *names, "folder", "error"])
    for job in sweep.jobs:
        values = [job.metrics.get(name, "") for name in names]
        writer.writerow([job.number, job.name, job.state, f"{job.seconds:.1f}", *values, job.folder, job.error])
    atomic.write_text(sweep.folder / "sweep.csv", text.getvalue())
