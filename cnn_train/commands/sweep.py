"""cnn-train sweep, or -m: train every combination of lists of values."""

from cnn_train.cli.line import Line
from cnn_train.cli.show import show_config
from cnn_train.sweep import local
from cnn_train.sweep.plan import plan


def run(line: Line) -> int:
    if "--cfg" in line.flags:
        for number, job in enumerate(plan(line.overrides, line.config_dir)):
            print(f"# job {number}: {' '.join(job.changes)}")
            show_config(job.config, line)
        return 0
    return local.run(line.overrides, line.config_dir)
