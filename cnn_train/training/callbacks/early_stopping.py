"""Ending a training that no longer improves."""

from typing import Any

import lightning as L

from cnn_train.training.loop import Callback, Loop


class EarlyStopping(Callback):
    """Ends training after `patience` validations in a row without a better monitored value; None: never."""

    def __init__(self, patience: int | None = None):
        self.patience = patience

    def on_train_start(self, trainer: L.Trainer, loop: Any) -> None:
        self.on_epoch_end(loop)  # a run that had stopped only needs its results

    def on_epoch_end(self, loop: Loop) -> None:
        if self.patience is not None and loop.best.since >= self.patience:
            loop.trainer.should_stop = True
