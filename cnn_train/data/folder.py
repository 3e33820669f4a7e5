"""A folder of images, a folder for each class: a user's own, or ImageNet's."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cnn_train.data.checking import OnError, settle, without
from cnn_train.data.data import Data, DataSet, as_size
from cnn_train.data.decode import MAX_PIXELS
from cnn_train.data.disk import OnDisk, as_sources, num_workers, warn_of_absent
from cnn_train.data.files import SUFFIXES, images_in, left_out
from cnn_train.data.images import Channels, Range, Reader, training_size
from cnn_train.data.listing import Listing
from cnn_train.data.room import Cache
from cnn_train.data.splits import (
    UNDIVIDED,
    by_table,
    check_fractions,
    cut,
    describe,
    existing_folder,
    in_folds,
    missing_splits,
    shares,
    split_folders,
    subfolders,
    undivided,
    what_is_in,
)
from cnn_train.data.survey import Survey, survey
from cnn_train.data.targets import TargetSpec
from cnn_train.errors import DataError

LAYOUT = "train/<class>/*.jpg, val/<class>/*.jpg and test/<class>/*.jpg, or <class>/*.jpg to be split"
SIDE = 224  # what images of several sizes, or of a large one, are brought to

log = logging.getLogger(__name__)
Samples = list[tuple[str, int]]


def folder(
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    val_fraction: float | None = 0.2,
    test_fraction: float = 0.2,
    folds: int | None = None,
    fold: int = 0,
    splits: str | None = None,
    published: Mapping[str, int] | None = None,
    **options: Any,
) -> Data:
    """Images by class: root/{train,val,test}/<class>/* or root/<class>/*, which is split by class and file name.

    A missing val is cut from train by `val_fraction`; a missing test is val, or cut from train where val is missing.
    With a `val_fraction` of None nothing is cut, and every image is in each split.
    With `folds` the test split is the part `fold` of so many, see `splits.in_folds`. `splits` is a file that says which
    file is in which split, as a run keeps it. `published` are the number of
    classes and the image size that a public set is known by. The rest is as in `image_files`. Raises DataError, which
    names the file or folder.
    """
    listing = list_folder(
        root, val_fraction=val_fraction, test_fraction=test_fraction, folds=folds, fold=fold, splits=splits
    )
    labels = {split: Counter(label for _, label in part) for split, part in listing.splits.items()}
    found = {split: [had[label] for label, _ in enumerate(listing.class_names)] for split, had in labels.items()}
    warn_of_absent(found, listing.class_names, "image")
    return image_files(listing, image_size, (published or {}).get("image_size", SIDE), **options)


def list_folder(
    root: str | None,
    *,
    val_fraction: float | None,
    test_fraction: float,
    folds: int | None,
    fold: int,
    splits: str | None,
) -> Listing:
    """The files of `folder`. Raises DataError."""
    path = existing_folder(root, LAYOUT)
    if folds is None:
        samples, class_names, notes = find_samples(path, shares(val_fraction, test_fraction))
    else:
        samples, class_names, notes = _in_folds(path, folds, fold, val_fraction)
    if splits is not None:
        samples, notes = by_table(splits, path, samples), [f"splits from {splits}"]
    return Listing(path.name, path, "labels", samples, class_names, notes)


def image_files(
    listing: Listing,
    image_size: int | Sequence[int] | None,
    side: int,
    *,
    channels: int | Sequence[int] | Literal["auto"] = "auto",
    range: Sequence[float] | Literal["auto"] = "auto",
    resize: Literal["crop", "pad", "stretch"] = "crop",
    decode: Literal["exact", "scaled"] = "exact",
    cache: Cache = "none",
    in_memory: bool = False,
    verify: bool = True,
    on_error: OnError = "fail",
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    cache_dir: str | None = None,
    **batching: Any,
) -> Data:
    """The data set of image files and their labels, class numbers or multi-labels.

    Images come at `image_size` (None: their own if they have one of at most 512, else `side`). `channels` and `range`
    are as in `Reader`, or "auto": what all files have in common. `cache` says where decoded images are kept (see
    `as_sources`). With `decode="scaled"` JPEGs are decoded at a half, a quarter or an eighth where that is no smaller
    than what training takes of them. `verify` decodes every file once before the first training. `on_error="skip"`
    leaves bad files out, also those that differ from most in channels or type of values, up to 1 % of all.
    """
    count, notes, class_names = num_workers(workers), listing.notes, listing.class_names
    found = surveyed(listing, channels, range, max_pixels, count, verify, on_error, cache_dir)
    splits = without(listing.splits, found.faults, notes)
    reader = found.reader(channels, range, max_pixels)
    size = chosen_size(image_size, found.common_size, side, notes)
    notes += reader_notes(reader)
    spec = TargetSpec(listing.targets, len(class_names))
    if decode not in ("exact", "scaled"):
        raise DataError(f"data.decode must be exact or scaled, got {decode!r}")
    if decode == "scaled" and listing.targets == "boxes":
        raise DataError("data.decode=scaled is for whole images: boxes are in pixels of the file; use exact")
    common = OnDisk([], size, resize, reader, spec, workers=count, cache_dir=cache_dir, scaled=decode == "scaled")
    sources = as_sources(splits, common, cache, in_memory, notes)
    data_set = DataSet(
        listing.name, listing.targets, sources, class_names, reader.num_channels, size, resize=resize,
        reading=reader.reading(), notes=notes, root=listing.root, skipped=found.faults,
        groups=listing.groups, weights=listing.weights,
    )  # fmt: skip
    return Data(data_set, **batching)


def surveyed(
    listing: Listing, channels: Channels, limits: Range, max_pixels: int, workers: int, verify: bool, on_error: OnError,
    cache_dir: str | None,
) -> Survey:  # fmt: skip
    """The survey of the images that are used; its faults are those that are left out. Raises DataError."""
    if on_error != "fail" and not verify:
        raise DataError(f"data.on_error={on_error} needs data.verify=true: bad files are left out before training")
    paths = listing.images()
    found = survey(paths, max_pixels, workers, verify, cache_dir)
    if on_error != "fail":
        found = found.without({**found.unfit(channels, limits), **listing.faults})
    settle(found.faults, len(paths), on_error, cache_dir)
    return found


def chosen_size(
    image_size: int | Sequence[int] | None, own: tuple[int, int] | None, side: int, notes: list[str]
) -> tuple[int, int]:
    """The size of training: as asked, or the images' own where they have one that is not too large, or `side`."""
    if image_size is not None or own is None:
        return as_size(image_size, side)
    size = training_size(own, side)
    if size != own:
        had, has = ("x".join(map(str, pair)) for pair in (own, size))
        notes.append(f"images of {had} are trained at {has} (image_size= chooses)")
    return size


def reader_notes(reader: Reader) -> list[str]:
    """Remarks about values and bands that are not as in common photographs."""
    notes = []
    if reader.range is not None:
        notes.append(f"values {reader.range[0]:g} to {reader.range[1]:g} become 0 to 255 (data.range)")
    if reader.channels not in (1, 3):
        notes.append(f"channels {reader.channels if isinstance(reader.channels, int) else list(reader.channels)}")
    return notes


def find_samples(root: Path, fractions: Mapping[str, float]) -> tuple[dict[str, Samples], list[str], list[str]]:
    """Paths and labels of each split, the names of the classes, and remarks for the header."""
    folders = split_folders(root)
    beside = [path for path in subfolders(root) if path not in folders.values() and images_in(path)]
    if folders and beside:
        raise DataError(
            f"{root} holds {', '.join(path.name for path in folders.values())}, named like splits, beside "
            f"{', '.join(path.name for path in beside[:5])}; move all classes into the splits, or rename "
            "the folders if they are classes"
        )
    whole = not fractions
    if folders and "train" not in folders and not whole:
        raise DataError(f"{root} has no folder train; expected {LAYOUT}")
    first = folders.get("train") or next(iter(folders.values()), root)
    train, names = _by_class(first)
    if len(names) < 2:
        raise DataError(f"{first} holds one class, {names[0]} with {len(train)} image(s); two are needed")
    splits = {"train": train} | {split: _of_classes(path, names) for split, path in folders.items() if path != first}
    if whole:
        return undivided(splits), names, [UNDIVIDED, *_left_out(sorted(folders.values()) or [root])]
    missing = missing_splits(folders)
    fractions = {split: fractions[split] for split in missing}
    splits |= _cut(train, root, fractions) if fractions else {}
    splits.setdefault("test", splits["val"])
    return splits, names, [describe(folders, missing), *_left_out(sorted(folders.values()) or [root])]


def _in_folds(
    root: Path, folds: int, fold: int, val_fraction: float | None
) -> tuple[dict[str, Samples], list[str], list[str]]:
    """As `find_samples`, with the splits of one fold of cross-validation."""
    if given := split_folders(root):
        raise DataError(
            f"data.folds={folds} splits {root} itself, but it holds {', '.join(p.name for p in given.values())}"
        )
    samples, names = _by_class(root)
    labels = [label for _, label in samples]
    splits, note = in_folds(labels, list(range(len(labels))), folds, fold, val_fraction)
    return {split: [samples[i] for i in part] for split, part in splits.items()}, names, [note, *_left_out([root])]


def _left_out(folders: Sequence[Path]) -> list[str]:
    ignored = left_out(folders)
    return [f"left out as no images: {ignored}"] if ignored else []


def _by_class(folder: Path) -> tuple[Samples, list[str]]:
    classes = subfolders(folder)
    samples = []
    for label, path in enumerate(classes):
        found = images_in(path)
        if not found:
            raise DataError(
                f"{path} holds no images, but {what_is_in(path)}; images end in {', '.join(sorted(SUFFIXES))}"
            )
        samples += [(str(name), label) for name in found]
    if not samples:
        raise DataError(f"{folder} holds no class folders but {what_is_in(folder)}; expected {LAYOUT}")
    return samples, [path.name for path in classes]


def _of_classes(folder: Path, names: Sequence[str]) -> Samples:
    """The samples of a split whose classes are among those of train."""
    found, present = _by_class(folder)
    unknown = [name for name in present if name not in names]
    if unknown:
        few = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise DataError(
            f"{folder} has {len(unknown)} class(es) that train has not: {few}; train has "
            f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        )
    return [(path, names.index(present[label])) for path, label in found]


def _cut(samples: Samples, root: Path, fractions: dict[str, float]) -> dict[str, Samples]:
    """Cut parts off for other splits, each with every class in its share."""
    check_fractions(fractions)
    splits: dict[str, Samples] = {split: [] for split in (*fractions, "train")}
    for label in sorted({label for _, label in samples}):
        own = [sample for sample in samples if sample[1] == label]
        if len(own) <= len(fractions):
            raise DataError(
                f"{Path(own[0][0]).parent} holds {len(own)} image(s), too few to split into {', '.join(splits)}; "
                "add images or make the splits yourself"
            )
        names = [Path(path).relative_to(root).as_posix() for path, _ in own]
        for split, part in cut(own, names, fractions).items():
            splits[split] += part
    return splits
