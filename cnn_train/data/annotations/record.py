"""What every reader of annotations gives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cnn_train.data.files import images_in


class Row(NamedTuple):
    """One object as a file says it: where that stands, its class by name or number, four numbers, whether to ignore.

    The numbers are what the format's `BoxFormat` says.
    """

    where: str
    label: str | int
    box: tuple[float, float, float, float]
    ignore: bool = False


@dataclass
class Annotated:
    """An image, its (height, width) if the annotation says it, and its objects."""

    image: Path
    rows: list[Row] = field(default_factory=list)
    size: tuple[int, int] | None = None


@dataclass
class Annotations:
    """What a reader found: images by split ("" if they are not divided), and the classes, if files name them.

    Boxes are `corners` (x1, y1, x2, y2), `xywh` (x1, y1, width, height) or `centres` (x, y, width, height as parts of
    the image). `notes` are remarks for the header of a run; `missing` are those of the images without an annotation.
    """

    splits: dict[str, list[Annotated]]
    names: list[str] | None
    boxes: str
    notes: list[str] = field(default_factory=list)
    missing: list[Path] = field(default_factory=list)


def by_stem(folders: Sequence[Path]) -> dict[str, Path]:
    """Images of folders by their file name without suffix."""
    return {path.stem: path for folder in folders if folder.is_dir() for path in images_in(folder)}
