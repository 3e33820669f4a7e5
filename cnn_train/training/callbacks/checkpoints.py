"""Checkpoints during training, and an orderly end when the process is asked to stop."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed

from cnn_train.runs import checkpoint
from cnn_train.runs.signals import Interrupted, handled_by
from cnn_train.tasks.task import Task
from cnn_train.training.callbacks.callback import Callback


class Stopped(Interrupted):
    """Training was asked to stop by a signal and has saved its state."""

    def __init__(self, number: int, path: Path, step: int):
        message = f"stopped at step {step}, saved {path}\n  continue: cnn-train resume {path.parent}"
        if number == getattr(signal, "SIGUSR1", None):
            message += requeue()
        super().__init__(number, message)


class Checkpoints(Callback):
    """Writes last.ckpt every so often, at every epoch's end and at errors, and best.ckpt when `monitor` improves.

    `describe` gives what a checkpoint holds besides the state of training: config, class names, preprocessing. The one
    before last.ckpt is previous.ckpt. With `keep_best` above 1, the best epochs are also in epoch-<n>.ckpt. A tie keeps
    the earlier epoch.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        mode: str,
        describe: Callable[[], dict[str, Any]],
        every_minutes: float | None = 10.0,
        every_steps: int | None = None,
        keep_best: int = 1,
    ):
        self.folder = folder
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.describe = describe
        self.every_minutes = every_minutes
        self.every_steps = every_steps
        self.keep_best = keep_best
        self.kept: list[tuple[float, int]] = []  # (value, epoch), best first
        self.since_best = 0  # validations
        self.signal: int | None = None
        self._vote: Vote | None = None
        self._saved_at = time.monotonic()
        self._saved_step = 0

    @property
    def best(self) -> float | None:
        return self.kept[0][0] if self.kept else None

    @property
    def best_epoch(self) -> int | None:
        return self.kept[0][1] if self.kept else None

    def save(self, task: Task, name: str) -> Path:
        path = self.folder / name
        task.check_finite()
        if task.trainer.is_global_zero:
            best: dict[str, Any] = {"monitor": self.monitor, "value": self.best, "epoch": self.best_epoch}
            best |= {"kept": [list(entry) for entry in self.kept], "since": self.since_best}
            state = {**task.training_state(), "best": best, **self.describe()}
            checkpoint.save(state, path, self.folder / checkpoint.PREVIOUS if name == checkpoint.LAST else None)
        self._saved_step = task.progress.step
        self._saved_at = time.monotonic()
        return path

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting from the best of the checkpoint `state`."""
        self.kept = [(value, epoch) for value, epoch in state["best"]["kept"]]
        self.since_best = state["best"]["since"]

    def on_step(self, task: Task) -> None:
        asked = self._asked(task)
        if asked is None and not self._due(task):
            return
        # Between the batches of one accumulated update, gradients are not in a checkpoint: wait for its end.
        if not task.between_updates:
            return
        if asked is not None:
            raise Stopped(asked, self.save(task, checkpoint.LAST), task.progress.step)
        if task.progress.step_in_epoch < task.progress.steps_per_epoch:  # the last step is saved with its validation
            self.save(task, checkpoint.LAST)

    def _due(self, task: Task) -> bool:
        if self.every_steps is not None and task.progress.step % self.every_steps == 0:
            return True
        return self.every_minutes is not None and time.monotonic() - self._saved_at > 60 * self.every_minutes

    def on_validation_step(self, task: Task) -> None:
        # Processes validate different numbers of batches and cannot agree here.
        if self.signal is not None and task.trainer.world_size == 1:
            task.leave_evaluation()
            raise Stopped(self.signal, self.save(task, checkpoint.LAST), task.progress.step)

    def on_epoch_end(self, task: Task) -> None:
        value = task.metrics.get(self.monitor) if task.validated else None
        if value is not None:
            self._rank(task, value)
        path = self.save(task, checkpoint.LAST)
        if (asked := self._asked(task, now=True)) is not None:
            raise Stopped(asked, path, task.progress.step)

    def _rank(self, task: Task, value: float) -> None:
        """Save the epoch that ended if it is among the best, and only then remove the one that it displaces."""
        before, epoch = self.best_epoch, task.progress.epoch
        if value == value:
            self.kept = sorted([*self.kept, (value, epoch)], key=lambda entry: (-self.sign * entry[0], entry[1]))
        dropped = self.kept[self.keep_best :]
        self.kept = self.kept[: self.keep_best]
        self.since_best = 0 if self.best_epoch != before else self.since_best + 1
        if self.best_epoch != before:
            self.save(task, "best.ckpt")
        if self.keep_best > 1 and (value, epoch) in self.kept:
            self.save(task, f"epoch-{epoch}.ckpt")
        for _, old in dropped:
            if task.trainer.is_global_zero:
                (self.folder / f"epoch-{old}.ckpt").unlink(missing_ok=True)

    def on_error(self, task: Task) -> None:
        """Keep what was reached before an error, where the state is that between two updates."""
        if task.progress.step != self._saved_step and task.trainer.world_size == 1:
            self.save(task, checkpoint.LAST)

    def on_fit_end(self, task: Task) -> None:
        if task.trainer.is_global_zero:
            (self.folder / checkpoint.PREVIOUS).unlink(missing_ok=True)

    def _asked(self, task: Task, now: bool = False) -> int | None:
        """The signal that this process, or one of several, has got; all of them learn it at the same step."""
        if task.trainer.world_size == 1:
            return self.signal
        self._vote = self._vote or Vote(task.device)
        return self._vote(self.signal, now)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within: the first signal ends training after the running step, a second one at once."""

        def request(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                raise Interrupted(number)
            self.signal = number

        with handled_by(request):
            yield


class Vote:
    """Lets processes agree on the largest number among theirs, without making a GPU wait.

    On a GPU the answer comes some steps later, the same number of steps in each process, when it has long been there.
    """

    LAG = 8

    def __init__(self, device: torch.device):
        self.device = device
        self.waiting: deque[tuple[torch.Tensor, Any]] = deque()

    def __call__(self, number: int | None, now: bool = False) -> int | None:
        vote = torch.tensor([number or 0], dtype=torch.int32, device=self.device)
        distributed.all_reduce(vote, distributed.ReduceOp.MAX)
        if self.device.type != "cuda":
            return int(vote) or None
        event = torch.cuda.Event()
        host = vote.to("cpu", non_blocking=True)
        event.record()
        self.waiting.append((host, event))
        answer = 0
        while len(self.waiting) > (0 if now else self.LAG):
            host, event = self.waiting.popleft()
            event.synchronize()
            answer = max(answer, int(host))
        return answer or None


def requeue() -> str:
    """Ask SLURM to start this job again, if it is one; what came of it."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return ""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return f"\n  SLURM did not requeue job {job}: {error}"
    return f"\n  SLURM starts job {job} again"


class EarlyStopping(Callback):
    """Ends training after `patience` validations in a row without a better monitored value."""

    def __init__(self, checkpoints: Checkpoints, patience: int):
        self.checkpoints = checkpoints
        self.patience = patience

    def on_fit_start(self, task: Task) -> None:
        self.on_epoch_end(task)  # A run that had stopped goes on to its results.

    def on_epoch_end(self, task: Task) -> None:
        if self.checkpoints.since_best >= self.patience:
            task.trainer.should_stop = True
