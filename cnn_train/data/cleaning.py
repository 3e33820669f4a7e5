"""A cleaned copy of a data set: upright images, masks of class numbers, bad files left out."""

import csv
import io
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from cnn_train.data.checking import look_over
from cnn_train.data.csv_file import BETWEEN
from cnn_train.data.decode import opened, read_values
from cnn_train.data.examination import homes
from cnn_train.data.listing import Listing
from cnn_train.data.splits import split_table
from cnn_train.errors import DataError

DONE = "cleaned.txt"


def clean(listing: Listing, bad: Mapping[str, str], target: Path, max_pixels: int, workers: int) -> list[str]:
    """Write the copy to a new or empty folder; what was done, a line a file, is also written to cleaned.txt there.

    Files keep their places. An image that is stored lying, or a mask that does not hold class numbers, becomes a PNG;
    splits.csv says which file is in which split, for `data.splits`, and labels.csv is a table for `data=csv`. Raises
    DataError.
    """
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} is not empty; name a new folder for the cleaned copy")
    if target.resolve().is_relative_to(listing.root):
        raise DataError(f"{target} lies inside {listing.root}; name a folder outside")
    done = [f"left out: {reason}" for reason in bad.values()]
    places: dict[str, Path] = {}

    def copy(path: str) -> tuple[Path, str]:
        new, words = _copied(Path(path), target / Path(path).relative_to(listing.root), max_pixels)
        return new, words

    kept = [path for path in listing.images() if path not in bad]
    if listing.masks is not None:
        masks = dict(listing.pairs())
        kept = [path for path in kept if masks[path] not in bad]
        for _, made in look_over(_mask_copier(listing, target), [(p, masks[p]) for p in kept], workers, "masks"):
            if isinstance(made, DataError):
                raise made
            done += [made] if made else []
    for path, copied in look_over(copy, kept, workers, "images"):
        if isinstance(copied, DataError):
            raise copied
        places[path] = copied[0]
        done += [copied[1]] if copied[1] else []
    splits = {split: [places[path] for path, _ in part if path in places] for split, part in listing.splits.items()}
    if splits["test"] == splits["val"]:
        splits["test"] = []
    target.mkdir(parents=True, exist_ok=True)
    (target / "splits.csv").write_text(
        split_table({split: list(map(str, part)) for split, part in splits.items()}, target), encoding="utf-8"
    )
    if listing.masks is None:
        rows = [["path", "label", "split"]]
        for path, (of, labels) in homes(listing).items():
            if path in places:
                split = next(split for split in ("train", "val", "test") if split in of)
                rows.append([places[path].relative_to(target).as_posix(), BETWEEN.join(labels), split])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        (target / "labels.csv").write_text(text.getvalue(), encoding="utf-8")
    (target / DONE).write_text("".join(f"{line}\n" for line in done), encoding="utf-8")
    return done


def _copied(path: Path, new: Path, max_pixels: int) -> tuple[Path, str]:
    """Copy an image, one that is stored lying as an upright PNG; its new place and what was done ("": copied)."""
    new.parent.mkdir(parents=True, exist_ok=True)
    with opened(path, max_pixels) as file:
        turned = file.turned
    if not turned:
        shutil.copyfile(path, new)
        return new, ""
    values = read_values(path, max_pixels)
    if values.dtype != np.uint8 or values.shape[2] not in (1, 3):
        new = new.with_name(new.name + ".npy")
        np.save(new, values)
    else:
        new = new.with_suffix(".png")
        Image.fromarray(values if values.shape[2] == 3 else values[..., 0]).save(new)
    return new, f"turned upright: {path} -> {new}"


def _mask_copier(listing: Listing, target: Path):  # type: ignore[no-untyped-def]
    def copy(pair: tuple[str, str]) -> str:
        image, path = pair
        assert listing.masks is not None
        if Path(path).is_relative_to(listing.root):
            new = (target / Path(path).relative_to(listing.root)).with_suffix(".png")
        else:  # drawn from COCO's regions
            new = (target / "masks" / Path(image).relative_to(listing.root)).with_suffix(".png")
        new.parent.mkdir(parents=True, exist_ok=True)
        labels = listing.masks(path).numpy()
        Image.fromarray(labels).save(new)
        try:
            stored = read_values(path, listing.masks.max_pixels, stored=True)
        except DataError:
            stored = np.zeros(0)
        same = stored.shape[:2] == labels.shape and stored.shape[2] == 1 and bool((stored[..., 0] == labels).all())
        return "" if same else f"class numbers: {path} -> {new}"

    return copy
