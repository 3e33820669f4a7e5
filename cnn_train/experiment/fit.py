"""One process's training, from the config to the results."""

from pathlib import Path

from omegaconf import DictConfig

from cnn_train import atomic
from cnn_train.experiment.build import check_recordable, prepare
from cnn_train.experiment.callbacks import build_callbacks
from cnn_train.experiment.failures import failures_explained
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.results import check_smoke, evaluate_best, record_results, show_header, show_results
from cnn_train.experiment.state import restore, saved_state
from cnn_train.experiment.trainer import quiet_libraries
from cnn_train.runs import folder as run_folder
from cnn_train.runs.streams import lasting
from cnn_train.training.callbacks.checkpoints import Checkpoints
from cnn_train.training.callbacks.display import Display


def fit(cfg: DictConfig, machine: Machine, folder: Path, resume: bool, changed_data: bool = False) -> dict[str, float]:
    """Train in this process, alone or as one of several; the final metrics."""
    with (
        run_folder.in_use(folder, machine.rank == 0),
        lasting(lambda text: run_folder.log(folder, text)),
        quiet_libraries(),
    ):
        callbacks = build_callbacks(cfg, machine)
        saved = saved_state(folder, machine.rank) if resume else None
        experiment = prepare(cfg, machine, folder, callbacks, saved)
        if experiment.loop.recipe.cuda_graphs:
            check_recordable(cfg, machine, experiment.loop.task, callbacks)
        start = restore(saved, experiment, changed_data) if resume else ""
        if machine.rank == 0 and (table := experiment.loop.data.split_table()) is not None:
            atomic.write_text(folder / "splits.csv", table)
        if machine.rank == 0 and (table := experiment.loop.data.skipped_table()) is not None:
            atomic.write_text(folder / "skipped.csv", table)
        show_header(experiment, start)

        checkpoints = next(callback for callback in callbacks if isinstance(callback, Checkpoints))
        display = next(callback for callback in callbacks if isinstance(callback, Display))
        with display, checkpoints.signals(), failures_explained(experiment.loop):
            experiment.trainer.fit(experiment.loop)

        metrics = evaluate_best(experiment)
        if machine.rank == 0:
            record_results(experiment, metrics)
            show_results(experiment, metrics)
        if cfg.trainer.smoke:
            check_smoke(experiment, metrics)
    return metrics
