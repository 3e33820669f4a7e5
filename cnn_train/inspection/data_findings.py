"""What a check of a data set finds: tables, what is wrong, remarks, and the images as networks get them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cnn_train.data import coco_masks, csv_file, folder, public_masks, public_photos, segmentation_folder
from cnn_train.data.data import Data
from cnn_train.data.decode import MAX_PIXELS
from cnn_train.data.examination import Duplicates, Examination, duplicates, examine, homes
from cnn_train.data.images import visible
from cnn_train.data.listing import Listing
from cnn_train.data.masks import MaskFindings
from cnn_train.data.segmentation_folder import looked_at_masks
from cnn_train.errors import DataError
from cnn_train.tasks.class_weights import class_weights_from_counts
from cnn_train.tasks.pictures import BLACK, Picture, captioned, colour_labels, to_rgb

SHOWN = 8  # images of each split
COLUMNS = 4  # so that captions can be read on the screen of a phone
IMBALANCE = 10  # how many times the largest class may be the smallest
LARGER = 16  # how many times the usual number of pixels an image may have
# What lists the files of a builder's data, and the settings it takes.
LISTS: dict[str, Any] = {
    "cnn_train.data.folder.folder": folder.list_folder,
    "cnn_train.data.csv_file.csv_file": csv_file.list_table,
    "cnn_train.data.segmentation_folder.segmentation_folder": segmentation_folder.list_pairs,
    "cnn_train.data.coco_masks.coco_masks": coco_masks.list_coco,
    "cnn_train.data.public_photos.photographs": public_photos.list_photographs,
    "cnn_train.data.public_masks.scenes": public_masks.list_scenes,
}


@dataclass(frozen=True)
class Finding:
    """One line, and the files or values that it is about."""

    level: Literal["wrong", "remark"]
    topic: str
    text: str
    details: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass
class Report:
    """Everything that a check shows."""

    name: str
    tables: list[Table] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    sheets: dict[str, Picture] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)  # files that cannot be used, with the reason

    def wrong(self, topic: str, text: str, details: Sequence[str] = ()) -> None:
        self.findings.append(Finding("wrong", topic, text, details))

    def remark(self, topic: str, text: str, details: Sequence[str] = ()) -> None:
        self.findings.append(Finding("remark", topic, text, details))

    @property
    def is_wrong(self) -> bool:
        return any(finding.level == "wrong" for finding in self.findings)


def list_files(target: str, settings: Mapping[str, Any]) -> Listing | None:
    """The files of a data set by its builder and settings; None for data that is not in a user's files."""
    if target not in LISTS:
        return None
    lists = LISTS[target]
    code = lists.__code__
    taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return lists(**{name: settings.get(name) for name in taken})


def check_files(report: Report, listing: Listing, settings: Mapping[str, Any], workers: int, limit: float) -> None:
    """Look at every file, and say what is wrong with files, labels and masks."""
    most, cache_dir = settings.get("max_pixels", MAX_PIXELS), settings.get("cache_dir")
    found = examine(listing.images(), most, workers, cache_dir)
    unfit = found.survey.unfit(settings.get("channels", "auto"), settings.get("range", "auto"))
    report.bad = {**found.survey.faults, **unfit, **listing.faults}
    if report.bad:
        report.wrong("files", f"{len(report.bad)} file(s) cannot be used", list(report.bad.values()))
    describe_files(report, found)
    for note in listing.notes:
        report.remark("files", note)
    if listing.masks is None:
        describe_labels(report, listing)
    else:
        masks = looked_at_masks(listing, most, workers, report.bad if report.bad else {}, cache_dir)
        describe_masks(report, listing, masks)
    describe_duplicates(report, listing, duplicates(found, most, workers, limit))


def describe_files(report: Report, found: Examination) -> None:
    """Kinds and sizes of the images, files that are not what their name says, and those far larger than the rest."""
    rows = []
    sizes: Counter[tuple[int, int]] = Counter()
    for (channels, dtype), kind in sorted(found.survey.kinds.items()):
        usual, number = kind.sizes.most_common(1)[0]
        more = "" if len(kind.sizes) == 1 else f" ({number:,}), and {len(kind.sizes) - 1} other sizes"
        values = "0 to 255" if dtype == "uint8" else f"{kind.low:g} to {kind.high:g}"
        rows.append([f"{len(kind.files):,}", channels, dtype, values, f"{usual[0]}x{usual[1]}{more}"])
        sizes.update(kind.sizes)
    report.tables.append(Table("files", ["images", "channels", "type", "values", "height x width"], rows))
    for (suffix, kind_name), paths in found.misnamed.items():
        report.remark("files", f"{len(paths)} file(s) named {suffix} are {kind_name}; they are read as that", paths)
    if sizes:
        pixels = sorted(height * width for (height, width), n in sizes.items() for _ in range(n))
        most, path = max(kind.largest for kind in found.survey.kinds.values())
        if most > LARGER * pixels[len(pixels) // 2]:
            report.remark("files", f"{path} has {most:,} pixels, {most / pixels[len(pixels) // 2]:.0f} times the usual")


def describe_labels(report: Report, listing: Listing) -> None:
    """Images of each class and split, what is missing, and the weights that class_weights=auto would give."""
    names = listing.class_names
    counts = {split: [0] * len(names) for split in ("train", "val", "test")}
    for split, samples in listing.splits.items():
        for path, target in samples:
            if path not in report.bad:
                numbers = [target] if isinstance(target, int) else [k for k, shown in enumerate(target) if shown]
                for number in numbers:
                    counts[split][number] += 1
    train = counts["train"]
    weights = class_weights_from_counts(train).tolist() if any(train) else [1.0] * len(names)
    rows = [[name, *(f"{counts[split][k]:,}" for split in counts), f"{weights[k]:.3g}"] for k, name in enumerate(names)]
    report.tables.append(Table("labels", ["class", *counts, "weight by auto"], rows))
    for split, numbers in counts.items():
        absent = [name for name, number in zip(names, numbers, strict=True) if not number]
        if absent and split == "train":
            report.wrong("labels", f"no training image of {len(absent)} class(es)", absent)
        elif absent:
            report.remark("labels", f"the {split} split has no image of {len(absent)} class(es)", absent)
    present = [number for number in train if number]
    if present and max(present) > IMBALANCE * min(present):
        report.remark(
            "labels",
            f"the largest class has {max(present) / min(present):.0f} times the images of the smallest; "
            "loss.class_weights=auto or data.sampler=balanced",
        )


def describe_masks(report: Report, listing: Listing, found: MaskFindings) -> None:
    """What the masks hold, the masks that cannot be used, and classes that are nowhere."""
    assert listing.masks is not None
    reader = listing.masks
    bad = found.told(reader)
    report.bad |= bad
    if bad:
        report.wrong("masks", f"{len(bad)} mask(s) cannot be used", list(bad.values()))
    total = {split: sum(pixels) + found.ignored[split] for split, pixels in found.pixels.items()}
    splits = [split for split in ("train", "val", "test") if total.get(split)]
    share = {split: [n / total[split] for n in [*found.pixels[split], found.ignored[split]]] for split in splits}
    rows = [[name, *(f"{share[s][k]:.2%}" for s in splits)] for k, name in enumerate([*reader.classes, "(ignored)"])]
    report.tables.append(Table("pixels of the masks", ["class", *splits], rows))
    values = sorted(found.values.items(), key=lambda pair: -pair[1][0])[:20]

    def word(value: int) -> str:
        return f"{value >> 16},{value >> 8 & 255},{value & 255}" if reader.palette is not None else str(value)

    def meaning(value: int) -> str:
        number = reader.table.get(value)
        return "no class" if number is None else "ignored" if number >= len(reader.classes) else reader.classes[number]

    held = [[word(value), meaning(value), f"{pixels:,}", mask] for value, (pixels, mask) in values]
    report.tables.append(Table("values of the masks", ["value", "class", "pixels", "first in"], held))
    never = [name for k, name in enumerate(reader.classes) if not any(p[k] for p in found.pixels.values())]
    if never:
        report.remark("masks", f"{len(never)} class(es) are in no mask", never)


def describe_duplicates(report: Report, listing: Listing, found: Duplicates) -> None:
    """The same image in two splits or under two labels is wrong; nearly the same is a remark."""
    of = homes(listing)
    wrong: dict[str, list[str]] = {"in two splits": [], "under two labels": [], "twice": []}

    def place(path: str) -> str:
        splits, labels = of[path]
        return f"{path} ({', '.join([*sorted(splits), *labels])})"

    def kind(paths: Sequence[str]) -> str:
        if len({of[path][1] for path in paths}) > 1:
            return "under two labels"
        # test is val where there is no test: then each image is in both.
        return "in two splits" if not set.intersection(*(of[path][0] for path in paths)) else "twice"

    for group in found.same:
        wrong[kind(group)].append(" = ".join(map(place, group)))
    for how, texts in wrong.items():
        if texts:
            say = report.remark if how == "twice" else report.wrong
            say("duplicates", f"{len(texts)} image(s) are there {how}, with the same bytes", texts)
    near: dict[str, list[str]] = {}
    for one, other, distance in sorted(found.near, key=lambda pair: pair[2]):
        near.setdefault(kind([one, other]), []).append(f"distance {distance:.3f}: {place(one)} ~ {place(other)}")
    for how, texts in near.items():
        report.remark("duplicates", f"{len(texts)} pair(s) of nearly the same image are there {how}", texts)


def describe_data(report: Report, data: Data) -> None:
    """How the data is normalized, and images of each split as the network gets them."""
    rows = [[k + 1, f"{mean:.4f}", f"{std:.4f}"] for k, (mean, std) in enumerate(zip(data.mean, data.std, strict=True))]
    size = "x".join(map(str, (data.in_channels, *data.image_size)))
    report.tables.append(Table(f"as the network gets it: {size}", ["channel", "mean", "deviation"], rows))
    if not any(table.title == "labels" for table in report.tables) and data.targets in ("labels", "multilabels"):
        counts = {split: data.class_counts(split).tolist() for split in data.splits}
        rows = [[name, *(f"{counts[split][k]:,}" for split in counts)] for k, name in enumerate(data.class_names)]
        report.tables.append(Table("labels", ["class", *counts], rows))
    for split in data.splits:
        report.sheets[split] = sheet(data, split)


@torch.no_grad()
def sheet(data: Data, split: str) -> Picture:
    """Eight images of a split, those of training augmented, with the label below or the mask over them."""
    cpu = torch.device("cpu")
    if split == "train":
        batch = next(data.train_batches(0, device=cpu))
        images, targets = data.denormalize(batch.images[:SHOWN]), batch.targets[:SHOWN]
    else:
        number = data.size(split)
        chosen = sorted({round(i * (number - 1) / max(SHOWN - 1, 1)) for i in range(SHOWN)})
        raw, targets = data.samples(split, chosen, device=cpu)
        images = data.denormalize(data.to_input(raw))
    tiles = to_rgb(visible(images))
    if data.targets == "maps":
        colours = colour_labels(targets, data.num_classes)
        tiles = np.concatenate([tiles, (tiles * 0.5 + colours * 0.5).astype(np.uint8)], 1)
    return captioned(tiles, [[(text, BLACK)] for text in captions(data, targets)], COLUMNS)


def captions(data: Data, targets: torch.Tensor) -> list[str]:
    """What each sample shows, in words."""
    names = data.class_names
    if data.targets == "labels" and targets.ndim == 1:
        return [names[label] for label in targets.tolist()]
    if data.targets in ("labels", "multilabels"):  # soft where images are mixed
        shares = [[(n, x) for n, x in zip(names, row, strict=True) if x] for row in targets.tolist()]
        return [", ".join(name if share == 1 else f"{name} {share:.2f}" for name, share in row) for row in shares]
    if data.targets == "maps":
        present = [sorted(set(labels.flatten().tolist())) for labels in targets]
        return [", ".join(names[k] for k in labels if 0 <= k < len(names)) for labels in present]
    return [f"{int((boxes[:, 4] >= 0).sum())} box(es)" for boxes in targets]


def checked(
    name: str, target: str, settings: Mapping[str, Any], build: Any, workers: int, limit: float
) -> tuple[Report, Listing | None]:
    """Check the data of a builder and its settings; `build` builds it, with bad files left out."""
    report = Report(name)
    listing = None
    try:
        listing = list_files(target, settings)
        if listing is not None:
            report.name = listing.name
            check_files(report, listing, settings, workers, limit)
        describe_data(report, build(listing is not None))
    except DataError as error:
        told = [text for finding in report.findings for text in finding.details]
        # A file that is listed as bad already, or more of them than may be left out, is nothing new.
        if not any(text in str(error) for text in told):
            report.wrong("data", str(error), getattr(error, "__notes__", ()))
    return report, listing


def default_page(name: str) -> Path:
    return Path("outputs") / "check" / f"{name}.html"
