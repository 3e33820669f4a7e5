"""The files that public sets consist of, and what is said where they are missing or damaged."""

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_train.data.cache import cache_folder
from cnn_train.errors import DataError

DOWNLOAD = {
    "cifar10": "170 MB", "cifar100": "169 MB", "mnist": "12 MB", "fashion_mnist": "31 MB", "svhn": "246 MB",
    "kmnist": "21 MB", "emnist": "562 MB", "stl10": "2.6 GB", "flowers102": "345 MB", "food101": "4.7 GB",
    "oxford_pets": "811 MB", "ade20k": "968 MB",
}  # fmt: skip
# What torchvision and others raise for files that are not what they should be.
BROKEN = (RuntimeError, OSError, ValueError, TypeError, LookupError, EOFError, NotImplementedError)
NAMED = 4  # files that a message names


def place(root: str | None, cache_dir: str | None) -> Path:
    """The folder that holds a public set: `root`, or `datasets` in the cache."""
    return Path(os.path.expanduser(root)).resolve() if root is not None else cache_folder(cache_dir) / "datasets"


def read(dataset: str, folder: Path, download: bool, needed: Mapping[str, str | None], build: Callable[[], Any]) -> Any:
    """What `build` reads from `folder`; DataError that says which of the `needed` files are missing or damaged.

    `needed` are paths in the folder, those of folders with a slash at the end, with the MD5 sum where one is known.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old pickles and tar files; what matters is an error
            return build()
    except BROKEN as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if download:
            raise DataError(f"cannot fetch {dataset} into {folder}: {reason}") from error
        raise DataError(
            f"{dataset} is not whole in {folder}: {faults(folder, needed) or reason}{advice(dataset)}"
        ) from error


def faults(folder: Path, needed: Mapping[str, str | None]) -> str:
    """Which of these files are missing, or else damaged; "" if none is."""
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        few = listed(missing)
        return f"missing {few}" if len(missing) < len(needed) else f"it consists of {few}, and none of them is there"
    damaged = [name for name, known in needed.items() if known is not None and _md5(folder / name) != known]
    return f"damaged {listed(damaged)}" if damaged else ""


def advice(dataset: str) -> str:
    """How files that are missing come about."""
    return f"; data.download=true fetches it ({DOWNLOAD[dataset]}), data.root=DIR says where it lies"


def all_there(dataset: str, folder: Path, paths: Sequence[str], archive: str) -> None:
    """DataError that names the first of the files that are not there, and the archive that holds them."""
    absent = [path for path in paths if not os.path.isfile(path)]
    if absent:
        raise DataError(
            f"{dataset} in {folder} lacks {len(absent):,} of {len(paths):,} files, first {absent[0]}; "
            f"unpack {archive} again"
        )


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError:
        return ""
    return digest.hexdigest()
