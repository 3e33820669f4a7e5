"""cnn-train: compose a CNN experiment from YAML and train it. Importing this imports nothing heavy.

`from cnn_train import compose, train, evaluate, load` are the doors for Python; docs/python.md shows each.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["compose", "evaluate", "load", "train"]

# The module of each name, imported when the name is first asked for: some of them take seconds.
DOORS = {
    "compose": "cnn_train.config.compose",
    "evaluate": "cnn_train.experiment.evaluate",
    "load": "cnn_train.experiment.trained",
    "train": "cnn_train.experiment.train",
}


def __getattr__(name: str) -> Any:
    if name not in DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(DOORS[name]), name)
