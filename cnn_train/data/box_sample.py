"""Boxes of some training images, for what is measured on them before training."""

import torch
from torch import Tensor

from cnn_train.data.boxes import UNUSED, pack_boxes
from cnn_train.data.data import Data
from cnn_train.errors import DataError

MOST_IMAGES = 2000  # whose boxes anchors are made of


def training_boxes(data: Data, most: int) -> Tensor:
    """Boxes (N, M, 6) of up to `most` training images, evenly drawn and unaltered, at the size of training."""
    total = data.size("train")
    indices = torch.linspace(0, total - 1, min(most, total)).round().long()
    parts = data.splits["train"].batches(indices.split(64), None, data.seed, torch.device("cpu"))
    targets = [boxes for _, part in parts for boxes in part.float()]
    return pack_boxes([boxes[boxes[:, 4] != UNUSED[4]] for boxes in targets])


def box_sizes(data: Data) -> Tensor:
    """Width and height (n, 2) of the objects to be learned in up to 2,000 training images, at the size of training."""
    if data.targets != "boxes":
        raise DataError(f"model.anchors=auto needs boxes, but {data.name} has {data.targets}; choose other data")
    boxes = training_boxes(data, MOST_IMAGES).flatten(0, 1)
    boxes = boxes[(boxes[:, 4] >= 0) & (boxes[:, 5] == 0)]
    return boxes[:, 2:4] - boxes[:, :2]
