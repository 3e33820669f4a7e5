"""The saved state of a run: found, checked and restored."""

import sys
from pathlib import Path
from typing import Any

import lightning as L

from cnn_train.errors import ConfigError
from cnn_train.experiment.build import Callbacks
from cnn_train.experiment.hardware import rank
from cnn_train.runs import checkpoint
from cnn_train.tasks.task import Task


def saved_state(folder: Path) -> dict[str, Any] | None:
    """The state to go on from, None if none was saved yet; tells of a damaged checkpoint."""
    state, told = checkpoint.load_newest(folder)
    if told and rank() == 0:
        print(told, file=sys.stderr)
    return state


def restore(state: dict[str, Any] | None, folder: Path, task: Task, callbacks: Callbacks, trainer: L.Trainer) -> str:
    """Set task, callbacks and Lightning's epoch counter to a saved state; says where training goes on."""
    if state is None:
        return "from the first step: no checkpoint had been saved"
    epoch, step = state["progress"]["epoch"], state["progress"]["step"]
    results = folder / "metrics.json"
    if epoch >= task.recipe.max_epochs and results.is_file():
        raise ConfigError(
            f"{folder} has done all its {epoch} epochs; for more: "
            f"cnn-train resume {folder} trainer.max_epochs={2 * epoch}"
        )
    if rank() == 0:
        results.unlink(missing_ok=True)
    check_same_network(state, task, folder)
    task.resume_state = state
    callbacks.checkpoints.restore(state)
    callbacks.metrics_file.keep_until(epoch)
    set_epoch(trainer, epoch)
    return f"from step {step:,}, epoch {epoch + 1}"


def set_epoch(trainer: L.Trainer, epoch: int) -> None:
    """Let Lightning count epochs from here."""
    counter: Any = trainer.fit_loop.epoch_progress.current
    counter.ready = counter.started = counter.processed = counter.completed = epoch


def check_same_network(state: dict[str, Any], task: Task, folder: Path) -> None:
    """ConfigError if a checkpoint is of another network than the config's."""
    saved = {name: tuple(value.shape) for name, value in state["network"].items()}
    built = {name: tuple(value.shape) for name, value in task.network.state_dict().items()}
    if saved == built:
        return
    name = next(name for name in [*saved, *built] if saved.get(name) != built.get(name))
    raise ConfigError(
        f"the checkpoint in {folder} is of another network: {name} is {saved.get(name, 'absent')} there and "
        f"{built.get(name, 'absent')} by config.yaml; restore that file, or start anew with weights={folder}/best.ckpt"
    )
