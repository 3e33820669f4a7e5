"""A folder of images, a folder for each class: a user's own, or ImageNet's."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cnn_train.data.data import Augment, Data, as_size
from cnn_train.data.files import (
    MAX_PIXELS,
    SUFFIXES,
    OnDisk,
    as_sources,
    check_files,
    common_size,
    cut_by_name,
    existing_folder,
    images_in,
    num_workers,
    read_image,
    remember,
    subfolders,
    warn_of_absent,
    what_is_in,
)
from cnn_train.errors import DataError

LAYOUT = "train/<class>/*.jpg, val/<class>/*.jpg and test/<class>/*.jpg, or <class>/*.jpg to be split"

log = logging.getLogger(__name__)


def folder(
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    channels: Literal[1, 3] = 3,
    resize: Literal["crop", "pad", "stretch"] = "crop",
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    batch_size: int = 64,
    eval_batch_size: int = 256,
    seed: int = 0,
    augment: Augment | None = None,
    drop_last: bool = False,
    normalize: str = "standardize",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_memory: bool = False,
    verify: bool = True,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    cache_dir: str | None = None,
) -> Data:
    """Images by class: root/{train,val,test}/<class>/* or root/<class>/*, which is split by class and file name.

    A missing val is cut from train by `val_fraction`; a missing test is val, or cut from train where val is missing.
    Images come at `image_size` (None: their own if they have one, else 224), in RGB or, with one of `channels`, grey.
    `verify` decodes every file once before the first training. Raises DataError, which names the file or folder.
    """
    path = existing_folder(root, LAYOUT)
    splits, class_names = find_samples(path, val_fraction, test_fraction)
    count = num_workers(workers)
    files = sorted({name for samples in splits.values() for name, _ in samples})
    if verify:
        remember(
            cache_dir, "verified", files, f"{max_pixels}", lambda: len(check_files(_Decodes(max_pixels), files, count))
        )
    labels = {split: Counter(label for _, label in samples) for split, samples in splits.items()}
    warn_of_absent(
        {split: [found[label] for label in range(len(class_names))] for split, found in labels.items()},
        class_names,
        "image",
    )
    own = None if image_size is not None else common_size([name for name, _ in splits["train"]], max_pixels)
    size = own or as_size(image_size, 224)
    common = OnDisk([], size, channels, resize, max_pixels=max_pixels, workers=count)
    sources, rest = as_sources(path.name, splits, common, augment, in_memory)
    if normalize == "standardize" and (mean is None or std is None):
        mean, std = remember(
            cache_dir,
            "statistics",
            [name for name, _ in splits["train"]],
            f"{size} {channels} {resize}",
            lambda: [values.tolist() for values in sources["train"].statistics()],
        )
    return Data(
        path.name,
        "classification",
        sources,
        class_names,
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
        resize=resize,
    )


class _Decodes:
    def __init__(self, max_pixels: int):
        self.max_pixels = max_pixels

    def __call__(self, path: str) -> None:
        read_image(path, 3, self.max_pixels)


def find_samples(
    root: Path, val_fraction: float, test_fraction: float
) -> tuple[dict[str, list[tuple[str, int]]], list[str]]:
    """Paths and labels of each split, and the names of the classes."""
    if not (root / "train").is_dir():
        if (root / "val").is_dir() or (root / "test").is_dir():
            raise DataError(f"{root} has no folder train; expected {LAYOUT}")
        every, names = _by_class(root)
        return _cut(every, root, {"val": val_fraction, "test": test_fraction}), names
    train, names = _by_class(root / "train")
    splits = {"train": train}
    for split in ("val", "test"):
        if (root / split).is_dir():
            found, present = _by_class(root / split)
            unknown = [name for name in present if name not in names]
            if unknown:
                few = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
                raise DataError(
                    f"{root / split} has {len(unknown)} class(es) that train has not: {few}; train has "
                    f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
                )
            splits[split] = [(path, names.index(present[label])) for path, label in found]
    missing = {"val": val_fraction, "test": test_fraction}
    if "val" in splits:
        del missing["val"], missing["test"]
    elif "test" in splits:
        del missing["test"]
    splits |= _cut(splits["train"], root, missing) if missing else {}
    splits.setdefault("test", splits["val"])
    return splits, names


def _by_class(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    classes = subfolders(folder)
    samples = []
    for label, path in enumerate(classes):
        found = images_in(path)
        if not found:
            raise DataError(
                f"{path} holds no images but {what_is_in(path)}; images end in {', '.join(sorted(SUFFIXES))}"
            )
        samples += [(str(name), label) for name in found]
    if not samples:
        raise DataError(f"{folder} holds no class folders but {what_is_in(folder)}; expected {LAYOUT}")
    return samples, [path.name for path in classes]


def _cut(samples: list[tuple[str, int]], root: Path, fractions: dict[str, float]) -> dict[str, list[tuple[str, int]]]:
    """Cut parts off for other splits, each with every class in its share."""
    if not all(0 < fraction < 1 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        shares = ", ".join(f"data.{split}_fraction={fraction:g}" for split, fraction in fractions.items())
        raise DataError(f"{shares}: each must be above 0, and something must be left for train")
    splits: dict[str, list[tuple[str, int]]] = {split: [] for split in (*fractions, "train")}
    for label in sorted({label for _, label in samples}):
        own = [sample for sample in samples if sample[1] == label]
        if len(own) <= len(fractions):
            raise DataError(
                f"{Path(own[0][0]).parent} holds {len(own)} image(s), too few to split into {', '.join(splits)}; "
                "add images or make the splits yourself"
            )
        names = [Path(path).relative_to(root).as_posix() for path, _ in own]
        for split, part in zip(splits, cut_by_name(names, list(fractions.values())), strict=True):
            splits[split] += [own[i] for i in part]
    return splits
