"""Output whose reader may go away: a run goes on without it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Lasting:
    """A text stream that becomes silent when its reader is gone, instead of failing; `tell` is called once then."""

    def __init__(self, stream: Any, tell: Callable[[str], object]):
        self._stream = stream
        self._tell = tell

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, method: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except (OSError, ValueError) as error:  # the reader has ended, or the stream is closed
            self._stream = None
            self._tell(f"nobody reads the output any more ({error}); the run goes on without it")

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("the stream has no reader")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"


@contextmanager
def lasting(tell: Callable[[str], object]) -> Iterator[None]:
    """Let stdout and stderr lose their readers inside the block without ending it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Lasting(stream, tell) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
