"""Files that save work the next time. An unreadable or unwritable cache is ignored: the work is done again."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def cache_folder(cache_dir: str | None) -> Path:
    """`cache_dir`, or cnn-train in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.path.expanduser(cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "cnn-train"))


def keep(path: Path, content: bytes) -> None:
    """Write a file of the cache, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


def remember(
    cache_dir: str | None, purpose: str, files: Sequence[str], settings: str, compute: Callable[[], Any]
) -> Any:
    """The JSON value of `compute` for these files: from the cache if nothing changed, else computed and kept.

    A file counts as unchanged if its path, size and time of change are the same.
    """
    digest = hashlib.sha256(f"{purpose} {settings}".encode())
    for name in files:
        state = os.stat(name)
        digest.update(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode())
    path = cache_folder(cache_dir) / f"{purpose}_{digest.hexdigest()[:16]}.json"
    try:
        return json.loads(path.read_text())["value"]
    except (OSError, ValueError, KeyError, TypeError):
        value = compute()
    keep(path, json.dumps({"value": value}).encode())
    return value
