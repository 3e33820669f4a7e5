"""Image files in folders, by their suffix or their first bytes."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cnn_train.data.decode import kind_of

SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm",
    ".npy", ".npz", ".heic", ".heif", ".avif",
}  # fmt: skip
# What need no image suffix to be recognized: formats whose first bytes are seldom anything else.
_SURE = {"JPEG", "PNG", "GIF", "TIFF", "WEBP", "NPY", "HEIC", "AVIF"}


def images_in(folder: Path, recursive: bool = True) -> list[Path]:
    """Image files by name: those with an image's suffix, or with the first bytes of an image."""
    return sorted(path for path in _files(folder, recursive) if _is_image(path))


def left_out(folders: Sequence[Path]) -> str:
    """What lies in these folders and is no image, counted by suffix: "3 .csv, 1 broken links"; "" if nothing does."""
    counts: dict[str, int] = {}
    for folder in folders:
        for path in _files(folder, True):
            if not _is_image(path):
                broken = path.is_symlink() and not path.exists()
                kind = "broken links" if broken else path.suffix.lower() or "without suffix"
                counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def _files(folder: Path, recursive: bool) -> Iterator[Path]:
    """Files and broken links, hidden ones and those in hidden folders left out."""
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield Path(entry.path)
        elif recursive and not entry.is_symlink():
            yield from _files(Path(entry.path), True)


def _is_image(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        return kind_of(path) in _SURE
    except OSError:
        return False
