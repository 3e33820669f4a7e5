"""The task and the callbacks of a config."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from cnn_train import __version__
from cnn_train.config.build import build
from cnn_train.data.data import Data
from cnn_train.errors import ConfigError
from cnn_train.experiment.hardware import accelerator, rank
from cnn_train.runs import secrets
from cnn_train.tasks.classification import Classification
from cnn_train.tasks.segmentation import Segmentation
from cnn_train.tasks.task import Recipe, Task
from cnn_train.training.callbacks import display
from cnn_train.training.callbacks.callback import Callback
from cnn_train.training.callbacks.checkpoints import Checkpoints, EarlyStopping
from cnn_train.training.callbacks.finite import LossWatch, NotFinite
from cnn_train.training.callbacks.health import Health
from cnn_train.training.callbacks.record import MetricsFile, TensorBoard

TASKS: dict[str, type[Task]] = {"classification": Classification, "segmentation": Segmentation}


def build_task(cfg: DictConfig, network: nn.Module, data: Data) -> Task:
    """The Lightning module for the data's kind of task."""
    on_gpu = accelerator(cfg) != "cpu"
    options = cfg.trainer
    if options.decoder_lr_ratio != 1 and not isinstance(getattr(network, "backbone", None), nn.Module):
        raise ConfigError(
            f"trainer.decoder_lr_ratio={options.decoder_lr_ratio:g}, but {cfg.choices.model} has no encoder apart; "
            "leave it at 1"
        )
    recipe = Recipe(
        optimizer=build(cfg.optimizer),
        schedule=build(cfg.scheduler),
        schedule_start=options.schedule_start,
        schedule_epochs=options.schedule_epochs,
        max_epochs=1 if options.fast_dev_run else options.max_epochs,
        seed=cfg.seed,
        accumulate=options.accumulate,
        gradient_clip=options.gradient_clip,
        ema=options.ema,
        ema_bias_correction=options.ema_bias_correction,
        decay_norm_and_bias=options.decay_norm_and_bias,
        decoder_lr_ratio=options.decoder_lr_ratio,
        channels_last=on_gpu if options.channels_last == "auto" else options.channels_last,
        limit_batches=1 if options.fast_dev_run else options.limit_batches,
        overfit_batches=options.overfit_batches,
        same_batches=options.overfit_batches > 0 or options.smoke,
        log_every=options.log_every,
        split_batches=None if options.split_batches == "auto" else options.split_batches,
        skip_not_finite=options.on_nan == "skip",
    )
    weights = cfg.loss.get("class_weights")
    if weights == "auto":
        weights = class_weights(data)
    loss = build(
        cfg.loss,
        num_classes=data.num_classes,
        ignore_index=data.ignore_index,
        **({} if "class_weights" not in cfg.loss else {"class_weights": weights}),
    )
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if options.compile:
        network.compile()
    return TASKS[data.task](network, loss, data, recipe, **after_the_network(cfg, data))


def after_the_network(cfg: DictConfig, data: Data) -> dict[str, Any]:
    """How scores and labels come about in evaluation: `inference` and `postprocess` of segmentation."""
    if data.task == "segmentation":
        return {"inference": build(cfg.inference, train_size=data.image_size), "postprocess": build(cfg.postprocess)}
    for group, default in (("inference", "whole"), ("postprocess", "none")):
        if cfg.choices[group] != default:
            raise ConfigError(
                f"{group}={cfg.choices[group]} is for segmentation, but data={cfg.choices.data} is for {data.task}; "
                f"choose {group}={default}"
            )
    return {}


@dataclass
class Callbacks:
    """What watches this run, with names for those that are spoken to."""

    checkpoints: Checkpoints
    metrics_file: MetricsFile
    display: display.Display
    others: list[Callback]

    def in_order(self) -> list[Callback]:
        # Rows and curves first: what a checkpoint counts is on disk. The display, last, tells which was best.
        return [self.metrics_file, *self.others, self.checkpoints, self.display]


def build_callbacks(cfg: DictConfig, task: Task, folder: Path) -> Callbacks:
    monitor = monitored(cfg, task)
    options = cfg.callbacks
    checkpoints = Checkpoints(
        folder,
        monitor,
        "min" if "loss" in monitor else "max",
        lambda: description(cfg, task.data),
        options.checkpoint.every_minutes,
        options.checkpoint.every_steps,
        options.checkpoint.keep_best,
    )
    others: list[Callback] = [NotFinite(folder, cfg.trainer.on_nan), LossWatch()]
    if cfg.logger is not None:
        others.append(TensorBoard(options.samples))
    if options.health.every is not None:
        others.append(Health(options.health.every, activations=not cfg.trainer.compile))
    progress = display.choose(cfg.trainer.progress) if rank() == 0 else "none"
    callbacks = Callbacks(
        checkpoints, MetricsFile(folder / "metrics.csv"), display.Display(progress, checkpoints), others
    )
    task.callbacks = callbacks.in_order()
    if options.early_stopping.patience is not None:
        task.callbacks.append(EarlyStopping(checkpoints, options.early_stopping.patience))
    return callbacks


def monitored(cfg: DictConfig, task: Task) -> str:
    """The metric that decides which epoch is best; ConfigError for one that no validation gives."""
    known = [f"val/{name}" for name in task.metric_names]
    if cfg.monitor is None:
        return f"val/{task.shown_metrics[0]}"
    if cfg.monitor not in known:
        raise ConfigError(f"monitor={cfg.monitor} is not a metric of this task; choose one of {', '.join(known)}")
    return cfg.monitor


def description(cfg: DictConfig, data: Data) -> dict[str, Any]:
    """What a checkpoint says of itself, as plain data."""
    return {
        "cnn_train": __version__,
        "config": OmegaConf.to_container(
            OmegaConf.create(secrets.mask_settings(OmegaConf.to_yaml(cfg))), resolve=False
        ),
        "class_names": list(data.class_names),
        "preprocessing": data.preprocessing(),
    }


def class_weights(data: Data) -> list[float]:
    """Weights for `loss.class_weights=auto`, from the training labels."""
    from cnn_train.tasks.losses import class_weights_from_counts

    return class_weights_from_counts(data.class_counts("train")).tolist()
