"""Ctrl-C, SIGTERM and SIGUSR1 as an exception that nothing but the program's end catches."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupted(BaseException):
    """The process was asked to end, and does; `exit_code` is 128 + the signal's number."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def raised() -> Iterator[None]:
    """Within: the signals raise Interrupted where they find the program. Elsewhere than in the main thread: nothing."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with handled_by(interrupt):
        yield


@contextmanager
def handled_by(handler: object) -> Iterator[None]:
    """Within: `handler` is called with a signal's number and frame."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in NUMBERS}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Within: Ctrl-C is a KeyboardInterrupt, for code that catches it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
