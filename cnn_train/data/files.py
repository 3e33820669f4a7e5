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
    names = [entry.path for entry in _files(folder, recursive) if _is_image(entry)]
    # In the order of paths, which compare folder by folder, at a third of their price.
    return [Path(name) for name in sorted(names, key=lambda name: name.split(os.sep))]


def left_out(folders: Sequence[Path]) -> str:
    """What lies in these folders and is no image, counted by suffix: "3 .csv, 1 broken links"; "" if nothing does."""
    counts: dict[str, int] = {}
    for folder in folders:
        for entry in _files(folder, True):
            if not _is_image(entry):
                broken = entry.is_symlink() and not os.path.exists(entry.path)
                kind = "broken links" if broken else _suffix(entry) or "without suffix"
                counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def _files(folder: str | Path, recursive: bool) -> Iterator["os.DirEntry[str]"]:
    """Files and broken links, hidden ones and those in hidden folders left out."""
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield entry
        elif recursive and not entry.is_symlink():
            yield from _files(entry.path, True)


def _is_image(entry: "os.DirEntry[str]") -> bool:
    if not entry.is_file():
        return False
    if _suffix(entry) in SUFFIXES:
        return True
    try:
        return kind_of(entry.path) in _SURE
    except OSError:
        return False


def _suffix(entry: "os.DirEntry[str]") -> str:
    return os.path.splitext(entry.name)[1].lower()
