"""Train every combination of lists of values, as train -m does."""

from dataclasses import dataclass
from typing import Literal

from cnn_train.cli.options import Composes, flag, option
from cnn_train.cli.show import shown


@dataclass(frozen=True, kw_only=True)
class Options(Composes):
    resume: Literal["auto"] | None = option("continue the newest unfinished sweep of this very line", default=None)
    multirun: bool = flag("--multirun")
    examples = (
        ("cnn-train sweep norm=bn,gn seed=0,1", "four runs, ranked at the end"),
        ("cnn-train -m optimizer.lr=0.1,0.01", "the same command, Hydra's way"),
    )


def run(options: Options) -> int:
    return train_all(options, options.resume)


def train_all(options: Composes, resume: str | None) -> int:
    """Run, or with --cfg or --info print, every job."""
    from cnn_train.config.choices import Choices
    from cnn_train.sweep import local
    from cnn_train.sweep.plan import plan

    words = [*options.settings, *([f"resume={resume}"] if resume else [])]
    if options.cfg is None and options.info is None:
        return local.run(words, options.config_dir)
    for number, job in enumerate(plan(options.settings, options.config_dir)):
        print(f"# job {number}: {' '.join(job.changes)}")
        shown(job.config, options, Choices.find(options.config_dir))
    return 0
