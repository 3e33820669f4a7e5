"""Evaluate a run again, also with other inference and post-processing."""

from dataclasses import dataclass
from typing import Literal

from cnn_train.cli.collector import without_collector
from cnn_train.cli.options import OfRun, flag, option
from cnn_train.cli.show import shown
from cnn_train.errors import ConfigError
from cnn_train.runs.find import Run, find


@dataclass(frozen=True, kw_only=True)
class Options(OfRun):
    split: Literal["train", "val", "test", "all"] | None = option(
        "the images; without it test, of other data (data.root=) all, with -m val", default=None
    )
    others: tuple[str, ...] = option("further runs, for one table of all", default=(), word=True, of="run", value="RUN")
    calibrate: bool = option("fit the temperature of a classifier's probabilities on val", default=False)
    tta: Literal["flip", "multiscale"] | None = option("average over views of each image", default=None)
    robustness: bool = option("also measure images with noise, blur, other light and contrast, JPEG", default=False)
    multirun: bool = flag("--multirun")
    examples = (
        ("cnn-train eval last", "test metrics of the newest run"),
        ("cnn-train eval last split=val inference=sliding postprocess=crf", "by other rules"),
        ("cnn-train eval last data.root=OTHER", "all images of another folder"),
        ("cnn-train eval last calibrate=true tta=flip robustness=true", "and more"),
    )


def run(options: Options) -> int:
    runs = [find(name, options.output_dir) for name in (options.run, *options.others)]
    from cnn_train.config.load import load, recorded_choices

    if options.multirun:
        if options.others:
            raise ConfigError("eval -m searches the post-processing of one run; name one")
        return search(runs[0], options)
    settings = list(options.settings)
    given = next((word for word in settings if word.startswith("inference=")), None)
    if options.tta is not None and given is not None:
        raise ConfigError(f"tta={options.tta} chooses inference, and so does {given}; give one of the two")
    for run in runs:
        config = load(run.folder, settings, other_data=True, **options.reading)  # reported before torch is imported
        if shown(config, options, recorded_choices(config)):
            return 0
    checkpoints = [run.checkpoint for run in runs]
    with without_collector():
        from cnn_train.experiment.evaluate import evaluate, show_together

    how = {"calibrate": options.calibrate, "tta": options.tta, "robustness": options.robustness, **options.reading}
    found = [evaluate(checkpoint, settings, options.split, **how) for checkpoint in checkpoints]
    if len(runs) > 1:
        show_together([str(run.folder) for run in runs], found)
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
