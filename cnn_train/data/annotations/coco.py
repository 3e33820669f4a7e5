"""COCO's JSON files of objects (Lin et al. 2014): boxes x, y, width, height; categories by id, which has gaps."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_train.data.annotations.record import Annotated, Annotations, Row
from cnn_train.data.splits import NAMES
from cnn_train.errors import DataError


def files(root: Path) -> list[Path]:
    """The files of objects in a folder or in its annotations/."""
    found = sorted(root.glob("*.json")) + sorted((root / "annotations").glob("*.json"))
    instances = [path for path in found if path.name.startswith("instances_")]
    return instances or found


def read(root: Path) -> Annotations:
    """One file, or one for each split with its name in the file's. Categories are numbered in the order of ids."""
    contents = {path: read_json(path) for path in files(root)}
    categories: dict[int, str] = {}
    for path, content in contents.items():
        for entry in content["categories"]:
            if categories.setdefault(entry["id"], entry["name"]) != entry["name"]:
                raise DataError(
                    f"{path}: category {entry['id']} is {entry['name']!r}, in another file {categories[entry['id']]!r}"
                )
    names = [categories[number] for number in sorted(categories)]
    splits: dict[str, list[Annotated]] = {}
    for path, content in contents.items():
        split = _split(path) if len(contents) > 1 else ""
        if split is None:
            raise DataError(f"{path}: which split is it? name it train, val or test, or keep one file to be split")
        splits.setdefault(split, []).extend(_images(root, path, content, categories))
    return Annotations(splits, names, "xywh")


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file, whose images, annotations and categories are lists. Raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        for key in ("images", "annotations", "categories"):
            if not isinstance(content[key], list):
                raise DataError(f"{path}: {key} must be a list, as COCO's files of objects have it")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise DataError(f"cannot read {path}: {reason}; it must be COCO's JSON of objects") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: is no JSON ({error.msg}); is the file cut off?") from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: has no {error.args[0]}, which COCO's files of objects have") from error
    return content


def _split(path: Path) -> str | None:
    name = path.stem.lower()
    return next((split for split, words in NAMES.items() for word in words if word in name), None)


def image_places(root: Path, path: Path) -> list[Path]:
    """The folders in which the images of a JSON file may lie."""
    name = path.stem.removeprefix("instances_")
    return [root, root / "images", root / name, root / (_split(path) or ""), root / "images" / name]


def find_image(places: Sequence[Path], entry: Mapping[str, Any], path: Path) -> Path:
    """The file of an entry of `images`: in the first folder that has it, or its place in the first one of all."""
    own = Path(str(entry["file_name"]).replace("\\", "/"))
    if own.is_absolute() or ".." in own.parts:
        raise DataError(
            f"{path}: file_name {str(own)!r} leaves the folder of the images; make it relative to data.root"
        )
    return next((place / own for place in places if (place / own).is_file()), places[0] / own)


def _images(root: Path, path: Path, content: dict[str, Any], categories: dict[int, str]) -> list[Annotated]:
    places = image_places(root, path)
    by_id = {}
    for entry in content["images"]:
        image = find_image(places, entry, path)
        size = (entry["height"], entry["width"]) if {"height", "width"} <= entry.keys() else None
        by_id[entry["id"]] = Annotated(image, [], size)
    for entry in content["annotations"]:
        where = f"{path}, annotation {entry.get('id', '?')}"
        if entry["image_id"] not in by_id:
            raise DataError(f"{where}: is of image {entry['image_id']}, which is not among the images")
        if entry["category_id"] not in categories:
            raise DataError(f"{where}: has category {entry['category_id']}, which is not among the categories")
        label = categories[entry["category_id"]]
        x, y, width, height = entry["bbox"]
        by_id[entry["image_id"]].rows.append(Row(where, label, (x, y, width, height), bool(entry.get("iscrowd"))))
    return list(by_id.values())
