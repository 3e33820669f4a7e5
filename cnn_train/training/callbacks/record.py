"""Metrics as files: metrics.csv with one row per epoch, and TensorBoard's curves and pictures."""

import csv
import io
import time
from pathlib import Path
from typing import Any

from cnn_train.atomic import write_text
from cnn_train.tasks.task import Task
from cnn_train.training.callbacks.callback import Callback


class MetricsFile(Callback):
    """metrics.csv: epoch, step, learning rate and all metrics of each epoch; rewritten whole, so never half a row."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def keep_until(self, epoch: int) -> None:
        """Read the rows of an earlier start up to `epoch`, which training goes on from."""
        if self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= epoch]

    def on_epoch_end(self, task: Task) -> None:
        if not task.trainer.is_global_zero:
            return
        progress = task.progress
        metrics = {k: v for k, v in task.metrics.items() if task.validated or not k.startswith("val/")}
        lr = task.optimizer.param_groups[0]["lr"]
        self.rows.append({"epoch": progress.epoch, "step": progress.step, "lr": lr, **metrics})
        text = io.StringIO(newline="")
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())


class TensorBoard(Callback):
    """Metrics per epoch, throughput, sample panels, and at the end the confusion matrix and the HPARAMS tab.

    The curves per step are logged by the task itself.
    """

    def __init__(self, samples: int):
        self.samples = samples
        self._since = time.monotonic()
        self._images = 0

    def on_epoch_end(self, task: Task) -> None:
        if task.logger is None:
            return
        progress, now = task.progress, time.monotonic()
        rate = (progress.images - self._images) / (now - self._since)
        values = {k: v for k, v in task.metrics.items() if task.validated or not k.startswith("val/")}
        task.logger.log_metrics(
            {**values, "throughput/images_per_second": rate, "epoch": progress.epoch}, progress.step
        )
        if self.samples and task.validated and task.trainer.is_global_zero:
            panel = task.sample_panel("val", self.samples)
            writer(task).add_image("val/samples", panel, progress.step, dataformats="HWC")
        self._since, self._images = time.monotonic(), progress.images


def writer(task: Task) -> Any:
    """TensorBoard's own writer, for what Lightning's logger does not offer: pictures."""
    assert task.logger is not None
    return task.logger.experiment  # type: ignore[attr-defined]
