"""Metrics as files and curves: metrics.csv with one row per epoch, and what loggers show."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from cnn_train.atomic import write_text
from cnn_train.tasks.pictures import Picture
from cnn_train.training.loop import Callback, Loop
from cnn_train.training.samples import sample_panel


class MetricsFile(Callback):
    """metrics.csv: epoch, step, learning rate and all metrics of each epoch; rewritten whole, so never half a row.

    The rows are in the checkpoint, too: a resumed run continues those of the state that it continues.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def setup(self, trainer: L.Trainer, loop: Any, stage: str) -> None:
        self.path = Path(trainer.default_root_dir) / "metrics.csv"

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]

    def on_epoch_end(self, loop: Loop) -> None:
        if not loop.trainer.is_global_zero:
            return
        lr = loop.optimizer.param_groups[0]["lr"]
        self.rows.append({"epoch": loop.progress.epoch, "step": loop.progress.step, "lr": lr, **of_this_epoch(loop)})
        text = io.StringIO(newline="")
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())


class Curves(Callback):
    """Gives the loggers each epoch's metrics, the throughput and a panel of `samples` predictions (0: none).

    The loop itself logs the curves over steps.
    """

    def __init__(self, samples: int = 8):
        self.samples = samples

    def on_train_start(self, trainer: L.Trainer, loop: Any) -> None:
        self._since, self._images = time.monotonic(), loop.progress.images

    def on_epoch_end(self, loop: Loop) -> None:
        if not loop.loggers:
            return
        progress, now = loop.progress, time.monotonic()
        rate = (progress.images - self._images) / (now - self._since)
        loop.record({**of_this_epoch(loop), "throughput/images_per_second": rate, "epoch": progress.epoch})
        if self.samples and loop.validated and loop.trainer.is_global_zero:
            show_picture(loop, "val/samples", sample_panel(loop, "val", self.samples))
        self._since, self._images = time.monotonic(), progress.images


def of_this_epoch(loop: Loop) -> dict[str, float]:
    """The newest metrics, without those of an older validation."""
    return {k: v for k, v in loop.metrics.items() if loop.validated or not k.startswith("val/")}


def show_picture(loop: Loop, name: str, picture: Picture) -> None:
    """Give a picture to the loggers that take some."""
    for logger in loop.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, loop.progress.step, dataformats="HWC")
        elif hasattr(logger, "log_image") and callable(logger.log_image):  # Weights & Biases, Comet
            logger.log_image(name, [picture], step=loop.progress.step)
