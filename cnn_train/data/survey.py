"""What the files of a data set hold: channels, value types, sizes and extremes; and which do not fit the rest."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cnn_train.data.cache import remember
from cnn_train.data.checking import look_over
from cnn_train.data.decode import Header, opened
from cnn_train.data.images import Channels, Range, Reader
from cnn_train.errors import DataError

SIZES = 1000  # different sizes that are counted


@dataclass
class Kind:
    """Files of one number of channels and one type of values."""

    files: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (height, width); the first thousand
    largest: tuple[int, str] = (0, "")  # pixels, and the file
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, path: str, header: Header, extremes: tuple[float, float] | None) -> None:
        self.files.append(path)
        size = header.height, header.width
        if size in self.sizes or len(self.sizes) < SIZES:
            self.sizes[size] += 1
        self.largest = max(self.largest, (header.height * header.width, path))
        if extremes is not None:
            self.low, self.high = min(self.low, extremes[0]), max(self.high, extremes[1])


@dataclass
class Survey:
    """The readable files by (channels, value type), and what is wrong with the others, by file."""

    kinds: dict[tuple[int, str], Kind] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, looked: "Look | DataError") -> None:
        if isinstance(looked, DataError):
            self.faults[path] = str(looked)
        else:
            header, extremes = looked
            self.kinds.setdefault((header.channels, header.dtype), Kind()).add(path, header, extremes)

    @property
    def common_size(self) -> tuple[int, int] | None:
        """(height, width) of all images; None if they differ."""
        sizes = {size for kind in self.kinds.values() for size in kind.sizes}
        return sizes.pop() if len(sizes) == 1 else None

    def example(self, place: int, value: int | str) -> str:
        """A file whose channels (place 0) or value type (place 1) are these."""
        return next(kind.files[0] for key, kind in self.kinds.items() if key[place] == value)

    def unfit(self, channels: Channels, limits: Range) -> dict[str, str]:
        """The files that differ from most in channels or in value type, where nothing was said that fits them all."""
        counts = {key: len(kind.files) for key, kind in self.kinds.items()}
        found = {}
        usual = _most({_family(key[0], channels): 0 for key in counts}, counts, lambda key: _family(key[0], channels))
        eight = _most({False: 0, True: 0}, counts, lambda key: key[1] == "uint8")
        for (number, dtype), kind in self.kinds.items():
            for path in kind.files:
                if _family(number, channels) != usual:
                    found[path] = (
                        f"{path} has {number} channel(s), unlike most files; "
                        "data.channels=[...] chooses bands by number, from 1"
                    )
                elif isinstance(limits, str) and (dtype == "uint8") != eight:
                    found[path] = (
                        f"{path} holds {dtype} values, unlike most files; "
                        "data.range=[low,high] says which values are black and white in all files"
                    )
        return found

    def without(self, paths: Mapping[str, str]) -> "Survey":
        """The survey of the other files, of whose kinds all or none are among these."""
        kinds = {key: kind for key, kind in self.kinds.items() if kind.files[0] not in paths}
        return Survey(kinds, {**self.faults, **paths})

    def reader(self, channels: Channels, limits: Range, max_pixels: int) -> Reader:
        """The reader that fits all files; DataError names two that differ in what must be common to all."""
        bands = tuple(channels) if isinstance(channels, Sequence) and not isinstance(channels, str) else channels
        if isinstance(bands, tuple) and not (bands and all(isinstance(band, int) and band >= 1 for band in bands)):
            raise DataError(f"data.channels={list(bands)}: bands are counted from 1, as [3,2,1]")
        if isinstance(bands, int) and bands < 1:
            raise DataError(f"data.channels={bands}: must be 1 or more")
        found = self._channels() if isinstance(bands, str) else bands
        return Reader(found, self._range(limits), max_pixels)

    def _channels(self) -> int:
        found = sorted({channels for channels, _ in self.kinds})
        if set(found) <= {1, 3}:
            return max(found)
        if len(found) > 1:
            one, other = found[:2]
            raise DataError(
                f"{self.example(0, one)} has {one} channel(s) but {self.example(0, other)} has {other}; all images "
                "must have the same, or data.channels=[...] chooses bands that all have"
            )
        return found[0]

    def _range(self, limits: Range) -> tuple[float, float] | None:
        if not isinstance(limits, str):
            low, high = (float(value) for value in limits) if len(limits) == 2 else (0.0, 0.0)
            if not low < high:
                raise DataError(f"data.range={list(limits)}: must be [low,high], the values of black and white")
            return low, high
        dtypes = {dtype for _, dtype in self.kinds}
        if dtypes == {"uint8"}:
            return None
        if "uint8" in dtypes:
            other = next(dtype for _, dtype in self.kinds if dtype != "uint8")
            raise DataError(
                f"{self.example(1, 'uint8')} holds 8 bits but {self.example(1, other)} {other}, so no range fits both; "
                "data.range=[low,high] says which values are black and white in all files"
            )
        low = min(kind.low for kind in self.kinds.values())
        high = max(kind.high for kind in self.kinds.values())
        if not np.isfinite([low, high]).all():
            first = next(iter(self.kinds.values())).files[0]
            raise DataError(f"{first} or another file holds no finite value; replace it")
        return low, high if high > low else low + 1

    def plain(self) -> dict[str, Any]:
        """As data for JSON."""
        kinds = [
            [*key, kind.files, [[*size, n] for size, n in kind.sizes.items()], kind.largest, kind.low, kind.high]
            for key, kind in self.kinds.items()
        ]
        return {"kinds": kinds, "faults": self.faults}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> "Survey":
        kinds = {}
        for channels, dtype, files, sizes, largest, low, high in plain["kinds"]:
            counted = Counter({(height, width): n for height, width, n in sizes})
            kinds[channels, dtype] = Kind(files, counted, tuple(largest), low, high)
        return cls(kinds, dict(plain["faults"]))


Look = tuple[Header, tuple[float, float] | None]


def _family(channels: int, asked: Channels) -> object:
    """What files must have in common in channels: grey and colour go together, and so does all that has the bands."""
    if isinstance(asked, Sequence) and not isinstance(asked, str):
        return channels >= max(asked)
    return "grey or colour" if channels in (1, 3) else channels


def _most(totals: dict[Any, int], counts: Mapping[tuple[int, str], int], group: Any) -> Any:
    for key, number in counts.items():
        totals[group(key)] += number
    return max(totals, key=lambda name: totals[name], default=None)


def look_at(path: str, max_pixels: int, decode: bool) -> Look:
    """A file's header, and the extremes of its values if they are not of 8 bits; `decode` decodes these too."""
    with opened(path, max_pixels) as file:
        if not decode and file.header.dtype == "uint8":
            return file.header, None
        values = file.decode()
    return file.header, extremes_of(path, values)


def extremes_of(path: str, values: np.ndarray) -> tuple[float, float] | None:
    """The least and largest value, None for 8 bits. Raises DataError if a value is not finite."""
    if values.dtype == np.uint8:
        return None
    finite = values[np.isfinite(values)]
    if finite.size < values.size:
        raise DataError(
            f"{path} holds {values.size - finite.size} values that are not finite; replace or remove the file"
        )
    return float(finite.min()), float(finite.max())


def survey(paths: Sequence[str], max_pixels: int, workers: int, decode: bool, cache_dir: str | None) -> Survey:
    """What the files hold, looked at once and remembered; those that cannot be read are among its faults.

    `decode` decodes every file; otherwise only headers are read, of at most 1,000 files, and values that are not of 8
    bits.
    """
    chosen = list(paths) if decode else list(paths[:: max(len(paths) // 1000, 1)])

    def compute() -> dict[str, Any]:
        found = Survey()
        for path, looked in look_over(lambda path: look_at(path, max_pixels, decode), chosen, workers):
            found.add(path, looked)
        return found.plain()

    return Survey.of_plain(remember(cache_dir, PURPOSE, chosen, settings(max_pixels, decode), compute))


PURPOSE = "survey"  # the name of what is remembered


def settings(max_pixels: int, decode: bool) -> str:
    """What a survey depends on besides the files."""
    return f"{max_pixels} {decode}"
