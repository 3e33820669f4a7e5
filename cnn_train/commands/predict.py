"""Predict images with a trained network, without its data set.

Segmentation gives masks/ (PNG files of class numbers that show in the palette's colours),
overlays/ and classes.csv; detection gives detections.csv and overlays/; classification gives
predictions.csv, the most probable classes of each image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnn_train.cli.options import OfRun, option
from cnn_train.cli.show import shown
from cnn_train.runs.find import find


@dataclass(frozen=True, kw_only=True)
class Options(OfRun):
    input: Path = option("an image, or a folder of images", word=True, of="path", value="PATH")
    output: Path | None = option("the folder for results; without it RUN/predictions", default=None, of="path")
    top: int = option("how many classes predictions.csv lists for each image", default=5, least=1)
    score: float | None = option(
        "the least score of a detection; without it each class's best in validation", default=None
    )
    format: Literal["csv", "coco", "voc", "yolo"] = option("what else detections are written as", default="csv")
    examples = (
        ("cnn-train predict last photos", "a folder of images, by the newest run"),
        ("cnn-train predict run=last input=street.jpg postprocess=crf", "one image, refined"),
    )


def run(options: Options) -> int:
    run = find(options.run, options.output_dir)
    from cnn_train.config.load import load, recorded_choices

    config = load(run.folder, options.settings, **options.reading)
    if shown(config, options, recorded_choices(config)):
        return 0
    from cnn_train.experiment.predict import predict

    results = predict(
        run.checkpoint, options.input, options.output, options.settings, options.top, **options.reading,
        score=options.score, form=options.format,
    )  # fmt: skip
    print(f"predictions  {results}")
    return 0
