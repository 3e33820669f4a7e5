"""Metrics as files and curves: metrics.csv with one row per epoch, and what loggers show."""

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from cnn_train.atomic import write_json, write_text
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


class Cost(Callback):
    """cost.json: seconds of training with and without validation, seconds per step, peak memory, parameters.

    Times are those of all starts of a run together.
    """

    def __init__(self) -> None:
        self.seconds = self.step_seconds = 0.0
        self._stepping = False

    def setup(self, trainer: L.Trainer, loop: Any, stage: str) -> None:
        self.path = Path(trainer.default_root_dir) / "cost.json"

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "step_seconds": self.step_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds, self.step_seconds = state["seconds"], state["step_seconds"]

    def on_train_start(self, trainer: L.Trainer, loop: Any) -> None:
        self._since = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, loop: Any) -> None:
        self._epoch, self._stepping = time.monotonic(), True

    def on_validation_start(self, trainer: L.Trainer, loop: Any) -> None:
        self._stop()

    def on_epoch_end(self, loop: Loop) -> None:
        self._stop()
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now

    def _stop(self) -> None:
        if self._stepping:
            self.step_seconds += time.monotonic() - self._epoch
            self._stepping = False

    def on_fit_end(self, trainer: L.Trainer, loop: Any) -> None:
        if trainer.is_global_zero:
            per_step = self.step_seconds / max(loop.progress.step, 1)
            parameters = sum(p.numel() for p in loop.network.parameters())
            cost = {"seconds": self.seconds, "seconds_per_step": per_step, "parameters": parameters}
            write_json(self.path, {**cost, "peak_memory_bytes": peak_memory(loop.device)})


def peak_memory(device: torch.device) -> int | None:
    """The most memory that this process has held, in bytes: of the GPU it trains on, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
        loop.record({**of_this_epoch(loop), "train/images_per_second": rate, "train/epoch": progress.epoch})
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
