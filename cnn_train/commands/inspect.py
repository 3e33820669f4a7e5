"""Show what each layer of a network sees, weighs and costs, or compare two networks.

The network is built where no weight takes memory, and is not trained.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from cnn_train.cli.line import Line
from cnn_train.cli.options import Composes, option
from cnn_train.cli.show import shown


@dataclass(frozen=True, kw_only=True)
class Options(Composes):
    model: str | None = option("the network; without it that of the defaults", default=None, word=True, of="model")
    versus: str | None = option("another network beside this one", default=None, word=True, of="model")
    run: str | None = option("a run, whose network and weights are looked at", default=None, of="run", value="RUN")
    input_size: str | None = option("side of the image, or [height,width]", default=None, value="N")
    depth: int | None = option("sum the rows up by module, so many names deep", default=None, least=1)
    format: Literal["table", "json", "csv", "markdown"] = option("of the output", default="table")
    batch_size: int | None = option("of the memory estimate", default=None, least=1)
    picture: bool = option("draw PNG files and an HTML page", default=False, flag="--picture")
    pictures: Path | None = option("the folder for them", default=None, of="path")
    image: Path | None = option("the image file for them", default=None, of="path")
    samples: int = option("images that the effective receptive field is averaged over", default=4, least=1)
    examples = (
        ("cnn-train inspect resnet50 depth=1 data=cifar10", "a row for each stage"),
        ("cnn-train inspect run=last picture=true", "the newest run's network, before and after training"),
    )


def run(options: Options) -> int:
    from cnn_train.config.choices import Choices
    from cnn_train.config.compose import compose
    from cnn_train.config.load import load, recorded_choices
    from cnn_train.runs.find import find

    settings = [*([f"model={options.model}"] if options.model else []), *options.settings]
    folder = find(options.run).folder if options.run else None
    if options.cfg or options.info:
        config = load(folder, settings) if folder else compose(settings, options.config_dir)
        choices = recorded_choices(config) if folder else Choices.find(options.config_dir)
        shown(config, options, choices)
        return 0
    words = [f"run={folder}"] if folder else []
    for item in fields(options):
        value = getattr(options, item.name)
        if "help" in item.metadata and item.name not in ("model", "run") and value != item.default:
            words.append(f"{item.name}={str(value).lower() if isinstance(value, bool) else value}")
    from cnn_train import inspect_network

    flags = {"--config-dir": options.config_dir} if options.config_dir else {}
    return inspect_network.run(Line("inspect", [], [*settings, *words], flags))
