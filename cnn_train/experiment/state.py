"""The saved state of a run: found, checked and restored."""

import sys
from pathlib import Path
from shlex import quote
from typing import Any

import lightning as L

from cnn_train.data.fingerprint import differences
from cnn_train.errors import ConfigError, DataError
from cnn_train.experiment.build import Experiment
from cnn_train.runs import checkpoint
from cnn_train.training.loop import Loop


def saved_state(folder: Path, rank: int) -> dict[str, Any] | None:
    """The state that training continues from, None if none was saved yet; tells of a damaged checkpoint."""
    state, told = checkpoint.load_newest(folder)
    if told and rank == 0:
        print(told, file=sys.stderr)
    return state


def restore(state: dict[str, Any] | None, experiment: Experiment, changed_data: bool = False) -> str:
    """Set the loop and Lightning's epoch counter to a saved state; says where training continues.

    DataError if the data is not what it was, unless `changed_data` accepts that.
    """
    if state is None:
        return "from the first step: no checkpoint had been saved"
    loop, folder = experiment.loop, experiment.folder
    epoch, step = state["progress"]["epoch"], state["progress"]["step"]
    results = folder / "metrics.json"
    if epoch >= loop.recipe.max_epochs and results.is_file():
        raise ConfigError(
            f"{folder} has done all its {epoch} epochs; for more: "
            f"cnn-train resume {quote(str(folder))} trainer.max_epochs={2 * epoch}"
        )
    if experiment.machine.rank == 0:
        results.unlink(missing_ok=True)
    check_same_network(state, loop, folder)
    changes = differences(state["data"], loop.description["data"])
    if changes and not changed_data:
        raise DataError(
            f"the data of {folder} is not what it was: {'; '.join(changes)}; restore it, or accept it as it is now: "
            f"cnn-train resume {quote(str(folder))} changed_data=accept"
        )
    loop.resume_state = state
    loop.best.restore(state["best"])
    set_epoch(experiment.trainer, epoch)
    return f"from step {step:,}, epoch {epoch + 1}"


def set_epoch(trainer: L.Trainer, epoch: int) -> None:
    """Let Lightning count epochs from here."""
    counter: Any = trainer.fit_loop.epoch_progress.current
    counter.ready = counter.started = counter.processed = counter.completed = epoch


def check_same_network(state: dict[str, Any], loop: Loop, folder: Path) -> None:
    """ConfigError if a checkpoint is of another network than the config's."""
    saved = {name: tuple(value.shape) for name, value in state["network"].items()}
    built = {name: tuple(value.shape) for name, value in loop.network.state_dict().items()}
    if saved == built:
        return
    name = next(name for name in [*saved, *built] if saved.get(name) != built.get(name))
    raise ConfigError(
        f"the checkpoint in {folder} is of another network: {name} is {saved.get(name, 'absent')} there and "
        f"{built.get(name, 'absent')} by config.yaml; restore that file, or start anew with weights={folder}/best.ckpt"
    )
