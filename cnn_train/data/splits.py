"""Folders of splits: found by their usual names, or cut from one by file name."""

import csv
import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from cnn_train.errors import DataError

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
Item = TypeVar("Item")
Target = TypeVar("Target")


def existing_folder(root: str | Path | None, layout: str) -> Path:
    """The folder of a data set; DataError that says what is there instead and which layout is expected."""
    if root is None:
        raise DataError(f"data.root is not set; data.root=DIR, a folder with {layout}")
    path = Path(os.path.expanduser(root)).resolve()
    if path.is_dir():
        return path
    nearest = next(parent for parent in path.parents if parent.is_dir())
    inside = [child.name for child in subfolders(nearest)]
    holds = ", ".join(inside[:6]) + (", ..." if len(inside) > 6 else "") if inside else "no folders"
    raise DataError(f"no folder {path}: {nearest} exists and holds {holds}; data.root=DIR wants {layout}")


def subfolders(folder: Path) -> list[Path]:
    """Folders inside, by name; hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def what_is_in(folder: Path) -> str:
    """A folder's content in some words: "3 .csv, 1 .txt"."""
    counts: dict[str, int] = {}
    for path in folder.iterdir():
        kind = "folders" if path.is_dir() else path.suffix.lower() or "files without suffix"
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())[:4]) or "no files at all"


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders inside that are named like a split, by any of its usual names, without regard to case."""
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    for path in subfolders(folder):
        for split, names in NAMES.items():
            if path.name.lower() not in names:
                continue
            if split in found:
                raise DataError(
                    f"{found[split]} and {path.name} both look like the {split} split; rename or remove one"
                )
            found[split] = path
    return {split: found[split] for split in NAMES if split in found}


def describe(folders: Mapping[str, Path], missing: Sequence[str]) -> str:
    """Where each split came from, as a remark for the header: "train from training/, test is val"."""
    if not folders:
        return "splits cut by file name"
    parts = [f"{split} from {path.name}/" for split, path in folders.items()]
    parts += [f"{split} cut from train" for split in missing]
    return ", ".join(parts + ([] if "test" in folders or "test" in missing else ["test is val"]))


def missing_splits(given: Mapping[str, object]) -> list[str]:
    """The splits that are cut from train: val where it is missing, and then test too, if that is missing."""
    return [] if "val" in given else ["val", *([] if "test" in given else ["test"])]


UNDIVIDED = "not divided: every image is in train, val and test"


def shares(val_fraction: float | None, test_fraction: float) -> dict[str, float]:
    """The parts to cut off; none where `val_fraction` is None, which means that nothing is divided."""
    return {} if val_fraction is None else {"val": val_fraction, "test": test_fraction}


def undivided(given: Mapping[str, Sequence[Item]]) -> dict[str, list[Item]]:
    """Every item in each split, to measure a data set as a whole."""
    every = [item for part in given.values() for item in part]
    return {split: every for split in NAMES}


def check_fractions(fractions: Mapping[str, float]) -> None:
    """DataError unless each split gets a part and something is left for train."""
    if not all(0 < fraction < 1 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        shares = ", ".join(f"data.{split}_fraction={fraction:g}" for split, fraction in fractions.items())
        raise DataError(f"{shares}: each must be above 0, and something must be left for train")


def cut(items: Sequence[Item], names: Sequence[str], fractions: Mapping[str, float]) -> dict[str, list[Item]]:
    """The items of each split of `fractions`, and the rest as train, chosen by their names."""
    parts = cut_by_name(names, list(fractions.values()))
    return {split: [items[i] for i in part] for split, part in zip((*fractions, "train"), parts, strict=True)}


def cut_by_name(names: Sequence[str], fractions: Sequence[float]) -> list[list[int]]:
    """Indices of the first, second, ... and the remaining part, in an order that depends on each name alone.

    So the split does not depend on where the folder is, and changes little when files are added.
    """
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    parts = []
    for fraction in fractions:
        count = min(max(round(fraction * len(names)), 1), len(order)) if fraction > 0 else 0
        parts.append(sorted(order[:count]))
        order = order[count:]
    return [*parts, sorted(order)]


def split_table(splits: Mapping[str, Sequence[str]], root: Path | None) -> str:
    """The files of each split as CSV, path and split a line; paths are relative to `root`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "split"])
    for split, paths in splits.items():
        writer.writerows([Path(path).relative_to(root).as_posix() if root else path, split] for path in paths)
    return text.getvalue()


def skipped_table(skipped: Mapping[str, str]) -> str:
    """Files and what is wrong with each, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("path", "reason"), *skipped.items()])
    return text.getvalue()


def by_table(
    file: str, root: Path, splits: Mapping[str, Sequence[tuple[str, Target]]]
) -> dict[str, list[tuple[str, Target]]]:
    """The samples of `splits`, divided as a table of `split_table` says. DataError for files that are not in both."""
    try:
        with open(os.path.expanduser(file), encoding="utf-8", newline="") as content:
            rows = [(row["path"], row["split"]) for row in csv.DictReader(content)]
    except (OSError, UnicodeDecodeError, KeyError) as error:
        raise DataError(f"cannot read data.splits={file}: {error}; it needs the columns path and split") from error
    samples = {
        Path(path).relative_to(root).as_posix(): (path, target) for part in splits.values() for path, target in part
    }
    unknown = next((path for path, _ in rows if path not in samples), None)
    if unknown is not None:
        raise DataError(f"{file} names {unknown}, which is not in {root}")
    if left := sorted(samples.keys() - {path for path, _ in rows}):
        raise DataError(f"{file} does not name {left[0]} of {root} ({len(left)} files); add them or cut anew")
    divided: dict[str, list[tuple[str, Target]]] = {split: [] for split in NAMES}
    for path, split in rows:
        if split not in divided:
            raise DataError(f"{file} puts {path} into {split!r}; a split is train, val or test")
        divided[split].append(samples[path])
    return divided


def in_folds(
    labels: Sequence[int], groups: Sequence[Hashable], folds: int, fold: int, val_fraction: float | None
) -> tuple[dict[str, list[int]], str]:
    """Indices of each split for one fold of cross-validation, and a remark.

    test is the part `fold` of `folds`, and val is cut from the rest. Each part has its share of every class, and no
    group is in two splits.
    """
    number = len(set(groups))
    if not 2 <= folds <= number:
        raise DataError(f"data.folds={folds}: must be 2 or more, and at most the {number} groups or images")
    if not 0 <= fold < folds:
        raise DataError(f"data.fold={fold}: must be 0 to {folds - 1} for data.folds={folds}")
    if val_fraction is None:
        raise DataError(f"data.folds={folds} cuts val by data.val_fraction, which is null; set it, or data.folds=null")
    check_fractions({"val": val_fraction})
    rest, test = group_parts(labels, groups, folds)[fold]
    parts = max(round(1 / val_fraction), 2)
    inner_labels, inner_groups = [labels[i] for i in rest], [groups[i] for i in rest]
    if len(set(inner_groups)) < parts:
        raise DataError(
            f"data.val_fraction={val_fraction:g}: {len(set(inner_groups))} groups are left, too few for val"
        )
    train, val = group_parts(inner_labels, inner_groups, parts)[0]
    splits = {"train": [rest[i] for i in train], "val": [rest[i] for i in val], "test": test}
    return splits, f"test is fold {fold} of {folds}, val cut from the rest"


def group_parts(labels: Sequence[int], groups: Sequence[Hashable], parts: int) -> list[tuple[list[int], list[int]]]:
    """The rest and each part, of which every class and no group is divided."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class of fewer samples than parts is not in each of them
        if max(Counter(labels).values()) < parts:  # no class is in each part, and none can have its share
            labels = [0] * len(labels)
        number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        numbers = [number[group] for group in groups]
        # Without groups the shares are exact.
        kind = StratifiedKFold if len(number) == len(labels) else StratifiedGroupKFold
        cuts = kind(parts, shuffle=True, random_state=0).split(labels, labels, numbers)
        return [(rest.tolist(), part.tolist()) for rest, part in cuts]
