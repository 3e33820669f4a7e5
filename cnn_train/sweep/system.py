"""What operating systems do differently: signals, process groups, locks, forking. POSIX, and beside it the rest.

Nothing else in this wing names SIGKILL, SIGHUP, killpg or fcntl.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from cnn_train.errors import EnvError

# Signals that ask a sweep to stop. A closed terminal is one; SLURM sends SIGUSR1 before a time limit.
STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)
)


@contextmanager
def stops_handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handler` at each of STOPS inside the block (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOPS}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def default_signals() -> None:
    """Give STOPS their default handlers, in a process that was forked from one that had others."""
    for number in STOPS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def own_group() -> dict[str, Any]:
    """Arguments of Popen that put a process into a group of its own: a terminal's Ctrl-C is then ours alone."""
    if hasattr(os, "setsid"):
        return {"start_new_session": True}
    return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}


def leave_group() -> None:
    """Put this process into a group of its own."""
    if hasattr(os, "setsid"):
        with suppress(PermissionError):  # it leads a group already
            os.setsid()


def ask_to_stop(pid: int) -> bool:
    """Send SIGTERM to a process; False where that would end it at once, unsaved."""
    if not hasattr(os, "killpg"):
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return True


def kill(pid: int) -> None:
    """Kill a process, and with it the group that it leads where there are groups."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)  # where there is no SIGKILL, this ends a process at once


def is_alive(pid: int) -> bool:
    """Whether a process is there, where that can be asked without ending it."""
    if not hasattr(os, "killpg"):
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def stop_self() -> None:
    """Do to this process what a request to stop does."""
    if hasattr(os, "killpg"):
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        import _thread

        _thread.interrupt_main()


def describe_exit(code: int) -> str:
    """The cause that an exit code tells: a signal's name, or the number."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (memory?)" if name == "SIGKILL" else "")


def can_fork() -> bool:
    """Whether a server can fork processes that share its imports."""
    return "forkserver" in multiprocessing.get_all_start_methods() and hasattr(os, "killpg")


class Lock:
    """A folder locked against other sweeps until `release`, or until this process dies. Raises EnvError if it is."""

    def __init__(self, folder: Path, patience: float = 0.5):
        self.file: int | None = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            deadline = time.monotonic() + patience
            while taken := not _lock(self.file):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        except BaseException:
            self.release()
            raise
        if taken:
            self.release()
            raise EnvError(f"another process runs the sweep in {folder}; stop it first, or wait for its end")

    def release(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None


def is_locked(folder: Path) -> bool:
    """Whether a process runs the sweep in `folder`; changes nothing there."""
    if not (folder / ".lock").exists():
        return False
    try:
        Lock(folder, patience=0).release()
    except EnvError:
        return True
    except OSError:
        pass  # not ours to open
    return False


def _lock(descriptor: int) -> bool:
    """Lock an open file; False if another process has. Where files cannot be locked, all is taken for free."""
    try:
        import fcntl
    except ImportError:
        return _lock_elsewhere(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def _lock_elsewhere(descriptor: int) -> bool:
    try:
        import msvcrt
    except ImportError:
        return True
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    except OSError:
        return False
    return True


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gibibytes() -> float:
    """Memory of this machine; infinite where it cannot be asked."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):
        return float("inf")


def closes_terminal(number: int) -> bool:
    return number == getattr(signal, "SIGHUP", None)


def silence_terminal() -> None:
    """Send what is still printed nowhere: the terminal is gone, and writing to it would fail."""
    null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for the rest of the process
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if getattr(stream, "isatty", lambda: False)():
            setattr(sys, name, null)
