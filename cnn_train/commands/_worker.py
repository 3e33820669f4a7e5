"""cnn-train worker: train the run whose config.yaml is in a folder, for a sweep or as one of several processes."""

import os
from pathlib import Path

from cnn_train.cli.guard import guarded
from cnn_train.cli.line import Line
from cnn_train.config.load import load
from cnn_train.sweep import lifeline


def run(line: Line) -> int:
    """`worker DIR [resume=true] [changed_data=accept] [trust=NAME]... [may=KEY]...`: the exit code of the run.

    The config in DIR is checked like any file; `trust` and `may` are what the process that started this one found in
    the config that it had composed or checked.
    """
    from cnn_train.experiment import processes

    lifeline.end_with_sweep()
    folder, resume = Path(line.words[0]), "resume=true" in line.overrides

    def words(key: str) -> list[str]:
        return [word.removeprefix(f"{key}=") for word in line.overrides if word.startswith(f"{key}=")]

    def train_run() -> None:
        from cnn_train.experiment.train import train

        changed = "changed_data=accept" in line.overrides
        train(load(folder, trust=words("trust"), may=words("may")), folder, resume, changed)

    if "LOCAL_RANK" not in os.environ:
        return guarded(train_run, folder=folder)
    processes.end_with_parent()
    return guarded(train_run, folder=folder, tell=lambda text: write(folder, text))


def write(folder: Path, text: str) -> None:
    """Leave the error for the process that started this one: only the first of several is to be seen."""
    (folder / f".rank{os.environ['LOCAL_RANK']}.error").write_text(text, encoding="utf-8")
