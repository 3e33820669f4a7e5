"""PASCAL VOC 2007 and 2012 for detection (Everingham et al. 2010), as the archives unpack: DIR/VOCdevkit/VOC2007."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cnn_train.data.annotations import voc
from cnn_train.data.annotations.check import check
from cnn_train.data.data import Data
from cnn_train.data.decode import MAX_PIXELS
from cnn_train.data.detection_folder import Samples, boxes_of_files
from cnn_train.data.splits import existing_folder
from cnn_train.errors import DataError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
LAYOUT = "VOCdevkit/VOC2007 or VOC2012, as the archives of PASCAL VOC unpack"


def voc_detection(
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    year: Literal["2007", "2012", "07+12"] = "2012",
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> Data:
    """The 20 classes with boxes; difficult objects are to be ignored.

    "2007" has splits of its own, or its val as test where the test annotations are missing; 2012's test is its val.
    "07+12" trains on all of train and val of both years and is judged on 2007's test, which is val, too: choose
    settings on "2007" alone. Raises DataError that names what is missing or wrong.
    """
    path = existing_folder(root, LAYOUT)
    if year == "07+12":
        first, second = (_year(path, number, max_pixels) for number in ("2007", "2012"))
        if "test" not in first:
            raise DataError(
                f"{path} has no ImageSets/Main/test.txt of VOC2007, which data.year=07+12 is judged on; unpack the "
                "archive of the test images there, or take data.year=2012"
            )
        train = [sample for part in (first, second) for split in ("train", "val") for sample in part[split]]
        splits, note = {"train": train, "val": first["test"], "test": first["test"]}, "val and test are VOC2007's test"
    else:
        splits, note = _year(path, year, max_pixels), f"train, val and test of VOC{year}"
        if "test" not in splits:
            splits["test"], note = splits["val"], "test is val"
    return boxes_of_files(path, splits, list(CLASSES), [note], image_size, max_pixels=max_pixels, **options)


def _year(root: Path, year: str, max_pixels: int) -> dict[str, Samples]:
    folder = root / "VOCdevkit" / f"VOC{year}"
    if not folder.is_dir():
        raise DataError(f"{root} has no VOCdevkit/VOC{year}; expected {LAYOUT}")
    found = voc.read(folder)
    if not {"train", "val"} <= found.splits.keys():
        raise DataError(f"{folder} has no ImageSets/Main/train.txt and val.txt; unpack the whole archive there")
    return check(found, list(CLASSES), 0, "corners", max_pixels)
