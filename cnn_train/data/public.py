"""Public sets of small images, by torchvision, held in memory."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cnn_train.data.cache import cache_folder
from cnn_train.data.data import Data, DataSet, InMemory, as_size
from cnn_train.errors import DataError

CLASSES = {"mnist": [str(digit) for digit in range(10)], "svhn": [str(digit) for digit in range(10)]}
DOWNLOAD = {"cifar10": "170 MB", "cifar100": "169 MB", "mnist": "12 MB", "fashion_mnist": "31 MB", "svhn": "246 MB"}


def small_images(
    dataset: Literal["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn"],
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    download: bool = False,
    val_size: int = 5000,
    published: dict[str, int] | None = None,
    cache_dir: str | None = None,
    **batching: Any,
) -> Data:
    """CIFAR, MNIST, Fashion-MNIST or SVHN in `root` (by default `datasets` in the cache), as torchvision keeps it.

    `val_size` training images, the same share of each class, are kept for validation; with 0, validation is on the test
    images. `published` are num_classes, in_channels and image_size of the set, known without its files. Raises
    DataError where the files are missing and `download` is not set, or hold something else than was published.
    """
    folder = Path(os.path.expanduser(root)).resolve() if root is not None else cache_folder(cache_dir) / "datasets"
    images, labels, class_names = load(dataset, folder, True, download)
    test_images, test_labels, _ = load(dataset, folder, False, download)
    found = {"num_classes": len(class_names), "in_channels": images.size(1), "image_size": images.size(2)}
    if published is not None and published != found:
        raise DataError(f"{dataset} in {folder} has {found}, not {published} as published; fetch it again")
    size = as_size(image_size, images.size(2))
    splits = {"train": (images, labels), "test": (test_images, test_labels)}
    splits["val"] = splits["test"]
    if val_size:
        splits["train"], splits["val"] = _cut(images, labels, val_size)
    sources = {split: InMemory(resized(images, size), labels) for split, (images, labels) in splits.items()}
    return Data(DataSet(dataset, "labels", sources, class_names, images.size(1), size), **batching)


def load(dataset: str, folder: Path, train: bool, download: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Images (N, C, H, W) uint8, labels (N) int64 and the names of the classes."""
    from torchvision import datasets

    kinds: dict[str, Any] = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
        "svhn": datasets.SVHN,
    }
    which = {"split": "train" if train else "test"} if dataset == "svhn" else {"train": train}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CIFAR's pickles are older than numpy likes
            found = kinds[dataset](str(folder), download=download, **which)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        if download:
            raise DataError(f"cannot fetch {dataset} into {folder}: {' '.join(str(error).split())}") from error
        raise DataError(
            f"{dataset} is not in {folder} or is damaged; data.download=true fetches it ({DOWNLOAD[dataset]}), "
            "data.root=DIR says where it lies"
        ) from error
    images = torch.as_tensor(found.data)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif dataset.startswith("cifar"):
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(found.labels if dataset == "svhn" else found.targets).long()
    return images, labels, CLASSES.get(dataset) or list(found.classes)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The images (N, C, H, W) uint8 at `size`, bilinear with antialiasing."""
    if tuple(images.shape[-2:]) == size:
        return images
    from torchvision.transforms.v2.functional import resize

    return torch.cat([resize(part, list(size), antialias=True) for part in images.split(1000)])


def _cut(images: Tensor, labels: Tensor, val_size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from sklearn.model_selection import train_test_split

    classes = len(labels.unique())
    if not classes <= val_size <= len(labels) - classes:
        raise DataError(f"data.val_size={val_size}: must be 0, or at least {classes} and leave as many to train")
    train, val = train_test_split(range(len(labels)), test_size=val_size, stratify=labels, random_state=0)
    return (images[train], labels[train]), (images[val], labels[val])
