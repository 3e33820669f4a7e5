"""A run's folder: created exclusively, and complete enough to explain the run without anything else.

config.yaml        the composed config, complete          metrics.csv    one row per epoch
command.txt        what was typed                         metrics.json   final metrics
environment.json   versions, machine, git commit          best.ckpt, last.ckpt, previous.ckpt
git.diff           uncommitted changes, if any            tensorboard/, pictures/
log.txt            every start and end, with the traceback of an error

Secrets are masked in all of them; in config.yaml those of the environment are `${oc.env:NAME}`, so that it still runs.
The folder has no links in it.
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

from cnn_train.atomic import append, refuse_links, write_json, write_text
from cnn_train.errors import EnvError
from cnn_train.runs.git import git_state
from cnn_train.runs.secrets import mask, mask_settings
from cnn_train.runs.signals import Interrupted
from cnn_train.text import indented

PACKAGES = ("cnn-train", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy")


def create(parent: Path) -> Path:
    """Make `parent/<date>_<time>_<n>`, with the first free n; safe when several processes start at once."""
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
    """Hold the folder's lock, remove a killed run's leftovers, and log how the block ends, an error with its traceback.

    Only the first of several processes does this. Raises EnvError if another run holds the lock, ConfigError if the
    folder has links in it.
    """
    if not first:
        yield
        return
    refuse_links(folder)
    descriptor = _lock(folder)
    try:
        if descriptor is None:
            warn_of_no_lock(folder)
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
            _unlock(descriptor)


_held: set[int] = set()


def _unlock(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _let_go() -> None:
    """Close what a forked process has inherited: data workers, which outlive a killed run for seconds, hold no lock."""
    for descriptor in list(_held):
        with suppress(OSError):
            _unlock(descriptor)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_let_go)


def _lock(folder: Path, patience: float = 2.0) -> int | None:
    """Lock a folder until the descriptor is closed or the process dies; None where that is not possible."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held.add(descriptor)
            return descriptor
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise EnvError(f"another process trains in {folder}; stop it first, or wait for its end") from error
            time.sleep(0.2)
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None


def warn_of_no_lock(folder: Path) -> None:
    """Tell, on stderr and in log.txt, that nothing keeps a second process out of this folder."""
    if os.name != "posix":
        return
    text = f"the file system of {folder} has no locks: see to it that no second process trains there"
    log(folder, f"warning: {text}")
    with suppress(OSError, ValueError, AttributeError):
        print(f"warning: {text}", file=sys.stderr)


def is_free(folder: Path) -> bool:
    """Whether no process trains in this folder."""
    try:
        descriptor = _lock(folder, patience=0)
    except EnvError:
        return False
    if descriptor is not None:
        _unlock(descriptor)
    return True


def log(folder: Path, text: str) -> Path | None:
    """Add an entry to the folder's log.txt, with the time; its path, or None where it cannot be written.

    Entries begin at the left, their further lines do not: no text can pass for an entry of its own.
    """
    path = folder / "log.txt"
    with suppress(OSError):
        append(path, f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}] {indented(mask(text))}\n")
        return path
    return None


def describe(folder: Path, config_yaml: str, command: str, git: tuple[str | None, str] | None = None) -> None:
    """Write config, command, versions and the git state (asked for if not given) into `folder`."""
    write_text(folder / "config.yaml", mask_settings(config_yaml))
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
