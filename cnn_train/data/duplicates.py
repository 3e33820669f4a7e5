"""Images that are there twice: the same bytes, or nearly the same picture in another size or encoding."""

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE = 16  # of the thumbnails that are compared
COARSE = 8  # of those by which most pairs are told apart
FLAT = 4.0  # levels of contrast below which a picture counts as having so many
BLUR = 0.03  # of a side
# 5,000 different digits of MNIST are at least 0.099 apart; one encoded as JPEG again, or enlarged, at most 0.05.
NEAR = 0.07  # the distance up to which two pictures are nearly the same
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
    one, others = one.astype(np.float32), others.astype(np.float32)
    contrast = np.maximum(_contrast(one[None]), _contrast(others))
    return np.linalg.norm(others - one, axis=1) / contrast


def near_pairs(thumbnails: NDArray[np.float16], limit: float = NEAR) -> Iterator[tuple[int, int, float]]:
    """Pairs of thumbnails (N, 256) at most so far apart, i < j, with their distance; the first 20,000."""
    number = len(thumbnails)
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
    found = 0
    for top in range(0, number, BLOCK):
        for left in range(top, number, BLOCK):
            rows, columns = slice(top, top + BLOCK), slice(left, left + BLOCK)
            apart = squares[rows, None] + squares[None, columns] - 2 * coarse[rows] @ coarse[columns].T
            allowed = limit * np.maximum(contrast[rows, None], contrast[None, columns])
            for i, j in np.argwhere(apart <= np.square(allowed) + 1):
                a, b = top + int(i), left + int(j)
                if a < b and (distance := float(distances(thumbnails[a], thumbnails[b][None])[0])) <= limit:
                    yield a, b, distance
                    found += 1
                    if found == MOST:
                        return


def _contrast(thumbnails: NDArray[np.float32]) -> NDArray[np.float32]:
    deviation = thumbnails - thumbnails.mean(1, keepdims=True)
    return np.maximum(np.linalg.norm(deviation, axis=1), FLAT * SIDE).astype(np.float32)
