"""One run in a process of its own, from the config.yaml in its folder: `python -m cnn_train.worker DIR [--resume]`."""

import os
import sys
from pathlib import Path


def main() -> int:
    from cnn_train import config, processes
    from cnn_train.cli import guarded

    folder, resume = Path(sys.argv[1]), "--resume" in sys.argv[2:]

    def run() -> None:
        from cnn_train.train import train

        train(config.load(folder, trusted=True), folder, resume)

    if not processes.is_one_of_several():
        return guarded(run, folder=folder)
    processes.end_with_parent()
    return guarded(run, folder=folder, tell=lambda text: write(folder, text))


def write(folder: Path, text: str) -> None:
    """Leave the error for the process that started this one: only the first of several is to be seen."""
    (folder / f".rank{os.environ['LOCAL_RANK']}.error").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
