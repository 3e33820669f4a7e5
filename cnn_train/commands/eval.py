"""cnn-train eval: evaluate a run again."""

from pathlib import Path

from cnn_train.cli.line import Line
from cnn_train.config.choices import Choices
from cnn_train.errors import ConfigError
from cnn_train.runs.find import found_runs


def run(line: Line) -> int:
    given = [override for override in line.overrides if override.startswith(("run=", "split="))]
    options = dict(override.split("=", 1) for override in given)
    run = options.get("run") or (line.words[0] if line.words else None)
    if run is None:
        error = ConfigError("eval needs a run folder or a checkpoint file")
        error.add_note("try: cnn-train eval run=outputs/MODEL/DATE_TIME_N")
        raise error
    if not Path(run).exists():
        raise ConfigError(f"no run at {Path(run).absolute()}; {found_runs()}")
    from cnn_train.config.load import load

    rest = [override for override in line.overrides if override not in given]
    folder = run if Path(run).is_dir() else Path(run).parent
    if "--multirun" in line.flags:
        return search(run, folder, rest, options.get("split", "val"), line)
    load(folder, rest)  # a bad config is told before torch is imported
    from cnn_train.experiment.evaluate import evaluate

    evaluate(run, rest, options.get("split", "test"))
    return 0


def search(run: str, folder: str | Path, overrides: list[str], split: str, line: Line) -> int:
    """`eval -m`: every combination of post-processing on the same scores."""
    from cnn_train.config.load import load
    from cnn_train.sweep.plan import expand

    combinations = list(expand(overrides, Choices.find(line.config_dir)))
    for changes, settings in combinations:
        for change in changes:
            if not change.startswith(("postprocess=", "postprocess.")):
                raise ConfigError(
                    f"{change}: eval -m searches postprocess and its settings, which need no other scores; "
                    "evaluate once for each value of anything else"
                )
        load(folder, settings)
    if not combinations[0][0]:
        raise ConfigError("eval -m searches lists of values, as postprocess=crf postprocess.bi_w=2,4")
    from cnn_train.experiment.evaluate import search

    search(run, combinations, split)
    return 0
