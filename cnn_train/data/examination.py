"""Every file of a data set looked at once: what a run's survey needs, and what only a check asks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnn_train.data.cache import remember
from cnn_train.data.checking import look_over
from cnn_train.data.decode import kind_of, opened
from cnn_train.data.duplicates import NEAR, content_hash, distance_as_copies, near_pairs, thumbnail
from cnn_train.data.listing import Listing
from cnn_train.data.survey import PURPOSE, Look, Survey, extremes_of, settings
from cnn_train.errors import DataError

OF_SUFFIX = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".bmp": "BMP", ".gif": "GIF",
    ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".npy": "NPY", ".npz": "NPZ", ".heic": "HEIC", ".avif": "AVIF",
}  # fmt: skip


@dataclass
class Examination:
    """The survey of all images, and for each readable one its content's hash and thumbnail, in the order of `paths`."""

    survey: Survey
    paths: list[str]
    hashes: list[bytes]
    thumbnails: NDArray[np.float16]  # (N, 256)
    kinds: NDArray[np.int32]  # (N, 3): height, width, and whether it is a JPEG
    misnamed: dict[tuple[str, str], list[str]]  # files by suffix and true format, where these differ


@dataclass
class Duplicates:
    """Files of the same content, in groups, and pairs of nearly the same picture with their distance."""

    same: list[list[str]] = field(default_factory=list)
    near: list[tuple[str, str, float]] = field(default_factory=list)


def examine(paths: Sequence[str], max_pixels: int, workers: int, cache_dir: str | None) -> Examination:
    """Decode every file once; the survey is kept for the runs that follow."""
    found = Survey()
    readable: list[str] = []
    hashes: list[bytes] = []
    thumbnails = np.zeros((len(paths), 256), np.float16)
    kinds = np.zeros((len(paths), 3), np.int32)
    misnamed: dict[tuple[str, str], list[str]] = defaultdict(list)

    def look(path: str) -> tuple[Look, str, bytes, NDArray[np.float16]]:
        with opened(path, max_pixels) as file:
            values = file.decode()
        return (file.header, extremes_of(path, values)), kind_of(path), content_hash(path), thumbnail(values)

    for path, looked in look_over(look, paths, workers):
        if isinstance(looked, DataError):
            found.add(path, looked)
            continue
        header, kind, digest, small = looked
        found.add(path, header)
        thumbnails[len(readable)] = small
        kinds[len(readable)] = header[0].height, header[0].width, kind == "JPEG"
        readable.append(path)
        hashes.append(digest)
        suffix = Path(path).suffix.lower()
        if kind and OF_SUFFIX.get(suffix, kind) != kind:
            misnamed[suffix, kind].append(path)
    remember(cache_dir, PURPOSE, paths, settings(max_pixels, True), found.plain)
    return Examination(found, readable, hashes, thumbnails[: len(readable)], kinds[: len(readable)], dict(misnamed))


def duplicates(found: Examination, max_pixels: int, workers: int, limit: float = NEAR) -> Duplicates:
    """Images that are there more than once."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(found.hashes):
        groups[digest].append(index)
    first = [members[0] for members in groups.values()]
    same = [[found.paths[i] for i in members] for members in groups.values() if len(members) > 1]
    near, perhaps = [], []
    for i, j, distance in near_pairs(found.thumbnails[first], limit, found.kinds[first]):
        pair = found.paths[first[i]], found.paths[first[j]]
        if distance <= limit:
            near.append((*pair, distance))
        else:
            perhaps.append(pair)
    for pair, measured in look_over(lambda pair: distance_as_copies(*pair, max_pixels), perhaps, workers, "copies"):
        if not isinstance(measured, DataError) and measured <= limit:
            near.append((*pair, measured))
    return Duplicates(same, near)


def homes(listing: Listing) -> dict[str, tuple[set[str], tuple[str, ...]]]:
    """Of each image the splits that it is in, and the names of its labels; none for masks."""
    names = listing.class_names
    result: dict[str, tuple[set[str], tuple[str, ...]]] = {}
    for split, samples in listing.splits.items():
        for path, target in samples:
            labels: tuple[str, ...] = ()
            if listing.targets == "labels":
                labels = (names[target],)
            elif listing.targets == "multilabels":
                labels = tuple(name for name, shown in zip(names, target, strict=True) if shown)
            result.setdefault(path, (set(), labels))[0].add(split)
    return result
