"""Checkpoints during training, and an orderly end when the process is asked to stop."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import distributed

from cnn_train.errors import ElsewhereError, UserError
from cnn_train.runs import checkpoint
from cnn_train.runs.signals import Interrupted, handled_by
from cnn_train.training.loop import Callback, Loop

DUE, FAILED = 1000, 2000  # votes beside the numbers of signals: time to save; an error in this process


class Stopped(Interrupted):
    """Training was asked to stop by a signal and has saved its state."""

    def __init__(self, number: int, path: Path, step: int):
        message = f"stopped at step {step}, saved {path}\n  continue: cnn-train resume {quote(str(path.parent))}"
        if number == getattr(signal, "SIGUSR1", None):
            message += requeue()
        super().__init__(number, message)


class Checkpoints(Callback, Checkpoint):
    """Writes last.ckpt every so often, at every epoch's end and at errors, and best.ckpt when the monitor improves.

    The one before last.ckpt is previous.ckpt. With `keep_best` above 1, the best epochs are also in epoch-<n>.ckpt.
    Of several processes, all must come to a save together. So they vote when each has its next batch, and when each has
    validated: on a signal, on the time to save, and on an error in one of them.
    Lightning calls it after all other callbacks, so that their states are those of the same moment.
    """

    def __init__(self, every_minutes: float | None = 10.0, every_steps: int | None = None, keep_best: int = 1):
        self.every_minutes = every_minutes
        self.every_steps = every_steps
        self.keep_best = keep_best
        self.signal: int | None = None
        self._vote: Vote | None = None
        self._voted_at = -1
        self._saved_at = time.monotonic()
        self._saved_step = 0

    def setup(self, trainer: L.Trainer, loop: Any, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir)
        loop.best.keep = self.keep_best

    def on_fit_start(self, trainer: L.Trainer, loop: Any) -> None:
        if trainer.world_size > 1:
            self._vote = Vote()

    def save(self, loop: Loop, name: str) -> Path:
        path = self.folder / name
        loop.check_finite()
        state = {**loop.training_state(), **loop.description}
        if loop.trainer.is_global_zero:
            checkpoint.save(state, path, self.folder / checkpoint.PREVIOUS if name == checkpoint.LAST else None)
        self._saved_step = loop.progress.step
        self._saved_at = time.monotonic()
        return path

    def before_step(self, loop: Loop) -> None:
        if self._vote is None or not loop.between_updates:
            return
        asked = self._agreed(loop)
        if asked == DUE:
            self.save(loop, checkpoint.LAST)
        elif asked is not None:
            self._end(loop, asked)

    def on_step(self, loop: Loop) -> None:
        # Between the batches of one accumulated update, gradients are not in a checkpoint: wait for its end.
        if self._vote is not None or not loop.between_updates:
            return
        if self.signal is not None:
            self._end(loop, self.signal)
        # The last step is saved with its validation.
        if self._due(loop) and loop.progress.step_in_epoch < loop.progress.steps_per_epoch:
            self.save(loop, checkpoint.LAST)

    def _end(self, loop: Loop, asked: int) -> None:
        path = self.save(loop, checkpoint.LAST)
        if asked == FAILED:
            raise ElsewhereError(
                f"{ElsewhereError.start} after step {loop.progress.step}; the state is saved in {path}"
            )
        raise Stopped(asked, path, loop.progress.step)

    def _due(self, loop: Loop) -> bool:
        if loop.progress.step == self._saved_step:
            return False
        if self.every_steps is not None and loop.progress.step % self.every_steps == 0:
            return True
        return self.every_minutes is not None and time.monotonic() - self._saved_at > 60 * self.every_minutes

    def on_validation_batch_start(self, trainer: L.Trainer, loop: Any, *batch: Any) -> None:
        # Processes validate different numbers of batches and cannot agree here.
        if self.signal is not None and trainer.state.fn == "fit" and self._vote is None:
            loop.leave_evaluation()
            self._end(loop, self.signal)

    def on_validation_epoch_end(self, trainer: L.Trainer, loop: Any) -> None:
        if self._vote is not None and trainer.state.fn == "fit" and self._agreed(loop) == FAILED:
            loop.leave_evaluation()
            self._end(loop, FAILED)

    def on_train_epoch_end(self, trainer: L.Trainer, loop: Any) -> None:
        """Save the epoch if it is among the best, then its state, and only then remove the one that it displaces."""
        best, epoch = loop.best, loop.progress.epoch
        if loop.validated and best.since == 0 and best.epoch == epoch:
            self.save(loop, "best.ckpt")
        if loop.validated and self.keep_best > 1 and epoch in [kept for _, kept in best.kept]:
            self.save(loop, f"epoch-{epoch}.ckpt")
        for old in best.dropped:
            if trainer.is_global_zero:
                (self.folder / f"epoch-{old}.ckpt").unlink(missing_ok=True)
        path = self.save(loop, checkpoint.LAST)
        asked = self.signal if self._vote is None else self._vote(self.signal)
        if asked is not None:
            raise Stopped(asked, path, loop.progress.step)

    def on_exception(self, trainer: L.Trainer, loop: Any, exception: BaseException) -> None:
        """Keep what was reached before an error, where the state is that between two updates."""
        if not isinstance(exception, Exception) or not loop.between_updates:
            return
        loop.leave_evaluation()
        if self._vote is not None:
            # After this step's vote the others are on their way to the next gradient, not to a vote.
            if loop.listened or self._voted_at == loop.progress.step:
                return
            with suppress(RuntimeError):
                self._vote(FAILED)
                self.save(loop, checkpoint.LAST)
        elif loop.progress.step != self._saved_step:
            with suppress(UserError, RuntimeError):
                self.save(loop, checkpoint.LAST)

    def on_fit_end(self, trainer: L.Trainer, loop: Any) -> None:
        if trainer.is_global_zero:
            (self.folder / checkpoint.PREVIOUS).unlink(missing_ok=True)

    def _agreed(self, loop: Loop) -> int | None:
        """The largest of the processes' votes; all of them learn it at the same step."""
        assert self._vote is not None
        self._voted_at = loop.progress.step
        return self._vote(self.signal or (DUE if self._due(loop) else None))

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Let the first signal end training after the running step, a second one at once."""

        def request(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                raise Interrupted(number)
            self.signal = number

        with handled_by(request):
            yield


class Vote:
    """Lets processes agree on the largest number among theirs.

    They talk in a group of their own on the CPU: no GPU waits for it, and it never meets a gradient.
    """

    def __init__(self) -> None:
        self.group: Any = distributed.new_group(backend="gloo")

    def __call__(self, number: int | None) -> int | None:
        vote = torch.tensor(number or 0, dtype=torch.int32)
        distributed.all_reduce(vote, distributed.ReduceOp.MAX, group=self.group)
        return int(vote) or None


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
