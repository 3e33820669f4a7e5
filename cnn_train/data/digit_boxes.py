"""Scenes of scikit-learn's real handwritten digits for object detection, without a download.

A scene has a textured, coloured ground and 1 to 8 digits, the smallest as far below the largest in size as the names
of COCO's small and large: sides are spread logarithmically. Digits may overlap; a box goes around the ink that is
seen, and a digit that others hide for the most part is to be ignored. A few scenes are empty. The digits of the
training, validation and test scenes are different handwritings, as in `digit_scenes`, of whose parts scenes are made.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnn_train.data.cache import cache_folder, keep
from cnn_train.data.data import Data, DataSet, as_size
from cnn_train.data.digit_scenes import SPLIT_KEYS, contrasting_colour, draw_digit, draw_ground
from cnn_train.data.digits import NAMES, load_digits
from cnn_train.data.source import InMemory

VERSION = 1  # of the generator: a cached file of another version is not used
MOST = 8  # digits in a scene
SIDES = (15 / 128, 64 / 128)  # of a digit, as parts of the image's shorter side
EMPTY = 0.03  # share of the scenes without a digit
INK = 0.35  # of the darkest stroke: what counts as seen
HIDDEN = 0.5  # a digit of which more than this share of the ink is hidden is to be ignored


def digit_boxes(
    image_size: int | Sequence[int] | None = None,
    *,
    num_train: int = 1600,
    num_val: int = 200,
    num_test: int = 400,
    scene_seed: int = 0,
    cache_dir: str | None = None,
    **batching: Any,
) -> Data:
    """RGB scenes of `image_size` (128 by default) with boxes of 10 classes, drawn by (scene_seed, split, index).

    Targets are (N, 8, 6): x1, y1, x2, y2 in pixels, class, 1 where the object is to be ignored; the class is -1 in rows
    without an object. `cache_dir` is by default cnn-train in $XDG_CACHE_HOME or ~/.cache.
    """
    size = as_size(image_size, 128)
    counts = {"train": num_train, "val": num_val, "test": num_test}
    cache = cache_folder(cache_dir)
    splits = {name: InMemory(*cached_boxes(name, count, size, scene_seed, cache)) for name, count in counts.items()}
    data_set = DataSet("digit_boxes", "boxes", splits, NAMES, in_channels=3, image_size=size, resize="own")
    return Data(data_set, **batching)


def cached_boxes(split: str, count: int, size: tuple[int, int], seed: int, cache: Path) -> tuple[Tensor, Tensor]:
    """Images (count, 3, H, W) uint8 and targets (count, 8, 6) float32, from the cache or newly drawn.

    A damaged file of the cache is drawn again; a cache that cannot be written is ignored.
    """
    parameters = f"{VERSION} {split} {count} {size} {seed}"
    path = cache / f"digit_boxes_{split}_{hashlib.sha256(parameters.encode()).hexdigest()[:16]}.npz"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
            images, targets = saved["images"], saved["targets"]
        if images.shape == (count, 3, *size) and targets.shape == (count, MOST, 6):
            return torch.from_numpy(images), torch.from_numpy(targets)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass
    images, targets = draw_box_scenes(split, count, size, seed)
    content = io.BytesIO()
    np.savez(content, images=images, targets=targets)
    keep(path, content.getvalue())
    return torch.from_numpy(images), torch.from_numpy(targets)


def draw_box_scenes(
    split: str, count: int, size: tuple[int, int], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw the scenes 0 to count - 1 of a split; a scene depends on (seed, split, its index, size) alone."""
    digits, labels = load_digits()[split]
    images = np.empty((count, 3, *size), np.uint8)
    targets = np.empty((count, MOST, 6), np.float32)
    for index in range(count):
        random = np.random.default_rng([seed, SPLIT_KEYS[split], index, 1])  # 1: other scenes than digit_scenes'
        images[index], targets[index] = draw_box_scene(digits, labels, size, random)
    return images, targets


def draw_box_scene(
    digits: Tensor, labels: Tensor, size: tuple[int, int], random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One scene of up to 8 digits (N, 1, 8, 8): image (3, H, W) and targets (8, 6)."""
    image, ground = draw_ground(size, random)
    owner = np.full(size, -1)  # the digit whose ink each pixel shows
    classes, inks = [], []
    for number in range(0 if random.uniform() < EMPTY else int(random.integers(1, MOST + 1))):
        chosen = random.integers(len(digits))
        side = round(float(np.exp(random.uniform(*np.log(SIDES)))) * min(size))
        strength = draw_digit(digits[chosen], side, slant=random.uniform(-0.3, 0.3), angle=random.uniform(-0.2, 0.2))
        area = _place(owner, strength, random)
        colour = contrasting_colour(ground, random)
        image[:, *area] += np.clip(strength * 1.6 - 0.3, 0, 1) * (colour[:, None, None] - image[:, *area])
        owner[area] = np.where(strength > INK, number, owner[area])
        classes.append(int(labels[chosen]))
        inks.append(int((strength > INK).sum()))
    image += random.normal(0, 0.03, image.shape)
    targets = np.zeros((MOST, 6), np.float32)
    targets[:, 4] = -1
    row = 0
    for number, (label, ink) in enumerate(zip(classes, inks, strict=True)):
        rows, columns = np.nonzero(owner == number)
        if len(rows):  # a digit without visible ink is none
            corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            targets[row] = *corners, label, len(rows) < (1 - HIDDEN) * ink
            row += 1
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8), targets


def _place(owner: NDArray, strength: NDArray, random: np.random.Generator) -> tuple[slice, slice]:
    """A place for a square of ink that hides at most 15 % of the ink there, if one is found in 8 tries."""
    side = len(strength)
    for _ in range(8):
        y, x = (int(random.integers(0, extent - side + 1)) for extent in owner.shape)
        area = (slice(y, y + side), slice(x, x + side))
        if ((owner[area] >= 0) & (strength > INK)).sum() <= 0.15 * (strength > INK).sum():
            break
    return area
