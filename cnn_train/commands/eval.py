"""Evaluate a run again, also with other inference and post-processing."""

from dataclasses import dataclass
from typing import Literal

from cnn_train.cli.options import OfRun, flag, option
from cnn_train.cli.show import shown
from cnn_train.errors import ConfigError
from cnn_train.runs.find import Run, find


@dataclass(frozen=True, kw_only=True)
class Options(OfRun):
    split: Literal["train", "val", "test"] | None = option("the images; without it test, with -m val", default=None)
    multirun: bool = flag("--multirun")
    examples = (
        ("cnn-train eval last", "test metrics of the newest run"),
        ("cnn-train eval last split=val inference=sliding postprocess=crf", "of a segmentation, by other rules"),
    )


def run(options: Options) -> int:
    run = find(options.run, options.output_dir)
    from cnn_train.config.load import load, recorded_choices

    if options.multirun:
        return search(run, options)
    config = load(run.folder, options.settings, **options.reading)  # told before torch is imported
    if shown(config, options, recorded_choices(config)):
        return 0
    checkpoint = run.checkpoint
    from cnn_train.experiment.evaluate import evaluate

    evaluate(checkpoint, options.settings, options.split or "test", **options.reading)
    return 0


def search(run: Run, options: Options) -> int:
    """`eval -m`: every combination of post-processing on the same scores."""
    from cnn_train.config.load import load, recorded_choices
    from cnn_train.sweep.plan import expand

    choices = recorded_choices(load(run.folder, **options.reading))
    combinations, configs = list(expand(options.settings, choices)), []
    for changes, settings in combinations:
        for change in changes:
            if not change.startswith(("postprocess=", "postprocess.")):
                raise ConfigError(
                    f"{change}: eval -m searches postprocess and its settings, which need no other scores; "
                    "evaluate once for each value of anything else"
                )
        configs.append(load(run.folder, settings, **options.reading))
    if not combinations[0][0]:
        raise ConfigError("eval -m searches lists of values, as postprocess=crf postprocess.bi_w=2,4")
    if any([shown(config, options, choices) for config in configs]):
        return 0
    checkpoint = run.checkpoint
    from cnn_train.experiment.evaluate import search

    search(checkpoint, combinations, options.split or "val", **options.reading)
    return 0
