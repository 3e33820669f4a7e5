"""Anybody's `torch.utils.data.Dataset` of (image, label), two or three of them, as a data set."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cnn_train.data.data import Data, DataSet, as_size
from cnn_train.data.images import Resize, bring_to_size
from cnn_train.data.random import generator
from cnn_train.data.source import InMemory
from cnn_train.errors import DataError


class Labelled(Protocol):
    """Images with labels by index.

    An image is one of PIL, an array (H, W) or (H, W, C) of uint8, or a tensor (C, H, W) of uint8 or of 0 to 1.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


def datasets(
    train: Labelled | None = None,
    val: Labelled | None = None,
    test: Labelled | None = None,
    class_names: Sequence[str] | None = None,
    image_size: int | Sequence[int] | None = None,
    resize: Resize = "stretch",
    val_fraction: float = 0.1,
    **batching: Any,
) -> Data:
    """Read all samples once and hold them in memory, brought to `image_size` (by default the first image's own).

    Without `val`, that share of `train` is drawn for it by the seed; without `test`, `val` serves. Class names are
    those given, or the data set's `classes`, or numbers. Raises DataError for samples of another kind.
    """
    if train is None:
        raise DataError("data=datasets needs data.train={_target_: mymodule.MyDataset}, a torch.utils.data.Dataset")
    given = {name: split for name, split in (("train", train), ("val", val), ("test", test)) if split is not None}
    read = {name: [sample_of(split, index, name) for index in range(len(split))] for name, split in given.items()}
    if not read["train"]:
        raise DataError("the train data set is empty")
    channels, *own = read["train"][0][0].shape
    size = (own[0], own[1]) if image_size is None else as_size(image_size, own[0])
    if "val" not in read:
        order = torch.randperm(len(read["train"]), generator=generator(batching.get("seed", 0), 0)).tolist()
        count = max(round(val_fraction * len(order)), 1)
        read["val"] = [read["train"][index] for index in sorted(order[:count])]
        read["train"] = [read["train"][index] for index in sorted(order[count:])]
    read.setdefault("test", read["val"])
    names = class_names or getattr(train, "classes", None)
    names = names or [str(number) for number in range(1 + max(label for split in read.values() for _, label in split))]
    splits = {name: in_memory(split, channels, size, resize, len(names), name) for name, split in read.items()}
    name = type(train).__name__
    data_set = DataSet(name, "labels", splits, names, in_channels=channels, image_size=size, resize=resize)
    return Data(data_set, **batching)


def sample_of(split: Labelled, index: int, name: str) -> tuple[Tensor, int]:
    """An image (C, H, W) uint8 and its label."""
    try:
        image, label = split[index]
    except (TypeError, ValueError) as error:
        raise DataError(f"sample {index} of the {name} data set is not a pair of image and label: {error}") from error
    if not isinstance(image, Tensor):
        array = np.asarray(image)
        array = array[..., None] if array.ndim == 2 else array
        image = torch.from_numpy(np.array(array)).permute(2, 0, 1) if array.ndim == 3 else torch.from_numpy(array)
    if image.is_floating_point() and image.numel() and float(image.min()) >= 0 and float(image.max()) <= 1:
        image = (image * 255).round().to(torch.uint8)
    if image.ndim != 3 or image.dtype != torch.uint8:
        raise DataError(
            f"sample {index} of the {name} data set has an image of {image.dtype} and shape {tuple(image.shape)}; give "
            "a PIL image, an array (H, W, C) of uint8, or a tensor (C, H, W) of uint8 or of 0 to 1"
        )
    return image, int(label)


def in_memory(
    samples: Sequence[tuple[Tensor, int]], channels: int, size: tuple[int, int], resize: str, classes: int, name: str
) -> InMemory:
    """A split whose images have one size and as many channels as the first, and labels that have a name."""
    images = []
    for index, (image, label) in enumerate(samples):
        if image.size(0) != channels:
            raise DataError(f"sample {index} of {name} has {image.size(0)} channels, the first one {channels}")
        if not 0 <= label < classes:
            raise DataError(f"sample {index} of {name} has the label {label}; there are {classes} classes, from 0")
        images.append(bring_to_size((image.size(1), image.size(2)), size, resize).images(image))
    return InMemory(torch.stack(images), torch.tensor([label for _, label in samples]))
