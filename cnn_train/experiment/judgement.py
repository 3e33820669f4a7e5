"""What `cnn-train eval` leaves beyond metrics: intervals, probabilities, pictures, corrupted images, one page."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor

from cnn_train import atomic
from cnn_train.data.corruptions import CORRUPTIONS, STRENGTHS, corrupted
from cnn_train.data.data import Batch
from cnn_train.experiment.build import Experiment
from cnn_train.experiment.results import class_table, write_csv
from cnn_train.inspection import html
from cnn_train.tasks.calibration import reliability_picture
from cnn_train.tasks.intervals import wilson
from cnn_train.tasks.pictures import Picture, save_picture
from cnn_train.tasks.probabilities import CLASSES, Kept, macro_auroc, resampled, weighted_metrics
from cnn_train.training.batches import EvalBatches
from cnn_train.training.callbacks import display
from cnn_train.training.samples import names_of, sample_panel


@dataclass
class Judgement:
    """What was found: metrics by name, their 95 % intervals, tables (head, rows) and pictures by title."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    tables: dict[str, list[list[object]]] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)


class Keeper:
    """Keeps the scores that a classifier's task counts; of other tasks, and of several processes, nothing."""

    def __init__(self, experiment: Experiment):
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        task = experiment.loop.task
        count = task.update

        def update(scores: Tensor, batch: Batch) -> Tensor:
            self.parts.append((batch.indices.cpu(), batch.targets.cpu(), scores.float().cpu()))
            return count(scores, batch)

        if experiment.loop.data.targets == "labels" and experiment.machine.num_processes == 1:
            task.update = update  # type: ignore[method-assign]

    def take(self) -> Kept | None:
        """What was kept since the last call."""
        parts, self.parts = self.parts, []
        return Kept(*(torch.cat(part) for part in zip(*parts, strict=True))) if parts else None


def judge(
    found: Judgement, experiment: Experiment, split: str, kept: Kept | None, temperature: float, results: Path
) -> None:
    """Add what a classifier's scores, divided by the temperature, say of a split; files are written to `results`."""
    if kept is None:
        return
    kept = kept._replace(scores=kept.scores / temperature)
    loop = experiment.loop
    names = names_of(loop.data, split, kept.indices.tolist())
    groups = [loop.data.groups.get(str(name), name) for name in names] if loop.data.groups else None
    every = resampled(kept, groups)
    if groups is None:
        hits = int((kept.scores.argmax(1) == kept.labels).sum())
        every["acc"] = wilson(hits, len(kept.labels))
    once = weighted_metrics(kept, torch.ones(1, len(kept.labels), dtype=torch.float64))
    probabilities = kept.scores.double().softmax(1)
    told = ["ece", "brier"] if temperature != 1 else []
    if probabilities.size(1) <= CLASSES:
        once["auroc"] = macro_auroc(probabilities, kept.labels)
        told.append("auroc")
    found.metrics |= {f"{split}/{name}": float(once[name]) for name in told}
    found.intervals = {f"{split}/{name}": pair for name, pair in every.items() if f"{split}/{name}" in found.metrics}
    atomic.write_json(results / "intervals.json", {name: list(pair) for name, pair in found.intervals.items()})
    write_probabilities(loop.data.class_names, names, kept, results / "probabilities.csv")
    add_pictures(found, experiment, split, kept, names)


def add_pictures(found: Judgement, experiment: Experiment, split: str, kept: Kept, names: Sequence[Any]) -> None:
    """Add the reliability diagram, and the wrong answers that were given with the highest confidence."""
    loop = experiment.loop
    confidence, predicted = kept.scores.softmax(1).max(1)
    correct = predicted == kept.labels
    title = f"{experiment.cfg.name}, {split}"
    found.pictures["How confident, how correct"] = reliability_picture(confidence, correct, title)
    wrong = [i for i in confidence.argsort(descending=True).tolist() if not correct[i]]
    if wrong:
        count = max(experiment.cfg.callbacks.samples, 1)
        chosen = [int(kept.indices[i]) for i in wrong[:count]]
        found.pictures["Most confident of the wrong answers"] = sample_panel(loop, split, count, chosen)
        rows: list[list[object]] = [["image", "label", "answer", "confidence"]]
        for i in wrong[:20]:
            label, answer = (loop.data.class_names[int(of[i])] for of in (kept.labels, predicted))
            rows.append([names[i], label, answer, f"{float(confidence[i]):.4f}"])
        found.tables["Most confident of the wrong answers"] = rows


def write_probabilities(classes: Sequence[str], names: Sequence[Any], kept: Kept, path: Path) -> None:
    """Write each image's label, predicted class and probabilities; of more than 20 classes only those of these two."""
    all_of_them = len(classes) <= CLASSES
    head: list[object] = ["sample", "label", "prediction", "confidence", "of_label", *(classes if all_of_them else [])]
    rows: list[list[object]] = [head]
    for sample, label, values in zip(names, kept.labels.tolist(), kept.scores.softmax(1).tolist(), strict=True):
        best = max(range(len(values)), key=values.__getitem__)
        numbers = [values[best], values[label], *(values if all_of_them else [])]
        rows.append([sample, classes[label], classes[best], *(f"{number:.6f}" for number in numbers)])
    write_csv(path, rows)


def robustness(experiment: Experiment, split: str) -> list[list[object]]:
    """The first metric of a split under each corruption: a head, and a row for each of the kinds."""
    loop, trainer = experiment.loop, experiment.trainer
    metric = loop.task.shown_metrics[0]
    rows: list[list[object]] = [["corruption", *range(1, STRENGTHS + 1), "mean"]]
    measured = loop.measured
    where = {"device": loop.device, "rank": experiment.machine.rank, "world_size": trainer.world_size}
    for kind in CORRUPTIONS:
        values = []
        for strength in range(1, STRENGTHS + 1):
            if experiment.machine.rank == 0 and experiment.cfg.trainer.progress != "none":
                print(f"robustness   {kind} {strength}/{STRENGTHS}", file=sys.stderr)
            with corrupted(loop.data, kind, strength):
                batches = EvalBatches(loop.data, split, loop.recipe.limit_batches, **where)
                trainer.validate(loop, dataloaders=batches, verbose=False)
            values.append(loop.metrics[f"val/{metric}"])
        rows.append([kind, *(f"{value:.4f}" for value in values), f"{sum(values) / len(values):.4f}"])
    loop.measured = measured
    return rows


def write_page(
    found: Judgement, experiment: Experiment, split: str, results: Path, made: Mapping[str, Picture]
) -> Path:
    """Write all of it as one HTML file that opens offline; the pictures also as PNG."""
    for title, picture in found.pictures.items():
        save_picture(picture, results / f"{title.lower().replace(',', '').replace(' ', '_')}.png")
    head = ["metric", "value", "95 %"] if found.intervals else ["metric", "value"]
    rows = [
        [name, display.number(value), *([between(found.intervals.get(name))] if found.intervals else [])]
        for name, value in found.metrics.items()
    ]
    again = f"cnn-train eval {quote(str(experiment.folder))} split={split}"
    count = experiment.loop.data.size(split)
    parts = [
        f"<h1>{escape(str(experiment.cfg.name))}: {escape(split)}, {count:,} images</h1>",
        f"<p><code>{escape(again)}</code></p>{html.table(head, rows)}",
    ]
    for title in dict.fromkeys([*found.tables, *found.pictures]):
        parts.append(f"<h2>{escape(title)}</h2>")
        if title in found.tables:
            parts.append(html.table(found.tables[title][0], found.tables[title][1:]))
        if title in found.pictures:
            parts.append(html.image(found.pictures[title], title))
    for name, picture in made.items():
        parts.append(f"<h2>{escape(name)}</h2>{html.image(picture, name)}")
    classes = class_table(experiment.loop)
    parts.append(f"<h2>Classes</h2>{html.table(classes[0], classes[1:])}")
    page = results / "index.html"
    atomic.write_text(page, html.document(f"{experiment.cfg.name}: {split}", "".join(parts)))
    return page


def between(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.4f} to {pair[1]:.4f}"
