"""A run's folder: created exclusively, and complete enough to explain the run without anything else.

config.yaml        the composed config, complete          metrics.csv    one row per epoch
command.txt        what was typed                         metrics.json   final metrics
environment.json   versions, machine, git commit          best.ckpt, last.ckpt, previous.ckpt
git.diff           uncommitted changes, if any            tensorboard/, pictures/
log.txt            every start and end, with the traceback of an error

Secrets are masked in all of them.
"""

import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cnn_train.atomic import write_json, write_text
from cnn_train.errors import EnvError
from cnn_train.runs.git import git_state
from cnn_train.runs.secrets import mask
from cnn_train.runs.signals import Interrupted

PACKAGES = ("cnn-train", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy")


def create(parent: Path) -> Path:
    """Make `parent/<date>_<time>_<n>`, which no other process got: n counts up until the folder is new."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for n in range(10_000):
            folder = parent / f"{stamp}_{n}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise EnvError(
            f"cannot create a run folder in {parent}: {error.strerror}; set output_dir to a writable folder"
        ) from error
    raise EnvError(f"{parent} already holds 10,000 runs of this second; set another output_dir")


@contextmanager
def in_use(folder: Path, first: bool = True) -> Iterator[None]:
    """Within: no other process trains in this folder, what a killed one left is gone, and log.txt tells how it ends.

    Of an error log.txt has the traceback. Only the first of several processes does this. Raises EnvError.
    """
    if not first:
        yield
        return
    descriptor = _lock(folder)
    try:
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        log(folder, command_line())
        yield
        log(folder, "done")
    except Exception as error:
        error.logged_in = log(folder, traceback.format_exc())  # type: ignore[attr-defined]
        raise
    except Interrupted as stop:
        log(folder, str(stop))
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path, patience: float = 8.0) -> int | None:
    """Lock a folder until the descriptor is closed or the process dies; None where that is not possible.

    A killed run's data workers hold its lock for a few seconds more.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise EnvError(f"another process trains in {folder}; stop it first, or wait for its end") from error
            time.sleep(0.2)
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None


def is_free(folder: Path) -> bool:
    """Whether no process trains in this folder."""
    try:
        descriptor = _lock(folder, patience=0)
    except EnvError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return True


def log(folder: Path, text: str) -> Path | None:
    """Add to the folder's log.txt, with the time; where it was written, if it could be."""
    path = folder / "log.txt"
    with suppress(OSError):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}] {mask(text).rstrip()}\n")
        return path
    return None


def describe(folder: Path, config_yaml: str, command: str, git: tuple[str | None, str] | None = None) -> None:
    """Write config, command, versions and the git state (asked for if not given) into `folder`."""
    write_text(folder / "config.yaml", mask(config_yaml))
    write_text(folder / "command.txt", mask(command) + "\n")
    commit, diff = git_state() if git is None else git
    environment = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "git_commit": commit,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(folder / "environment.json", environment)
    if diff:
        write_text(folder / "git.diff", mask(diff))


def installed(package: str) -> str | None:
    """Version of an installed package, None if it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def command_line() -> str:
    """The command as typed, quoted for a shell."""
    import shlex

    return shlex.join(["cnn-train", *sys.argv[1:]])
