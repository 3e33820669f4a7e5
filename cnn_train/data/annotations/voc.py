"""PASCAL VOC's XML files (Everingham et al. 2010): the first pixel is 1, and a box contains its last one."""

from pathlib import Path
from xml.etree import ElementTree

from cnn_train.data.annotations.record import Annotated, Annotations, Row, by_stem
from cnn_train.data.splits import split_folders
from cnn_train.errors import DataError

FOLDERS = ("Annotations", "annotations", "xmls", "labels")


def files(root: Path) -> list[Path]:
    """The XML files in the usual places of a folder."""
    return sorted(path for place in (root, *(root / name for name in FOLDERS)) for path in place.glob("*.xml"))


def read(root: Path) -> Annotations:
    """Folders of splits, or one folder whose ImageSets/Main/*.txt may say the splits."""
    folders = {split: path for split, path in split_folders(root).items() if files(path)}
    missing: list[Path] = []
    if folders:
        splits = {split: _folder(path, missing) for split, path in folders.items()}
    else:
        splits = _by_lists(root, _folder(root, missing))
    return Annotations(splits, None, "corners", missing=missing)


def _folder(folder: Path, missing: list[Path]) -> list[Annotated]:
    images = by_stem([folder / "JPEGImages", folder / "images", folder])
    found = [_file(path, images) for path in files(folder)]
    there = {entry.image for entry in found}
    without = sorted(path for path in images.values() if path not in there)
    missing += without
    return found + [Annotated(image) for image in without]


def _by_lists(root: Path, every: list[Annotated]) -> dict[str, list[Annotated]]:
    lists = {split: root / "ImageSets" / "Main" / f"{split}.txt" for split in ("train", "val", "test")}
    lists = {split: path for split, path in lists.items() if path.is_file()}
    if "train" not in lists:
        return {"": every}
    stems = {entry.image.stem: entry for entry in every}
    result = {}
    for split, path in lists.items():
        wanted = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        unknown = next((stem for stem in wanted if stem not in stems), None)
        if unknown is not None:
            raise DataError(f"{path}: lists {unknown}, which has no annotation")
        result[split] = [stems[stem] for stem in wanted]
    return result


def _file(path: Path, images: dict[str, Path]) -> Annotated:
    content = path.read_bytes()
    if b"<!ENTITY" in content.replace(b"\0", b""):  # a few lines of these can fill the memory
        raise DataError(f"{path}: declares entities, which annotations have no use for; remove its DOCTYPE")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: is no XML ({error}); is the file cut off?") from error
    image = images.get(path.stem)
    if image is None:
        name = (root.findtext("filename") or path.stem).strip()
        image = images.get(Path(name).stem, path.parent / name)
    width, height = (root.findtext(f"size/{side}") for side in ("width", "height"))
    size = (round(float(height)), round(float(width))) if width and height and float(width) and float(height) else None
    found = Annotated(image, [], size)
    for number, entry in enumerate(root.findall("object"), start=1):  # a <part> has boxes, too
        where = f"{path}, object {number}"
        name, box = (entry.findtext("name") or "").strip(), entry.find("bndbox")
        if not name or box is None:
            raise DataError(f"{where}: has no {'bndbox' if name else 'name'}")
        try:
            x1, y1, x2, y2 = (float(box.findtext(side) or "") for side in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError as error:
            raise DataError(f"{where}: bndbox must have the numbers xmin, ymin, xmax and ymax") from error
        ignore = (entry.findtext("difficult") or "0").strip() == "1"
        found.rows.append(Row(where, name, (x1 - 1, y1 - 1, x2, y2), ignore))
    return found
