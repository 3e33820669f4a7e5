"""Signals that ask the process to end, as an exception that only `main` catches.

Ctrl-C, SIGTERM, SIGUSR1 (SLURM), SIGHUP (the terminal or connection is gone) and SIGXCPU (the limit of CPU time).
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGXCPU")
NUMBERS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))  # Windows has the first two
HANGUP = getattr(signal, "SIGHUP", None)


class Interrupted(BaseException):
    """The process was asked to end, and does; `exit_code` is 128 + the signal's number."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def raised() -> Iterator[None]:
    """Turn the signals into `Interrupted` inside the block (main thread only)."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with handled_by(interrupt):
        yield


@contextmanager
def handled_by(handler: object) -> Iterator[None]:
    """Call `handler` with a signal's number and frame inside the block (main thread only).

    SIGHUP stays ignored where it is, as under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number for number in NUMBERS if number == HANGUP and signal.getsignal(number) == signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number in NUMBERS if number not in kept}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Turn Ctrl-C into a KeyboardInterrupt inside the block, for code that catches it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
