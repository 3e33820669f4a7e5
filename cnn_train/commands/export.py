"""cnn-train export: a trained network as a file for others, compared with the network before it gets its name."""

from pathlib import Path
from typing import TYPE_CHECKING

from cnn_train.config.load import load
from cnn_train.errors import ConfigError

if TYPE_CHECKING:
    from cnn_train.cli.line import Line

OPTIONS = {
    "run": "a run folder or a checkpoint file",
    "format": "torch_export, onnx, safetensors or torchscript",
    "output": "the file; without it RUN/export/NAME",
    "preprocessing": "inside: uint8 images in, probabilities or labels out; outside: normalized images in, scores out",
    "precision": "fp32 or fp16",
    "images": "how many images of the test split the file is checked on",
}


def run(line: "Line") -> int:
    """Run `export run=DIR [format=onnx] [output=FILE] [preprocessing=inside] [precision=fp16] [images=100]`."""
    given = {key: value for key, _, value in (o.partition("=") for o in line.overrides) if key in OPTIONS}
    overrides = [override for override in line.overrides if override.partition("=")[0] not in OPTIONS]
    if line.words:
        given.setdefault("run", line.words[0])
    if "run" not in given:
        error = ConfigError("export needs a run folder or a checkpoint file")
        error.add_note("try: cnn-train export run=outputs/MODEL/DATE_TIME_N format=onnx")
        raise error
    path = Path(given["run"])
    if not path.exists():
        raise ConfigError(f"no run folder or checkpoint at {path}; runs are in outputs/<model>/<date>_<time>_<n>")
    count = given.get("images", "100")
    if not count.isdecimal() or int(count) < 2:
        raise ConfigError(f"images must be a whole number >= 2, got {count!r}")
    load(path if path.is_dir() else path.parent, overrides)  # a bad config is told before torch is imported
    from cnn_train.experiment.export import export

    file = export(
        path,
        given.get("format", "torch_export"),
        Path(given["output"]) if "output" in given else None,
        preprocessing=given.get("preprocessing", "outside"),  # type: ignore[arg-type]
        precision=given.get("precision", "fp32"),  # type: ignore[arg-type]
        count=int(count),
        overrides=overrides,
    )
    print(f"exported     {file}")
    return 0
