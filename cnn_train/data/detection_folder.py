"""A folder of images and boxes in a common format: a user's own data for detection, checked before training."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cnn_train.data.annotations import coco, table, voc, yolo
from cnn_train.data.annotations.check import check
from cnn_train.data.annotations.record import Annotations
from cnn_train.data.data import Data
from cnn_train.data.decode import MAX_PIXELS
from cnn_train.data.disk import warn_of_absent
from cnn_train.data.folder import image_files
from cnn_train.data.listing import Listing
from cnn_train.data.splits import (
    UNDIVIDED,
    by_table,
    check_fractions,
    cut,
    existing_folder,
    missing_splits,
    shares,
    split_folders,
    undivided,
)
from cnn_train.data.splits import what_is_in as holds
from cnn_train.errors import DataError

READERS = {"coco": coco, "voc": voc, "yolo": yolo, "csv": table}
LAYOUT = (
    "images and COCO's JSON, VOC's XML in Annotations/, YOLO's text files in labels/ beside images/, or a CSV file "
    "with the columns image, class, x1, y1, x2, y2"
)
SIDE = 256  # what images of several sizes are brought to unasked

log = logging.getLogger(__name__)
Samples = list[tuple[str, Tensor]]


def detection_folder(
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    format: Literal["auto", "coco", "voc", "yolo", "csv"] = "auto",
    classes: Sequence[str] | None = None,
    first_class: int = 0,
    box_format: Literal["auto", "corners", "xywh", "centres"] = "auto",
    missing: Literal["empty", "error"] = "empty",
    exif: Literal["apply", "ignore"] = "apply",
    val_fraction: float | None = 0.2,
    test_fraction: float = 0.2,
    splits: str | None = None,
    max_pixels: int = MAX_PIXELS,
    resize: Literal["pad", "stretch"] = "pad",
    **options: Any,
) -> Data:
    """Images with boxes in the format COCO, VOC, YOLO or CSV; "auto" says in the header which one was recognized.

    `classes` are names in the order of the class numbers; without it those that the format has, or else all that occur,
    by name. Numbers count from `first_class`. `box_format` says what four numbers are, "auto" the format's own. Boxes
    are those of the upright image, with `exif="ignore"` of the image as it is stored. Images without an annotation have
    no objects, or are an error. Splits, and what else there is, are as in `data.folder`.
    Raises DataError that names everything wrong of the first kind found, with file, line and what mends it.
    """
    path = existing_folder(root, LAYOUT)
    kind = recognized(path) if format == "auto" else format
    found = READERS[kind].read(path)
    if not any(found.splits.values()):
        raise DataError(f"{path} holds no annotated images but {holds(path)}; expected {LAYOUT}")
    if found.missing:
        told = f"{len(found.missing):,} of {sum(map(len, found.splits.values())):,} images have no annotation file"
        if missing == "error":
            raise DataError(f"{told}, first {found.missing[0]}; data.missing=empty takes them as without objects")
        log.warning("%s and count as images without objects; data.missing=error if they should have one", told)
    boxes = found.boxes if box_format == "auto" else box_format
    names = class_names(found, classes, first_class)
    samples = check(found, names, first_class, boxes, max_pixels, exif)
    divided, note = divide(path, samples, shares(val_fraction, test_fraction))
    if splits is not None:
        divided, note = by_table(splits, path, divided), f"splits from {splits}"
    notes = [f"format {kind}", note, *found.notes]
    return boxes_of_files(path, divided, names, notes, image_size, max_pixels=max_pixels, resize=resize, **options)


def boxes_of_files(
    root: Path,
    splits: dict[str, Samples],
    names: list[str],
    notes: list[str],
    image_size: int | Sequence[int] | None,
    **options: Any,
) -> Data:
    """The data set of images and boxes that were read and checked."""
    numbers = {split: _histogram(part, len(names)) for split, part in splits.items()}
    warn_of_absent(numbers, names, "object")
    listing = Listing(root.name, root, "boxes", splits, names, notes)
    return image_files(listing, image_size, SIDE, **options)


def recognized(root: Path) -> str:
    """The format whose files lie in the folder; DataError if there is none."""
    places = [root, *split_folders(root).values()]
    for kind, reader in READERS.items():
        if any(reader.files(place) for place in places):
            return kind
    raise DataError(f"{root} holds {holds(root)} and no annotations; expected {LAYOUT}")


def class_names(found: Annotations, classes: Sequence[str] | None, first_class: int) -> list[str]:
    """The names of the classes; DataError where annotations have others."""
    rows = [row for part in found.splits.values() for entry in part for row in entry.rows]
    names = list(classes) if classes is not None else found.names
    numbers = [row for row in rows if isinstance(row.label, int)]
    if names is None:
        words = sorted({row.label for row in rows if isinstance(row.label, str)})
        if numbers:
            most = max(int(row.label) for row in numbers) - first_class
            words = [str(number) for number in range(most + 1)]
        if not words:
            raise DataError("no annotation has an object; are the files those of the images?")
        return words
    unknown = Counter(str(row.label) for row in rows if isinstance(row.label, str) and row.label not in names)
    if unknown:
        first = next(row for row in rows if row.label in unknown)
        raise DataError(
            f"{first.where}: class {first.label!r} is not among data.classes, {', '.join(names[:8])} "
            f"({sum(unknown.values())} such objects of {len(unknown)} class(es)); add it there"
        )
    beyond = [row for row in numbers if not 0 <= int(row.label) - first_class < len(names)]
    if beyond:
        files = len({row.where.partition(",")[0] for row in beyond})
        more = f" ({len(beyond)} such lines in {files} files)" if len(beyond) > 1 else ""
        from_one = not first_class and all(row.label != 0 for row in numbers)
        hint = "; if they count from 1: data.first_class=1" if from_one else ""
        raise DataError(
            f"{beyond[0].where}: class {beyond[0].label}, but data.classes has {len(names)} names, {first_class} to "
            f"{first_class + len(names) - 1}{more}{hint}"
        )
    return names


# -- Splits ------------------------------------------------------------------------------------------------------------


def divide(root: Path, samples: dict[str, Samples], fractions: dict[str, float]) -> tuple[dict[str, Samples], str]:
    """Train, val and test, cut by file name where they are not given, and a remark for the header."""
    if not fractions:
        return undivided(samples), UNDIVIDED
    given = {split: part for split, part in samples.items() if split and part}
    if "train" not in given:
        if given and "" not in samples:
            raise DataError(f"{root} has no training images, only {', '.join(given)}")
        given = {"train": [sample for part in samples.values() for sample in part]}
    missing = missing_splits(given)
    if missing:
        chosen = {split: fractions[split] for split in missing}
        check_fractions(chosen)
        train = given["train"]
        if len(train) <= len(chosen):
            raise DataError(f"{root} holds {len(train)} image(s), too few to split; add some")
        given |= cut(train, [Path(path).name for path, _ in train], chosen)
    own = [split for split in ("train", "val", "test") if split in given and split not in missing]
    note = f"{', '.join(own)} as given" if len(own) > 1 or not missing else "splits cut by file name"
    given.setdefault("test", given["val"])
    return given, note


def _histogram(part: Samples, classes: int) -> list[int]:
    labels = torch.cat([boxes[:, 4] for _, boxes in part]).long() if part else torch.zeros(0).long()
    return torch.bincount(labels, minlength=classes).tolist()
