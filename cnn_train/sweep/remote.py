"""Engines on clusters: a job is submitted, and its folder tells when it begins and how it ends (see `node`)."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from cnn_train.sweep import node
from cnn_train.sweep.job import read_json
from cnn_train.sweep.workers import LOST

STOPPED = (128 + 15, 128 + 10)  # a job that SIGTERM or SIGUSR1 has stopped: it has saved
SETTLE = 5.0  # seconds from a job's leaving of the queue until its exit code must be seen
QUEUE_MOST = 100  # jobs that are submitted at once under sweep.jobs=auto
DRAWN_MOST = 4  # of those that a sampler draws: it learns from what has ended


class Cluster(Protocol):
    """What runs jobs elsewhere. A handle is whatever names a submitted job."""

    name: str

    def submit(self, arguments: Sequence[str], place: Mapping[str, str], token: str) -> Any:
        """Give `node.run` these arguments, as soon as there is a place; the handle."""

    def alive(self, handles: Sequence[Any], in_a_hurry: bool) -> set[Any]:
        """Those that wait or run; may be some seconds old, unless in a hurry."""
        ...

    def cancel(self, handle: Any) -> None:
        """Take a job out of the queue, or end it at once."""

    def close(self) -> None:
        """Disconnect."""


class Remote:
    """The starter of an engine on a cluster (see `workers.Starter`)."""

    moved: Sequence[int] = STOPPED  # the cluster has stopped it: time limit, preemption, an administrator

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster = cluster
        self.lost = f"{cluster.name} ended it without an exit code (a lost machine, the time limit, memory?)"
        self.path = folder / node.ALIVE
        self.token = token_hex(8)
        self.stopping: set[str] = set()
        self.workers: list[RemoteWorker] = []
        self.known: tuple[float, set[Any]] = (0.0, set())
        self.closed = threading.Event()
        self.beat()
        self.thread = threading.Thread(target=self.beat_on, daemon=True, name="sign of life")
        self.thread.start()

    def ready(self) -> bool:
        return True

    def start(self, arguments: Sequence[str], place: Mapping[str, str]) -> "RemoteWorker":
        folder = Path(arguments[0])
        for name in (node.ENDED, node.RUNS):
            (folder / name).unlink(missing_ok=True)
        self.stopping.discard(folder.name)
        worker = RemoteWorker(self, folder.absolute(), arguments, place)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """The sign of life ends, and with it whatever may still run."""
        self.closed.set()
        self.thread.join()
        self.path.unlink(missing_ok=True)
        self.cluster.close()

    def beat_on(self) -> None:
        while not self.closed.wait(node.BEAT):
            with suppress(OSError):
                self.beat()

    def beat(self) -> None:
        node.write_sign(self.path, {"token": self.token, "time": time.time(), "stop": sorted(self.stopping)})

    def alive(self) -> set[Any]:
        """The handles that wait or run, asked of the cluster now and then."""
        since, handles = self.known
        hurry = bool(self.stopping)
        if time.monotonic() - since > (0.5 if hurry else 2.0):
            self.workers = [worker for worker in self.workers if worker.code is None]
            handles = self.cluster.alive([worker.handle for worker in self.workers], hurry)
            self.known = time.monotonic(), handles
        return handles


class RemoteWorker:
    """A submitted job (see `workers.Worker`)."""

    def __init__(self, starter: Remote, folder: Path, arguments: Sequence[str], place: Mapping[str, str]):
        self.starter, self.folder = starter, folder
        self.code: int | None = None
        self.asked = self.killed = False
        self.submitted = time.monotonic()
        self.gone: float | None = None  # since when it is not in the queue
        arguments = [str(folder), *arguments[1:]]
        self.handle = starter.cluster.submit(arguments, place, starter.token)

    def poll(self) -> int | None:
        if self.code is None:
            ended = read_json(self.folder / node.ENDED)
            if ended.get("token") == self.starter.token and isinstance(ended.get("code"), int):
                (self.folder / node.ENDED).unlink(missing_ok=True)
                self.code = ended["code"]
            elif time.monotonic() - self.submitted > 1.0:
                self.code = self.without_a_word()
        return self.code

    def without_a_word(self) -> int | None:
        """The code of a job that is not in the queue any more and leaves no exit code; None for any other."""
        alive = self.starter.alive()
        if self.handle in alive or self.starter.known[0] < self.submitted:
            self.gone = None
            return None
        self.gone = self.gone or time.monotonic()
        if self.asked and not (self.folder / node.RUNS).exists():  # it was taken out of the queue
            return STOPPED[0]
        if time.monotonic() - self.gone < SETTLE:
            return None
        (self.folder / node.RUNS).unlink(missing_ok=True)
        return -9 if self.killed else LOST

    def stop(self) -> None:
        self.asked = True
        self.starter.stopping.add(self.folder.name)
        with suppress(OSError):
            self.starter.beat()
        if not (self.folder / node.RUNS).exists():
            self.starter.cluster.cancel(self.handle)

    def kill(self) -> None:
        if not self.killed:
            self.killed = self.asked = True
            self.starter.cluster.cancel(self.handle)


def places(wanted: int | str, jobs: int, drawn: bool, threads: int, several_devices: bool) -> list[dict[str, str]]:
    """One place for each job that may be in the queue at once; threads are the cores that a job asks for."""
    count = min(jobs, DRAWN_MOST if drawn else QUEUE_MOST) if wanted == "auto" else int(wanted)
    number = str(threads)
    place = {} if several_devices else {"OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number}
    return [place for _ in range(max(count, 1))]
