"""Images that are there twice: the same bytes, or nearly the same picture in another size or encoding.

Pictures are compared in two steps. The first compares blurred thumbnails, which are all in memory. The second reads the
pairs again that are not far apart and differ in size or are JPEGs: the larger picture is scaled by each of Pillow's
filters, and encoded with the other one's tables, as if the other one were its copy. So a copy is at nearly 0 from its
original, however small or coarse it is, and different pictures are as far apart as before.
"""

import io
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from cnn_train.data.checking import shown
from cnn_train.data.decode import kind_of, read_values

SIDE = 16  # of the thumbnails that are compared
COARSE = 8  # of those by which most pairs are told apart
FLAT = 4.0  # levels of contrast below which a picture counts as having so many
BLUR = 0.03  # of a side
# 5,000 different digits of MNIST are at least 0.099 apart; one encoded as JPEG again, or enlarged, at most 0.05.
NEAR = 0.07  # the distance up to which two pictures are nearly the same
# Pairs further apart than that are not looked at in the second step: of different sizes, and of one size with a JPEG.
OTHER_SIZE, OF_JPEG = 0.5, 0.25
SMALLEST = 12  # pixels of a side, below which pictures are too coarse for the second step
BLOCK = 1024
MOST = 20_000  # pairs that are listed


def content_hash(path: str | Path) -> bytes:
    """16 bytes that are the same for files of the same content."""
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()


def thumbnail(values: NDArray) -> NDArray[np.float16]:
    """The perceptual hash of an image (H, W, C): grey levels at 16x16 points, blurred alike at any size (256)."""
    grey = values[..., :3].mean(2, dtype=np.float32)
    if values.dtype != np.uint8:
        grey = grey * (255 / max(float(np.abs(grey).max()), 1e-12))
    return (_blur(grey.shape[0]) @ grey @ _blur(grey.shape[1]).T).reshape(-1).astype(np.float16)


@lru_cache(maxsize=32)
def _blur(length: int) -> NDArray[np.float32]:
    """Weights (16, length) of the pixels along a side for each of 16 points: a Gaussian of 3 % of the side."""
    points = (np.arange(SIDE) + 0.5) / SIDE
    finer = max(256 // length, 1)  # a pixel's weight is that of its area
    places = (np.arange(length * finer) + 0.5) / (length * finer)
    weights = np.exp(-0.5 * np.square((places[None] - points[:, None]) / BLUR)).reshape(SIDE, length, finer).sum(2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def distances(one: NDArray, others: NDArray) -> NDArray[np.float32]:
    """How far thumbnails are apart, of their contrast: 0 is the same, 1 and more is unlike. (256), (N, 256) -> (N)."""
    one, others = np.atleast_2d(one).astype(np.float32), others.astype(np.float32)
    return np.linalg.norm(others - one, axis=1) / np.maximum(_contrast(one), _contrast(others))


def near_pairs(
    thumbnails: NDArray[np.float16], limit: float = NEAR, kinds: NDArray[np.int32] | None = None
) -> Iterator[tuple[int, int, float]]:
    """Pairs of thumbnails (N, 256) at most so far apart, i < j, with their distance; the first 20,000.

    `kinds` (N, 3) are the height, the width and whether it is a JPEG (0 or 1) of each image: with it those pairs come,
    too, that the second step may find near.
    """
    number = len(thumbnails)
    kinds = np.zeros((number, 3), np.int32) if kinds is None else kinds
    ratio = SIDE // COARSE
    coarse = np.empty((number, COARSE * COARSE), np.float32)
    contrast = np.empty(number, np.float32)
    for start in range(0, number, BLOCK):
        part = thumbnails[start : start + BLOCK].astype(np.float32)
        contrast[start : start + BLOCK] = _contrast(part)
        # Scaled so that coarse distances are never above the fine ones.
        cells = part.reshape(-1, COARSE, ratio, COARSE, ratio).mean((2, 4)) * ratio
        coarse[start : start + BLOCK] = cells.reshape(len(part), -1)
    coarse -= coarse.mean(0) if number else 0
    squares = np.square(coarse).sum(1)
    wide = max(limit, OTHER_SIZE if (kinds[:, :2] != kinds[:1, :2]).any() else OF_JPEG if kinds[:, 2].any() else 0)
    found = 0
    for top in shown(range(0, number, BLOCK), "compare images", number):
        for left in range(top, number, BLOCK):
            rows, columns = slice(top, top + BLOCK), slice(left, left + BLOCK)
            apart = squares[rows, None] + squares[None, columns] - 2 * coarse[rows] @ coarse[columns].T
            allowed = wide * np.maximum(contrast[rows, None], contrast[None, columns])
            places = np.argwhere(apart <= np.square(allowed) + 1) + np.array([top, left])
            places = places[places[:, 0] < places[:, 1]]
            for start in range(0, len(places), 16 * BLOCK):
                i, j = places[start : start + 16 * BLOCK].T
                measured = distances(thumbnails[i], thumbnails[j])
                for k in np.flatnonzero(measured <= _limits(kinds[i], kinds[j], limit)):
                    yield int(i[k]), int(j[k]), float(measured[k])
                    found += measured[k] <= limit
                    if found == MOST:
                        return


def _limits(one: NDArray[np.int32], other: NDArray[np.int32], limit: float) -> NDArray[np.float64]:
    """How far each pair of kinds (n, 3) may be apart to be looked at (n)."""
    same = (one[:, :2] == other[:, :2]).all(1)
    jpeg = (one[:, 2] | other[:, 2]).astype(bool)
    coarse = (np.minimum(one[:, :2], other[:, :2]) < SMALLEST).any(1)
    wide = np.where(same, np.where(jpeg, OF_JPEG, limit), OTHER_SIZE)
    return np.where(coarse, limit, np.maximum(wide, limit))


def distance_as_copies(one: str, other: str, max_pixels: int) -> float:
    """The distance of two files if one were a copy of the other; infinity where that cannot be said."""
    first, second = (_picture(path, max_pixels) for path in (one, other))
    if first is None or second is None:
        return float("inf")
    tables = [_tables(path) for path in (one, other)]
    found = []
    for original, copy, coded in ((first, second, tables[1]), (second, first, tables[0])):
        same = original.size == copy.size
        smaller = copy.width * copy.height < original.width * original.height
        if not (smaller or (same and coded)):
            continue
        target = thumbnail(_levels(copy))
        for how in (0,) if same else range(6):  # Pillow's filters
            made = original if same else original.resize(copy.size, how)
            found.append(float(distances(target, thumbnail(_levels(_encoded(made, coded)))[None])[0]))
    return min(found, default=float("inf"))


def _picture(path: str, max_pixels: int) -> Image.Image | None:
    values = read_values(path, max_pixels)
    if values.dtype != np.uint8 or values.shape[2] not in (1, 3):
        return None
    return Image.fromarray(values if values.shape[2] == 3 else values[..., 0])


def _levels(image: Image.Image) -> NDArray:
    values = np.asarray(image)
    return values.reshape(*values.shape[:2], -1)


def _tables(path: str) -> dict[str, Any]:
    """How a JPEG was encoded, for Pillow; {} for other files."""
    if kind_of(path) != "JPEG":
        return {}
    with Image.open(path, formats=("JPEG",)) as image:
        sampling = JpegImagePlugin.get_sampling(image)
        return {"qtables": image.quantization, **({"subsampling": sampling} if sampling >= 0 else {})}  # type: ignore


def _encoded(image: Image.Image, tables: dict[str, Any]) -> Image.Image:
    """The image encoded as a JPEG and decoded again."""
    if not tables:
        return image
    content = io.BytesIO()
    grey = len(tables["qtables"]) == 1
    (image.convert("L") if grey else image).save(content, "JPEG", **tables)
    return Image.open(content)


def _contrast(thumbnails: NDArray[np.float32]) -> NDArray[np.float32]:
    deviation = thumbnails - thumbnails.mean(1, keepdims=True)
    return np.maximum(np.linalg.norm(deviation, axis=1), FLAT * SIDE).astype(np.float32)
