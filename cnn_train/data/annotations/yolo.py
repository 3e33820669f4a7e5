"""Text files as the YOLO tools have them: class number, centre, width and height as parts of the image, a line each."""

from pathlib import Path
from typing import Any

from cnn_train.data.annotations.record import Annotated, Annotations, Row
from cnn_train.data.files import images_in
from cnn_train.data.splits import split_folders
from cnn_train.errors import DataError


def files(root: Path) -> list[Path]:
    """The text files of labels/ in a folder or in its splits."""
    places = [root / "labels", *(folder / "labels" for folder in split_folders(root).values())]
    return sorted(path for place in places if place.is_dir() for path in place.rglob("*.txt"))


def read(root: Path) -> Annotations:
    """images/ and labels/, each divided into splits or not; or splits with images/ and labels/ in each."""
    inner = split_folders(root / "images")
    outer = {split: path for split, path in split_folders(root).items() if (path / "labels").is_dir()}
    if inner:
        places = {split: (path, root / "labels" / path.name) for split, path in inner.items()}
    elif outer:
        places = {split: (path / "images", path / "labels") for split, path in outer.items()}
    else:
        places = {"": (root / "images" if (root / "images").is_dir() else root, root / "labels")}
    missing: list[Path] = []
    splits = {split: _folder(*pair, missing) for split, pair in places.items()}
    return Annotations(splits, names_of(root), "centres", missing=missing)


def names_of(root: Path) -> list[str] | None:
    """The names of data.yaml, a list or a mapping from numbers, or the lines of classes.txt."""
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        import yaml

        try:
            names: Any = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("names")
        except (yaml.YAMLError, AttributeError) as error:
            raise DataError(f"{path}: is no YAML with names: {str(error).splitlines()[0]}") from error
        if isinstance(names, dict):
            if sorted(names) != list(range(len(names))):
                raise DataError(f"{path}: names must be numbered 0 to {len(names) - 1}, got {sorted(names)}")
            return [str(names[number]) for number in range(len(names))]
        if names is not None:
            return [str(name) for name in names]
    path = root / "classes.txt"
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    return [line.strip() for line in lines if line.strip()] or None


def _folder(images: Path, labels: Path, missing: list[Path]) -> list[Annotated]:
    found = []
    files = {path.relative_to(labels).with_suffix("").as_posix(): path for path in labels.rglob("*.txt")}
    files.pop("classes", None)
    for image in images_in(images):
        path = files.pop(image.relative_to(images).with_suffix("").as_posix(), None)
        if path is None:
            missing.append(image)
        found.append(Annotated(image, [] if path is None else _lines(path)))
    if files:
        first = next(iter(files.values()))
        raise DataError(f"{first}: is of an image that is not in {images} ({len(files)} such files)")
    return found


def _lines(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        words, where = line.split(), f"{path}, line {number}"
        if not words:
            continue
        if len(words) > 5:
            raise DataError(f"{where}: has {len(words)} numbers, a polygon; boxes have class, x, y, width and height")
        try:
            label, x, y, width, height = int(words[0]), *map(float, words[1:])
        except ValueError as error:
            raise DataError(f"{where}: must be a class number and four numbers, got {line.strip()[:60]!r}") from error
        rows.append(Row(where, label, (x, y, width, height)))
    return rows
