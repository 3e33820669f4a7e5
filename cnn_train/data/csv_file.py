"""Images listed in a table: a path and a label a line, or several labels."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cnn_train.data.data import Data
from cnn_train.data.folder import SIDE, image_files
from cnn_train.data.listing import Listing
from cnn_train.data.splits import (
    NAMES,
    UNDIVIDED,
    check_fractions,
    group_parts,
    in_folds,
    missing_splits,
    shares,
    undivided,
)
from cnn_train.data.targets import KINDS, Targets
from cnn_train.errors import DataError

ROLES = ("path", "label", "split", "group", "weight")
BETWEEN = ";"  # several labels in one field


@dataclass(frozen=True)
class Row:
    line: int
    path: str
    labels: tuple[str, ...]
    split: str
    group: str
    weight: float


def csv_file(
    file: str | None = None,
    root: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    task: Literal["classification", "multilabel"] = "classification",
    columns: Mapping[str, str | None] | None = None,
    val_fraction: float | None = 0.2,
    test_fraction: float = 0.2,
    folds: int | None = None,
    fold: int = 0,
    **options: Any,
) -> Data:
    """Images that a table lists, with paths relative to `root` (None: the table's folder).

    Its columns are path and label, and may be split (train, val, test), group (no group is cut into two splits) and
    weight (training draws an image in proportion to it; empty: 1). `columns` gives other names, as {path: image, label:
    species}, or null for a column to pass over. Delimiter and header are found; without a header the
    first two columns are path and label. With `task="multilabel"` a label is several with ";" between, or each
    further column is a class with 0 or 1. Splits that the table does not give are cut, and `folds` are as in
    `data.folder`. The rest is as in `image_files`. Raises DataError, which names the line.
    """
    listing = list_table(
        file, root, targets=KINDS[task], columns=columns, val_fraction=val_fraction, test_fraction=test_fraction,
        folds=folds, fold=fold,
    )  # fmt: skip
    return image_files(listing, image_size, SIDE, **options)


def list_table(
    file: str | None, root: str | None, *, targets: Targets,
    columns: Mapping[str, str | None] | None, val_fraction: float | None, test_fraction: float, folds: int | None,
    fold: int,
) -> Listing:  # fmt: skip
    """The files of `csv_file`. Raises DataError."""
    if file is None:
        raise DataError("data.file is not set; data.file=TABLE.csv with the columns path and label")
    table = Path(os.path.expanduser(file)).resolve()
    rows, class_names = read_table(table, targets, columns or {})
    folder = Path(os.path.expanduser(root)).resolve() if root is not None else table.parent
    absent = [row for row in rows if not (folder / row.path).is_file()]
    if absent:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise DataError(f"{table} line {absent[0].line}: no file {folder / absent[0].path}{more}; see data.root")
    number = {name: i for i, name in enumerate(class_names)}
    samples = [(str(folder / row.path), _target(row, number, targets)) for row in rows]
    chosen, notes = _splits(table, rows, number, shares(val_fraction, test_fraction), folds, fold)
    splits = {split: [samples[i] for i in part] for split, part in chosen.items()}
    groups = {path: row.group for (path, _), row in zip(samples, rows, strict=True) if row.group}
    weights = {path: row.weight for (path, _), row in zip(samples, rows, strict=True)}
    if len(set(weights.values())) == 1:
        weights = {}
    elif not any(weights[path] for path, _ in splits["train"]):
        raise DataError(f"{table}: every training image has weight 0; training draws images in proportion to it")
    else:
        notes.append("training draws by the column weight")
    return Listing(table.stem, folder, targets, splits, class_names, notes, groups=groups, weights=weights)


def _target(row: Row, number: Mapping[str, int], targets: str) -> int | list[float]:
    if targets == "labels":
        return number[row.labels[0]]
    return [float(name in row.labels) for name in number]


def read_table(table: Path, targets: str, columns: Mapping[str, str | None]) -> tuple[list[Row], list[str]]:
    """The rows of a table, and the names of the classes in order."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {table}: {error}; data.file=TABLE.csv, text in UTF-8") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t|", key=first.count)
    lines = [(n, fields) for n, fields in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1) if fields]
    if not lines:
        raise DataError(f"{table} is empty; a line is path{delimiter}label")
    place, of_classes, lines = _columns(table, lines, targets, columns)
    rows = []
    for line, fields in lines:
        if len(fields) <= max([*place.values(), *of_classes.values()]):
            raise DataError(f"{table} line {line} has {len(fields)} fields, fewer than the first; mend or remove it")
        values = {role: fields[column].strip() for role, column in place.items()}
        labels = _labels(table, line, fields, values, of_classes, targets)
        weight = _weight(table, line, values.get("weight", ""))
        rows.append(Row(line, values["path"], labels, values.get("split", ""), values.get("group", ""), weight))
    names = list(of_classes) or sorted({label for row in rows for label in row.labels})
    if len(names) < 2:
        raise DataError(f"{table} has one class, {', '.join(names)}, on {len(rows)} lines; two are needed")
    return rows, names


def _weight(table: Path, line: int, text: str) -> float:
    try:
        weight = float(text or 1)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise DataError(f"{table} line {line}: weight is {text!r}; it must be a number of 0 or more, or empty for 1")
    return weight


def _columns(
    table: Path, lines: list[tuple[int, list[str]]], targets: str, columns: Mapping[str, str | None]
) -> tuple[dict[str, int], dict[str, int], list[tuple[int, list[str]]]]:
    """The column of each role, the columns of classes, and the lines below the header."""
    unknown = set(columns) - set(ROLES)
    if unknown:
        raise DataError(f"{table}: data.columns names {', '.join(sorted(unknown))}; it may name {', '.join(ROLES)}")
    head = [field.strip() for field in lines[0][1]]
    wanted = {role: columns.get(role, role) for role in ROLES}
    place = {role: head.index(name) for role, name in wanted.items() if name in head}
    missing = [name for role, name in wanted.items() if name and role in columns and role not in place]
    if missing:
        raise DataError(f"{table} has no column {missing[0]!r}; its columns are {', '.join(head)}")
    if not place and len(head) == 2:
        return {"path": 0, "label": 1}, {}, lines
    used = set(place.values())
    of_classes = {}
    if "label" not in place and targets == "multilabels":
        of_classes = {name: i for i, name in enumerate(head) if i not in used}
    if "path" not in place or not ("label" in place or of_classes):
        raise DataError(
            f"{table} has the columns {', '.join(head)}; path and label are needed, or other names for them: "
            "data.columns={path: ..., label: ...}"
        )
    return place, of_classes, lines[1:]


def _labels(
    table: Path,
    line: int,
    fields: Sequence[str],
    values: Mapping[str, str],
    of_classes: Mapping[str, int],
    targets: str,
) -> tuple[str, ...]:
    for name, column in of_classes.items():
        if fields[column].strip() not in ("0", "1"):
            raise DataError(f"{table} line {line}: {name} is {fields[column]!r}; a column of a class holds 0 or 1")
    if of_classes:
        return tuple(name for name, column in of_classes.items() if fields[column].strip() == "1")
    label = values["label"]
    if targets == "multilabels":
        return tuple(part.strip() for part in label.split(BETWEEN) if part.strip())
    if not label:
        raise DataError(f"{table} line {line} has no label; fill it in or remove the line")
    if BETWEEN in label:
        raise DataError(f"{table} line {line} has several labels, {label!r}; data.task=multilabel")
    return (label,)


def _splits(
    table: Path,
    rows: Sequence[Row],
    number: Mapping[str, int],
    fractions: Mapping[str, float],
    folds: int | None,
    fold: int,
) -> tuple[dict[str, list[int]], list[str]]:
    """Indices of the rows of each split, and a remark on where the splits came from."""
    if not fractions and folds is None:
        return undivided({"": list(range(len(rows)))}), [UNDIVIDED]
    given = _given_splits(table, rows)
    # One number for what a line shows, so that its shares can be kept.
    kinds = {labels: i for i, labels in enumerate(dict.fromkeys(row.labels for row in rows))}
    if folds is not None:
        if given:
            raise DataError(f"data.folds={folds} splits {table} itself, but it has a column split; leave one out")
        chosen, note = _fold(rows, range(len(rows)), kinds, folds, fold, fractions.get("val"))
        return chosen, [note]
    if given and "train" not in given:
        raise DataError(f"{table} has no line with split train, only {', '.join(sorted(given))}")
    splits = given or {"train": list(range(len(rows)))}
    missing = missing_splits(given)
    check_fractions({split: fractions[split] for split in missing})
    left = 1.0
    for split in missing:
        splits |= _part(rows, splits["train"], kinds, max(round(left / fractions[split]), 2), split)
        left -= fractions[split]
    splits.setdefault("test", splits["val"])
    absent = [name for name in number if not any(name in rows[i].labels for i in splits["train"])]
    if absent:
        raise DataError(f"{table}: no training image shows {', '.join(absent[:5])}; every class must be in train")
    words = ["splits as the table says"] if given else []
    words += [f"{split} cut from train" for split in missing]
    return splits, [", ".join(words)]


def _given_splits(table: Path, rows: Sequence[Row]) -> dict[str, list[int]]:
    given: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        split = next((split for split, names in NAMES.items() if row.split.lower() in names), None)
        if split is None and (row.split or given):
            raise DataError(f"{table} line {row.line}: split is {row.split!r}; it may be train, val or test")
        if split is not None:
            given.setdefault(split, []).append(i)
    return given


def _fold(
    rows: Sequence[Row],
    chosen: Sequence[int],
    kinds: Mapping[tuple[str, ...], int],
    folds: int,
    fold: int,
    share: float | None,
) -> tuple[dict[str, list[int]], str]:
    labels = [kinds[rows[i].labels] for i in chosen]
    groups = [rows[i].group or i for i in chosen]
    splits, note = in_folds(labels, groups, folds, fold, share)
    return {split: [chosen[i] for i in part] for split, part in splits.items()}, note


def _part(
    rows: Sequence[Row], train: Sequence[int], kinds: Mapping[tuple[str, ...], int], parts: int, split: str
) -> dict[str, list[int]]:
    """One of `parts` of the training rows as a split, and the rest as train."""
    labels, groups = [kinds[rows[i].labels] for i in train], [rows[i].group or i for i in train]
    if len(set(groups)) < parts:
        raise DataError(f"{len(set(groups))} images or groups are too few to cut a {split} split from; add some")
    rest, part = group_parts(labels, groups, parts)[0]
    return {"train": [train[i] for i in rest], split: [train[i] for i in part]}
