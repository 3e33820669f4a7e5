"""Checkpoints during training, and an orderly end when the process is asked to stop."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from cnn_train import checkpoint
from cnn_train.callbacks.callback import Callback
from cnn_train.tasks.task import Task


class Stopped(BaseException):
    """Training was asked to stop by a signal and has saved its state; `exit_code` is 128 + the signal's number."""

    def __init__(self, number: int, path: Path, step: int):
        super().__init__(f"stopped at step {step}, saved {path}\n  continue: cnn-train resume {path.parent}")
        self.exit_code = 128 + number


class Checkpoints(Callback):
    """Writes last.ckpt every so often and at every epoch's end, and best.ckpt when `monitor` improves.

    `describe` gives what a checkpoint holds besides the state of training: config, class names, preprocessing. A tie
    keeps the earlier epoch.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        mode: str,
        describe: Callable[[], dict[str, Any]],
        every_minutes: float | None = 10.0,
        every_steps: int | None = None,
    ):
        self.folder = folder
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.describe = describe
        self.every_minutes = every_minutes
        self.every_steps = every_steps
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.signal: int | None = None
        self._saved_at = time.monotonic()

    def is_better(self, value: float) -> bool:
        return value == value and (self.best is None or self.sign * value > self.sign * self.best)

    def save(self, task: Task, name: str) -> Path:
        path = self.folder / name
        if task.trainer.is_global_zero:
            best = {"monitor": self.monitor, "value": self.best, "epoch": self.best_epoch}
            checkpoint.save({**task.training_state(), "best": best, **self.describe()}, path)
        self._saved_at = time.monotonic()
        return path

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting from the best of the checkpoint `state`."""
        self.best, self.best_epoch = state["best"]["value"], state["best"]["epoch"]

    def on_step(self, task: Task) -> None:
        if self.signal is None and not self._due(task):
            return
        # Between the batches of one accumulated update, gradients are not in a checkpoint: wait for its end.
        position = task.progress.step_in_epoch
        if position % task.recipe.accumulate and position < task.progress.steps_per_epoch:
            return
        if self.signal is not None:
            raise Stopped(self.signal, self.save(task, "last.ckpt"), task.progress.step)
        if position < task.progress.steps_per_epoch:  # An epoch's last step is saved with its validation.
            self.save(task, "last.ckpt")

    def _due(self, task: Task) -> bool:
        if self.every_steps is not None and task.progress.step % self.every_steps == 0:
            return True
        return self.every_minutes is not None and time.monotonic() - self._saved_at > 60 * self.every_minutes

    def on_epoch_end(self, task: Task) -> None:
        value = task.metrics.get(self.monitor) if task.validated else None
        if value is not None and self.is_better(value):
            self.best, self.best_epoch = value, task.progress.epoch
            self.save(task, "best.ckpt")
        path = self.save(task, "last.ckpt")
        if self.signal is not None:
            raise Stopped(self.signal, path, task.progress.step)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within: SIGTERM and the first Ctrl-C end training after the running step; a second Ctrl-C ends it at once."""

        def request(number: int, frame: FrameType | None) -> None:
            self.signal = number
            signal.signal(number, before[signal.Signals(number)])

        numbers = [signal.SIGINT, signal.SIGTERM]
        try:
            before = {number: signal.signal(number, request) for number in numbers}
        except ValueError:  # Not the main thread: whoever runs us there handles signals.
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class EarlyStopping(Callback):
    """Ends training after `patience` validations in a row without a better monitored value."""

    def __init__(self, checkpoints: Checkpoints, patience: int):
        self.checkpoints = checkpoints
        self.patience = patience
        self.waited = 0

    def on_epoch_end(self, task: Task) -> None:
        if not task.validated:
            return
        self.waited = 0 if self.checkpoints.best_epoch == task.progress.epoch else self.waited + 1
        if self.waited >= self.patience:
            task.trainer.should_stop = True
