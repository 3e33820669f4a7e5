"""A user's own modules: found where they lie, behind everything that is installed."""

import os
import sys
from pathlib import Path

VARIABLE = "CNN_TRAIN_PATH"  # carries the folders to the processes that this one starts


def make_importable(config_dir: str | Path | None = None) -> None:
    """Let `_target_` name modules beside a folder of choices and in the working directory.

    They come last in Python's path, so that a file there never stands for a module of Python's or of a library.
    """
    before = os.environ.get(VARIABLE, "").split(os.pathsep)
    wanted = [] if config_dir is None else [Path(config_dir).expanduser().resolve().parent, Path.cwd()]
    folders = list(dict.fromkeys(folder for folder in (*before, *map(str, wanted)) if folder))
    if folders:
        os.environ[VARIABLE] = os.pathsep.join(folders)
    sys.path += [folder for folder in folders if folder not in sys.path]
