"""Processes that run jobs: started fresh, or forked from a server that has imported everything already."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from cnn_train.atomic import open_to_append
from cnn_train.sweep import lifeline, server, system

WORKER = (sys.executable, "-P", "-m", "cnn_train", "worker")  # takes a run folder
LOST = 255  # what multiprocessing tells of a child whose server has died
PATIENCE = 120.0  # seconds that the server may take to be warm


class Worker(Protocol):
    """A process that runs one job."""

    def poll(self) -> int | None:
        """Its exit code, minus the signal that killed it, or None while it runs."""

    def stop(self) -> None:
        """Ask it to save its state and end."""

    def kill(self) -> None:
        """End it, and what it has started in its group, at once."""


class Starter(Protocol):
    """A way to start workers."""

    lost: str  # why a job failed whose exit code is LOST
    moved: Sequence[int]  # exit codes of a job that was stopped by others than the sweep, and is to go on

    def ready(self) -> bool:
        """Whether `start` returns at once."""

    def start(self, arguments: Sequence[str], place: Mapping[str, str]) -> Worker:
        """Run the worker command: its arguments begin with the job's folder, whose log.txt takes its output."""

    def close(self) -> None:
        """Remove what was needed to start workers."""


class Fresh:
    """Each worker is a program of its own; it learns from its stdin when the sweep is gone.

    It does not see environment variables whose names begin with one of `hidden`.
    """

    lost = ""
    moved: Sequence[int] = ()

    def __init__(self, command: Sequence[str] = WORKER, hidden: tuple[str, ...] = ()):
        self.command = command
        self.hidden = hidden

    def ready(self) -> bool:
        return True

    def start(self, arguments: Sequence[str], place: Mapping[str, str]) -> Worker:
        seen = {name: value for name, value in os.environ.items() if not name.startswith(self.hidden)}
        environment = {**seen, "PYTHONUNBUFFERED": "1", **place, lifeline.MARK: "1"}
        try:
            log = open_to_append(Path(arguments[0], "log.txt"))
        except OSError:  # a link: the worker refuses the folder
            log = os.open(os.devnull, os.O_WRONLY)
        try:
            return FreshWorker(
                subprocess.Popen(
                    [*self.command, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    **system.own_group(),
                )
            )
        finally:
            os.close(log)

    def close(self) -> None:
        pass


class FreshWorker:
    def __init__(self, process: "subprocess.Popen[bytes]"):
        self.process = process

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None:
            self.hang_up()
        return code

    def stop(self) -> None:
        if not system.ask_to_stop(self.process.pid):
            self.hang_up()

    def kill(self) -> None:
        system.kill(self.process.pid)

    def hang_up(self) -> None:
        stdin: IO[bytes] | None = self.process.stdin
        if stdin is not None and not stdin.closed:
            with suppress(OSError):
                stdin.close()


class Warm:
    """Each worker is forked from a server: as isolated as a fresh one, without the time that imports take."""

    lost = "the server that it was forked from was killed"
    moved: Sequence[int] = ()

    def __init__(self, folder: Path):
        self.told = folder / ".warm"  # the server makes this file when it is ready
        self.told.unlink(missing_ok=True)
        self.since = time.monotonic()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([server.__name__])
        with server.told_by(self.told):
            from multiprocessing import forkserver

            forkserver.ensure_running()

    def ready(self) -> bool:
        return self.told.exists() or time.monotonic() - self.since > PATIENCE

    def start(self, arguments: Sequence[str], place: Mapping[str, str]) -> Worker:
        process = self.context.Process(target=server.train, args=(list(arguments), dict(place)))
        process.start()
        return WarmWorker(process)

    def close(self) -> None:
        self.told.unlink(missing_ok=True)


class WarmWorker:
    def __init__(self, process: "multiprocessing.context.ForkServerProcess"):
        assert process.pid is not None
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        code = self.process.exitcode
        if code == LOST and system.is_alive(self.pid):
            self.stop()  # nobody can tell any more how it ends, so it is to end now
            return None
        return code

    def stop(self) -> None:
        system.ask_to_stop(self.pid)

    def kill(self) -> None:
        system.kill(self.pid)
