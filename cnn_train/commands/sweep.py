"""cnn-train sweep, or -m: train every combination of lists of values."""

from pathlib import Path

from cnn_train.cli.line import Line
from cnn_train.cli.show import show_config
from cnn_train.errors import ConfigError
from cnn_train.sweep import start
from cnn_train.sweep.plan import plan


def run(line: Line) -> int:
    """`sweep key=a,b ...`, or `sweep status DIR`."""
    if line.words:
        if line.words[0] != "status" or len(line.words) != 2 or line.overrides:
            raise ConfigError(f"sweep takes settings with lists of values, or status DIR; got {' '.join(line.words)}")
        return start.status(Path(line.words[1]))
    if "--cfg" in line.flags:
        for job, config in plan(line.overrides, line.config_dir):
            print(f"# job {job.number}: {job.name}")
            show_config(config, line)
        return 0
    return start.start(line.overrides, line.config_dir)
