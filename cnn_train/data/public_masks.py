"""Public sets of photographs with masks: Oxford-IIIT Pets, Cityscapes and ADE20K."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cnn_train.data.data import Data
from cnn_train.data.decode import MAX_PIXELS
from cnn_train.data.listing import Listing
from cnn_train.data.masks import IGNORE, MaskReader
from cnn_train.data.public_files import BROKEN, all_there, faults, place, read
from cnn_train.data.public_photos import NEEDED
from cnn_train.data.segmentation_folder import pairs_of_files
from cnn_train.data.splits import check_fractions, cut
from cnn_train.errors import DataError

TRIMAP = {"background": 2, "pet": 1, "border": 3}  # class and value
ADE20K = "ADEChallengeData2016"
ADE20K_URL = f"http://data.csail.mit.edu/places/ADEchallenge/{ADE20K}.zip"
ADE20K_SHA1 = "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"

Pairs = list[tuple[str, Any]]


def scenes(
    dataset: Literal["oxford_pets", "cityscapes", "ade20k"],
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    download: bool = False,
    val_fraction: float = 0.1,
    published: Mapping[str, Any] | None = None,
    cache_dir: str | None = None,
    **options: Any,
) -> Data:
    """The trimaps of Oxford-IIIT Pets, Cityscapes' fine masks, or ADE20K's scene parsing in `root`.

    Pets have the classes background, pet and border; their val is cut from the training images by file name. Cityscapes
    has the 19 classes of its benchmark, other pixels count nowhere; the masks of its test images are not public: test
    is val. ADE20K has 150 classes, and the value 0 counts nowhere; test is val, too. `published` are num_classes,
    in_channels and image_size, known without the files. The rest is as in `pairs_of_files`. Raises DataError that says
    which files go where.
    """
    listing = list_scenes(
        dataset, root, download=download, val_fraction=val_fraction, published=published, cache_dir=cache_dir
    )
    size = image_size if image_size is not None else (published or {}).get("image_size")
    return pairs_of_files(listing, size, cache_dir=cache_dir, **options)


def list_scenes(
    dataset: str, root: str | None, *, download: bool, val_fraction: float, published: Mapping[str, Any] | None,
    cache_dir: str | None,
) -> Listing:  # fmt: skip
    """The files of `scenes`. Raises DataError."""
    folder = place(root, cache_dir)
    notes = ["splits as published, test is val"]
    if dataset == "oxford_pets":
        splits, reader = _pets(folder, download, val_fraction)
        notes = ["test as published, val cut from train"]
    elif dataset == "cityscapes":
        splits, reader = _cityscapes(folder)
    else:
        splits, reader = _ade20k(folder, download)
    splits.setdefault("test", splits["val"])
    if published is not None and len(reader.classes) != published["num_classes"]:
        raise DataError(
            f"{dataset} in {folder} has {len(reader.classes)} classes, not {published['num_classes']} as published"
        )
    return Listing(dataset, folder, "maps", splits, reader.classes, notes, reader)


def _pets(folder: Path, download: bool, val_fraction: float) -> tuple[dict[str, Pairs], MaskReader]:
    from torchvision.datasets import OxfordIIITPet

    needed = {**NEEDED["oxford_pets"], "oxford-iiit-pet/annotations/trimaps/": None}
    splits: dict[str, Pairs] = {}
    for split, theirs in (("train", "trainval"), ("test", "test")):
        found = read(
            "oxford_pets", folder, download, needed,
            partial(OxfordIIITPet, str(folder), theirs, "segmentation", download=download),
        )  # fmt: skip
        pairs = [(str(image), str(mask)) for image, mask in zip(found._images, found._segs, strict=True)]
        all_there("oxford_pets", folder, [image for image, _ in pairs], "images.tar.gz in oxford-iiit-pet/")
        all_there("oxford_pets", folder, [mask for _, mask in pairs], "annotations.tar.gz in oxford-iiit-pet/")
        splits[split] = pairs
    check_fractions({"val": val_fraction})
    if len(splits["train"]) < 2:
        raise DataError(f"oxford_pets in {folder} lists {len(splits['train'])} training images; fetch it again")
    splits |= cut(splits["train"], [Path(image).name for image, _ in splits["train"]], {"val": val_fraction})
    return splits, MaskReader(list(TRIMAP), None, list(TRIMAP.values()), IGNORE, None, MAX_PIXELS)


def _cityscapes(folder: Path) -> tuple[dict[str, Pairs], MaskReader]:
    from torchvision.datasets import Cityscapes

    where = (
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com (a login is needed) are "
        "unpacked in data.root=DIR, so that DIR/leftImg8bit/train/aachen/*_leftImg8bit.png and "
        "DIR/gtFine/train/aachen/*_gtFine_labelIds.png are there"
    )
    needed = {f"{part}/{split}/": None for part in ("leftImg8bit", "gtFine") for split in ("train", "val")}
    splits: dict[str, Pairs] = {}
    try:
        for split in ("train", "val"):
            found = Cityscapes(str(folder), split=split, target_type="semantic")
            splits[split] = sorted(
                (image, target[0]) for image, target in zip(found.images, found.targets, strict=True)
            )
    except BROKEN as error:
        reason = faults(folder, needed) or " ".join(str(error).split())[:120]
        raise DataError(f"cityscapes is not whole in {folder}: {reason}; {where}") from error
    for split, pairs in splits.items():
        if not pairs:
            raise DataError(f"cityscapes is not whole in {folder}: leftImg8bit/{split}/ holds no images; {where}")
        all_there("cityscapes", folder, [mask for _, mask in pairs], "gtFine_trainvaltest.zip")
    counted = [kind for kind in Cityscapes.classes if kind.train_id not in (255, -1)]
    names, values = [kind.name for kind in counted], [kind.id for kind in counted]
    ignored = [kind.id for kind in Cityscapes.classes if kind.train_id == 255]
    return splits, MaskReader(names, None, values, IGNORE, None, MAX_PIXELS, ignored=ignored)


def _ade20k(folder: Path, download: bool) -> tuple[dict[str, Pairs], MaskReader]:
    base = folder / ADE20K
    if download and not base.is_dir():
        _fetch_ade20k(folder)
    needed: dict[str, str | None] = {
        f"{ADE20K}/{part}/{split}/": None for part in ("images", "annotations") for split in ("training", "validation")
    }
    needed[f"{ADE20K}/objectInfo150.txt"] = None
    advice = f"; data.download=true fetches {ADE20K}.zip (968 MB), or unpack it in data.root=DIR"
    if missing := faults(folder, needed):
        raise DataError(f"ade20k is not whole in {folder}: {missing}{advice}")
    splits: dict[str, Pairs] = {}
    for split, theirs in (("train", "training"), ("val", "validation")):
        images = sorted((base / "images" / theirs).glob("*.jpg"))
        if not images:
            raise DataError(f"ade20k is not whole in {folder}: {ADE20K}/images/{theirs}/ holds no .jpg{advice}")
        splits[split] = [(str(path), str(base / "annotations" / theirs / f"{path.stem}.png")) for path in images]
        all_there("ade20k", folder, [mask for _, mask in splits[split]], f"{ADE20K}.zip")
    names = _object_names(base / "objectInfo150.txt")
    return splits, MaskReader(names, None, range(1, len(names) + 1), 0, None, MAX_PIXELS)


def _object_names(path: Path) -> list[str]:
    """The first name of each class, in the order of the numbers from 1. Raises DataError."""
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        names = {int(row[0]): row[-1].split(",")[0].strip() for row in rows}
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"cannot read {path}: {error}; unpack {ADE20K}.zip again") from error
    if sorted(names) != list(range(1, len(names) + 1)) or not names:
        raise DataError(f"{path} numbers {len(names)} classes, but not from 1 without gaps; unpack {ADE20K}.zip again")
    return [names[number] for number in sorted(names)]


def _fetch_ade20k(folder: Path) -> None:
    from torchvision.datasets.utils import download_url, extract_archive

    archive = folder / f"{ADE20K}.zip"
    try:
        download_url(ADE20K_URL, str(folder), archive.name)
        with open(archive, "rb") as file:
            found = hashlib.file_digest(file, "sha1").hexdigest()
        if found != ADE20K_SHA1:
            archive.unlink()
            raise DataError(f"{ADE20K_URL} gave another file than was published (SHA-1 {found}); try again")
        extract_archive(str(archive), str(folder))
    except BROKEN as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot fetch ade20k into {folder}: {' '.join(str(error).split())[:160]}") from error
