"""A sweep's jobs run: as many at once as there are places, here (the engine `local`) or on a cluster."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from cnn_train.sweep import system
from cnn_train.sweep.folder import Sweep
from cnn_train.sweep.job import Job, read_metrics
from cnn_train.sweep.progress import PlainProgress, last_line
from cnn_train.sweep.workers import LOST, Starter, Worker

GRACE = 20.0  # seconds that a stopped job has to save its state
POLL = 0.01  # seconds between two looks at the jobs
WATCH = 0.3  # seconds between two looks at their curves
AGAIN = 2  # tries of a job under sweep.on_failure=retry
SAME_AGAIN = (2, 5)  # exit codes that a new try would end with again: config, diverged


class Source(Protocol):
    """Where a sweep's jobs come from while it runs, and what ends them early."""

    def more(self, jobs: Sequence[Job]) -> list[Job]:
        """New jobs, now that a place is free; [] if there are none (yet)."""

    def prepare(self, job: Job | None = None) -> bool:
        """Make the folder of a job, or of any that has none; whether there was one to make."""

    def granted(self, job: Job) -> Sequence[str]:
        """Words for the worker: what the job's config, a file to it, may name and fetch."""
        ...

    def to_prune(self, jobs: Sequence[Job]) -> list[tuple[Job, str]]:
        """Jobs that do not deserve to go on, each with the reason."""


class Runner:
    """Runs the jobs of a sweep; what happens is written into their folders."""

    def __init__(
        self,
        sweep: Sweep,
        places: Sequence[Mapping[str, str]],
        show: PlainProgress,
        source: Source,
        starter: Starter,
        on_failure: str = "continue",
    ):
        self.sweep = sweep
        self.free = list(places)
        self.show = show
        self.source = source
        self.starter = starter
        self.on_failure = on_failure
        self.workers: dict[int, Worker] = {}
        self.places: dict[int, Mapping[str, str]] = {}
        self.since: dict[int, tuple[float, float]] = {}  # when it was started, and the seconds before that
        self.pruned: set[int] = set()
        self.signal: int | None = None
        self.hurry = False
        self.gave_up = False
        self.saved: dict[int, float] = {}  # when a job's checkpoint was written that it was started from

    def run(self) -> int:
        """Run all that is waiting; 0, or 128 + a signal's number if one has stopped the sweep."""
        try:
            with system.stops_handled_by(self.interrupt), self.show:
                self.loop()
        finally:  # also after an error of ours, such as a full disk
            if self.workers:
                with system.stops_handled_by(self.interrupt):
                    self.stop()
        return 0 if self.signal is None else 128 + self.signal

    def interrupt(self, number: int, frame: object) -> None:
        """Note a signal: the first stops the sweep, the second kills what still saves."""
        if system.closes_terminal(number):
            system.silence_terminal()
        self.hurry = self.signal is not None
        self.signal = self.signal or number

    def loop(self) -> None:
        watched = time.monotonic()
        while self.signal is None and not self.gave_up:
            changed = False
            for job in self.sweep.jobs:
                if job.number in self.workers:
                    changed |= self.finished(job)
                elif job.state == "running":  # left by a killed sweep, and saving its state
                    self.look_again(job)
            changed |= self.start_next()
            if time.monotonic() - watched > WATCH:
                watched = time.monotonic()
                self.prune()
            self.show.tick()
            if not self.workers and not any(job.state in ("waiting", "running") for job in self.sweep.jobs):
                return
            if not changed and not self.source.prepare():
                time.sleep(POLL)

    def start_next(self) -> bool:
        """Start waiting jobs, or new ones from the source, while there are places."""
        started = False
        while self.free and not (self.signal or self.gave_up) and self.starter.ready():
            job = next((job for job in self.sweep.jobs if job.state == "waiting"), None)
            if job is None:
                new = self.source.more(self.sweep.jobs)
                if not new:
                    break
                continue
            self.start(job)
            started = True
        return started

    def start(self, job: Job) -> None:
        place = self.free.pop(0)
        self.source.prepare(job)
        arguments = [str(job.folder), *self.source.granted(job)]
        if job.started:
            arguments.append("resume=true")
            (job.folder / "metrics.json").unlink(missing_ok=True)  # of a start that failed after all
        job.state, job.error, job.exit_code, job.started = "running", "", None, True
        job.threads = int(place.get("OMP_NUM_THREADS", 0))
        job.save()
        self.saved[job.number] = last_saved(job)
        self.workers[job.number] = self.starter.start(arguments, place)
        self.places[job.number] = place
        self.since[job.number] = time.monotonic(), job.seconds
        self.show.changed(job)

    def finished(self, job: Job) -> bool:
        """Note the end of a running job, and whether it has come."""
        started, before = self.since[job.number]
        job.seconds = before + time.monotonic() - started
        code = self.workers[job.number].poll()
        if code is None:
            return False
        del self.workers[job.number]
        self.free.append(self.places.pop(job.number))
        self.end(job, code)
        return True

    def end(self, job: Job, code: int) -> None:
        """Decide what became of a job that ended with this exit code."""
        job.exit_code, job.metrics = code, read_metrics(job.folder)
        if code == 0 and job.metrics:
            job.state, job.error = "done", ""
        elif job.number in self.pruned:
            job.state = "pruned"
        elif self.signal is not None or self.gave_up:
            job.state = "stopped"
        elif code in self.starter.moved and last_saved(job) > self.saved[job.number]:
            self.show.say(f"{job.name}: stopped by the cluster; it goes on from its checkpoint")
            job.state = "waiting"
        else:
            job.state, job.error = "failed", self.starter.lost if code == LOST else cause(job, code)
            job.tries += 1
            retry = self.on_failure == "retry" and code not in SAME_AGAIN
            if (retry or code == LOST) and job.tries < AGAIN:
                self.show.say(f"{job.name}: {job.error}; trying it again")
                job.state = "waiting"
            elif self.on_failure == "stop":
                self.gave_up = True
        job.save()
        if job.state != "waiting":
            self.show.changed(job)

    def look_again(self, job: Job) -> None:
        """See whether a job that a killed sweep has left has ended."""
        job.read_state()
        if job.state == "stopped":
            job.state = "waiting"
        if job.state != "running":
            job.save()
            self.show.changed(job)

    def prune(self) -> None:
        """End the jobs that are not worth going on with; each saves its state, so that it could."""
        for job, reason in self.source.to_prune(self.sweep.jobs):
            if job.number in self.workers and job.number not in self.pruned:
                self.pruned.add(job.number)
                job.state, job.error = "pruned", reason
                job.save()  # before it ends: a sweep that is killed now knows
                self.workers[job.number].stop()
            elif job.state == "waiting":
                self.source.prepare(job)
                job.state, job.error = "pruned", reason
                job.save()
                self.show.changed(job)

    def stop(self) -> None:
        """Ask every running job to save its state and end; kill those that do not in time."""
        running = [job for job in self.sweep.jobs if job.number in self.workers]
        say(f"stopping {len(running)} running jobs; Ctrl-C again kills them")
        deadline = time.monotonic() + GRACE
        for job in running:
            self.workers[job.number].stop()
        while self.workers and time.monotonic() < deadline + GRACE:
            for job in running:
                late = self.hurry or time.monotonic() > deadline
                if job.number in self.workers and not self.finished(job) and late:
                    self.workers[job.number].kill()
            time.sleep(POLL)


def cause(job: Job, code: int) -> str:
    """Why a job failed: what its log tells, or what its exit code does."""
    if code == 0:
        return "it ended without metrics.json"
    if code < 0:
        return system.describe_exit(code)
    told = last_line(job.folder / "log.txt", "error:")
    return told.removeprefix("error: ") if told.startswith("error:") else system.describe_exit(code)


def last_saved(job: Job) -> float:
    """When the job's checkpoint was written; 0 if there is none."""
    try:
        return (job.folder / "last.ckpt").stat().st_mtime
    except OSError:
        return 0.0


def say(text: str) -> None:
    """Print to stderr, which may be gone."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        system.silence_terminal()
