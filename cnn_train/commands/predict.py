"""Predict images with a trained network, without its data set.

Segmentation gives masks/ (PNG files of class numbers that show in the palette's colours),
overlays/ and classes.csv; classification gives predictions.csv, the most probable classes of
each image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnn_train.cli.collector import without_collector
from cnn_train.cli.options import OfRun, option
from cnn_train.cli.show import shown
from cnn_train.runs.find import find

EXPORTED = (".safetensors", ".onnx")  # files of `cnn-train export` that can be predicted with


@dataclass(frozen=True, kw_only=True)
class Options(OfRun):
    input: tuple[str, ...] = option(
        "images, folders, patterns, CSV files of paths, or - for paths on stdin; several as words or with commas",
        word=True,
        of="path",
        value="PATH",
    )
    output: Path | None = option("the folder for results; without it RUN/predictions", default=None, of="path")
    top: int = option("how many classes predictions.csv lists for each image", default=5, least=1)
    format: Literal["csv", "jsonl", "coco", "voc", "yolo"] = option(
        "of the table of predictions: csv or jsonl; of detections also coco, voc or yolo, but not jsonl", default="csv"
    )
    score: float | None = option("the least score of a detection; without it each class's best", default=None)
    column: str | None = option("the column of paths in a CSV file", default=None, value="NAME")
    batch_size: int = option("images that go through the network together", default=32, least=1)
    workers: int | None = option("threads that decode ahead; without it one for each core", default=None, least=1)
    strict: bool = option("stop at the first image that cannot be read", default=False, flag="--strict")
    examples = (
        ("cnn-train predict last photos", "a folder of images, by the newest run"),
        ("cnn-train predict run=last input=street.jpg postprocess=crf", "one image, refined"),
        ("find photos -name '*.jpg' | cnn-train predict last -", "paths from another program"),
    )


def run(options: Options) -> int:
    if Path(options.run).suffix in EXPORTED and not options.settings:
        folder, file = Path(options.run).parent, Path(options.run)
    else:
        run = find(options.run, options.output_dir)
        from cnn_train.config.load import load, recorded_choices

        config = load(run.folder, options.settings, **options.reading)
        if shown(config, options, recorded_choices(config)):
            return 0
        folder, file = run.folder, run.checkpoint
    with without_collector():
        from cnn_train.experiment.predict import predict

    results = predict(
        file,
        options.input,
        options.output or folder / "predictions",
        options.settings,
        options.top,
        batch_size=options.batch_size,
        workers=options.workers,
        form=options.format,
        column=options.column,
        strict=options.strict,
        score=options.score,
        **options.reading,
    )
    print(f"predictions  {results}")
    return 0
