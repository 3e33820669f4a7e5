"""One job of a sweep on a machine of a cluster: what SLURM and Ray run there.

The sweep's process and the job know each other by files in folders that both see, so no port is opened and no signal
crosses the network:

    SWEEP/.alive     who runs the sweep, a count that goes up each second, and the jobs that are to stop
    SWEEP/3/.node    the job has left the queue and runs
    SWEEP/3/.ended   its exit code
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_train import atomic
from cnn_train.sweep import system
from cnn_train.sweep.workers import Fresh

ALIVE, RUNS, ENDED = ".alive", ".node", ".ended"
BEAT = 1.0  # seconds between two signs of life of the sweep
PATIENCE = 10.0  # seconds without one until a job takes the sweep for dead
GRACE = 18.0  # seconds that a job has to save its state
CLUSTERS = ("SLURM", "SBATCH_", "SRUN_", "SUBMITIT_", "PMI", "RAY_")  # the worker is to see a plain machine


def run(arguments: Sequence[str], place: Mapping[str, str], token: str) -> None:
    """Train the job whose folder is the first of `arguments`, as long as the sweep of this `token` lives."""
    folder = Path(arguments[0])
    sign = Sign(folder.parent / ALIVE)
    if sign.read().get("token") != token:  # it waited in the queue until its sweep was gone or another took over
        return
    arguments = [*arguments]
    if (folder / "last.ckpt").exists() and "resume=true" not in arguments:  # requeued by the cluster itself
        arguments.append("resume=true")
    (folder / RUNS).touch()
    worker = Fresh(hidden=CLUSTERS).start(arguments, place)
    asked: float | None = None
    while (code := worker.poll()) is None:
        known = sign.read()
        mine = known.get("token") == token
        if asked is None and (not mine or sign.is_old() or folder.name in known.get("stop", ())):
            asked = time.monotonic()
            worker.stop()
        if asked is not None and time.monotonic() - asked > GRACE:
            worker.kill()
        time.sleep(BEAT / 4)
    (folder / RUNS).unlink(missing_ok=True)
    atomic.write_json(folder / ENDED, {"token": token, "code": code})


def run_in_slurm(arguments: Sequence[str], place: Mapping[str, str], token: str) -> None:
    """As `run`; SLURM's signals go to the worker as well, which saves and ends, and this process waits for that."""
    with system.stops_handled_by(lambda number, frame: None):
        run(arguments, place, token)


class Sign:
    """The sweep's sign of life, read by a job."""

    def __init__(self, path: Path):
        self.path = path
        self.last: dict[str, Any] = {}
        self.since = time.monotonic()

    def read(self) -> dict[str, Any]:
        """What was written last; a file that cannot be read now says nothing new."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return self.last
        if isinstance(found, dict) and found != self.last:
            self.last, self.since = found, time.monotonic()
        return self.last

    def is_old(self) -> bool:
        return time.monotonic() - self.since > PATIENCE


def write_sign(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the sign of life; whether it reaches the disk does not matter."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, path)
