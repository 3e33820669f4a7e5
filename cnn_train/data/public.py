"""Public sets of small images, by torchvision, held in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cnn_train.data.data import Data, DataSet, as_size
from cnn_train.data.public_files import place, read
from cnn_train.data.source import InMemory
from cnn_train.errors import DataError

CLASSES = {"mnist": [str(digit) for digit in range(10)], "svhn": [str(digit) for digit in range(10)]}
KINDS = {
    "cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST",
    "emnist": "EMNIST", "svhn": "SVHN", "stl10": "STL10",
}  # fmt: skip


def small_images(
    dataset: Literal["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "kmnist", "emnist", "stl10"],
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    subset: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = "balanced",
    download: bool = False,
    val_size: int = 5000,
    published: dict[str, int] | None = None,
    cache_dir: str | None = None,
    **batching: Any,
) -> Data:
    """CIFAR, MNIST and its kin, SVHN or STL-10 in `root` (by default `datasets` in the cache), as torchvision keeps it.

    `subset` is EMNIST's alone; its images, which are stored lying, come upright. `val_size` training images, the same
    share of each class, are kept for validation; with 0, validation is on the test images. `published` are
    num_classes, in_channels and image_size of the set, known without its files. Raises DataError where files are
    missing and `download` is not set, or hold something else than was published.
    """
    folder = place(root, cache_dir)
    images, labels, class_names = load(dataset, folder, True, download, subset)
    test_images, test_labels, _ = load(dataset, folder, False, download, subset)
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


def load(
    dataset: str, folder: Path, train: bool, download: bool, subset: str = "balanced"
) -> tuple[Tensor, Tensor, list[str]]:
    """Images (N, C, H, W) uint8, labels (N) int64 and the names of the classes. Raises DataError."""
    from torchvision import datasets

    kind = getattr(datasets, KINDS[dataset])
    which: dict[str, Any] = {"train": train}
    if dataset in ("svhn", "stl10"):
        which = {"split": "train" if train else "test"}
    elif dataset == "emnist":
        which["split"] = subset
    needed = needed_files(dataset, kind, subset)
    found = read(dataset, folder, download, needed, lambda: kind(str(folder), download=download, **which))
    images = torch.as_tensor(found.data)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif dataset.startswith("cifar"):
        images = images.permute(0, 3, 1, 2)
    if dataset == "emnist":
        images = images.transpose(2, 3)
    labels = torch.as_tensor(found.labels if dataset in ("svhn", "stl10") else found.targets).long()
    names = CLASSES.get(dataset) or list(getattr(found, "classes", []))
    if dataset == "emnist" and subset == "letters":  # which count from 1
        labels, names = labels - 1, names[1:]
    if len(images) != len(labels) or not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise DataError(f"{dataset} in {folder} has {len(images)} images, {len(labels)} labels, {len(names)} classes")
    return images.contiguous(), labels, names


def needed_files(dataset: str, kind: Any, subset: str) -> dict[str, str | None]:
    """The files of a set in its folder, with the MD5 sums that torchvision knows."""
    if dataset == "svhn":
        return {kind.split_list[split][1]: kind.split_list[split][2] for split in ("train", "test")}
    if dataset == "emnist":
        files = [f"emnist-{subset}-{split}" for split in ("train", "test")]
        return {f"EMNIST/raw/{name}-{part}-ubyte": None for name in files for part in ("images-idx3", "labels-idx1")}
    if "mnist" in dataset:
        return {f"{kind.__name__}/raw/{name.removesuffix('.gz')}": None for name, _ in kind.resources}
    listed: list[Sequence[str]] = [*kind.train_list, *kind.test_list]
    if dataset.startswith("cifar"):
        listed.append([kind.meta["filename"], kind.meta["md5"]])
    return {f"{kind.base_folder}/{name}": md5 for name, md5 in listed}


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
