"""Scenes composed of scikit-learn's real handwritten digits: a segmentation data set that needs no download.

A scene has a textured, coloured ground and several digits of random size, place, colour and slant, which may overlap.
Class 0 is the ground, class d + 1 the digit d; the rim of each digit, where pixels are neither, is to be ignored. The
digits of the training, validation and test scenes are different handwritings.
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
from torch.nn import functional as F

from cnn_train.data.cache import cache_folder, keep
from cnn_train.data.data import Data, DataSet, as_size
from cnn_train.data.digits import NAMES, load_digits
from cnn_train.data.source import InMemory

IGNORE = 255
VERSION = 1  # of the generator: a cached file of another version is not used
SPLIT_KEYS = {"train": 0, "val": 1, "test": 2}


def digit_scenes(
    image_size: int | Sequence[int] | None = None,
    *,
    num_train: int = 1600,
    num_val: int = 100,
    num_test: int = 200,
    scene_seed: int = 0,
    cache_dir: str | None = None,
    **batching: Any,
) -> Data:
    """RGB scenes of `image_size` (64 by default) in 11 classes, drawn by (scene_seed, split, index) and cached.

    `cache_dir` is by default cnn-train in $XDG_CACHE_HOME or ~/.cache.
    """
    size = as_size(image_size, 64)
    counts = {"train": num_train, "val": num_val, "test": num_test}
    cache = cache_folder(cache_dir)
    splits = {name: InMemory(*cached_scenes(name, count, size, scene_seed, cache)) for name, count in counts.items()}
    names = ["ground", *NAMES]
    found = DataSet("digit_scenes", "maps", splits, names, 3, size, ignore_index=IGNORE, resize="own")
    return Data(found, **batching)


def cached_scenes(split: str, count: int, size: tuple[int, int], seed: int, cache: Path) -> tuple[Tensor, Tensor]:
    """Images (count, 3, H, W) and labels (count, H, W), uint8, from the cache or newly drawn.

    A damaged file of the cache is drawn again; an unwritable cache is ignored.
    """
    parameters = f"{VERSION} {split} {count} {size} {seed}"
    path = cache / f"digit_scenes_{split}_{hashlib.sha256(parameters.encode()).hexdigest()[:16]}.npz"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
            images, labels = saved["images"], saved["labels"]
        if images.shape == (count, 3, *size) and labels.shape == (count, *size):
            return torch.from_numpy(images), torch.from_numpy(labels)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass
    images, labels = draw_scenes(split, count, size, seed)
    content = io.BytesIO()
    np.savez(content, images=images, labels=labels)
    keep(path, content.getvalue())
    return torch.from_numpy(images), torch.from_numpy(labels)


def draw_scenes(
    split: str, count: int, size: tuple[int, int], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw the scenes 0 to count - 1 of a split; a scene depends on (seed, split, its index, size) alone."""
    digits, labels = load_digits()[split]
    images = np.empty((count, 3, *size), np.uint8)
    maps = np.empty((count, *size), np.uint8)
    for index in range(count):
        random = np.random.default_rng([seed, SPLIT_KEYS[split], index])
        images[index], maps[index] = draw_scene(digits, labels, size, random)
    return images, maps


def draw_scene(
    digits: Tensor, labels: Tensor, size: tuple[int, int], random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene of 2 to 4 digits (N, 1, 8, 8): image (3, H, W) and label map (H, W)."""
    image, ground = draw_ground(size, random)
    label = np.zeros(size, np.uint8)
    shortest = min(size)
    for _ in range(random.integers(2, 5)):
        chosen = random.integers(len(digits))
        side = round(float(random.uniform(0.38, 0.65)) * shortest)
        strength = draw_digit(digits[chosen], side, slant=random.uniform(-0.3, 0.3), angle=random.uniform(-0.2, 0.2))
        for _ in range(8):  # look for a place that hides little of what is there
            y, x = (int(random.integers(0, extent - side + 1)) for extent in size)
            area = (slice(y, y + side), slice(x, x + side))
            hidden = ((label[area] > 0) & (strength > 0.35)).sum()
            if hidden <= 0.15 * (strength > 0.35).sum():
                break
        colour = contrasting_colour(ground, random)
        image[:, *area] += np.clip(strength * 1.6 - 0.3, 0, 1) * (colour[:, None, None] - image[:, *area])
        label[area] = np.where(strength > 0.5, labels[chosen] + 1, np.where(strength > 0.2, IGNORE, label[area]))
    image += random.normal(0, 0.03, image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8), label


def draw_ground(size: tuple[int, int], random: np.random.Generator) -> tuple[NDArray, NDArray]:
    """A colour with coarse and fine texture: image (3, H, W) in [0, 1] and the colour (3)."""
    colour = random.uniform(0.15, 0.85, 3)
    image = np.broadcast_to(colour[:, None, None], (3, *size)).copy()
    for cells, amplitude in ((4, 0.08), (12, 0.05), (32, 0.03)):
        noise = torch.from_numpy(random.normal(0, amplitude, (1, 3, cells, cells)))
        image += F.interpolate(noise, size=size, mode="bicubic", align_corners=False)[0].numpy()
    return image, colour


def contrasting_colour(ground: NDArray, random: np.random.Generator) -> NDArray:
    """A colour (3) at a distance of at least 0.5 from the ground's."""
    while True:
        colour = random.uniform(0, 1, 3)
        if np.linalg.norm(colour - ground) >= 0.5:
            return colour


def draw_digit(digit: Tensor, side: int, slant: float, angle: float) -> NDArray:
    """A digit (1, 8, 8) enlarged to (side, side), sheared and turned, as ink between 0 and 1."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = torch.tensor([[[cos, sin + slant, 0.0], [-sin, cos, 0.0]]], dtype=torch.float32)
    grid = F.affine_grid(matrix, [1, 1, side, side], align_corners=False)
    # A border of one empty pixel: strokes that touch the edge of the 8x8 box keep a rim.
    padded = F.pad(digit.unsqueeze(0), (1, 1, 1, 1))
    return F.grid_sample(padded, grid, mode="bicubic", align_corners=False)[0, 0].clamp(0, 1).numpy()
