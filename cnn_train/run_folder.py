"""A run's folder: created exclusively, and complete enough to explain the run without anything else.

config.yaml        the composed config, complete          metrics.csv    one row per epoch
command.txt        what was typed                         metrics.json   final metrics
environment.json   versions, machine, git commit          best.ckpt, last.ckpt
git.diff           uncommitted changes, if any            tensorboard/, pictures/, log.txt
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cnn_train.errors import EnvError

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


def write_text(path: Path, text: str) -> None:
    """Write a file that appears under its name only when it is whole and on disk."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EnvError(f"cannot write {path}: {error.strerror}; free some space or set another output_dir") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def describe(folder: Path, config_yaml: str, command: str) -> None:
    """Write config, command, versions and the git state into `folder`."""
    write_text(folder / "config.yaml", config_yaml)
    write_text(folder / "command.txt", command + "\n")
    commit, diff = git_state()
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
        write_text(folder / "git.diff", diff)


def installed(package: str) -> str | None:
    """Version of an installed package, None if it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state() -> tuple[str | None, str]:
    """Commit and uncommitted changes of the working directory's repository; (None, "") where there is none."""

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, errors="replace")
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout if result.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return (commit.strip(), git("diff", "HEAD") or "") if commit else (None, "")


def command_line() -> str:
    """The command as typed, quoted for a shell."""
    import shlex

    return shlex.join(["cnn-train", *sys.argv[1:]])
