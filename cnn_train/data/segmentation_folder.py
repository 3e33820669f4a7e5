"""Folders of images and of their masks: a user's own data for segmentation, and Pascal VOC."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cnn_train.data.cache import cache_folder, remember
from cnn_train.data.checking import OnError, settle, without
from cnn_train.data.data import Data, DataSet
from cnn_train.data.decode import MAX_PIXELS
from cnn_train.data.disk import OnDisk, as_sources, num_workers, warn_of_absent
from cnn_train.data.files import images_in, left_out
from cnn_train.data.folder import chosen_size, reader_notes, surveyed
from cnn_train.data.images import common_size
from cnn_train.data.listing import Listing
from cnn_train.data.masks import IGNORE, MaskFindings, MaskReader, check_masks, look_at_masks, mask_reader
from cnn_train.data.room import Cache
from cnn_train.data.splits import (
    UNDIVIDED,
    by_table,
    check_fractions,
    cut,
    describe,
    existing_folder,
    missing_splits,
    shares,
    split_folders,
    subfolders,
    undivided,
    what_is_in,
)
from cnn_train.data.targets import TargetSpec
from cnn_train.errors import DataError

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
USUAL = {  # other names of the two folders, in small letters
    "images": {"image", "img", "imgs", "jpegimages", "photos", "photographs", "rgb"},
    "masks": {"mask", "label", "labels", "annotation", "annotations", "segmentationclass", "gt", "ground_truth"},
}
SIDE = 256  # what large images are brought to unasked
Splits = dict[str, list[tuple[str, Any]]]

log = logging.getLogger(__name__)


def segmentation_folder(
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    classes: Sequence[str] | int | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    mask_values: Sequence[int] | None = None,
    ignore_index: int = 255,
    ignore_color: Sequence[int] | None = None,
    mask_round: bool = False,
    images: str = "images",
    masks: str = "masks",
    mask_suffix: str = "",
    val_fraction: float | None = 0.2,
    test_fraction: float = 0.2,
    splits: str | None = None,
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> Data:
    """Images, and masks of the same stems, for segmentation.

    They lie in root/{train,val,test}/{images,masks}, or root/{images,masks}/{train,val,test}, or root/{images,masks} to
    be split by file name. A missing val is cut from train, a missing test is val, or cut from train too where val is
    missing. The mask of `a.jpg` is `a<mask_suffix>.png`.

    `classes` are the names of the classes 0, 1, ..., or their number. A mask holds class numbers, or the numbers listed
    in `mask_values` (the first is class 0), or the colours listed in `palette`; pixels of `ignore_index` or
    `ignore_color` count nowhere; `mask_round` is as in `MaskReader`, `splits` as in `data.folder`. The rest is as in
    `pairs_of_files`.
    """
    listing = list_pairs(
        root, classes=classes, palette=palette, mask_values=mask_values, ignore_index=ignore_index,
        ignore_color=ignore_color, mask_round=mask_round, images=images, masks=masks, mask_suffix=mask_suffix,
        val_fraction=val_fraction, test_fraction=test_fraction, splits=splits, max_pixels=max_pixels,
    )  # fmt: skip
    return pairs_of_files(listing, image_size, max_pixels=max_pixels, **options)


def list_pairs(
    root: str | None, *, classes: Sequence[str] | int | None, palette: Sequence[Sequence[int]] | None,
    mask_values: Sequence[int] | None, ignore_index: int, ignore_color: Sequence[int] | None, mask_round: bool,
    images: str, masks: str, mask_suffix: str, val_fraction: float | None, test_fraction: float, splits: str | None,
    max_pixels: int,
) -> Listing:  # fmt: skip
    """The files of `segmentation_folder`. Raises DataError."""
    path = existing_folder(root, _layout(images, masks))
    fractions = shares(val_fraction, test_fraction)
    pairs, notes, faults = find_pairs(path, images, masks, mask_suffix, fractions)
    if splits is not None:
        pairs, notes = by_table(splits, path, pairs), [f"splits from {splits}"]
    reader = mask_reader(
        classes, palette, mask_values, ignore_index, ignore_color, mask_round, max_pixels, pairs["train"]
    )
    return Listing(path.name, path, "maps", dict(pairs), reader.classes, notes, reader, faults)


def voc(
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    year: str = "2012",
    download: bool = False,
    published: dict[str, int] | None = None,
    cache_dir: str | None = None,
    **options: Any,
) -> Data:
    """Pascal VOC segmentation in root/VOCdevkit/VOC<year>, 21 classes, at the image size `published` unless told.

    The labels of its test images are not public: test is val. The rest is as in `pairs_of_files`.
    """
    from torchvision.datasets import VOCSegmentation

    folder = Path(os.path.expanduser(root)).resolve() if root is not None else cache_folder(cache_dir) / "datasets"
    splits = {}
    try:
        for split in ("train", "val"):
            found = VOCSegmentation(str(folder), year=year, image_set=split, download=download and split == "train")
            splits[split] = list(zip(found.images, found.masks, strict=True))
    except (RuntimeError, OSError, KeyError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"no VOC {year} in {folder}/VOCdevkit/VOC{year} ({reason}); data.root=DIR with VOCdevkit inside, or "
            "data.download=true (2 GB)"
        ) from error
    splits["test"] = splits["val"]
    reader = MaskReader(VOC_CLASSES, None, None, 255, None, MAX_PIXELS)
    size = image_size if image_size is not None else (published or {}).get("image_size")
    listing = Listing(f"voc{year}", folder, "maps", splits, VOC_CLASSES, [], reader)
    return pairs_of_files(listing, size, cache_dir=cache_dir, **options)


def pairs_of_files(
    listing: Listing,
    image_size: int | Sequence[int] | None,
    *,
    channels: int | Sequence[int] | Literal["auto"] = "auto",
    range: Sequence[float] | Literal["auto"] = "auto",
    resize: Literal["pad", "crop", "stretch", "own"] = "pad",
    cache: Cache = "none",
    in_memory: bool = False,
    verify: bool = True,
    on_error: OnError = "fail",
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    cache_dir: str | None = None,
    **batching: Any,
) -> Data:
    """The data set of pairs of paths, an image's and its mask's.

    Images come at `image_size` (None: their own, if they have one, and a smaller one above 512); with `resize="own"`
    those of val and test come as they are, one at a time if they differ, and only the crops of training at that size.
    `channels` and `range` are as in `Reader`, or "auto": what all files have in common. `verify` reads every mask and
    image once before the first training, `on_error` is as in `image_files`. Raises DataError.
    """
    count, notes, reader = num_workers(workers), listing.notes, listing.masks
    assert reader is not None
    if on_error == "fail" and listing.faults:
        raise DataError(no_mask(listing.faults, len(listing.images()) + len(listing.faults)))
    found = surveyed(listing, channels, range, max_pixels, count, verify, on_error, cache_dir)
    bad = dict(found.faults)
    if verify:
        masks = looked_at_masks(listing, max_pixels, count, bad, cache_dir)
        bad |= check_masks(listing.splits, reader, masks, on_error, cache_dir)
        settle(bad, len(listing.images()) + len(listing.faults), on_error, cache_dir)
        warn_of_absent(masks.pixels, reader.classes, "pixel")
    splits = without(listing.splits, bad, notes)
    own = {split: common_size([image for image, _ in pairs], max_pixels) for split, pairs in splits.items()}
    if image_size is None and own["train"] is None:
        raise DataError(f"the images of {listing.name} differ in size; choose image_size=256, or [height,width]")
    size = chosen_size(image_size, own["train"], SIDE, notes)
    bands = found.reader(channels, range, max_pixels)
    notes += reader_notes(bands)
    spec = TargetSpec("maps", len(reader.classes), IGNORE)
    same = own["train"] == size and (not (in_memory or cache == "ram") or all(own.values()))
    common = OnDisk([], size, resize, bands, spec, reader, workers=count, one_size=same, cache_dir=cache_dir)
    sources = as_sources(splits, common, cache, in_memory, notes)
    data_set = DataSet(
        listing.name, "maps", sources, reader.classes, bands.num_channels, size,
        ignore_index=IGNORE, resize=resize, reading=bands.reading(), notes=notes, root=listing.root, skipped=bad,
        one_by_one=resize == "own" and not (own["val"] and own["test"]),
    )  # fmt: skip
    return Data(data_set, **batching)


def looked_at_masks(
    listing: Listing, max_pixels: int, workers: int, known: Mapping[str, str], cache_dir: str | None
) -> MaskFindings:
    """What the masks hold, read once and remembered."""
    assert listing.masks is not None
    reader, splits = listing.masks, listing.splits
    pairs = [pair for pair in listing.pairs() if pair[0] not in known]
    assigned = hashlib.sha256(repr(sorted((split, sorted(part)) for split, part in splits.items())).encode())

    def compute() -> dict[str, Any]:
        return look_at_masks(splits, reader, max_pixels, workers, known).plain()

    files = [path for pair in pairs for path in pair]
    return MaskFindings.of_plain(remember(cache_dir, "masks", files, f"{reader!r} {assigned.hexdigest()}", compute))


# -- Pairs of files ----------------------------------------------------------------------------------------------------


def _layout(images: str, masks: str) -> str:
    return f"{images}/*.jpg and {masks}/*.png of the same names, or train/{images}, train/{masks}, val/{images}, ..."


def find_pairs(
    root: Path, images: str, masks: str, mask_suffix: str, fractions: dict[str, float]
) -> tuple[Splits, list[str], dict[str, str]]:
    """Paths of image and mask for each split, remarks for the header, and the images without a mask."""
    places, named = _places(root, images, masks)
    if "train" not in places and fractions:
        raise DataError(f"{root} has no training images; expected {_layout(images, masks)}")
    for pair in places.values():
        for folder in pair:
            if not folder.is_dir():
                holds = what_is_in(folder.parent) if folder.parent.is_dir() else "nothing"
                raise DataError(
                    f"no folder {folder}: {folder.parent} holds {holds}; expected {_layout(images, masks)}"
                    + _other_name(folder, "images" if folder == pair[0] else "masks")
                )
    faults: dict[str, str] = {}
    splits = {split: _pairs(*pair, mask_suffix, faults) for split, pair in places.items()}
    if not any(splits.values()) and faults:
        raise DataError(no_mask(faults, len(faults)))
    missing = missing_splits(places) if fractions else []
    if missing:
        fractions = {split: fractions[split] for split in missing}
        check_fractions(fractions)
        pairs = splits["train"]
        if len(pairs) <= len(fractions):
            raise DataError(f"{places['train'][0]} holds {len(pairs)} image(s), too few to split; add some")
        names = [Path(image).relative_to(places["train"][0]).as_posix() for image, _ in pairs]
        splits |= cut(pairs, names, fractions)
    if fractions:
        splits.setdefault("test", splits["val"])
    else:
        splits = undivided(splits)
    notes = [describe(named, missing) if fractions else UNDIVIDED]
    if ignored := left_out([folder for pair in places.values() for folder in pair]):
        notes.append(f"left out as no images: {ignored}")
    return splits, notes, faults


def no_mask(faults: Mapping[str, str], images: int) -> str:
    """The message for images without a mask."""
    return f"{len(faults)} of {images} images have no mask, first {next(iter(faults.values()))}"


def _other_name(folder: Path, setting: str) -> str:
    """The setting to try where a folder beside the one that is missing has another usual name."""
    if not folder.parent.is_dir():
        return ""
    names = [path.name for path in subfolders(folder.parent) if path.name.lower() in USUAL[setting]]
    return f"; data.{setting}={names[0]} if these are the {setting}" if names else ""


def _places(root: Path, images: str, masks: str) -> tuple[dict[str, tuple[Path, Path]], dict[str, Path]]:
    """The folders of images and masks of each split that is given, and the folder that the split is named by."""
    places: dict[str, tuple[Path, Path]] = {}
    named = {}
    for split, folder in split_folders(root).items():
        if (folder / images).is_dir():
            places[split], named[split] = (folder / images, folder / masks), folder
    of_masks = split_folders(root / masks)
    for split, folder in split_folders(root / images).items():
        places[split], named[split] = (folder, of_masks.get(split, root / masks / folder.name)), folder
    if not places:
        return {"train": (root / images, root / masks)}, {}
    return places, named


def _pairs(images: Path, masks: Path, mask_suffix: str, faults: dict[str, str]) -> list[tuple[str, str]]:
    """Images with their masks; those without one become faults."""
    found = images_in(images)
    if not found:
        raise DataError(f"{images} holds no images, but {what_is_in(images)}")

    def stem(path: Path, folder: Path) -> str:
        return path.relative_to(folder).with_suffix("").as_posix()

    by_stem = {stem(path, masks): path for path in images_in(masks)}
    pairs, missing = [], []
    for path in found:
        mask = by_stem.pop(stem(path, images) + mask_suffix, None)
        if mask is None:
            missing.append(path)
        else:
            pairs.append((str(path), str(mask)))
    lying = f"; there lies {next(iter(by_stem.values())).name}, see data.mask_suffix" if by_stem else ""
    for path in missing:
        wanted = masks / (stem(path, images) + mask_suffix + ".png")
        faults[str(path)] = f"{path}: no {wanted}{lying}"
    if by_stem:
        log.warning("%d masks in %s belong to no image, as %s", len(by_stem), masks, next(iter(by_stem.values())).name)
    return pairs
