"""Files that save work the next time. An unreadable or unwritable cache is ignored: the work is done again."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DECODED = "decoded"  # the folder of pixels


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


def remember_pixels(
    cache_dir: str | None, files: Sequence[str], settings: str, channels: int, compute: Callable[[], Tensor]
) -> Tensor:
    """The pixels (`channels`, H, W) uint8 of `compute` for these files: from the cache, else computed and kept."""
    try:
        digest = _digest(f"pixels {settings}", files).hexdigest()
    except OSError:  # a file is gone, which `compute` says in its own words
        return compute()
    path = cache_folder(cache_dir) / DECODED / digest[:2] / f"{digest[2:34]}.npy"
    with suppress(OSError, ValueError, EOFError):
        kept = np.load(path, mmap_mode="r", allow_pickle=False)
        if kept.dtype == np.uint8 and kept.ndim == 3 and len(kept) == channels:
            return torch.from_numpy(np.array(kept))
    pixels = compute()
    content = io.BytesIO()
    np.save(content, pixels.numpy())
    keep(path, content.getvalue())
    return pixels


def remember(
    cache_dir: str | None, purpose: str, files: Sequence[str], settings: str, compute: Callable[[], Any]
) -> Any:
    """The JSON value of `compute` for these files: from the cache if nothing changed, else computed and kept.

    A file counts as unchanged if its path, size and time of change are the same.
    """
    path = cache_folder(cache_dir) / f"{purpose}_{_digest(f'{purpose} {settings}', files).hexdigest()[:16]}.json"
    try:
        return json.loads(path.read_text())["value"]
    except (OSError, ValueError, KeyError, TypeError):
        value = compute()
    keep(path, json.dumps({"value": value}).encode())
    return value


def _digest(settings: str, files: Sequence[str]) -> "hashlib._Hash":
    digest = hashlib.sha256(settings.encode())
    for name in files:
        state = os.stat(name)
        digest.update(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest
