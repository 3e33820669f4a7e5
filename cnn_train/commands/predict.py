"""`cnn-train predict run=DIR input=FILE_OR_FOLDER`: what a trained network says of images, without its data set.

Segmentation gives masks/ (PNG files of class numbers that show in the palette's colours), overlays/ and classes.csv;
classification gives predictions.csv, the most probable classes of each image.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from cnn_train.errors import ConfigError
from cnn_train.experiment.predict import predict

if TYPE_CHECKING:  # torch comes after the config is checked
    from cnn_train.cli.line import Line


OPTIONS = {
    "run": "a run folder or a checkpoint file",
    "input": "an image, or a folder of images",
    "output": "the folder for results; without it RUN/predictions",
    "top": "how many classes predictions.csv lists for each image",
}


def run(line: "Line") -> int:
    """The verb: `predict run=DIR input=FILE_OR_FOLDER [output=DIR] [top=5] [inference=...] [postprocess=...]`."""
    given, overrides = {}, []
    for override in line.overrides:
        key, _, value = override.partition("=")
        if key in OPTIONS:
            given[key] = value
        else:
            overrides.append(override)
    for key, word in zip((key for key in ("run", "input") if key not in given), line.words, strict=False):
        given[key] = word
    if "run" not in given or "input" not in given:
        error = ConfigError(f"predict needs {' and '.join(f'{k}=' for k in ('run', 'input') if k not in given)}")
        error.add_note("try: cnn-train predict run=outputs/MODEL/DATE_TIME_N input=FILE_OR_FOLDER")
        raise error
    top = given.get("top", "5")
    if not top.isdigit() or top == "0":
        raise ConfigError(f"top must be a whole number >= 1, got {top}")
    output = Path(given["output"]) if "output" in given else None
    results = predict(given["run"], given["input"], output, overrides, int(top))
    print(f"predictions  {results}")
    return 0
