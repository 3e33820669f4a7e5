"""A sweep: every combination of lists of values, each trained by a fresh process in a folder of its own.

    outputs/sweeps/<date>_<time>_<n>/
      sweep.json   jobs with overrides, state, metrics; rewritten at every change
      sweep.csv    the same as a table, when all is done
      0/ 1/ ...    run folders; log.txt holds what the job printed

`plan` decides what to run, `prepare` writes the frozen configs, `Runner` runs them, `report` ranks them: a sampler only
has to replace the first, continuing a sweep the second.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from cnn_train import atomic
from cnn_train.config.targets import grants
from cnn_train.runs import signals
from cnn_train.sweep.plan import Job, plan, prepare
from cnn_train.sweep.progress import last_line, progress
from cnn_train.sweep.ranking import report

GRACE = 20.0  # seconds that a stopped job has to save its state


WORKER = (sys.executable, "-P", "-m", "cnn_train", "worker")  # takes a run folder and what its config may do


def run(overrides: Sequence[str], config_dir: str | Path | None = None, worker: Sequence[str] = WORKER) -> int:
    """Plan, run and report a sweep; the exit code is 0 only if every job succeeded."""
    jobs = plan(overrides, config_dir)
    folder = prepare(jobs)
    code = Runner(jobs, folder, worker).run()
    report(jobs, folder)
    return code or int(any(job.state != "done" for job in jobs))


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
                [*self.worker, str(job.folder), *grants(job.config)],
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
        atomic.write_json(self.folder / "sweep.json", record)


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
