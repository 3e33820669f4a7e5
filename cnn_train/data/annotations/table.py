"""CSV files with a row for each object: its image, class and box, perhaps whether to ignore it, and its split."""

import csv
from pathlib import Path

from cnn_train.data.annotations.record import Annotated, Annotations, Row
from cnn_train.data.splits import NAMES
from cnn_train.errors import DataError

COLUMNS = {
    "image": ("image", "filename", "file", "file_name", "path", "image_path"),
    "class": ("class", "label", "name", "class_name", "category"),
    "ignore": ("ignore", "difficult", "iscrowd"),
    "split": ("split", "set"),
}
BOXES = (
    ("corners", ("x1", "y1", "x2", "y2")), ("corners", ("xmin", "ymin", "xmax", "ymax")),
    ("xywh", ("x", "y", "width", "height")), ("xywh", ("x", "y", "w", "h")),
)  # fmt: skip


def files(root: Path) -> list[Path]:
    """The tables in a folder."""
    return sorted(root.glob("*.csv"))


def read(root: Path) -> Annotations:
    """One table, with a column of splits or not, or one for each split. A row without a class is an empty image."""
    tables = files(root)
    splits: dict[str, dict[str, Annotated]] = {}
    kinds = set()
    for path in tables:
        own = next((split for split, words in NAMES.items() if path.stem.lower() in words), "")
        if len(tables) > 1 and not own:
            raise DataError(f"{root} holds {len(tables)} tables; name them train.csv, val.csv, test.csv, or keep one")
        kinds.add(_table(root, path, own, splits))
    if len(kinds) > 1:
        raise DataError(f"{root}: some tables have corners and some x, y, width and height; use one form")
    return Annotations({split: list(images.values()) for split, images in splits.items()}, None, kinds.pop())


def _table(root: Path, path: Path, split: str, splits: dict[str, dict[str, Annotated]]) -> str:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        heads = {str(name).strip().lower(): name for name in reader.fieldnames or []}
        column = {key: next((heads[n] for n in names if n in heads), None) for key, names in COLUMNS.items()}
        kind, sides = next(((k, s) for k, s in BOXES if set(s) <= heads.keys()), ("", ()))
        lacking = [key for key in ("image", "class") if column[key] is None] + ([] if kind else ["x1, y1, x2, y2"])
        if lacking:
            raise DataError(f"{path}: has no column {' and no '.join(lacking)}; it has {', '.join(heads) or 'none'}")
        for line, row in enumerate(reader, start=2):
            where, name = f"{path}, line {line}", row[column["image"]]
            part = split or _named_split(row[column["split"]] if column["split"] else "", where)
            image = next((p / name for p in (root, root / "images") if (p / name).is_file()), root / name)
            entry = splits.setdefault(part, {}).setdefault(name, Annotated(image))
            label = (row[column["class"]] or "").strip()
            if not label:
                continue
            try:
                a, b, c, d = (float(row[heads[side]]) for side in sides)
            except (TypeError, ValueError) as error:
                raise DataError(f"{where}: {', '.join(sides)} must be numbers") from error
            ignore = column["ignore"] is not None and (row[column["ignore"]] or "0").strip() not in ("0", "", "false")
            entry.rows.append(Row(where, label, (a, b, c, d), ignore))
    return kind


def _named_split(word: str | None, where: str) -> str:
    if not (word or "").strip():
        return ""
    for split, words in NAMES.items():
        if (word or "").strip().lower() in words:
            return split
    raise DataError(f"{where}: split must be train, val or test, got {word!r}")
