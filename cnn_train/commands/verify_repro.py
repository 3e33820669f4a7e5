"""Train a run's first steps three times and compare the bits.

Twice from the start and once from a checkpoint in the middle. The exit code is 0 if all agree, 1 if not.
"""

from dataclasses import dataclass

from cnn_train.cli.options import OfRun, option
from cnn_train.cli.show import shown
from cnn_train.runs.find import find


@dataclass(frozen=True, kw_only=True)
class Options(OfRun):
    steps: int = option("how many steps to train", default=10, least=2)
    examples = (
        ("cnn-train verify-repro last", "ten steps of the newest run"),
        ("cnn-train verify-repro last steps=50 trainer.accelerator=gpu", "fifty, on a GPU"),
    )


def run(options: Options) -> int:
    folder = find(options.run, options.output_dir).folder
    from cnn_train.config.load import load, recorded_choices

    cfg = load(folder, options.settings, **options.reading)
    if shown(cfg, options, recorded_choices(cfg)):
        return 0
    from cnn_train.experiment.replay import differences

    texts = differences(cfg, options.steps)
    for text in texts:
        print(text)
    if not texts:
        print(f"the same bits: {options.steps} steps twice, and from a checkpoint after {options.steps // 2} of them")
    elif cfg.repro != "strict":
        print("repro=strict uses deterministic algorithms only")
    return 1 if texts else 0
