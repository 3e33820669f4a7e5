"""Data sets of the Hugging Face Hub, or local folders that the package datasets reads, by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from cnn_train.data.checking import look_over, settle
from cnn_train.data.data import Data, DataSet, as_size
from cnn_train.data.decode import MAX_PIXELS, Header, decode_bytes
from cnn_train.data.disk import OnDisk, num_workers
from cnn_train.data.folder import SIDE, chosen_size, reader_notes
from cnn_train.data.images import Reader, bring_to_size
from cnn_train.data.source import InMemory, Source, shared
from cnn_train.data.splits import NAMES, UNDIVIDED, check_fractions, group_parts, missing_splits, shares, undivided
from cnn_train.data.survey import Survey, extremes_of
from cnn_train.data.targets import TargetSpec
from cnn_train.errors import DataError, EnvError

LOOKED_AT = 1000  # images that decide on channels, range and size
USUAL_LABELS = ("label", "labels", "class", "target")


class Cell(NamedTuple):
    """An image of a table: the table (a `datasets.Dataset`), its name, the column and the row."""

    table: Any
    split: str
    column: str
    row: int

    def __str__(self) -> str:
        return f"{self.split}[{self.row}]"


@dataclass(frozen=True)
class HubReader(Reader):
    """As `Reader`, of cells."""

    def values(self, path: Any) -> NDArray:
        return cell_values(path.table[path.row][path.column], str(path), self.max_pixels)


@dataclass
class InTable(OnDisk):
    """A split in a table: as `OnDisk`, with cells in place of paths, which name no files of their own."""

    def paths(self) -> list[str]:
        return []

    def files(self) -> list[str]:
        cells: list[Any] = [cell for cell, _ in self.samples[:1]]
        return sorted({file["filename"] for cell in cells for file in cell.table.cache_files})


def cell_values(cell: Any, name: str, max_pixels: int) -> NDArray:
    """The values (H, W, C) of an image that is not decoded: its bytes, or the path of its file. Raises DataError."""
    content = (cell or {}).get("bytes")
    if content is None:
        try:
            content = Path((cell or {})["path"]).read_bytes()
        except (KeyError, TypeError, OSError) as error:
            raise DataError(f"{name} has no image") from error
    return decode_bytes(content, name, max_pixels)


def hf(
    name: str | None = None,
    subset: str | None = None,
    image_size: int | Sequence[int] | None = None,
    *,
    revision: str | None = None,
    download: bool = False,
    image: str | None = None,
    label: str | None = None,
    streaming: bool = False,
    samples: int | None = None,
    val_fraction: float | None = 0.1,
    test_fraction: float = 0.1,
    channels: int | Sequence[int] | Literal["auto"] = "auto",
    range: Sequence[float] | Literal["auto"] = "auto",
    resize: Literal["crop", "pad", "stretch"] = "crop",
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    cache_dir: str | None = None,
    **batching: Any,
) -> Data:
    """A data set by its name on the Hub, or a local folder, with a column of images and one of labels.

    The columns are found by their kinds; where several fit, `image` and `label` name them. Splits have their usual
    names; missing ones are cut from train, of each class alike. Without `download` only what was fetched before is
    read. With `streaming` nothing is kept on disk: images come to size as they arrive and are held in memory. `samples`
    takes the first of each split alone. Channels, range and size are decided by 1,000 images. Raises DataError, also
    where the Hub is not reached, and EnvError without the package datasets.
    """
    tables = fetched(name, subset, revision, streaming, download)
    image, label, class_names = columns(name, tables, image, label)
    count = num_workers(workers)
    if streaming:
        if resize == "pad":
            raise DataError("data.streaming=true holds images in memory, where padding would count; data.resize=crop")
        read = {split: _streamed(table, image, label, samples) for split, table in tables.items()}
    else:
        read = {split: _rows(split, table, image, label, samples) for split, table in tables.items()}
    class_names, numbers = _numbered(
        name, {split: [raw for _, raw in part] for split, part in read.items()}, class_names
    )
    every = {
        split: [(cell, k) for (cell, _), k in zip(part, numbers[split], strict=True)] for split, part in read.items()
    }
    divided, note = _divided(name, every, shares(val_fraction, test_fraction))
    notes = [note, "streamed and held in memory"] if streaming else [note]
    found = _survey(divided, max_pixels, count, cache_dir)
    size = chosen_size(image_size, found.common_size, SIDE, notes)
    reader = HubReader(**vars(found.reader(channels, range, max_pixels)))
    notes += reader_notes(reader)
    common = InTable(
        [], size, resize, reader, TargetSpec("labels", len(class_names)), workers=count, cache_dir=cache_dir
    )
    sources = shared(divided, lambda part: _source(part, common, streaming))
    data_set = DataSet(
        str(name).rstrip("/").rpartition("/")[2], "labels", sources, class_names,
        reader.num_channels, size, resize=resize, reading=reader.reading(), notes=notes,
    )  # fmt: skip
    return Data(data_set, **batching)


def fetched(
    name: str | None, subset: str | None, revision: str | None, streaming: bool, download: bool
) -> dict[str, Any]:
    """The tables of a data set by split; without `download` only of what was fetched before, or of a local folder.

    Raises DataError and EnvError.
    """
    if name is None:
        raise DataError("data.name is not set; data.name=cifar10, as on the Hugging Face Hub, or a local folder")
    try:
        import datasets
    except ImportError as error:
        raise EnvError("data=hf needs the package datasets: pip install 'cnn-train[hf]'") from error
    if streaming and not download and not Path(name).exists():
        raise DataError(f"data.name={name} is streamed, which a saved config may not ask for: type data.download=true")
    datasets.disable_progress_bars()
    kept = datasets.DownloadConfig(local_files_only=not download)
    try:
        found = datasets.load_dataset(name, subset, revision=revision, streaming=streaming, download_config=kept)
    except Exception as error:  # of some ten kinds: no network, no such name, no such subset, no access, damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        offline = isinstance(error, OSError) and "reach" in reason
        advice = "; without a network only what was fetched before is read" if offline else ""
        advice = advice if download else "; data.download=true fetches it over the network"
        raise DataError(f"cannot get data.name={name}: {reason}{advice}") from error
    tables: dict[str, Any] = {}
    for split, names in NAMES.items():
        fitting = [key for key in found if str(key).lower() in names]
        if fitting:
            tables[split] = found[fitting[0]]
    if "train" not in tables:
        raise DataError(f"{name} has no split train, only {', '.join(map(str, found))}")
    return tables


def columns(
    name: str | None, tables: Mapping[str, Any], image: str | None, label: str | None
) -> tuple[str, str, list[str] | None]:
    """The columns of images and labels, and the names of the classes, if the set has them. Raises DataError."""
    import datasets

    features = tables["train"].features or {}
    have = ", ".join(features)
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    image = image or (images[0] if len(images) == 1 else None)
    if image is None or image not in images:
        raise DataError(f"{name} has the columns {have}, {len(images)} of them images; data.image names the one to use")
    classes = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = [key for key in USUAL_LABELS if key in features]
    label = label or (classes[0] if len(classes) == 1 else usual[0] if usual and not classes else None)
    if label is None or label not in features:
        among = f": {', '.join(classes)} are of labels" if classes else ""
        raise DataError(f"{name} has the columns {have}{among}; data.label names the one to use")
    feature = features[label]
    kind = str(getattr(feature, "dtype", ""))
    if not isinstance(feature, datasets.ClassLabel) and not kind.startswith(("int", "uint", "string", "large_string")):
        raise DataError(f"{name}: the column {label} holds {kind or type(feature).__name__}, not one label an image")
    return image, label, list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _rows(split: str, table: Any, image: str, label: str, samples: int | None) -> list[tuple[Any, Any]]:
    import datasets

    if samples is not None:
        table = table.select(range(min(samples, len(table))))
    labels = table.with_format(None)[label]
    table = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return [(Cell(table, split, image, row), raw) for row, raw in enumerate(labels)]


def _streamed(table: Any, image: str, label: str, samples: int | None) -> list[tuple[Any, Any]]:
    """Images as they are stored, with their labels."""
    import datasets

    table = table.cast_column(image, datasets.Image(decode=False))
    table = table if samples is None else table.take(samples)
    try:
        return [(row[image], row[label]) for row in table]
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"the stream broke off: {' '.join(str(error).split())[:200]}; try again") from error


def _numbered(
    name: str | None, raw: Mapping[str, Sequence[Any]], class_names: list[str] | None
) -> tuple[list[str], dict[str, list[int]]]:
    """The names of the classes, and the class numbers of each split. Raises DataError."""
    every = [value for part in raw.values() for value in part]
    if any(value is None or value == -1 for value in every):
        where = next(split for split, part in raw.items() if any(value in (None, -1) for value in part))
        raise DataError(f"{name}: rows of {where} have no label; its labels may not be public")
    words = class_names is None and any(isinstance(value, str) for value in every)
    names = class_names or sorted({str(value) for value in every} if words else [])
    names = names or [str(number) for number in range(max(every, default=0) + 1)]
    if len(names) < 2:
        raise DataError(f"{name} has one class, {', '.join(names)}; two are needed")
    place = {value: k for k, value in enumerate(names)}
    return names, {split: [place[v] if isinstance(v, str) else int(v) for v in part] for split, part in raw.items()}


def _divided(
    name: str | None, given: dict[str, list[tuple[Any, int]]], fractions: Mapping[str, float]
) -> tuple[dict[str, list[tuple[Any, int]]], str]:
    if not fractions:
        return undivided(given), UNDIVIDED
    splits, missing, left = dict(given), missing_splits(given), 1.0
    check_fractions({split: fractions[split] for split in missing})
    for split in missing:
        train, parts = splits["train"], max(round(left / fractions[split]), 2)
        if len(train) < parts:
            raise DataError(f"{name} has {len(train)} training images, too few to cut {split} from them")
        rest, part = group_parts([k for _, k in train], range(len(train)), parts)[0]
        splits["train"], splits[split] = [train[i] for i in rest], [train[i] for i in part]
        left -= fractions[split]
    splits.setdefault("test", splits["val"])
    return splits, f"{' and '.join(missing)} cut from train" if missing else "splits as given"


def _survey(
    splits: Mapping[str, list[tuple[Any, int]]], max_pixels: int, workers: int, cache_dir: str | None
) -> Survey:
    """What at most 1,000 images of train hold; DataError for those that cannot be read."""
    cells = [cell for cell, _ in splits["train"]]
    chosen = list(enumerate(cells))[:: max(len(cells) // LOOKED_AT, 1)]

    def look(numbered: tuple[int, Any]) -> tuple[Header, tuple[float, float] | None]:
        place, cell = numbered
        stored = cell.table[cell.row][cell.column] if isinstance(cell, Cell) else cell
        values = cell_values(stored, f"train[{place}]", max_pixels)
        height, width, channels = values.shape
        return Header(height, width, channels, values.dtype.name), extremes_of(f"train[{place}]", values)

    found = Survey()
    for (place, _), looked in look_over(look, chosen, workers, "check images"):
        found.add(f"train[{place}]", looked)
    settle(found.faults, len(chosen), "fail", cache_dir)
    return found


def _source(part: list[tuple[Any, int]], common: InTable, streaming: bool) -> Source:
    """A split like `common`, in memory where the table is streamed."""
    if streaming:
        return _held(part, common.reader, common.size, common.how)
    return replace(common, samples=part)


def _held(part: Sequence[tuple[Any, int]], reader: Reader, size: tuple[int, int], resize: str) -> InMemory:
    """A split decoded and brought to size at once."""
    images: list[Tensor] = []
    for place, (cell, _) in enumerate(part):
        image = reader.image(cell_values(cell, f"row {place}", reader.max_pixels), f"row {place}")
        images.append(bring_to_size((image.size(1), image.size(2)), as_size(size, SIDE), resize).images(image))
    return InMemory(torch.stack(images), torch.tensor([k for _, k in part]))
