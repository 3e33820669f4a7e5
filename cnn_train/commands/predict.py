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
    "input": "an image, a folder, a pattern, a CSV file of paths, or - for paths on stdin; several with commas",
    "output": "the folder for results; without it RUN/predictions",
    "top": "how many classes predictions.csv lists for each image",
    "format": "csv or jsonl",
    "column": "the column of paths in a CSV file",
    "batch_size": "images that go through the network together",
    "workers": "threads that decode ahead",
    "strict": "true: stop at the first image that cannot be read",
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
    named = {"run", "input"} & given.keys()
    for key, word in zip((key for key in ("run", "input") if key not in named), line.words, strict=False):
        given[key] = word
    if "run" not in given or "input" not in given:
        error = ConfigError(f"predict needs {' and '.join(f'{k}=' for k in ('run', 'input') if k not in given)}")
        error.add_note("try: cnn-train predict run=outputs/MODEL/DATE_TIME_N input=FILE_OR_FOLDER")
        raise error
    for key in ("top", "batch_size", "workers"):
        if key in given and (not given[key].isdigit() or given[key] == "0"):
            raise ConfigError(f"{key} must be a whole number >= 1, got {given[key]}")
    if given.get("strict", "false") not in ("true", "false"):
        raise ConfigError(f"strict must be true or false, got {given['strict']}")
    output = Path(given["output"]) if "output" in given else None
    sources = given["input"].split(",") if not Path(given["input"]).exists() else [given["input"]]
    results = predict(
        given["run"],
        [*sources, *line.words[len({"run", "input"} - named) :]],
        output,
        overrides,
        int(given.get("top", 5)),
        batch_size=int(given.get("batch_size", 32)),
        workers=int(given["workers"]) if "workers" in given else None,
        form=given.get("format", "csv"),
        column=given.get("column"),
        strict=given.get("strict") == "true",
    )
    print(f"predictions  {results}")
    return 0
