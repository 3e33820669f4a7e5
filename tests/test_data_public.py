"""Public sets, read by torchvision from files of the true format."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch

from cnn_train.data.public import KINDS, small_images
from cnn_train.errors import DataError

CPU = torch.device("cpu")


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(folder, monkeypatch, fine: bool):
    """Python pickles as the authors publish them; torchvision's table of checksums is set to theirs."""
    from torchvision import datasets

    kind = datasets.CIFAR100 if fine else datasets.CIFAR10
    classes = 100 if fine else 10
    key = "fine_labels" if fine else "labels"
    base = folder / kind.base_folder
    base.mkdir(parents=True)
    random = np.random.default_rng(0)
    images, labels, lists = {}, {}, {"train_list": [], "test_list": []}
    for which in lists:
        for name, _ in getattr(kind, which):
            n = 2 * classes
            data = random.integers(0, 256, (n, 3072), dtype=np.uint8)
            images.setdefault(which, []).append(data)
            labels.setdefault(which, []).append(np.arange(n) % classes)
            content = {"data": data, key: (np.arange(n) % classes).tolist(), "batch_label": ""}
            (base / name).write_bytes(pickle.dumps(content, protocol=2))
            lists[which].append([name, md5(base / name)])
        monkeypatch.setattr(kind, which, lists[which])
    meta = dict(kind.meta)
    names = [f"class{i}" for i in range(classes)]
    (base / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: names}, protocol=2))
    monkeypatch.setattr(kind, "meta", meta | {"md5": md5(base / meta["filename"])})
    joined = {k: (np.concatenate(images[k]).reshape(-1, 3, 32, 32), np.concatenate(labels[k])) for k in lists}
    return joined["train_list"], joined["test_list"], names


def write_mnist(folder, name="MNIST", prefixes=("train", "t10k"), classes=10, first=0):
    """IDX files, gzipped as downloaded and unpacked as torchvision keeps them."""
    base = folder / name / "raw"
    base.mkdir(parents=True)
    random = np.random.default_rng(0)
    result = []
    for prefix, n in zip(prefixes, (6 * classes, 2 * classes), strict=True):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % classes + first).astype(np.uint8)
        for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            content = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
            (base / f"{prefix}-{name}").write_bytes(content)
            (base / f"{prefix}-{name}.gz").write_bytes(gzip.compress(content))
        result.append((images[:, None], labels - first))
    return *result, [str(i) for i in range(classes)]


def write_kmnist(folder, patch):
    return *write_mnist(folder, "KMNIST")[:2], ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]


def write_emnist(folder, patch):
    """EMNIST's images are stored lying: rows are columns."""
    prefixes = [f"emnist-balanced-{split}" for split in ("train", "test")]
    splits = write_mnist(folder, "EMNIST", prefixes, classes=47)[:2]
    names = list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")
    return *((images.swapaxes(2, 3), labels) for images, labels in splits), names


def write_stl10(folder, patch):
    """Plain bytes, columns before rows, labels from 1; the unlabelled images belong to it."""
    from torchvision.datasets import STL10

    base = folder / STL10.base_folder
    base.mkdir(parents=True)
    random = np.random.default_rng(0)
    result, sums = [], {}
    for split, n in (("train", 40), ("test", 20), ("unlabeled", 3)):
        images, labels = random.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8), np.arange(n) % 10
        (base / f"{split}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        (base / f"{split}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
        sums |= {name: md5(base / name) for name in (f"{split}_X.bin", f"{split}_y.bin")}
        result.append((images, labels))
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (base / "class_names.txt").write_text("\n".join(names) + "\n")
    for which in ("train_list", "test_list"):
        patch.setattr(STL10, which, [[name, sums[name]] for name, _ in getattr(STL10, which)])
    return *result[:2], names


def write_svhn(folder, monkeypatch):
    """MATLAB files: images as (32, 32, 3, N), the digit 0 as 10."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    result, table = [], dict(SVHN.split_list)
    for split, n in (("train", 50), ("test", 20)):
        images, labels = random.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), np.arange(n) % 10
        url, name, _ = SVHN.split_list[split]
        savemat(folder / name, {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
        table[split] = [url, name, md5(folder / name)]
        result.append((images, labels))
    monkeypatch.setattr(SVHN, "split_list", table)
    return *result, [str(i) for i in range(10)]


WRITE = {
    "cifar10": lambda folder, patch: write_cifar(folder, patch, False),
    "cifar100": lambda folder, patch: write_cifar(folder, patch, True),
    "mnist": lambda folder, patch: write_mnist(folder),
    "svhn": write_svhn,
    "kmnist": write_kmnist,
    "emnist": write_emnist,
    "stl10": write_stl10,
}


@pytest.mark.parametrize("dataset", WRITE)
def test_true_files_are_read(dataset, tmp_path, monkeypatch):
    (images, labels), (test_images, test_labels), names = WRITE[dataset](tmp_path / "sets", monkeypatch)
    classes = len(names)
    data = small_images(dataset, str(tmp_path / "sets"), val_size=classes, batch_size=8)
    assert data.class_names == names and data.in_channels == images.shape[1]
    assert data.image_size == images.shape[2:] and data.name == dataset
    assert torch.equal(data.splits["test"].images, torch.from_numpy(test_images))
    assert data.splits["test"].targets.tolist() == test_labels.tolist()
    assert data.size("train") == len(images) - classes and data.class_counts("val").tolist() == [1] * classes
    # Train and val together are the training images, each with its label.
    both = [data.splits[split] for split in ("train", "val")]
    got = {bytes(x.numpy()): int(y) for split in both for x, y in zip(split.images, split.targets, strict=True)}
    assert got == {bytes(x): int(y) for x, y in zip(images, labels, strict=True)}
    batch = next(data.train_batches(0, device=CPU))
    assert batch.images.shape == (8, *images.shape[1:])


def test_without_validation_images_and_at_another_size(tmp_path, monkeypatch):
    (images, _), (test_images, _), _ = write_cifar(tmp_path, monkeypatch, False)
    data = small_images("cifar10", str(tmp_path), 16, val_size=0)
    assert data.size("train") == len(images) and data.size("val") == data.size("test") == len(test_images)
    assert data.splits["train"].images.shape[2:] == (16, 16)
    assert (data.splits["test"].images.float().mean() - test_images.mean()).abs() < 1


@pytest.mark.parametrize("dataset", KINDS)
def test_missing_files_say_where_and_how(dataset, tmp_path):
    with pytest.raises(DataError) as error:
        small_images(dataset, str(tmp_path / "none"))
    text = str(error.value)
    assert "\n" not in text and str(tmp_path / "none") in text and "data.download=true" in text
    first = {
        "mnist": "MNIST/raw/train-images-idx3-ubyte",
        "svhn": "train_32x32.mat",
        "stl10": "stl10_binary/train_X.bin",
    }
    assert f"it consists of {first.get(dataset, '')}" in text
    assert not (tmp_path / "none").exists()


def test_default_place_is_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"{tmp_path}/cnn-train/datasets"):
        small_images("mnist")


def test_damaged_files_are_not_read(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, False)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"damaged cifar-10-batches-py/data_batch_3; data\.download"):
        small_images("cifar10", str(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match=r"missing cifar-10-batches-py/data_batch_3; data\.download"):
        small_images("cifar10", str(tmp_path))


def test_letters_count_from_one(tmp_path):
    prefixes = [f"emnist-letters-{split}" for split in ("train", "test")]
    (images, labels), _, _ = write_mnist(tmp_path, "EMNIST", prefixes, classes=26, first=1)
    data = small_images("emnist", str(tmp_path), subset="letters", val_size=0)
    assert data.class_names == list("abcdefghijklmnopqrstuvwxyz")
    assert data.splits["train"].targets.tolist() == labels.tolist()
    assert torch.equal(data.splits["train"].images, torch.from_numpy(images).transpose(2, 3))
    with pytest.raises(DataError, match="it consists of EMNIST/raw/emnist-digits-train-images-idx3-ubyte"):
        small_images("emnist", str(tmp_path), subset="digits")


def test_val_size_must_be_possible(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(DataError, match=r"data\.val_size=5"):
        small_images("mnist", str(tmp_path), val_size=5)
