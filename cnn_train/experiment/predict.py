"""Predictions of a trained network for new images: read ahead, predicted in batches, written as they come."""

import csv
import glob
import io
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cnn_train.config.load import load as load_config
from cnn_train.errors import ConfigError, DataError
from cnn_train.runs.find import find

if TYPE_CHECKING:  # torch comes after the config is checked
    from torch import Tensor

    from cnn_train.experiment.trained import Trained

COLUMNS = ("path", "image", "file", "filename", "image_path")  # of a CSV file of paths, unless one is named
FORMATS = ("csv", "jsonl")
OF_BOXES = ("csv", "coco", "voc", "yolo")  # for detection


@dataclass(frozen=True)
class Item:
    """An image to predict; its results are named after `name`, a path without suffix."""

    path: Path
    name: Path


def predict(
    run: str | Path,
    source: str | Path | Sequence[str | Path],
    output: Path | None = None,
    overrides: Sequence[str] = (),
    top: int = 5,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    form: str = "csv",
    column: str | None = None,
    strict: bool = False,
    config_dir: str | None = None,
    trust: Sequence[str] = (),
    score: float | None = None,
) -> Path:
    """Predict images with a run's best weights, or with an exported file; the folder of the results.

    `source` is an image, a folder, a pattern, a CSV file with a `column` of paths, "-" for paths on stdin, or several
    of these. Results come in the order of the input. A file that cannot be read gets a row with an error and, once all
    others are done, raises DataError; with `strict` at once.
    """
    if form not in {*FORMATS, *OF_BOXES}:
        raise ConfigError(f"format must be {', '.join(FORMATS)}, or for detection {', '.join(OF_BOXES)}, got {form!r}")
    exported = Path(run).suffix in (".safetensors", ".onnx") and Path(run).is_file()
    folder = Path(run).parent if exported else find(run).folder
    if not exported:
        load_config(folder, overrides, config_dir=config_dir, trust=trust)  # before torch is imported
    sources = [source] if isinstance(source, str | Path) else list(source)
    items = chosen(sources, column)
    results = output or folder / "predictions"
    from cnn_train.experiment.trained import load

    model = load(run, overrides, config_dir=config_dir, trust=trust)
    allowed = OF_BOXES if model.task == "detection" else FORMATS
    if form not in allowed:
        raise ConfigError(f"format={form} is not for this run's task; choose {', '.join(allowed)}")
    if model.task == "detection":
        from cnn_train.experiment.detect import detect

        finder = model.finder(score)
        detect(finder, ((item.path, item.name) for item in items), results, form, strict)
        return results
    results.mkdir(parents=True, exist_ok=True)
    describe = Segmentation(model, results) if model.task == "segmentation" else Classification(model, top)
    with open(results / f"predictions.{form}", "w", encoding="utf-8", newline="") as file:
        count, failed, last = write(file, form, describe, items, batch_size, workers, strict)
    if count == 1 and not failed:
        print(describe.spoken(last))
    if failed:
        raise DataError(
            f"{failed[0]}" + (f" (and {len(failed) - 1} more like it)" if len(failed) > 1 else "")
            + f"; {count - len(failed)} of {count} images are predicted in {results}"
        )  # fmt: skip
    return results


# -- What to predict -------------------------------------------------------------------------------------


def chosen(sources: Sequence[str | Path], column: str | None = None) -> Iterator[Item]:
    """The images that words of a command line name. Raises DataError for a word that names none."""
    parts = [_from_stdin() if str(source) == "-" else iter(_of(source, column)) for source in sources]
    return _named_once(item for part in parts for item in part)


def _of(source: str | Path, column: str | None) -> list[Item]:
    from cnn_train.data.files import images_in
    from cnn_train.data.splits import what_is_in

    path = Path(source)
    if path.suffix.lower() in (".csv", ".tsv") and path.is_file():
        return [Item(image, Path(image.stem)) for image in _in_table(path, column)]
    if path.is_file():
        return [Item(path, Path(path.stem))]
    if path.is_dir():
        found = images_in(path)
        if not found:
            raise DataError(f"{path} holds no images, but {what_is_in(path)}")
        names = [image.relative_to(path) for image in found]
        unique = len({name.with_suffix("") for name in names}) == len(names)
        return [Item(i, n.with_suffix("") if unique else n) for i, n in zip(found, names, strict=True)]
    matches = sorted(glob.glob(str(source), recursive=True)) if glob.has_magic(str(source)) else []
    if not matches:
        what = "no file matches" if glob.has_magic(str(source)) else "no image or folder"
        raise DataError(f"{what} {source}")
    return [Item(Path(match), Path(Path(match).stem)) for match in matches if os.path.isfile(match)]


def _from_stdin() -> Iterator[Item]:
    for line in sys.stdin:
        if line.strip():
            yield Item(Path(line.strip()), Path(Path(line.strip()).stem))


def _in_table(path: Path, column: str | None) -> list[Path]:
    """The column of paths, which may be relative to the table's folder."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        names = reader.fieldnames or []
        name = column or next((name for name in COLUMNS if name in names), None)
        if name not in names:
            raise DataError(f"{path} has no column {name or ' or '.join(COLUMNS)}, but {', '.join(names)}; column=NAME")
        given = [Path(row[name]) for row in reader if row[name]]
    return [image if image.is_absolute() or image.exists() else path.parent / image for image in given]


def _named_once(items: Iterable[Item]) -> Iterator[Item]:
    """The items with a number after names that came before."""
    seen: dict[str, int] = {}
    for item in items:
        name = item.name.as_posix()
        seen[name] = seen.get(name, 0) + 1
        yield item if seen[name] == 1 else Item(item.path, item.name.with_name(f"{item.name.name}_{seen[name]}"))


# -- Predicting ------------------------------------------------------------------------------------------


def write(
    file: TextIO, form: str, describe: "Classification | Segmentation", items: Iterator[Item], batch_size: int,
    workers: int | None, strict: bool,
) -> tuple[int, list[DataError], dict[str, Any]]:  # fmt: skip
    """Write a row for each image, a batch at a time; how many, the errors, and the last row."""
    from rich.console import Console
    from rich.progress import Progress

    from cnn_train.data.disk import num_workers

    writer = csv.DictWriter(file, describe.columns, lineterminator="\n") if form == "csv" else None
    if writer is not None:
        writer.writeheader()
    count, failed, row = 0, [], {}
    console = Console(stderr=True)
    with Progress(console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("predict", total=None)
        for batch in batches(items, describe.read, batch_size, num_workers(workers)):
            errors = [found for _, found in batch if isinstance(found, DataError)]
            if errors and strict:
                raise errors[0]
            for row in describe.rows(batch):
                if writer is not None:
                    writer.writerow({column: _cell(row.get(column, "")) for column in describe.columns})
                else:
                    file.write(json.dumps(row) + "\n")
            file.flush()
            count += len(batch)
            failed += errors
            bar.update(task, advance=len(batch))
    return count, failed, row


def _cell(value: Any) -> Any:
    return f"{value:.6f}" if isinstance(value, float) else value


def batches(
    items: Iterator[Item], read: Any, batch_size: int, workers: int
) -> Iterator[list[tuple[Item, "Tensor | DataError"]]]:
    """Items and what `read` gives of each, or its DataError, in order; threads read two batches ahead at most."""

    def safe(item: Item) -> Any:
        try:
            return read(item.path)
        except DataError as error:
            return error

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        waiting: deque[tuple[Item, Future]] = deque()
        batch: list[tuple[Item, Any]] = []
        for item in items:
            waiting.append((item, pool.submit(safe, item)))
            if len(waiting) >= 2 * batch_size:
                first, future = waiting.popleft()
                batch.append((first, future.result()))
            if len(batch) == batch_size:
                yield batch
                batch = []
        rest = ((item, future.result()) for item, future in waiting)
        while part := [*batch, *islice(rest, batch_size - len(batch))]:
            yield part
            batch = []


class Classification:
    """Rows with the most probable classes of each image and, where it may show several, those that it shows."""

    def __init__(self, model: "Trained", top: int):
        self.model = model
        self.top = min(top, len(model.class_names))
        pairs = [(f"class_{rank}", f"probability_{rank}") for rank in range(1, self.top + 1)]
        shown = ["classes"] if model.several_labels else []
        self.columns = ["image", *shown, *(name for pair in pairs for name in pair), "error"]

    def read(self, path: Path) -> "Tensor":
        """Decode an image, at the network's size."""
        return self.model.sized(self.model.read(path))

    def rows(self, batch: list[tuple[Item, "Tensor | DataError"]]) -> Iterator[dict[str, Any]]:
        import torch

        images = [found for _, found in batch if not isinstance(found, DataError)]
        probabilities = self.model.probabilities(torch.stack(images)) if images else torch.zeros(0, self.top)
        best = probabilities.topk(self.top)
        answers = zip(probabilities, best.values.tolist(), best.indices.tolist(), strict=True)
        names = self.model.class_names
        for item, found in batch:
            row: dict[str, Any] = {"image": item.path.as_posix()}
            if isinstance(found, DataError):
                yield row | {"error": str(found)}
                continue
            all_of_them, values, numbers = next(answers)
            if self.model.several_labels:
                row["classes"] = ";".join(self.model.shown(all_of_them))
            for rank, (value, number) in enumerate(zip(values, numbers, strict=True), start=1):
                row[f"class_{rank}"], row[f"probability_{rank}"] = names[number], value
            yield row

    def spoken(self, row: dict[str, Any]) -> str:
        """A row for the terminal."""
        ranks = range(1, self.top + 1)
        return "\n".join(f"{row[f'probability_{rank}']:>11.4f}  {row[f'class_{rank}']}" for rank in ranks)


class Segmentation:
    """Masks and overlays as PNG files, and rows with each class's share of the image and its connected regions."""

    def __init__(self, model: "Trained", results: Path):
        from cnn_train.atomic import write_text
        from cnn_train.tasks.pictures import palette

        self.model = model
        self.results = results
        names = model.class_names
        self.columns = ["image", "mask", *(f"share {n}" for n in names), *(f"regions {n}" for n in names), "error"]
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["class", "name", "red", "green", "blue"])
        colours = palette(len(names)).tolist()
        writer.writerows([i, name, *colour] for i, (name, colour) in enumerate(zip(names, colours, strict=True)))
        write_text(results / "classes.csv", text.getvalue())

    def read(self, path: Path) -> "Tensor":
        """Decode an image, at its own size."""
        return self.model.read(path)

    def rows(self, batch: list[tuple[Item, "Tensor | DataError"]]) -> Iterator[dict[str, Any]]:
        from scipy.ndimage import label

        from cnn_train.data.images import visible
        from cnn_train.experiment.trained import Segmented
        from cnn_train.tasks.pictures import overlay, save_labels, save_picture

        names = self.model.class_names
        for item, found in batch:
            if isinstance(found, DataError):
                yield {"image": item.path.as_posix(), "error": str(found)}
                continue
            labels = self.model.segment(found)
            file = item.name.as_posix() + ".png"
            save_labels(labels, self.results / "masks" / file)
            save_picture(overlay(visible(found), labels, names), self.results / "overlays" / file)
            shares = Segmented(labels, names).shares
            regions = {name: label((labels == k).numpy())[1] if shares[name] else 0 for k, name in enumerate(names)}
            yield {
                "image": item.path.as_posix(),
                "mask": f"masks/{file}",
                **{f"share {name}": share for name, share in shares.items()},
                **{f"regions {name}": count for name, count in regions.items()},
            }

    def spoken(self, row: dict[str, Any]) -> str:
        """A row for the terminal."""
        shares = {name: row[f"share {name}"] for name in self.model.class_names}
        ranked = sorted(shares.items(), key=lambda pair: -pair[1])
        return "\n".join(f"{share:>11.4f}  {name}" for name, share in ranked if share)
