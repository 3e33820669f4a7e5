"""Write a trained network as a file for others, after a comparison with the network.

The file is run on images of the test split; a table shows the largest difference, changed labels,
speed and size. docs/export.md says more.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnn_train.cli.options import OfRun, option
from cnn_train.cli.show import shown
from cnn_train.runs.find import find


@dataclass(frozen=True, kw_only=True)
class Options(OfRun):
    format: Literal["torch_export", "onnx", "safetensors", "torchscript"] = option(
        "what the file is", default="torch_export"
    )
    output: Path | None = option("the file; without it RUN/export/NAME", default=None, of="path")
    preprocessing: Literal["outside", "inside"] = option(
        "inside: bytes in, probabilities or labels out; outside: normalized images in, scores out", default="outside"
    )
    precision: Literal["fp32", "fp16"] = option("of the weights and the computation", default="fp32")
    images: int = option("how many images of the test split the file is checked on", default=100, least=2)
    examples = (
        ("cnn-train export last", "the newest run, for torch.export"),
        ("cnn-train export last format=onnx preprocessing=inside", "uint8 images in, probabilities out"),
    )


def run(options: Options) -> int:
    run = find(options.run, options.output_dir)
    from cnn_train.config.load import load, recorded_choices

    config = load(run.folder, options.settings, **options.reading)  # told before torch is imported
    if shown(config, options, recorded_choices(config)):
        return 0
    checkpoint = run.checkpoint
    from cnn_train.experiment.export import export

    file = export(
        checkpoint,
        options.format,
        options.output,
        preprocessing=options.preprocessing,
        precision=options.precision,
        count=options.images,
        overrides=options.settings,
        **options.reading,
    )
    print(f"exported     {file}")
    return 0
