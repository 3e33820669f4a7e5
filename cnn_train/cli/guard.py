"""Errors and signals as lines on stderr and exit codes."""

import errno
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnn_train.errors import ConfigError, EnvError, UserError
from cnn_train.runs import folder as run_folder
from cnn_train.runs import signals
from cnn_train.text import plain


def guarded(
    run: Callable[[], int | None],
    debug: bool = False,
    folder: Path | None = None,
    tell: Callable[[str], object] | None = None,
) -> int:
    """Call `run`; whatever goes wrong becomes a line or two on stderr, or is given to `tell`, and an exit code.

    0 done, 2 command or config, 3 data, 4 environment, 5 diverged, 1 a bug, 128 + n signal n. The traceback is in the
    run folder's log.txt; that of a bug before there is a folder is in a temporary file; with `debug` it is shown.
    """
    debug = debug or os.environ.get("CNN_TRAIN_DEBUG", "") not in ("", "0")
    try:
        with signals.raised():
            return run() or 0
    except signals.Interrupted as stop:
        (tell or show)(plain("\n".join([str(stop), *getattr(stop, "__notes__", ())])))
        return stop.exit_code
    except KeyboardInterrupt:  # not in the main thread, where it is Interrupted
        (tell or show)("stopped")
        return 130
    except BrokenPipeError:  # `cnn-train list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if (cause := stopped_by(error)) is not None:
            (tell or show)(plain(str(cause)))
            return cause.exit_code
        if debug:
            traceback.print_exc()
        message, notes, code = explain(error)
        if code == 1 and not isinstance(error, UserError):
            notes = [f"traceback: {getattr(error, 'logged_in', None) or write_crash(folder)}"]
        if tell is not None:
            tell("\n".join([message, *notes]))
        else:
            show_error(message, notes)
        return code


def stopped_by(error: BaseException | None) -> signals.Interrupted | None:
    """The signal that an error follows from: a library that a signal interrupts may fail while it cleans up.

    An error of the machine or the data is told all the same: the state may not have been saved.
    """
    if isinstance(error, UserError) and not isinstance(error, ConfigError):
        return None
    for _ in range(20):
        if error is None or isinstance(error, signals.Interrupted):
            return error
        error = error.__cause__ or error.__context__
    return None


def explain(error: Exception) -> tuple[str, Iterable[str], int]:
    """What to tell of an error, what to try, and the exit code."""
    if isinstance(error, UserError):
        return str(error), getattr(error, "__notes__", ()), error.exit_code
    # By name, since this must not import torch: the GPU's memory is the machine's matter, not a bug.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: " + first_line(error), [], EnvError.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" ({error.filename})" if error.filename else ""
        return f"no space left to write{where}: {error.strerror}; free some, then resume", [], EnvError.exit_code
    if isinstance(error, OSError) and error.filename and error.strerror:
        return (
            f"{error.filename}: {error.strerror}; is it there, and may this user write there?",
            [],
            EnvError.exit_code,
        )
    if isinstance(error, FileNotFoundError) and not error.filename and is_gone():
        return "the folder that this shell stands in is gone; cd into one that exists", [], UserError.exit_code
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing and not missing.startswith("cnn_train"):
        package = missing.partition(".")[0]
        return f"the package {package} is not installed", [f"try: {pip_line(package)}"], EnvError.exit_code
    return f"unexpected {type(error).__name__}: {first_line(error)}", [], 1


def is_gone() -> bool:
    """Whether the working folder has been removed."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def pip_line(package: str) -> str:
    """How to install a package, as one of our extras where it is one."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        wanted = metadata("cnn-train").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        wanted = []
    for line in wanted:
        if line.startswith(package) and (extra := re.search(r"extra == ['\"](?!dev)(\w+)['\"]", line)):
            return f"pip install 'cnn-train[{extra[1]}]'"
    return f"pip install {package}"


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def write_crash(folder: Path | None) -> Path | str:
    """Keep the current exception's traceback, without local variables, which may hold secrets."""
    text = f"{shlex.join(['cnn-train', *sys.argv[1:]])}\n\n{traceback.format_exc()}"
    try:
        return run_folder.log(folder or Path(tempfile.mkdtemp(prefix="cnn-train-")), text) or "could not be written"
    except OSError as error:
        return f"could not be written: {error.strerror}"


def show_error(message: str, notes: Iterable[str] = ()) -> None:
    paint = Paint(sys.stderr)
    lines = [paint("error:", "1;31") + " " + " ".join(plain(message).split())]
    lines += ["  " + " ".join(plain(note).split("\n")) for note in notes]
    show("\n".join(lines[:6]))


def show(text: str) -> None:
    """Print on stderr, if somebody still reads it."""
    with suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)


class Paint:
    """Colours for a stream that is a terminal, unless NO_COLOR or TERM=dumb; otherwise plain text."""

    def __init__(self, stream: Any):
        try:
            tty = stream is not None and stream.isatty()
        except (AttributeError, ValueError):  # no stream, or a closed one
            tty = False
        self.on = tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def __call__(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on else text
