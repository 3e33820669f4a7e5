"""scikit-learn's 1,797 handwritten digits of 8x8 pixels (Alpaydin & Kaynak 1998), which need no download."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_train.data.data import Data, DataSet, as_size
from cnn_train.data.source import InMemory

NAMES = [str(digit) for digit in range(10)]


def load_digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Images (N, 1, 8, 8) in [0, 1] and labels (N): a fixed split of 60, 20 and 20 %, stratified by class."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    loaded = load()
    images = torch.from_numpy(loaded.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(loaded.target).long()
    rest, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=359, stratify=labels[rest], random_state=0)
    return {name: (images[index], labels[index]) for name, index in (("train", train), ("val", val), ("test", test))}


def digits(image_size: int | Sequence[int] | None = None, **batching: Any) -> Data:
    """The digits brought to `image_size` (32 by default) by bilinear interpolation, in 10 classes."""
    size = as_size(image_size, 32)
    splits = {}
    for name, (images, labels) in load_digits().items():
        resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        splits[name] = InMemory((resized * 255).round().to(torch.uint8), labels)
    return Data(DataSet("digits", "labels", splits, NAMES, in_channels=1, image_size=size), **batching)
