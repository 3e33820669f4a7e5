"""cnn-train [train]: compose a config and train it."""

from cnn_train.cli.line import Line
from cnn_train.cli.show import show_config, show_info
from cnn_train.commands import sweep


def run(line: Line) -> int:
    if "--multirun" in line.flags:
        return sweep.run(line)
    from cnn_train.config.compose import Composer

    composer = Composer(line.config_dir)
    config = composer.compose([word for word in line.overrides if word != "resume=auto"])
    if "--cfg" in line.flags:
        show_config(config, line)
        return 0
    if "--info" in line.flags:
        show_info(config, composer.choices, line)
        return 0
    if config.sweep.axes:  # an experiment that is a sweep
        return sweep.run(line)
    from cnn_train.experiment.train import train

    train(config, resume="auto" if "resume=auto" in line.overrides else False)
    return 0
