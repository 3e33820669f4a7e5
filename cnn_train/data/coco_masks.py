"""Masks from COCO's JSON files of objects: polygons and run lengths become a class for each pixel."""

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn_train.data.annotations.coco import find_image, image_places, read_json
from cnn_train.data.annotations.regions import region
from cnn_train.data.cache import cache_folder, keep
from cnn_train.data.checking import look_over
from cnn_train.data.data import Data
from cnn_train.data.decode import MAX_PIXELS
from cnn_train.data.disk import num_workers
from cnn_train.data.listing import Listing
from cnn_train.data.masks import IGNORE, MaskReader
from cnn_train.data.segmentation_folder import pairs_of_files
from cnn_train.data.splits import UNDIVIDED, by_table, check_fractions, cut, missing_splits, shares, undivided
from cnn_train.errors import DataError

BACKGROUND = "background"
VERSION = 1  # of how regions become masks: a new one makes them anew

Samples = list[tuple[str, Any]]


def coco_masks(
    file: str | None = None,
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    val_file: str | None = None,
    test_file: str | None = None,
    classes: Sequence[str] | None = None,
    crowd: Literal["class", "ignore"] = "class",
    val_fraction: float | None = 0.2,
    test_fraction: float = 0.2,
    splits: str | None = None,
    max_pixels: int = MAX_PIXELS,
    cache_dir: str | None = None,
    workers: int | None = None,
    **options: Any,
) -> Data:
    """Images and the regions that COCO's JSON lists for them, for segmentation.

    Images lie in `root` (None: the file's folder, or the one above it), as `file_name` says, or in the folder images or
    the one named like the split there. Class 0 is the background; the others are the categories by id, or `classes`, by
    name, and the regions of other categories are background. Where regions overlap the smaller one by `area` is seen.
    `crowd` says what regions of `iscrowd` are: pixels of their class, or pixels that count nowhere. The masks are drawn
    once and kept in the cache. Missing splits are cut as in `segmentation_folder`, and so is the rest.
    Raises DataError, which names the file and the annotation.
    """
    listing = list_coco(
        file, root, val_file=val_file, test_file=test_file, classes=classes, crowd=crowd, val_fraction=val_fraction,
        test_fraction=test_fraction, splits=splits, max_pixels=max_pixels, cache_dir=cache_dir, workers=workers,
    )  # fmt: skip
    return pairs_of_files(listing, image_size, max_pixels=max_pixels, cache_dir=cache_dir, workers=workers, **options)


def list_coco(
    file: str | None, root: str | None, *, val_file: str | None, test_file: str | None, classes: Sequence[str] | None,
    crowd: str, val_fraction: float | None, test_fraction: float, splits: str | None, max_pixels: int,
    cache_dir: str | None, workers: int | None,
) -> Listing:  # fmt: skip
    """The files of `coco_masks`, with their masks drawn. Raises DataError."""
    if file is None:
        raise DataError("data.file is not set; data.file=instances.json, COCO's file of objects")
    if crowd not in ("class", "ignore"):
        raise DataError(f"data.crowd must be class or ignore, got {crowd!r}")
    given = {"train": file, "val": val_file, "test": test_file}
    paths = {split: Path(os.path.expanduser(name)).resolve() for split, name in given.items() if name is not None}
    contents = {split: read_json(path) for split, path in paths.items()}
    folder = _root(root, paths["train"], contents["train"])
    names = _classes(paths, contents, classes)
    samples: dict[str, Samples] = {}
    for split, path in paths.items():
        drawn = _Drawing(path, contents[split], folder, names, crowd, cache_dir)
        samples[split] = drawn.pairs(num_workers(workers), max_pixels)
    divided, note = _divided(paths["train"], folder, samples, shares(val_fraction, test_fraction))
    if splits is not None:
        divided, note = by_table(splits, folder, divided), f"splits from {splits}"
    every = [BACKGROUND, *names]
    reader = MaskReader(every, None, None, IGNORE, None, max_pixels)
    return Listing(paths["train"].stem, folder, "maps", divided, every, [note], reader)


def _root(root: str | None, file: Path, found: Mapping[str, Any]) -> Path:
    """The folder of the images: the one that is set, or the file's own or the one above, whichever has the first."""
    if root is not None:
        return Path(os.path.expanduser(root)).resolve()
    if not found["images"]:
        raise DataError(f"{file} lists no images")
    candidates = [file.parent, file.parent.parent]
    first = found["images"][0]
    if not isinstance(first, Mapping) or "file_name" not in first:
        raise DataError(f"{file}: an image has no file_name: {str(first)[:80]}")
    return next(
        (path for path in candidates if find_image(image_places(path, file), first, file).is_file()), file.parent
    )


def _classes(
    paths: Mapping[str, Path], contents: Mapping[str, Mapping[str, Any]], classes: Sequence[str] | None
) -> list[str]:
    """Names of the classes after the background. Raises DataError."""
    categories: dict[int, str] = {}
    for split, found in contents.items():
        for entry in found["categories"]:
            try:
                number, name = entry["id"], str(entry["name"])
            except (KeyError, TypeError) as error:
                raise DataError(f"{paths[split]}: a category has no id or no name: {str(entry)[:80]}") from error
            if categories.setdefault(number, name) != name:
                raise DataError(
                    f"{paths[split]}: category {number} is {name!r}, in another file {categories[number]!r}"
                )
    names = [categories[number] for number in sorted(categories)]
    if len(set(names)) < len(names):
        raise DataError(f"{paths['train']}: two categories have the same name; rename one")
    wanted = [name for name in classes if name != BACKGROUND] if classes is not None else names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise DataError(
            f"data.classes names {unknown[0]!r}, but the categories of {paths['train']} are {', '.join(names[:10])}"
            + (", ..." if len(names) > 10 else "")
        )
    if not wanted:
        raise DataError(f"{paths['train']} has no categories")
    return list(wanted)


class _Drawing:
    """The masks of a JSON file: which are needed, and where they are kept."""

    def __init__(
        self, path: Path, found: Mapping[str, Any], root: Path, names: Sequence[str], crowd: str, cache_dir: str | None
    ):
        self.path, self.crowd = path, crowd
        number = {name: k for k, name in enumerate(names, 1)}
        self.categories = {entry["id"]: number.get(str(entry["name"]), 0) for entry in found["categories"]}
        self.places = image_places(root, path)
        self.images = {self._key(entry, "id"): entry for entry in found["images"]}
        if len(self.images) < len(found["images"]):
            raise DataError(f"{path}: two images have the same id")
        self.regions: dict[Any, list[Mapping[str, Any]]] = {key: [] for key in self.images}
        for entry in found["annotations"]:
            image, category = self._key(entry, "image_id"), self._key(entry, "category_id")
            where = f"{path}, annotation {entry.get('id', '?')}"
            if image not in self.regions:
                raise DataError(f"{where}: is of image {image}, which is not among the images")
            if category not in self.categories:
                raise DataError(f"{where}: has category {category}, which is not among the categories")
            if "segmentation" not in entry:
                raise DataError(f"{where}: has no segmentation; data=detection_folder reads boxes alone")
            self.regions[image].append(entry)
        digest = hashlib.sha256(path.read_bytes())
        digest.update(repr((VERSION, names, crowd)).encode())
        self.folder = cache_folder(cache_dir) / f"coco_masks_{digest.hexdigest()[:16]}"

    def _key(self, entry: Mapping[str, Any], key: str) -> Any:
        if not isinstance(entry, Mapping) or key not in entry or isinstance(entry[key], list | dict):
            raise DataError(f"{self.path}: an entry has no {key}: {str(entry)[:80]}")
        return entry[key]

    def pairs(self, workers: int, max_pixels: int) -> Samples:
        """Every image with its mask, drawn where it is not yet in the cache."""
        pairs = {}
        for key, entry in self.images.items():
            self._key(entry, "file_name")
            image = find_image(self.places, entry, self.path)
            if not image.is_file():
                raise DataError(f"{self.path} lists {entry['file_name']}, but there is no file {image}; see data.root")
            # Ids may be any words: the name is made of their bytes.
            name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
            pairs[key] = (str(image), str(self.folder / f"{image.stem}.{name}.png"))
        missing = [key for key, (_, mask) in pairs.items() if not os.path.exists(mask)]

        def draw(key: Any) -> None:
            content = io.BytesIO()
            Image.fromarray(self.mask(key, max_pixels)).save(content, "PNG")
            keep(Path(pairs[key][1]), content.getvalue())

        for _, made in look_over(draw, missing, workers, "draw masks"):
            if isinstance(made, DataError):
                raise made
        if missing and not os.path.exists(pairs[missing[-1]][1]):
            raise DataError(f"cannot keep masks in {self.folder}; set data.cache_dir to a folder that can be written")
        return list(pairs.values())

    def mask(self, key: Any, max_pixels: int) -> NDArray[np.uint8]:
        """The classes (H, W) of an image: larger regions first, so that smaller ones are seen on top."""
        entry = self.images[key]
        try:
            size = int(entry["height"]), int(entry["width"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.path}, image {key}: has no height and width") from error
        if min(size) < 1 or size[0] * size[1] > max_pixels:
            raise DataError(f"{self.path}, image {key}: is {size[1]}x{size[0]}; data.max_pixels is {max_pixels}")
        drawn = []
        for annotation in self.regions[key]:
            pixels = region(annotation["segmentation"], size, f"{self.path}, annotation {annotation.get('id', '?')}")
            ignored = bool(annotation.get("iscrowd")) and self.crowd == "ignore"
            area = annotation.get("area")
            area = float(area) if isinstance(area, int | float) else float(pixels.sum())
            drawn.append((area, pixels, IGNORE if ignored else self.categories[annotation["category_id"]]))
        mask = np.zeros(size, np.uint8)
        for _, pixels, number in sorted(drawn, key=lambda found: -found[0]):
            if number:
                mask[pixels] = number
        return mask


def _divided(
    file: Path, root: Path, samples: dict[str, Samples], fractions: Mapping[str, float]
) -> tuple[dict[str, Samples], str]:
    """Train, val and test, cut by file name where no file is set for them, and a remark."""
    if not fractions:
        return undivided(samples), UNDIVIDED
    missing = missing_splits(samples)
    given = dict(samples)
    if missing:
        chosen = {split: fractions[split] for split in missing}
        check_fractions(chosen)
        train = samples["train"]
        if len(train) <= len(chosen):
            raise DataError(f"{file} lists {len(train)} image(s), too few to split; add some")
        names = [Path(os.path.relpath(path, root)).as_posix() for path, _ in train]
        given |= cut(train, names, chosen)
    given.setdefault("test", given["val"])
    cuts = [f"{' and '.join(missing)} cut from train by file name"] if missing else []
    return given, ", ".join([f"{' and '.join(samples)} as given", *cuts] if len(samples) > 1 else cuts)
