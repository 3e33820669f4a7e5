"""Show what each layer of a network sees, weighs and costs, or compare two networks.

The network is built on the meta device, where no weight takes memory, and is not trained; neither
lightning nor torchvision is imported. Results go to stdout.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnn_train.cli.collector import without_collector
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
    with without_collector():
        from cnn_train.config.choices import Choices
        from cnn_train.config.compose import compose
        from cnn_train.config.load import load, recorded_choices
        from cnn_train.inspection.comparison import COMPARISONS, compare
        from cnn_train.inspection.examine import examine
        from cnn_train.inspection.subject import describe
        from cnn_train.inspection.tables import WRITERS, show_on_terminal
        from cnn_train.runs.find import find

        folder = find(options.run).folder if options.run else None
        settings = [*options.settings, *([f"image_size={options.input_size}"] if options.input_size else [])]
        own = [f"model={options.model}"] if options.model else []
        if folder is not None:
            configs = [load(folder, [*own, *settings], config_dir=options.config_dir)]
            choices = recorded_choices(configs[0])
        else:
            configs, choices = [compose([*own, *settings], options.config_dir)], Choices.find(options.config_dir)
        if options.versus is not None:
            configs.append(compose([f"model={options.versus}", *settings], options.config_dir))
        if any([shown(config, options, choices) for config in configs]):
            return 0
        with_data = folder is not None or any(word.startswith(("data=", "data.")) for word in settings)
        drawn = options.picture or options.pictures is not None
        subjects = [describe(cfg, with_data=with_data, with_images=drawn, choices=choices) for cfg in configs]
        reports = [examine(subject, depth=options.depth, batch_size=options.batch_size) for subject in subjects]
    if len(reports) == 2:
        print(COMPARISONS[options.format](compare(*reports)), end="")
    elif options.format == "table" and sys.stdout.isatty():
        show_on_terminal(reports[0])
    else:
        print(WRITERS[options.format](reports[0]), end="")
    if drawn:
        from cnn_train.inspection.page import draw

        for report in reports:
            pictures = options.pictures
            if pictures is not None and len(reports) > 1:
                pictures /= report.subject.name
            page = draw(report, pictures, image=options.image, run=folder, samples=options.samples)
            print(f"pictures {page}", file=sys.stderr if options.format != "table" else sys.stdout)
    return 0
