"""Public sets of photographs by class, by torchvision, read from their files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cnn_train.data.data import Data
from cnn_train.data.folder import SIDE, image_files
from cnn_train.data.listing import Listing
from cnn_train.data.public_files import all_there, place, read
from cnn_train.data.splits import check_fractions, group_parts
from cnn_train.errors import DataError

KINDS = {"flowers102": "Flowers102", "food101": "Food101", "oxford_pets": "OxfordIIITPet"}
# The splits that each set has, by torchvision's names.
SPLITS = {
    "flowers102": {"train": "train", "val": "val", "test": "test"},
    "food101": {"train": "train", "test": "test"},
    "oxford_pets": {"train": "trainval", "test": "test"},
}
NEEDED: dict[str, dict[str, str | None]] = {
    "flowers102": {"flowers-102/jpg/": None, "flowers-102/imagelabels.mat": None, "flowers-102/setid.mat": None},
    "food101": {"food-101/images/": None, "food-101/meta/train.json": None, "food-101/meta/test.json": None},
    "oxford_pets": {
        "oxford-iiit-pet/images/": None,
        "oxford-iiit-pet/annotations/trainval.txt": None,
        "oxford-iiit-pet/annotations/test.txt": None,
    },
}
ARCHIVE = {
    "flowers102": "102flowers.tgz in flowers-102/",
    "food101": "food-101.tar.gz",
    "oxford_pets": "images.tar.gz in oxford-iiit-pet/",
}


def photographs(
    dataset: Literal["flowers102", "food101", "oxford_pets"],
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    download: bool = False,
    val_fraction: float = 0.1,
    published: Mapping[str, Any] | None = None,
    cache_dir: str | None = None,
    **options: Any,
) -> Data:
    """Flowers-102, Food-101 or Oxford-IIIT Pets in `root` (None: `datasets` in the cache), as torchvision keeps it.

    Where the set has no validation images, that share of its training images is cut for them, of each class alike.
    `published` are num_classes, in_channels and image_size of the set, known without its files. The rest is as in
    `image_files`. Raises DataError that says which files go where.
    """
    listing = list_photographs(
        dataset, root, download=download, val_fraction=val_fraction, published=published, cache_dir=cache_dir
    )
    side = (published or {}).get("image_size", SIDE)
    return image_files(listing, image_size if image_size is not None else side, side, cache_dir=cache_dir, **options)


def list_photographs(
    dataset: str, root: str | None, *, download: bool, val_fraction: float, published: Mapping[str, Any] | None,
    cache_dir: str | None,
) -> Listing:  # fmt: skip
    """The files of `photographs`. Raises DataError."""
    folder = place(root, cache_dir)
    splits: dict[str, list[tuple[str, int]]] = {}
    names: list[str] = []
    for split, theirs in SPLITS[dataset].items():
        paths, labels, names = load(dataset, folder, theirs, download)
        all_there(dataset, folder, paths, ARCHIVE[dataset])
        splits[split] = list(zip(paths, labels, strict=True))
    if published is not None and len(names) != published["num_classes"]:
        raise DataError(
            f"{dataset} in {folder} has {len(names)} classes, not {published['num_classes']} as published; "
            "fetch it again"
        )
    notes = ["splits as published"]
    if "val" not in splits:
        check_fractions({"val": val_fraction})
        train = splits["train"]
        parts = max(round(1 / val_fraction), 2)
        if len(train) < parts:
            raise DataError(
                f"{dataset} in {folder} has {len(train)} training images, too few to cut val; fetch it again"
            )
        rest, cut = group_parts([label for _, label in train], range(len(train)), parts)[0]
        splits["train"], splits["val"] = [train[i] for i in rest], [train[i] for i in cut]
        notes = ["test as published, val cut from train"]
    return Listing(dataset, folder, "labels", splits, names, notes)


def load(dataset: str, folder: Path, split: str, download: bool) -> tuple[list[str], list[int], list[str]]:
    """Paths, class numbers and the names of the classes of a split. Raises DataError."""
    from torchvision import datasets

    kind = getattr(datasets, KINDS[dataset])
    needed = NEEDED[dataset]
    if dataset == "flowers102":
        sums = {f"flowers-102/{name}": md5 for name, md5 in kind._file_dict.values() if name.endswith(".mat")}
        needed = {**needed, **sums}
    found = read(dataset, folder, download, needed, lambda: kind(str(folder), split=split, download=download))
    paths = found._images if dataset == "oxford_pets" else found._image_files
    if not paths:
        raise DataError(f"{dataset} in {folder} lists no images for {split}; fetch it again")
    return [str(path) for path in paths], [int(label) for label in found._labels], list(found.classes)
