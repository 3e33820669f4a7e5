"""Files that appear under their name only when they are whole and on disk."""

import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from cnn_train.errors import ConfigError, EnvError

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # not on Windows


def write_text(path: Path, text: str) -> None:
    """Write a file that appears under its name only when it is whole and on disk."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`."""
    temporary = temporary_name(path)
    try:
        with create(temporary) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EnvError(f"cannot write {path}: {error.strerror}; free some space or set another output_dir") from error


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that nobody can foresee."""
    return path.with_name(f".{path.name}.{token_hex(8)}.tmp")


def create(path: Path) -> BinaryIO:
    """Open a new file for writing; an error if the name exists, also as a link."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | getattr(os, "O_BINARY", 0), 0o666)
    return os.fdopen(descriptor, "wb")


def append(path: Path, text: str) -> None:
    """Add text to a file, never through a link. Raises OSError."""
    with os.fdopen(open_to_append(path), "a", encoding="utf-8") as file:
        file.write(text)


def open_to_append(path: Path) -> int:
    """A descriptor at the end of a file that has no other name, neither by a link nor by a hard one.

    Raises OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NO_LINK | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or path.is_symlink():
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file of this name alone", str(path))
    return descriptor


def refuse_links(folder: Path) -> None:
    """Refuse a folder with links in it: whoever made them would choose what is read and where is written.

    A hard link is one where lines are added: to log.txt; all other files are written anew. The folder itself may be a
    link. Raises ConfigError.
    """
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink():
                raise ConfigError(f"{path} is a link; a run folder holds none: put the file or folder itself there")
            if name == "log.txt" and path.stat().st_nlink > 1:
                raise ConfigError(f"{path} is a hard link: what is added here would be added elsewhere; copy the file")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
