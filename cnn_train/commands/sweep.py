"""Train every combination of lists of values, as train -m does; or tell how far a sweep is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnn_train.cli.options import Composes, flag, option
from cnn_train.cli.show import shown
from cnn_train.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options(Composes):
    words: tuple[str, ...] = option("status DIR: how far a sweep is", default=(), word=True)
    resume: Literal["auto"] | None = option("continue the newest unfinished sweep of this very line", default=None)
    multirun: bool = flag("--multirun")
    examples = (
        ("cnn-train sweep norm=bn,gn seed=0,1", "four runs, ranked at the end"),
        ("cnn-train sweep status outputs/sweeps/2026-11-26_12-00-00_0", "how far it is, from elsewhere"),
    )


def run(options: Options) -> int:
    if options.words:
        if options.words[0] != "status" or len(options.words) != 2 or options.settings:
            raise ConfigError(
                f"sweep takes settings with lists of values, or status DIR; got {' '.join(options.words)}"
            )
        from cnn_train.sweep import start

        return start.status(Path(options.words[1]))
    try:
        return train_all(options, options.resume)
    except ConfigError as error:  # the verb that was typed, also in the line to try
        notes = getattr(error, "__notes__", [])
        error.__notes__ = [note.replace("try: cnn-train -m ", "try: cnn-train sweep ", 1) for note in notes]
        raise


def train_all(options: Composes, resume: str | None) -> int:
    """Run, or with --cfg or --info print, every job."""
    from cnn_train.config.choices import Choices
    from cnn_train.sweep import start
    from cnn_train.sweep.plan import plan

    if options.cfg is None and options.info is None:
        return start.start([*options.settings, *([f"resume={resume}"] if resume else [])], options.config_dir)
    for job, config in plan(options.settings, options.config_dir):
        print(f"# job {job.number}: {job.name}")
        shown(config, options, Choices.find(options.config_dir))
    return 0
