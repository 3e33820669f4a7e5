"""Shards: tar files whose members of one name are a sample, as WebDataset keeps them (Aizman et al. 2019).

They are read by an index of offsets, so that any sample is at hand: batches are a function of seed, epoch and step
alone, whatever the number of processes and workers, and a resumed run continues at the sample where it stopped. Streams
with a shuffle buffer, as the package webdataset reads them, have neither. Only images and labels are read: members that
would have to be unpickled are never opened.
"""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from cnn_train.data.cache import remember
from cnn_train.data.checking import look_over
from cnn_train.errors import DataError

IMAGES = {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "ppm", "pgm", "pnm"}
LABELS = ("cls", "json", "txt")  # the first that a sample has counts
MOST_LABEL = 1 << 20  # bytes of a label
MOST_SHARDS = 100_000
OPEN = 64  # shards that a process keeps open


class Member(NamedTuple):
    """A part of a shard: the file, its name there, and the bytes that it takes."""

    shard: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def read(self) -> bytes:
        """Its bytes. Raises DataError."""
        try:
            content = os.pread(_opened(self.shard).number, self.size, self.offset)
        except OSError as error:
            raise DataError(f"cannot read {self}: {error.strerror}") from error
        if len(content) < self.size:
            raise DataError(f"cannot read {self}: the shard is cut off; fetch it again")
        return content


class Entry(NamedTuple):
    """A sample: its name, its image, and its label as text or by a member (None: it has none)."""

    key: str
    image: Member
    label: Member | None


class _Descriptor:
    """A file that is open for as long as this object lives; forked processes may share it."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=OPEN)
def _opened(shard: str) -> _Descriptor:
    return _Descriptor(shard)


def expand(urls: str | Sequence[str] | None, setting: str) -> list[str]:
    """The shards that a pattern or several name: numbers {000..099}, words {a,b} and * are written out.

    Raises DataError for what is no local file, and for patterns that nothing fits.
    """
    if urls is None or not urls:
        raise DataError(f"{setting} is not set; {setting}='shards-{{000..099}}.tar', tar files of images and labels")
    found: list[str] = []
    for pattern in [urls] if isinstance(urls, str) else urls:
        if re.match(r"(pipe:|\w+://)", pattern):
            raise DataError(f"{setting}={pattern}: shards are read from local files; fetch them first")
        for path in _written_out(os.path.expanduser(pattern), setting):
            if "*" in path:
                folder = Path(path).parent
                fitting = sorted(map(str, folder.glob(Path(path).name))) if folder.is_dir() else []
                if not fitting:
                    raise DataError(f"{setting}={pattern}: no file fits in {folder.resolve()}")
                found += fitting
            else:
                found.append(path)
    absent = [path for path in found if not os.path.isfile(path)]
    if absent:
        raise DataError(
            f"no file {Path(absent[0]).resolve()} ({len(absent)} of {len(found)} shards are missing); see {setting}"
        )
    twice = [path for path, n in Counter(found).items() if n > 1]
    if twice:
        raise DataError(f"{setting} names {twice[0]} twice")
    return [str(Path(path).resolve()) for path in found]


def _written_out(pattern: str, setting: str) -> Iterator[str]:
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[Sequence[str]] = []
    for place, part in enumerate(parts):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", part) if place % 2 else None
        if numbers:
            first, last = numbers.groups()
            if not 0 <= int(last) - int(first) < MOST_SHARDS:
                raise DataError(f"{setting}={pattern}: {{{part}}} must go up, by at most {MOST_SHARDS:,}")
            choices.append([str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)])
        else:
            choices.append(part.split(",") if place % 2 else [part])
    return map("".join, product(*choices))


def index(shards: Sequence[str], workers: int, cache_dir: str | None) -> tuple[list[Entry], Counter[str]]:
    """The samples of the shards in order, and what else is in them, by suffix. Raises DataError.

    An index is made once for each shard and kept in the cache.
    """

    def look(shard: str) -> tuple[list[Any], dict[str, int]]:
        return remember(cache_dir, "shard", [shard], "1", lambda: _indexed(shard))

    entries: list[Entry] = []
    passed: Counter[str] = Counter()
    for shard, looked in look_over(look, shards, workers, "index shards"):
        if isinstance(looked, DataError):
            raise looked
        rows, others = looked
        passed.update(others)
        for key, image, label in rows:
            entries.append(Entry(key, Member(shard, *image), Member(shard, *label) if label else None))
    return entries, passed


def _indexed(shard: str) -> tuple[list[Any], dict[str, int]]:
    """Rows [key, [name, offset, size] of the image, the same of the label or None], and other members by suffix."""
    parts: dict[str, dict[str, list[Any]]] = {}
    others: Counter[str] = Counter()
    length = os.path.getsize(shard)
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                suffix = suffix.lower()
                if not member.isreg() or member.sparse is not None or not (suffix in IMAGES or suffix in LABELS):
                    others[f".{suffix}" if member.isreg() else "links"] += 1
                    continue
                if member.offset_data + member.size > length:
                    raise DataError(f"{shard} is cut off in {member.name!r}; fetch it again")
                own = parts.setdefault(f"{folder}/{stem}" if folder else stem, {})
                kind = "image" if suffix in IMAGES else suffix
                if kind in own:
                    raise DataError(f"{shard}: the sample {stem!r} has two members for its {kind}, as {member.name!r}")
                own[kind] = [member.name, member.offset_data, member.size]
        with open(shard, "rb") as file:
            file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
            if any(file.read()):
                raise DataError(f"{shard} is cut off: it has no end mark; fetch it again")
    except tarfile.TarError as error:
        raise DataError(f"cannot read {shard}: {error}; shards are tar files that are not compressed") from error
    except OSError as error:
        raise DataError(f"cannot read {shard}: {error.strerror or error}") from error
    rows = []
    for key, own in parts.items():
        if "image" not in own:
            others["samples without an image"] += 1
            continue
        rows.append([key, own["image"], next((own[kind] for kind in LABELS if kind in own), None)])
    return rows, dict(others)
