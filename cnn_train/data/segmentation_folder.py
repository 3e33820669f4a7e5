"""Folders of images and of their masks: a user's own data for segmentation, and Pascal VOC.

What a mask may hold is checked before training, for every file: a mask whose values are not the classes is the most
frequent reason of a segmentation that does not learn.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cnn_train.data.augment import split_stages
from cnn_train.data.data import Augment, Data, as_size
from cnn_train.data.files import (
    MAX_PIXELS,
    OnDisk,
    as_sources,
    cache_folder,
    check_files,
    common_size,
    cut_by_name,
    existing_folder,
    image_size_of,
    images_in,
    num_workers,
    read_image,
    read_values,
    remember,
    sizes_differ,
    warn_of_absent,
    what_is_in,
)
from cnn_train.errors import DataError

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
Resize = Literal["pad", "crop", "stretch", "own"]
IGNORE = 255  # in label maps, whatever marks such pixels in the files

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
    images: str = "images",
    masks: str = "masks",
    mask_suffix: str = "",
    channels: Literal[1, 3] = 3,
    resize: Resize = "pad",
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    batch_size: int = 8,
    eval_batch_size: int = 8,
    seed: int = 0,
    augment: Augment | None = None,
    drop_last: bool = True,
    normalize: str = "standardize",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_memory: bool = False,
    verify: bool = True,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    cache_dir: str | None = None,
) -> Data:
    """Images, and masks of the same stems, for segmentation.

    They lie in root/{train,val,test}/{images,masks}, or root/{images,masks}/{train,val,test}, or root/{images,masks} to
    be split by file name. A missing val is cut from train, a missing test is val, or cut from train too where val is
    missing. The mask of `a.jpg` is `a<mask_suffix>.png`.

    `classes` are the names of the classes 0, 1, ..., or their number. A mask holds class numbers, or the numbers listed
    in `mask_values` (the first is class 0), or the colours listed in `palette`; pixels of `ignore_index` or
    `ignore_color` count nowhere. Images come at `image_size` (None: their own, if they have one); with `resize="own"`
    those of val and test come as they are, one at a time if they differ, and only the crops of training at that size.
    `verify` reads every mask and image once before the first training. Raises DataError.
    """
    path = existing_folder(root, _layout(images, masks))
    splits = find_pairs(path, images, masks, mask_suffix, val_fraction, test_fraction)
    reader = mask_reader(classes, palette, mask_values, ignore_index, ignore_color, max_pixels, splits["train"])
    return _build(
        path.name, splits, reader, image_size, channels, resize, batch_size, eval_batch_size, seed, augment, drop_last,
        normalize, mean, std, in_memory, verify, num_workers(workers), max_pixels, cache_dir,
    )  # fmt: skip


def voc(
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    year: str = "2012",
    download: bool = False,
    resize: Resize = "pad",
    batch_size: int = 8,
    eval_batch_size: int = 8,
    seed: int = 0,
    augment: Augment | None = None,
    drop_last: bool = True,
    normalize: str = "standardize",
    mean: Sequence[float] | None = (0.485, 0.456, 0.406),
    std: Sequence[float] | None = (0.229, 0.224, 0.225),
    in_memory: bool = False,
    verify: bool = False,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    cache_dir: str | None = None,
) -> Data:
    """Pascal VOC segmentation in root/VOCdevkit/VOC<year>, 21 classes, at 513 unless told.

    The labels of its test images are not public: test is val.
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
    reader = MaskReader(VOC_CLASSES, None, None, 255, None, max_pixels)
    size = as_size(image_size, 513)
    return _build(
        f"voc{year}", splits, reader, size, 3, resize, batch_size, eval_batch_size, seed, augment, drop_last,
        normalize, mean, std, in_memory, verify, num_workers(workers), max_pixels, cache_dir,
    )  # fmt: skip


def _build(
    name: str, splits: dict[str, list[tuple[str, str]]], reader: "MaskReader", image_size: int | Sequence[int] | None,
    channels: int, resize: str, batch_size: int, eval_batch_size: int, seed: int, augment: Augment | None,
    drop_last: bool, normalize: str, mean: Sequence[float] | None, std: Sequence[float] | None, in_memory: bool,
    verify: bool, workers: int, max_pixels: int, cache_dir: str | None,
) -> Data:  # fmt: skip
    if verify:
        files = [path for pairs in splits.values() for pair in pairs for path in pair]
        counts = remember(
            cache_dir, "verified", files, repr(reader), lambda: check_masks(splits, reader, max_pixels, workers)
        )
        warn_of_absent(counts, reader.classes, "pixel")
    train_images = [image for image, _ in splits["train"]]
    if image_size is not None:
        size = as_size(image_size, 0)
    elif (own := common_size(train_images, max_pixels)) is not None:
        size = own
    else:
        raise DataError(f"the images of {name} differ in size; choose image_size=256, or [height,width]")
    if resize == "own":
        eval_batch_size = check_own_sizes(name, splits, size, augment, in_memory, eval_batch_size, max_pixels)
    common = OnDisk([], size, channels, resize, reader, ignore_index=IGNORE, max_pixels=max_pixels, workers=workers)
    sources, rest = as_sources(name, splits, common, augment, in_memory)
    measured = replace(common, samples=splits["train"], how="crop" if resize == "own" else resize)
    if normalize == "standardize" and (mean is None or std is None):
        mean, std = remember(
            cache_dir,
            "statistics",
            train_images,
            f"{size} {channels} {resize}",
            lambda: [values.tolist() for values in measured.statistics()],
        )
    return Data(
        name,
        "segmentation",
        sources,
        reader.classes,
        in_channels=channels,
        image_size=size,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        seed=seed,
        augment=rest,
        drop_last=drop_last,
        normalize=normalize,
        mean=mean,
        std=std,
        ignore_index=IGNORE,
        resize=resize,
    )


def check_own_sizes(
    name: str, splits: Mapping[str, Sequence[tuple[str, str]]], size: tuple[int, int], augment: Augment | None,
    in_memory: bool, eval_batch_size: int, max_pixels: int,
) -> int:  # fmt: skip
    """The evaluation batch for images of any size; DataError where something needs them to have one."""
    common = {split: common_size([image for image, _ in pairs], max_pixels) for split, pairs in splits.items()}
    crops = any(part.brings_to_size for part in split_stages(augment)[0])
    if common["train"] != size and (in_memory or not crops):
        raise DataError(
            f"data.resize=own leaves the training images of {name} in different sizes; choose "
            + ("data.in_memory=false" if crops else "augment=scale_crop_flip, which crops them, or data.resize=pad")
        )
    same = common["val"] is not None and common["test"] is not None
    return eval_batch_size if same else 1


# -- Pairs of files --------------------------------------------------------------------------------------


def _layout(images: str, masks: str) -> str:
    return f"{images}/*.jpg and {masks}/*.png of the same names, or train/{images}, train/{masks}, val/{images}, ..."


def find_pairs(
    root: Path, images: str, masks: str, mask_suffix: str, val_fraction: float, test_fraction: float
) -> dict[str, list[tuple[str, str]]]:
    """Paths of image and mask for each split."""
    places = {}
    for split in ("train", "val", "test"):
        for image_folder, mask_folder in (
            (root / split / images, root / split / masks),
            (root / images / split, root / masks / split),
        ):
            if image_folder.is_dir():
                places[split] = (image_folder, mask_folder)
    if not places:
        places["train"] = (root / images, root / masks)
    if "train" not in places:
        raise DataError(f"{root} has no training images; expected {_layout(images, masks)}")
    for pair in places.values():
        for folder in pair:
            if not folder.is_dir():
                holds = what_is_in(folder.parent) if folder.parent.is_dir() else "nothing"
                raise DataError(f"no folder {folder}: {folder.parent} holds {holds}; expected {_layout(images, masks)}")
    splits = {split: _pairs(*pair, mask_suffix) for split, pair in places.items()}
    if "val" not in splits:
        fractions = {"val": val_fraction} | ({} if "test" in splits else {"test": test_fraction})
        if not all(0 < fraction < 1 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
            shares = ", ".join(f"data.{split}_fraction={fraction:g}" for split, fraction in fractions.items())
            raise DataError(f"{shares}: each must be above 0, and something must be left for train")
        pairs = splits["train"]
        if len(pairs) <= len(fractions):
            raise DataError(f"{places['train'][0]} holds {len(pairs)} image(s), too few to split; add some")
        names = [Path(image).relative_to(places["train"][0]).as_posix() for image, _ in pairs]
        parts = cut_by_name(names, list(fractions.values()))
        splits |= {split: [pairs[i] for i in part] for split, part in zip((*fractions, "train"), parts, strict=True)}
    splits.setdefault("test", splits["val"])
    return splits


def _pairs(images: Path, masks: Path, mask_suffix: str) -> list[tuple[str, str]]:
    found = images_in(images)
    if not found:
        raise DataError(f"{images} holds no images but {what_is_in(images)}")

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
    if missing:
        wanted = masks / (stem(missing[0], images) + mask_suffix + ".png")
        lying = f"; there lies {next(iter(by_stem.values())).name}, see data.mask_suffix" if by_stem else ""
        raise DataError(f"{len(missing)} of {len(found)} images have no mask, first {missing[0]}: no {wanted}{lying}")
    if by_stem:
        log.warning("%d masks in %s belong to no image, as %s", len(by_stem), masks, next(iter(by_stem.values())).name)
    return pairs


# -- Masks -----------------------------------------------------------------------------------------------


@dataclass
class MaskReader:
    """Reads a mask's file to class numbers (H, W) uint8, by number or by colour; DataError for what is no class."""

    classes: Sequence[str]
    palette: Sequence[Sequence[int]] | None
    mask_values: Sequence[int] | None
    ignore_index: int
    ignore_color: Sequence[int] | None
    max_pixels: int

    def __post_init__(self) -> None:
        self.classes = list(self.classes)
        count = len(self.classes)
        if count >= IGNORE:
            raise DataError(f"data.classes has {count} entries; up to {IGNORE - 1} are possible")
        if self.palette is None and self.mask_values is None and 0 <= self.ignore_index < count:
            raise DataError(
                f"data.ignore_index={self.ignore_index} is also a class of {count}; list what the masks hold for each "
                "class in data.mask_values"
            )
        for name, given in (("palette", self.palette), ("mask_values", self.mask_values)):
            if given is not None and len(given) != count:
                raise DataError(f"data.{name} has {len(given)} entries for {count} classes; it needs one for each")
        self.table = self._table()

    def _table(self) -> dict[int, int]:
        """Class number of each value, or of each colour as red * 65536 + green * 256 + blue."""
        if self.palette is not None:
            table = {_code(colour): number for number, colour in enumerate(self.palette)}
            return table if self.ignore_color is None else table | {_code(self.ignore_color): IGNORE}
        values = self.mask_values if self.mask_values is not None else range(len(self.classes))
        return {self.ignore_index: IGNORE} | {value: number for number, value in enumerate(values)}

    def values(self, path: str) -> np.ndarray:
        """What the file holds for each pixel: (H, W) numbers or colour codes."""
        if self.palette is not None:
            red, green, blue = read_image(path, 3, self.max_pixels).numpy().astype(np.int64)
            return red << 16 | green << 8 | blue
        array = read_values(path, self.max_pixels)
        if array.ndim == 3:
            if (array[..., :1] != array).any():
                present = np.unique(array.reshape(-1, array.shape[-1])[:, :3], axis=0)
                shown = ", ".join(str(colour.tolist()) for colour in present[:6])
                more = ", ..." if len(present) > 6 else ""
                raise DataError(
                    f"{path} is a mask of colours ({shown}{more}); name the colour of each class: "
                    "data.palette=[[0,0,0],[128,0,0],...], or store class numbers"
                )
            array = array[..., 0]
        return array.astype(np.int64)

    def __call__(self, path: str) -> Tensor:
        values = self.values(path)
        keys = np.array(sorted(self.table))
        place = np.searchsorted(keys, values).clip(max=len(keys) - 1)
        if (keys[place] != values).any():
            raise DataError(self.explain(path, {int(value): path for value in np.unique(values)}))
        numbers = np.array([self.table[int(value)] for value in keys], np.uint8)
        return torch.from_numpy(numbers[place])

    def explain(self, path: str, found: Mapping[int, str]) -> str:
        """The message for values that are no class, `found` in all masks and their files."""
        unknown = sorted(value for value in found if value not in self.table)
        path = found[unknown[0]] if unknown else path
        count = len(self.classes)
        if self.palette is not None:
            colours = ", ".join(str(_colour(code)) for code in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            return (
                f"{path} holds colours that data.palette has not: {colours}; add their classes, or "
                "data.ignore_color=[r,g,b] for one that does not count"
            )
        held = ", ".join(map(str, sorted(found)[:8])) + (", ..." if len(found) > 8 else "")
        rule = f"classes are 0 to {count - 1}, and {self.ignore_index} is ignored"
        if self.mask_values is not None:
            rule = f"data.mask_values are {', '.join(map(str, self.mask_values))}, and {self.ignore_index} is ignored"
        values = sorted(found)
        counted = [value for value in values if value != self.ignore_index]
        if len(values) == count and values[-1] > count:
            fix = f"if these are the {count} classes, data.mask_values={_list(values)}"
        elif len(counted) == count and counted[0] == 1:
            fix = f"they seem to count from 1: data.mask_values={_list(counted)}"
        elif counted and counted[-1] == count and counted[0] == 0:
            fix = f"data.classes needs {count + 1} names or more"
        else:
            fix = "name every class in data.classes, or list what the masks hold in data.mask_values"
        return f"masks hold {held}, but {rule} (first in {path}); {fix}"


def mask_reader(
    classes: Sequence[str] | int | None, palette: Sequence[Sequence[int]] | None, mask_values: Sequence[int] | None,
    ignore_index: int, ignore_color: Sequence[int] | None, max_pixels: int, pairs: Sequence[tuple[str, str]],
) -> MaskReader:  # fmt: skip
    """A reader for what a config says; without `classes`, DataError with what the first masks hold."""
    if classes is None:
        looker = MaskReader(["0"], None, None, 255, None, max_pixels)
        found = sorted({int(v) for _, mask in pairs[:50] for v in np.unique(looker.values(mask))})
        held = ", ".join(map(str, found[:12])) + (", ..." if len(found) > 12 else "")
        raise DataError(f"data.classes is not set: name the classes, [background,...]; the first masks hold {held}")
    names = [str(number) for number in range(classes)] if isinstance(classes, int) else classes
    return MaskReader(names, palette, mask_values, ignore_index, ignore_color, max_pixels)


def check_masks(
    splits: Mapping[str, Sequence[tuple[str, str]]], reader: MaskReader, max_pixels: int, workers: int
) -> dict[str, list[int]]:
    """Read all images and masks; pixels of each class by split. DataError for the first thing that is wrong."""

    def look(pair: tuple[str, str]) -> tuple[list[int], list[int]]:
        image, mask = pair
        values = reader.values(mask)
        size = image_size_of(image, max_pixels)
        if values.shape != size:
            raise DataError(sizes_differ(image, mask, size, values.shape))
        read_image(image, 3, max_pixels)
        present, counts = np.unique(values, return_counts=True)
        return present.tolist(), counts.tolist()

    pairs = sorted({pair for part in splits.values() for pair in part})
    looked = dict(zip(pairs, check_files(look, pairs, workers), strict=True))
    found = {value: mask for (_, mask), (values, _) in reversed(looked.items()) for value in values}
    if any(value not in reader.table for value in found):
        raise DataError(reader.explain(pairs[0][1], found))
    plain = reader.palette is None and reader.mask_values is None
    if plain and set(found) == {0, reader.ignore_index} and len(reader.classes) > 1:
        raise DataError(
            f"all masks hold only 0 and {reader.ignore_index}, which is ignored, so {reader.classes[1]} is nowhere; "
            f"if {reader.ignore_index} means {reader.classes[1]}, data.mask_values=[0,{reader.ignore_index}]"
        )
    result: dict[str, list[int]] = {}
    for split, part in splits.items():
        result[split] = [0] * len(reader.classes)
        for pair in part:
            for value, count in zip(*looked[pair], strict=True):
                number = reader.table[value]
                if number != IGNORE:
                    result[split][number] += count
    return result


def _code(colour: Sequence[Any]) -> int:
    if len(colour) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in colour):
        raise DataError(f"a colour is [red,green,blue] from 0 to 255, got {list(colour)}")
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _colour(code: int) -> list[int]:
    return [code >> 16, code >> 8 & 255, code & 255]


def _list(values: Sequence[int]) -> str:
    return f"[{','.join(map(str, values))}]"
