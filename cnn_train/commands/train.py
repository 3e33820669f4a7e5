"""Compose a config and train it (the default command)."""

from dataclasses import dataclass
from typing import Literal

from cnn_train.cli.options import Composes, flag, option
from cnn_train.cli.show import shown


@dataclass(frozen=True, kw_only=True)
class Options(Composes):
    resume: Literal["auto"] | None = option("continue the newest unfinished run of this very config", default=None)
    multirun: bool = flag("--multirun")
    examples = (
        ("cnn-train model=resnet18 norm=gn optimizer.lr=0.01", "choices and settings"),
        ("cnn-train model=unet --cfg job", "print the config instead"),
    )


def run(options: Options) -> int:
    if options.multirun:
        from cnn_train.commands import sweep

        return sweep.train_all(options, options.resume)
    from cnn_train.config.compose import Composer

    composer = Composer(options.config_dir)
    config = composer.compose(options.settings)
    if shown(config, options, composer.choices):
        return 0
    if config.sweep.axes:  # an experiment that is a sweep
        from cnn_train.commands import sweep

        return sweep.train_all(options, options.resume)
    from cnn_train.experiment.train import train

    train(config, resume=options.resume or False)
    return 0
