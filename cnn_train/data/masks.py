"""Masks: files that hold a class for each pixel, read by number or by colour, and what is wrong with them.

What masks hold is checked before training, for every file: a mask whose values are not the classes is the most frequent
reason for a segmentation that does not learn.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnn_train.data.checking import OnError, look_over, settle
from cnn_train.data.decode import kind_of, read_header, read_values
from cnn_train.data.disk import sizes_differ
from cnn_train.errors import DataError

IGNORE = 255  # in label maps, whatever marks such pixels in the files
SHOWN = 12  # colours that a proposal lists
NEAR = 24  # values of a lossy mask that are of one level
Pairs = Sequence[tuple[str, str]]


@dataclass
class MaskReader:
    """Reads a mask's file to class numbers (H, W) uint8, by number or by colour; DataError for what is no class.

    Transparent pixels hold 0, or black. `mask_round` takes the nearest value or colour for one that is no class, as a
    lossy format leaves behind.
    """

    classes: Sequence[str]
    palette: Sequence[Sequence[int]] | None
    mask_values: Sequence[int] | None
    ignore_index: int
    ignore_color: Sequence[int] | None
    max_pixels: int
    mask_round: bool = False
    ignored: Sequence[int] = ()  # further values that count nowhere

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
        self._keys = np.array(sorted(self.table))
        self._numbers = np.array([self.table[int(key)] for key in self._keys], np.uint8)

    def _table(self) -> dict[int, int]:
        """Class number of each value, or of each colour as red * 65536 + green * 256 + blue."""
        if self.palette is not None:
            table = {_code(colour): number for number, colour in enumerate(self.palette)}
            return table if self.ignore_color is None else table | {_code(self.ignore_color): IGNORE}
        values = self.mask_values if self.mask_values is not None else range(len(self.classes))
        uncounted = dict.fromkeys([self.ignore_index, *self.ignored], IGNORE)
        return uncounted | {value: number for number, value in enumerate(values)}

    def values(self, path: str) -> np.ndarray:
        """The value, or the colour's code, of each pixel (H, W); with `mask_round` one that is in the table."""
        values = self._values(path)
        return self._nearest(values) if self.mask_round else values

    def _values(self, path: str) -> np.ndarray:
        if self.palette is not None:
            return _codes(read_values(path, self.max_pixels, clear=True), path)
        array = read_values(path, self.max_pixels, stored=True, clear=True)
        if (array[..., :1] != array).any():
            raise DataError(f"{path} is a mask of colours; {_proposal(_colours_of([path], self.max_pixels))}")
        array = array[..., 0]
        if array.dtype.kind == "f" and not (array == np.rint(array)).all():
            raise DataError(f"{path} holds fractions, which are no class numbers; store whole numbers")
        return array.astype(np.int64)

    def _nearest(self, values: np.ndarray) -> np.ndarray:
        present, inverse = np.unique(values, return_inverse=True)
        as_points = _points if self.palette is not None else (lambda codes: codes[:, None])
        distance = np.square(as_points(present)[:, None] - as_points(self._keys)[None]).sum(-1)
        return self._keys[distance.argmin(1)][inverse].reshape(values.shape)

    def __call__(self, path: str) -> Tensor:
        values = self.values(path)
        place = np.searchsorted(self._keys, values).clip(max=len(self._keys) - 1)
        if (self._keys[place] != values).any():
            raise DataError(self.explain(path, {int(value): path for value in np.unique(values)}))
        return torch.from_numpy(self._numbers[place])

    def explain(self, path: str, found: Mapping[int, str]) -> str:
        """The message for values that are no class, `found` in all masks and their files."""
        unknown = sorted(value for value in found if value not in self.table)
        path = found[unknown[0]] if unknown else path
        if kind_of(path) == "JPEG":
            return self._explain_lossy(path)
        if self.palette is not None:
            colours = ", ".join(str(_colour(code)) for code in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            return (
                f"{path} holds colours that data.palette has not: {colours}; add their classes, or "
                "data.ignore_color=[r,g,b] for one that does not count"
            )
        held = ", ".join(map(str, sorted(found)[:8])) + (", ..." if len(found) > 8 else "")
        rule = f"classes are 0 to {len(self.classes) - 1}, and {self.ignore_index} is ignored"
        if self.mask_values is not None:
            rule = f"data.mask_values are {', '.join(map(str, self.mask_values))}, and {self.ignore_index} is ignored"
        return f"masks hold {held}, but {rule} (first in {path}); {self._fix(sorted(found))}"

    def _fix(self, values: Sequence[int]) -> str:
        count = len(self.classes)
        counted = [value for value in values if value != self.ignore_index]
        if len(values) == count and values[-1] > count:
            return f"if these are the {count} classes, data.mask_values={_list(values)}"
        if len(counted) == count and counted[0] == 1:
            return f"they seem to count from 1: data.mask_values={_list(counted)}"
        if counted and counted[-1] == count and counted[0] == 0:
            return f"data.classes needs {count + 1} names or more"
        return "name every class in data.classes, or list what the masks hold in data.mask_values"

    def _explain_lossy(self, path: str) -> str:
        values = self._values(path)
        present, counts = np.unique(values, return_counts=True)
        levels: list[int] = []
        for value, count in sorted(zip(present.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]):
            if count >= 0.01 * values.size and all(abs(value - level) > NEAR for level in levels):
                levels.append(value)
        setting = "data.mask_round=true takes the nearest class"
        if self.palette is None and self.mask_values is None and len(levels) == len(self.classes):
            setting = f"data.mask_values={_list(sorted(levels))} data.mask_round=true takes the nearest"
        return f"{path} is a JPEG, which is lossy: it holds {len(present)} values; export masks as PNG, or {setting}"


def mask_reader(
    classes: Sequence[str] | int | None, palette: Sequence[Sequence[int]] | None, mask_values: Sequence[int] | None,
    ignore_index: int, ignore_color: Sequence[int] | None, mask_round: bool, max_pixels: int, pairs: Pairs,
) -> MaskReader:  # fmt: skip
    """A reader for what a config says; without `classes`, DataError with what the first masks hold."""
    if classes is None:
        masks = [mask for _, mask in pairs[:50]]
        colours = _colours_of(masks, max_pixels)
        if any(len(set(_colour(code))) > 1 for code in colours):
            raise DataError(f"data.classes is not set; the first masks are of colours: {_proposal(colours)}")
        looker = MaskReader(["0"], None, None, 255, None, max_pixels)
        found = sorted({int(value) for mask in masks for value in np.unique(looker.values(mask))})
        held = ", ".join(map(str, found[:12])) + (", ..." if len(found) > 12 else "")
        raise DataError(f"data.classes is not set: name the classes, [background,...]; the first masks hold {held}")
    names = [str(number) for number in range(classes)] if isinstance(classes, int) else classes
    return MaskReader(names, palette, mask_values, ignore_index, ignore_color, max_pixels, mask_round)


@dataclass
class MaskFindings:
    """What all masks hold, and what is wrong with some of them, by file."""

    pixels: dict[str, list[int]]  # of each class, by split
    ignored: dict[str, int]  # pixels that count nowhere, by split
    values: dict[int, tuple[int, str]]  # each value or colour's code: its pixels, and the first mask that holds it
    unknown: dict[str, list[int]]  # masks that hold values which are no class, and all their values
    faults: dict[str, str]  # masks that cannot be used otherwise

    def plain(self) -> dict[str, Any]:
        """As data for JSON."""
        return {**vars(self), "values": [[value, *found] for value, found in self.values.items()]}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> "MaskFindings":
        values = {value: (pixels, mask) for value, pixels, mask in plain["values"]}
        return cls(plain["pixels"], plain["ignored"], values, plain["unknown"], plain["faults"])

    def told(self, reader: MaskReader) -> dict[str, str]:
        """What is wrong with each bad mask, in a line with the setting that mends it."""
        unknown = {mask: reader.explain(mask, dict.fromkeys(values, mask)) for mask, values in self.unknown.items()}
        return {**self.faults, **unknown}


def look_at_masks(
    splits: Mapping[str, Pairs], reader: MaskReader, max_pixels: int, workers: int, known: Mapping[str, str]
) -> MaskFindings:
    """Read all masks but those whose image, or which themselves, are `known` to be bad."""
    of_pair: dict[tuple[str, str], list[str]] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            if pair[0] not in known and pair[1] not in known:
                of_pair.setdefault((pair[0], pair[1]), []).append(split)

    def look(pair: tuple[str, str]) -> tuple[list[int], list[int]]:
        image, mask = pair
        values = reader.values(mask)
        header = read_header(image, max_pixels)
        if values.shape != (header.height, header.width):
            raise DataError(sizes_differ(image, mask, (header.height, header.width), values.shape))
        present, counts = np.unique(values, return_counts=True)
        return present.tolist(), counts.tolist()

    found = MaskFindings({split: [0] * len(reader.classes) for split in splits}, dict.fromkeys(splits, 0), {}, {}, {})
    for pair, looked in look_over(look, sorted(of_pair), workers, "check masks"):
        mask = pair[1]
        if isinstance(looked, DataError):
            found.faults[mask] = str(looked)
            continue
        if any(value not in reader.table for value in looked[0]):
            found.unknown[mask] = looked[0]
        for value, count in zip(*looked, strict=True):
            pixels, first = found.values.get(value, (0, mask))
            found.values[value] = pixels + count, first
            number = reader.table.get(value)
            for split in of_pair[pair] if mask not in found.unknown else ():
                if number == IGNORE:
                    found.ignored[split] += count
                elif number is not None:
                    found.pixels[split][number] += count
    return found


def check_masks(
    splits: Mapping[str, Pairs], reader: MaskReader, found: MaskFindings, on_error: OnError, cache_dir: str | None
) -> dict[str, str]:
    """The bad masks to leave out. Raises DataError for what is wrong, unless it is to be skipped."""
    if on_error == "fail":
        _check_colours(splits["train"], reader)
    total = sum(len({mask for _, mask in pairs}) for pairs in splits.values())
    if on_error == "fail":
        settle(found.faults, total, on_error, cache_dir)
        if found.unknown:
            raise DataError(reader.explain(next(iter(found.unknown)), {v: m for v, (_, m) in found.values.items()}))
    bad = found.told(reader)
    settle(bad, total, on_error, cache_dir)
    _check_ignored(reader, {value for value, _ in found.values.items()})
    return bad


def _check_ignored(reader: MaskReader, found: set[int]) -> None:
    """DataError if all that the masks hold is class 0 and what is ignored: 255 was probably meant as a class."""
    plain = reader.palette is None and reader.mask_values is None
    if plain and found == {0, reader.ignore_index} and len(reader.classes) > 1:
        raise DataError(
            f"all masks hold only 0 and {reader.ignore_index}, which is ignored, so {reader.classes[1]} is nowhere; "
            f"if {reader.ignore_index} means {reader.classes[1]}, data.mask_values=[0,{reader.ignore_index}]"
        )


def _check_colours(pairs: Pairs, reader: MaskReader) -> None:
    """DataError with a palette to paste if the first masks are of colours and no palette is set."""
    if reader.palette is not None or not pairs:
        return
    try:
        first = read_values(pairs[0][1], reader.max_pixels, stored=True, clear=True)
        if (first[..., :1] == first).all():
            return
        colours = _colours_of([mask for _, mask in pairs[:50]], reader.max_pixels)
    except DataError:
        return  # the check of every file names those that cannot be read
    raise DataError(f"{pairs[0][1]} is a mask of colours; {_proposal(colours)}")


def _colours_of(masks: Sequence[str], max_pixels: int) -> Counter[int]:
    """How often each colour occurs in these masks, by code."""
    found: Counter[int] = Counter()
    for mask in masks:
        codes, counts = np.unique(_codes(read_values(mask, max_pixels, clear=True), mask), return_counts=True)
        found.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
    return found


def _proposal(colours: Counter[int]) -> str:
    """The setting for masks of these colours, black first and then the most frequent."""
    codes = sorted(colours, key=lambda code: (code != 0, -colours[code]))
    listed = ",".join(_list(_colour(code)) for code in codes[:SHOWN])
    more = f", and {len(codes) - SHOWN} more (lossy files have many)" if len(codes) > SHOWN else ""
    return f"name the colour of each class: data.palette=[{listed}]{more}, or store class numbers"


def _codes(array: np.ndarray, path: str | Path) -> np.ndarray:
    """Colours (H, W, 1 or 3) of 8 bits as numbers (H, W)."""
    if array.dtype != np.uint8 or array.shape[2] not in (1, 3):
        raise DataError(f"{path} has {array.shape[2]} channel(s) of {array.dtype}; a mask of colours is RGB of 8 bits")
    red, green, blue = (array[..., min(band, array.shape[2] - 1)].astype(np.int64) for band in range(3))
    return red << 16 | green << 8 | blue


def _points(codes: np.ndarray) -> np.ndarray:
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1)


def _code(colour: Sequence[Any]) -> int:
    if len(colour) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in colour):
        raise DataError(f"a colour is [red,green,blue] from 0 to 255, got {list(colour)}")
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _colour(code: int) -> list[int]:
    return [code >> 16, code >> 8 & 255, code & 255]


def _list(values: Sequence[int]) -> str:
    return f"[{','.join(map(str, values))}]"
