"""What cannot be right in annotations: everything wrong is found at once and told with file, line and a remedy."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cnn_train.data.annotations.record import Annotations, Row
from cnn_train.data.decode import read_header, read_orientation
from cnn_train.errors import DataError

SLACK = 1.5  # pixels by which a box may reach out of its image without being far outside
SHARE = 0.02  # of an image's sides, likewise
MANY = 0.1  # of all boxes: more of a kind are no slips
Samples = list[tuple[str, Tensor]]
Size = tuple[int, int]  # height, width
Box = tuple[float, float, float, float]


class Fault(NamedTuple):
    """What is wrong with one row: a sentence for its kind, and where."""

    kind: str
    where: str


def check(
    found: Annotations,
    names: list[str],
    first_class: int,
    boxes: str,
    max_pixels: int,
    exif: Literal["apply", "ignore"] = "apply",
) -> dict[str, Samples]:
    """The samples of each split, with boxes (n, 6) in pixels of the upright image; DataError for what cannot be right.

    Boxes that reach a little out of their image are clipped and counted. With `exif="ignore"` boxes were drawn on the
    image as it is stored, without its orientation, and are turned with it.
    """
    turns = {} if exif == "apply" else _turns(found)
    sizes = _sizes(found, max_pixels, turns)
    _check_form(found, boxes, sizes)
    faults: list[Fault] = []
    result: dict[str, Samples] = {}
    clipped, numbers = 0, {name: number for number, name in enumerate(names)}
    for split, part in found.splits.items():
        result[split] = []
        for entry in part:
            rows, seen, size = [], set(), sizes[entry.image]
            for row in entry.rows:
                corners = to_corners(row.box, boxes, size)
                fault = "the same box twice" if (row.label, corners) in seen else fault_of(corners, size)
                seen.add((row.label, corners))
                if fault is not None:
                    faults.append(Fault(fault, row.where))
                    continue
                inside = _clip(corners, size)
                clipped += inside != corners
                inside = turned(inside, size, turns.get(entry.image, 1))
                label = numbers[row.label] if isinstance(row.label, str) else row.label - first_class
                rows.append((*inside, float(label), float(row.ignore)))
            result[split].append((str(entry.image), torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)))
    _raise(faults)
    if clipped:
        found.notes.append(f"{clipped} boxes reach out of their image and are clipped")
    return result


def _turns(found: Annotations) -> dict[Path, int]:
    """EXIF's orientation of each image that is there."""
    images = {entry.image for part in found.splits.values() for entry in part}
    return {path: read_orientation(path) for path in images if path.is_file()}


def turned(box: Box, size: Size, orientation: int) -> Box:
    """Corners in an image stored with this (height, width), after its EXIF orientation is applied."""
    (x1, y1, x2, y2), (height, width) = box, size
    if orientation in (5, 6, 7, 8):
        x1, y1, x2, y2, height, width = y1, x1, y2, x2, width, height
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    return x1, y1, x2, y2


def _sizes(found: Annotations, max_pixels: int, turns: Mapping[Path, int]) -> dict[Path, Size]:
    """(height, width) of each image that boxes are drawn on; DataError for images that are not there or turned."""
    faults: list[Fault] = []
    sizes: dict[Path, Size] = {}
    for entry in (entry for part in found.splits.values() for entry in part):
        if not entry.image.is_file():
            where = entry.rows[0].where if entry.rows else str(entry.image)
            faults.append(Fault(f"an annotation of an image that is not there, {entry.image}", where))
            continue
        header = read_header(str(entry.image), max_pixels)
        own = (header.width, header.height) if turns.get(entry.image, 1) >= 5 else (header.height, header.width)
        sizes[entry.image] = own
        if entry.size is not None and entry.size != own and entry.size == own[::-1]:
            said, has = (f"{width}x{height}" for height, width in (entry.size, own))
            faults.append(Fault(
                f"is {has} with its orientation applied, but its annotation says {said}; data.exif=ignore takes boxes "
                "as drawn on the unturned image" if not turns
                else f"is {has} as it is stored, but its annotation says {said}; data.exif=apply takes boxes as drawn "
                "on the upright image",
                str(entry.image),
            ))  # fmt: skip
    _raise(faults)
    return sizes


def _check_form(found: Annotations, boxes: str, sizes: Mapping[Path, Size]) -> None:
    """Tell by all boxes together if four numbers are not what they are taken for."""
    every = [(row, sizes[entry.image]) for part in found.splits.values() for entry in part for row in entry.rows]
    if not every:
        return
    rows, count = [row for row, _ in every], len(every)
    where = Path(rows[0].where.partition(",")[0]).name

    def outside(row: Row, size: Size) -> bool:
        """Whether the box reaches out if its last two numbers are width and height."""
        return row.box[0] + row.box[2] > size[1] + SLACK or row.box[1] + row.box[3] > size[0] + SLACK

    crossed = sum(row.box[2] < row.box[0] for row in rows)
    out = sum(outside(row, size) for row, size in every)
    if boxes == "corners" and all(0 <= value <= 1 for row in rows for value in row.box):
        raise DataError(
            f"all {count} boxes in {where} are between 0 and 1: parts of the image where pixels were expected; "
            "data.box_format=centres takes x, y, width and height as parts"
        )
    if boxes == "corners" and crossed > MANY * count:
        none = "none have" if not out else f"{out} have"
        raise DataError(
            f"{crossed} of {count} boxes in {where} have x2 < x1, {none} x + w outside its image: they seem to be x, "
            "y, width, height; data.box_format=xywh"
        )
    if boxes == "xywh" and out > MANY * count and not crossed:
        raise DataError(
            f"{out} of {count} boxes in {where} have x + width outside their image, none have x2 < x1: they seem to be "
            "x1, y1, x2, y2; data.box_format=corners"
        )
    pixels = [row for row in rows if max(row.box) > 1.5]
    if boxes == "centres" and len(pixels) > MANY * count:
        raise DataError(
            f"{pixels[0].where}: {len(pixels)} of {count} boxes are in pixels where parts of the image, 0 to 1, were "
            "expected; data.box_format=xywh or corners"
        )


def to_corners(box: Sequence[float], boxes: str, size: Size) -> Box:
    """x1, y1, x2, y2 in pixels of an image of (height, width)."""
    a, b, c, d = box
    if boxes == "corners":
        return a, b, c, d
    if boxes == "xywh":
        return a, b, a + c, b + d
    height, width = size
    return (a - c / 2) * width, (b - d / 2) * height, (a + c / 2) * width, (b + d / 2) * height


def fault_of(corners: Sequence[float], size: Size) -> str | None:
    """What cannot be right with a box in an image of (height, width)."""
    x1, y1, x2, y2 = corners
    if not all(-1e9 < value < 1e9 for value in corners):  # NaN is neither
        return "a box that is not finite"
    if x2 <= x1 or y2 <= y1:
        return "a box without extent"
    height, width = size
    over = max(-x1 / width, (x2 - width) / width, -y1 / height, (y2 - height) / height)
    most = max(-x1, x2 - width, -y1, y2 - height)
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0 or (over > SHARE and most > SLACK):
        return "a box far outside of its image"
    return None


def _clip(corners: Box, size: Size) -> Box:
    x1, y1, x2, y2 = corners
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(size[1])), min(y2, float(size[0]))


def _raise(faults: list[Fault]) -> None:
    """A DataError with the first fault and how many there are of each kind."""
    if not faults:
        return
    first = faults[0]
    kinds = Counter(fault.kind for fault in faults)
    same = sum(1 for fault in faults if fault.kind == first.kind)
    files = len({fault.where.partition(",")[0] for fault in faults if fault.kind == first.kind})
    more = f" ({same} such in {files} files)" if same > 1 else ""
    error = DataError(f"{first.where}: {first.kind}{more}" + _others(kinds, first.kind))
    for fault in faults[1:20]:
        error.add_note(f"{fault.where}: {fault.kind}")
    raise error


def _others(kinds: Counter[str], but: str) -> str:
    others = [f"{count} x {kind}" for kind, count in kinds.most_common(4) if kind != but]
    return f"; also {', '.join(others)}" if others else ""
