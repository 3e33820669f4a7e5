"""One run in a process of its own, from the config.yaml in its folder: `python -m cnn_train.worker DIR [--resume]`."""

import os
import sys
from pathlib import Path


def main() -> int:
    from cnn_train import config
    from cnn_train.cli import guarded

    os.environ["CNN_TRAIN_WORKER"] = "1"
    folder, resume = Path(sys.argv[1]), "--resume" in sys.argv[2:]

    def run() -> None:
        from cnn_train.train import train

        train(config.load(folder, trusted=True), folder, resume)

    return guarded(run, folder=folder)


if __name__ == "__main__":
    sys.exit(main())
