"""Several processes that train one run, one for each device: started, passed each signal, and ended together.

Where torchrun or srun has started them, on one machine or several, they only agree on the run's folder.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from cnn_train.errors import ElsewhereError, EnvError, UserError
from cnn_train.experiment.hardware import Machine
from cnn_train.runs.signals import Interrupted, handled_by

GRACE = 3.0  # seconds between an error in one process and the end of the others


class ProcessFailed(UserError):
    """One of the processes ended with an error, which this tells, with its exit code."""

    def __init__(self, text: str, exit_code: int):
        message, *notes = text.splitlines()
        super().__init__(message)
        for note in notes:
            self.add_note(note)
        self.exit_code = exit_code


def is_ours() -> bool:
    """Whether this process was started by `train`."""
    return "CNN_TRAIN_PARENT" in os.environ


def agreed(begin: Callable[[], tuple[Path, bool]], machine: Machine) -> tuple[Path, bool]:
    """The folder that the first process begins, and whether it is resumed; told to the others that a launcher started.

    Raises EnvError if the first does not answer.
    """
    if not machine.is_one_of_several:
        return begin()
    key = f"cnn_train/{os.environ.get('TORCHELASTIC_RESTART_COUNT', os.environ.get('SLURM_RESTART_COUNT', '0'))}"
    store = meeting_point(machine.rank == 0)
    if machine.rank == 0:
        folder, resume = begin()
        store.set(key, json.dumps([str(folder.resolve()), resume]))
        return folder, resume
    try:
        folder, resume = json.loads(store.get(key))
    except RuntimeError as error:
        raise EnvError(f"the first of {machine.num_processes} processes has not begun the run: {error}") from error
    return Path(folder), resume


def meeting_point(first: bool) -> Any:
    """A key-value store that all processes reach: torchrun's own, or one that the first opens under SLURM."""
    from torch.distributed import TCPStore

    patience = timedelta(seconds=120)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=patience)
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)
    # Beside the port that torch.distributed takes; kept open for as long as the process lives.
    store = TCPStore(slurm.main_address, slurm.main_port + 1, is_master=first, timeout=patience, wait_for_workers=False)
    _stores.append(store)
    return store


_stores: list[Any] = []


def train(folder: Path, count: int, words: Sequence[str] = ()) -> dict[str, float]:
    """Train the run in `folder` by `count` processes of this machine; its final metrics.

    `words` are for their command lines: whether they resume, and what their config, a file to them, may name and fetch.

    Signals go to all of them, and they agree on the step to stop at. When one fails the others are ended, and its
    error is the one that is reported. Raises ProcessFailed, EnvError or Interrupted.
    """
    for leftover in folder.glob(".rank*"):
        leftover.unlink()
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(number: int, frame: FrameType | None = None) -> None:
        received.append(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    with handled_by(forward):
        try:
            port = free_port()
            for rank in range(count):
                ranks.append(start(folder, words, rank, count, port))
            if received:  # before all were there
                forward(received[0])
            codes = wait(ranks)
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
                process.wait()
    errors = [read(folder / f".rank{rank}.error") for rank in range(count)]
    for rank in range(count):
        for path in (folder / f".rank{rank}.error", folder / f".rank{rank}.log"):
            path.unlink(missing_ok=True)
    if received and -received[0] in codes.values():  # that early, Python itself dies of it
        raise Interrupted(received[0], errors[0])
    if any(codes.values()):
        raise failure(codes, errors)
    return json.loads((folder / "metrics.json").read_text())


def start(folder: Path, words: Sequence[str], rank: int, count: int, port: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-P", "-m", "cnn_train", "worker", str(folder), *words]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    place |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "CNN_TRAIN_PARENT": str(os.getpid())}
    # A session of its own: a terminal's Ctrl-C comes to us alone, and once to each.
    if rank == 0:
        return subprocess.Popen(command, env={**os.environ, **place}, start_new_session=True)
    with open(folder / f".rank{rank}.log", "wb") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, **place},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(ranks: Sequence["subprocess.Popen[bytes]"]) -> dict[int, int]:
    """Wait for all, or for a first error and then a little for the others; exit codes in the order of their ends."""
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < len(ranks) and time.monotonic() < deadline:
        for rank, process in enumerate(ranks):
            if rank not in codes and (code := process.poll()) is not None:
                codes[rank] = code
                if code:
                    deadline = min(deadline, time.monotonic() + GRACE)
        time.sleep(0.02)
    return codes


def failure(codes: dict[int, int], errors: Sequence[str]) -> BaseException:
    """The root cause: a process with an error of its own over one that only lost its connection, then the earliest."""
    failed = {rank: code for rank, code in codes.items() if code}
    heard = {rank: errors[rank].startswith(ElsewhereError.start) for rank in failed}
    rank = min(failed, key=lambda rank: (failed[rank] == 1, heard[rank], list(failed).index(rank)))
    code, message = failed[rank], errors[rank]
    if code < 0:
        name = signal.Signals(-code).name
        why = ", usually for memory" if name == "SIGKILL" else ""
        return EnvError(f"process {rank} of {len(errors)} was killed by {name}{why}; the others were ended")
    if code > 128:
        return Interrupted(code - 128, errors[0] or message)
    return ProcessFailed(message or f"process {rank} of {len(errors)} ended with exit code {code}", code)


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def end_with_parent() -> None:
    """Watch the process that started this one: without it, the others would wait for each other for ever."""
    parent = os.environ.get("CNN_TRAIN_PARENT")

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(0.5)
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()
