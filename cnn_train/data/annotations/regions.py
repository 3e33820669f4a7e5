"""Regions of COCO's JSON files (Lin et al. 2014) as masks: polygons and run lengths, to the bits of its own API."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn_train.errors import DataError

FINER = 5  # how many times finer than pixels COCO's API follows a polygon's sides


def region(segmentation: Any, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The pixels (H, W) of an annotation's `segmentation`.

    That is a list of polygons [x1, y1, x2, y2, ...], or run lengths {"size": [H, W], "counts": numbers or text}. Raises
    DataError, which begins with `where`.
    """
    if isinstance(segmentation, Mapping):
        if list(segmentation.get("size", [])) != list(size):
            raise DataError(f"{where}: run lengths for {segmentation.get('size')}, but the image has {list(size)}")
        return from_runs(_runs(segmentation.get("counts"), where), size, where)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str):
        raise DataError(f"{where}: segmentation must be polygons or run lengths, got {type(segmentation).__name__}")
    found = np.zeros(size, bool)
    for points in segmentation:
        try:
            corners = np.array(points, np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: a polygon is a list of numbers x1, y1, x2, y2, ...") from error
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
            raise DataError(f"{where}: a polygon has {corners.size} numbers; it needs x and y of three points or more")
        found |= from_polygon(corners.reshape(-1, 2), size)
    return found


def from_polygon(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (H, W) inside a polygon of points (n, 2), x and y, as `rleFrPoly` of COCO's API fills it."""
    height, width = size
    ends = np.trunc(FINER * points + 0.5).astype(np.int64)
    x, y = _along(ends, np.roll(ends, -1, 0))
    turn = np.flatnonzero(np.diff(x))
    column = (np.minimum(x[turn], x[turn + 1]) + 0.5) / FINER - 0.5
    row = (np.minimum(y[turn], y[turn + 1]) + 0.5) / FINER - 0.5
    inside = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    row = np.ceil(row.clip(0, height)[inside]).astype(np.int64)
    # Down the columns each crossing of the outline turns inside to outside, or back.
    crossings = np.bincount(column[inside].astype(np.int64) * height + row, minlength=height * width)
    return (crossings[: height * width].cumsum() % 2 == 1).reshape(width, height).T


def _along(start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every point of the fine grid on the sides from `start` to `end` (n, 2), in order: x and y."""
    step = np.abs(end - start)
    flat = step[:, 0] >= step[:, 1]  # sides with a point for each x; the others have one for each y
    longer = step.max(1)
    back = np.where(flat, start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])
    first, last = np.where(back[:, None], end, start), np.where(back[:, None], start, end)
    side = np.repeat(np.arange(len(start)), longer + 1)
    place = np.arange(len(side)) - np.repeat((longer + 1).cumsum() - longer - 1, longer + 1)
    place = np.where(back[side], longer[side] - place, place)
    slope = (last - first) / np.maximum(longer, 1)[:, None]
    across = np.where(flat, 1, 0)[side]
    other = np.trunc(first[side, across] + slope[side, across] * place + 0.5).astype(np.int64)
    main = first[side, 1 - across] + place
    return np.where(across == 1, main, other), np.where(across == 1, other, main)


def from_runs(runs: NDArray[np.int64], size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The pixels (H, W) of run lengths: pixels outside, inside, outside, ... down the columns. Raises DataError."""
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise DataError(f"{where}: run lengths add up to {runs.sum()}, not to {size[0]}x{size[1]} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[1], size[0]).T


def _runs(counts: Any, where: str) -> NDArray[np.int64]:
    """Run lengths given as numbers, or as COCO's compressed text: 5 bits a character, differences from the third on."""
    if isinstance(counts, Sequence) and not isinstance(counts, str | bytes):
        if not all(isinstance(run, int) for run in counts):
            raise DataError(f"{where}: run lengths must be whole numbers")
        return np.array(counts, np.int64)
    if not isinstance(counts, str) or not counts.isascii():
        raise DataError(f"{where}: counts must be numbers or COCO's compressed text")
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 50:
            raise DataError(
                f"{where}: counts are no compressed run lengths; the letter {letter!r} is not one of theirs"
            )
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return np.array(runs, np.int64)
