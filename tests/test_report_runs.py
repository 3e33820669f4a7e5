"""Reading run folders. `write_run` and `write_grid` make such folders for the other tests of the report."""

import csv
import io
import itertools
import json
import math
import random
from pathlib import Path

import pytest
import yaml

from cnn_train.errors import ConfigError
from cnn_train.report import runs

STARTED = "2026-11-26 01:52:00 [4694] cnn-train {folder}\n"


def write_csv(path, rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())


def write_run(folder, settings=None, metrics=None, curve=(), log=None, **files):
    """A run folder as training leaves it: `settings` are words of its command line, a word without a dot is a choice."""
    settings = {"seed": 0, **(settings or {})}
    config = {"seed": 0, "monitor": "val/loss", "trainer": {"max_epochs": 3}, "sweep": {"metric": None, "mode": "auto"}}
    config["choices"] = {}
    for key, value in settings.items():
        node = config if "." in key or key in config else config["choices"]
        *path, leaf = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "command.txt").write_text(" ".join(["cnn-train", *(f"{k}={v}" for k, v in settings.items())]) + "\n")
    (folder / "environment.json").write_text(json.dumps({"python": "3.11.7", "git_commit": "6afe659"}))
    (folder / "log.txt").write_text(STARTED.format(folder=folder) if log is None else log)
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    if curve:
        write_csv(folder / "metrics.csv", curve)
    for name, content in files.items():
        if name == "predictions":
            write_csv(folder / "predictions.csv", content)
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def made_curve(epochs, final, rng):
    """Rows of metrics.csv that end near `final` accuracy."""
    rows = []
    for epoch in range(1, epochs + 1):
        acc = final - 0.5 * 0.6**epoch + rng.gauss(0, 0.003)
        row = {"epoch": epoch, "step": 17 * epoch, "lr": 0.1 / epoch, "val/loss": 1.2 - acc, "val/acc": acc}
        rows.append({**row, "train/loss": 1.1 - acc})
    return rows


NORMS, RATES, SEEDS = ("bn", "gn", "none"), (0.1, 0.01, 0.001), (0, 1, 2)


def write_grid(folder, norms=NORMS, rates=RATES, seeds=SEEDS, samples=200, epochs=12, files=True):
    """27 runs of norm x learning rate x seed, all done, with made-up but plausible results."""
    rng = random.Random(0)
    good = {"bn": 0.04, "gn": 0.02, "none": 0.0, 0.1: 0.0, 0.01: 0.03, 0.001: -0.02}
    for number, (norm, rate, seed) in enumerate(itertools.product(norms, rates, seeds)):
        acc = 0.9 + good[norm] + good[rate] + (0.02 if (norm, rate) == ("bn", 0.1) else 0) + rng.gauss(0, 0.006)
        right = [int(rng.random() < acc) for _ in range(samples)]
        acc = sum(right) / samples
        metrics = {"val/loss": 1.1 - acc + rng.gauss(0, 0.01), "val/acc": acc - 0.01, "test/acc": acc}
        metrics["test/loss"] = 1.15 - acc
        write_run(
            folder / f"{number:02}",
            {"norm": norm, "optimizer.lr": rate, "seed": seed},
            metrics,
            made_curve(epochs, acc, rng),
            **(
                {
                    "predictions": [
                        {"sample": i, "label": i % 10, "prediction": i % 10 if ok else 0, "correct": ok, "loss": 0.1}
                        for i, ok in enumerate(right)
                    ],
                    "cost": {
                        "seconds": 60 + 5 * number,
                        "seconds_per_step": 0.01 + 0.001 * NORMS.index(norm),
                        "peak_memory_bytes": 2e8 + 1e7 * NORMS.index(norm),
                        "parameters": 61706 + 22 * (norm != "none"),
                    },
                }
                if files
                else {}
            ),
        )
    return folder
