"""Images of noise of any size and number, for benchmarks: nothing is read, and a class can still be learned."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from cnn_train.data.data import Data, DataSet, as_size
from cnn_train.data.random import generator
from cnn_train.data.source import InMemory
from cnn_train.data.targets import KINDS
from cnn_train.errors import DataError


def synthetic(
    image_size: int | Sequence[int] | None = None,
    *,
    samples: int = 1000,
    num_classes: int = 10,
    channels: int = 3,
    task: Literal["classification", "multilabel", "segmentation"] = "classification",
    **batching: Any,
) -> Data:
    """`samples` training images of uniform noise (32x32 by default), and a fifth as many for val and for test.

    Class k is brighter by a step: in the whole image, or where its label map says. The images are the same whatever
    `seed` is.
    """
    if samples < 5 or num_classes < 2 or channels < 1:
        raise DataError(
            f"data.samples={samples}, num_classes={num_classes}, channels={channels}: at least 5, 2 and 1 are needed"
        )
    height, width = as_size(image_size, 32)
    splits = {}
    for number, (split, count) in enumerate((("train", samples), ("val", samples // 5), ("test", samples // 5))):
        random = generator(number)
        noise = torch.randint(0, 128, (count, channels, height, width), dtype=torch.uint8, generator=random)
        if task == "segmentation":
            labels = torch.randint(0, num_classes, (count, height, width), generator=random)
            level = labels.unsqueeze(1)
        elif task == "multilabel":
            labels = torch.randint(0, 2, (count, num_classes), generator=random).float()
            level = labels.sum(1).view(-1, 1, 1, 1)
        else:
            labels = torch.arange(count) % num_classes
            level = labels.view(-1, 1, 1, 1)
        splits[split] = InMemory(noise + (level * (127 // num_classes)).to(torch.uint8), labels)
    names = [str(number) for number in range(num_classes)]
    return Data(DataSet("synthetic", KINDS[task], splits, names, channels, (height, width)), **batching)
