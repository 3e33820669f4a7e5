"""Callbacks and loggers of a config: Lightning's, the user's and ours, built and checked."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from cnn_train.config.build import build
from cnn_train.config.signatures import signature
from cnn_train.errors import ConfigError, EnvError
from cnn_train.experiment.hardware import Machine
from cnn_train.tasks.task import Task
from cnn_train.training.callbacks import display
from cnn_train.training.callbacks.checkpoints import Checkpoints
from cnn_train.training.callbacks.finite import NotFinite
from cnn_train.training.callbacks.lr_range import LRRange
from cnn_train.training.callbacks.plateau import PlateauWatch
from cnn_train.training.schedule import Plateau, Range

# Lightning's callbacks that need what our loop does by itself, and what to use instead.
REFUSED: dict[type[L.Callback], str] = {
    lightning_callbacks.ModelCheckpoint: "callbacks.checkpoint writes best.ckpt and last.ckpt",
    lightning_callbacks.OnExceptionCheckpoint: "callbacks.checkpoint saves at errors",
    lightning_callbacks.WeightAveraging: "trainer.ema=0.999 averages weights",
    lightning_callbacks.StochasticWeightAveraging: "trainer.ema=0.999 averages weights",
    lightning_callbacks.GradientAccumulationScheduler: "trainer.accumulate=4 accumulates gradients",
    lightning_callbacks.BatchSizeFinder: "trainer.split_batches=auto finds what fits in memory",
    lightning_callbacks.LearningRateFinder: "debug=lr_range proposes a rate",
    lightning_callbacks.ModelPruning: "it replaces weights by others, which our checkpoints need unchanged",
    lightning_callbacks.BaseFinetuning: "it changes the groups of the optimizer, which our checkpoints need unchanged",
    lightning_callbacks.ProgressBar: "trainer.progress=rich or plain shows progress",
    lightning_callbacks.BasePredictionWriter: "cnn-train predict writes predictions",
    lightning_callbacks.SpikeDetection: "trainer.on_nan=skip or rollback, and callbacks.loss_watch",
}  # fmt: skip


def build_callbacks(cfg: DictConfig, machine: Machine) -> list[L.Callback]:
    """The run's callbacks: those of the config, and those that `trainer.on_nan`, `.progress` and the schedule need."""
    nodes = {str(name): node for name, node in cfg.callbacks.items() if OmegaConf.is_dict(node)}
    chosen = {name: build(node) for name, node in nodes.items()}
    for name, callback in chosen.items():
        if not isinstance(callback, L.Callback):
            raise ConfigError(f"callbacks.{name} must be a callback of Lightning's, got {type(callback).__name__}")
        for kind, instead in REFUSED.items():
            if isinstance(callback, kind):
                raise ConfigError(f"callbacks.{name}: {type(callback).__name__} does not work here; {instead}")
    if not isinstance(chosen.get("checkpoint"), Checkpoints):
        raise ConfigError("callbacks.checkpoint cannot be left out: a run is resumed and evaluated from what it writes")
    progress = display.choose(cfg.trainer.progress) if machine.rank == 0 else "none"
    schedule = build(cfg.scheduler)
    watch: list[L.Callback] = [PlateauWatch(schedule)] if isinstance(schedule, Plateau) else []
    watch += [LRRange()] if isinstance(schedule, Range) else []
    # The display comes last, so that the lines of others stand above an epoch's.
    return [NotFinite(cfg.trainer.on_nan), *watch, *chosen.values(), display.Display(progress)]


def check_monitors(callbacks: Sequence[L.Callback], task: Task) -> None:
    """ConfigError for a callback that waits for a metric which this task does not have."""
    known = [f"val/{name}" for name in task.metric_names] + ["train/loss", f"train/{task.train_metric}"]
    for callback in callbacks:
        wanted = getattr(callback, "monitor", None)
        if isinstance(wanted, str) and wanted not in known:
            raise ConfigError(
                f"{type(callback).__name__}: monitor={wanted} is not a metric of this task; "
                f"choose one of {', '.join(known)}"
            )


def build_loggers(cfg: DictConfig, folder: Path, saved: dict[str, Any] | None) -> list[Logger]:
    """The loggers of the config; those that take a `save_dir` write into the run folder."""
    loggers = []
    for name, node in (cfg.logger or {}).items():
        if node is None:
            continue
        takes = signature(node._target_).parameters
        given: dict[str, Any] = {"save_dir": str(folder)} if "save_dir" in takes and "save_dir" not in node else {}
        if saved is not None and "purge_step" in takes:
            # Points of steps that will be done again go from the curves.
            given["purge_step"] = saved["progress"]["step"] + 1
        if "tracking_uri" in takes and node.get("tracking_uri") is None and "MLFLOW_TRACKING_URI" not in os.environ:
            # MLflow has stopped writing to plain folders.
            given["tracking_uri"] = f"sqlite:///{folder.resolve()}/mlflow.db"
            given["artifact_location"] = (folder.resolve() / "mlflow").as_uri()
        try:
            logger = build(node, **given)
        except ModuleNotFoundError as error:
            package = error.name or next(iter(re.findall(r"pip install (?:-U )?'?([\w-]+)", str(error))), str(name))
            raise EnvError(f"logger={name} needs the package {package}; pip install 'cnn-train[{package}]'") from error
        if not isinstance(logger, Logger):
            raise ConfigError(f"logger.{name} must be a logger of Lightning's, got {type(logger).__name__}")
        loggers.append(logger)
    return loggers
