"""An experiment's parts, built from its config: the loop with its task, callbacks and loggers, and the trainer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from cnn_train import __version__
from cnn_train.config.build import build
from cnn_train.config.signatures import is_subclass, signature
from cnn_train.data.data import Data
from cnn_train.data.fingerprint import fingerprint
from cnn_train.errors import ConfigError, EnvError
from cnn_train.experiment.callbacks import build_loggers, check_monitors
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.network import build_network_and_data
from cnn_train.experiment.trainer import build_trainer
from cnn_train.models.network import backbone_of
from cnn_train.postprocess.nms import NMS
from cnn_train.runs import secrets
from cnn_train.runs.metrics import lower_is_better
from cnn_train.tasks.box_losses import BoxLoss
from cnn_train.tasks.class_weights import class_weights_from_counts, positive_weights_from_counts
from cnn_train.tasks.classification import Classification
from cnn_train.tasks.detection import Detection
from cnn_train.tasks.multilabel import MultiLabel
from cnn_train.tasks.segmentation import Segmentation
from cnn_train.tasks.task import Task
from cnn_train.training.batches import listens_to_batches
from cnn_train.training.layout import channels_last_pays
from cnn_train.training.loop import Loop
from cnn_train.training.progress import Best
from cnn_train.training.recipe import Recipe
from cnn_train.training.recompute import recompute

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "multilabel": MultiLabel,
    "segmentation": Segmentation,
    "detection": Detection,
}


@dataclass
class Experiment:
    """A run's parts, ready to train or to evaluate."""

    cfg: DictConfig
    machine: Machine
    folder: Path
    loop: Loop
    trainer: L.Trainer


def prepare(
    cfg: DictConfig,
    machine: Machine,
    folder: Path,
    callbacks: Sequence[L.Callback] = (),
    saved: dict[str, Any] | None = None,
    **options: Any,
) -> Experiment:
    """Build everything of a config. `saved` is the state that training continues from; `options` are the task's."""
    network, data = build_network_and_data(
        cfg, machine.num_processes, saved=saved, folder=folder, tells=machine.rank == 0
    )
    loop = build_loop(cfg, machine, network, data, **options)
    check_monitors(callbacks, loop.task)
    loggers = build_loggers(cfg, folder, saved)
    return Experiment(cfg, machine, folder, loop, build_trainer(cfg, machine, folder, callbacks, loggers))


def build_loop(cfg: DictConfig, machine: Machine, network: nn.Module, data: Data, **options: Any) -> Loop:
    """The LightningModule that trains the network on the data's kind of task."""
    trainer = cfg.trainer
    if trainer.decoder_lr_ratio != 1 and backbone_of(network) is None:
        raise ConfigError(
            f"trainer.decoder_lr_ratio={trainer.decoder_lr_ratio:g}, but {cfg.choices.model} has no encoder apart; "
            "leave it at 1"
        )
    recipe = Recipe.of(cfg, channels_last_pays(network, on_gpu=machine.accelerator != "cpu"))
    task = build_task(cfg, data, network, **options)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if trainer.get("checkpoint_activations"):
        recompute(network)
    if trainer.compile:
        network.compile(dynamic=False)  # a smaller last batch is compiled once more, not slower from then on
    monitor = monitored(cfg, task)
    return Loop(network, task, recipe, Best(monitor, lower_is_better(monitor)), description(cfg, data))


def check_recordable(cfg: DictConfig, machine: Machine, task: Task, callbacks: Sequence[L.Callback]) -> None:
    """ConfigError for what does not go with `trainer.cuda_graphs`, EnvError without a GPU."""
    if machine.accelerator != "gpu":
        raise EnvError("trainer.cuda_graphs=true needs a GPU; use false on a CPU")
    trainer, listener = cfg.trainer, next((type(c).__name__ for c in callbacks if listens_to_batches(c)), None)
    conflicts = {
        f"trainer.accumulate={trainer.accumulate}": trainer.accumulate > 1,
        f"trainer.split_batches={trainer.split_batches}": trainer.split_batches != 1,
        "trainer.checkpoint_activations=true": trainer.get("checkpoint_activations", False),
        "trainer.precision=16-mixed": machine.precision == "16-mixed",
        f"{machine.num_processes} processes": machine.num_processes > 1,
        "callbacks=health": bool(OmegaConf.select(cfg, "callbacks.health.every")),
        f"data.multi_scale={cfg.data.get('multi_scale')}": cfg.data.get("multi_scale") is not None,
        f"the callback {listener}, which listens to single batches": listener is not None,
        "detection, whose losses pick boxes": isinstance(task, Detection),
    }
    for what, meets in conflicts.items():
        if meets:
            raise ConfigError(f"trainer.cuda_graphs=true does not go with {what}; use false")


def build_task(cfg: DictConfig, data: Data, network: nn.Module | None = None, **options: Any) -> Task:
    """The loss and the metrics for the data's kind of task; detection needs the network that it is for."""
    if data.task == "detection":
        options["detector"] = network
    given = {}
    if cfg.loss.get("class_weights") == "auto":
        given["class_weights"] = class_weights_from_counts(data.class_counts("train")).tolist()
    if cfg.loss.get("positive_weights") == "auto":
        counts, images = data.class_counts("train"), data.size("train")
        given["positive_weights"] = positive_weights_from_counts(counts, images).tolist()
    loss = build_loss(cfg, data, given)
    aux_weight = getattr(network, "aux_weight", 0.0)
    return TASKS[data.task](loss, data, aux_weight, **evaluation_parts(cfg, data), **options)


def build_loss(cfg: DictConfig, data: Data, given: dict[str, Any]) -> nn.Module:
    """The loss of scores, or of boxes for detection; ConfigError for one of the other kind."""
    of_boxes = is_subclass(signature(cfg.loss._target_), f"{BoxLoss.__module__}.{BoxLoss.__name__}")
    if of_boxes != (data.task == "detection"):
        raise ConfigError(
            f"loss={cfg.choices.loss} is {'for' if of_boxes else 'not for'} detection, but "
            f"data={cfg.choices.data} is for {data.task}; choose another loss or data (cnn-train list loss)"
        )
    scores = {} if of_boxes else {"num_classes": data.num_classes, "ignore_index": data.ignore_index}
    return build(cfg.loss, **scores, **given)


def evaluation_parts(cfg: DictConfig, data: Data) -> dict[str, Any]:
    """The run's `inference` and `postprocess`; ConfigError for those that are not for the data's task."""
    inference, postprocess = build(cfg.inference, train_size=data.image_size), build(cfg.postprocess)
    detects = data.task == "detection"
    if isinstance(postprocess, NMS) != detects:
        what = "needs" if detects else "has no"
        raise ConfigError(f"{data.task} {what} postprocess=nms, got postprocess={cfg.choices.postprocess}")
    if data.task == "segmentation":
        return {"inference": inference, "postprocess": postprocess}
    if detects and inference.sees_whole_images:
        return {"postprocess": postprocess}
    if data.targets == "labels" and inference.window is None and postprocess is None:
        return {"inference": inference}
    for group, other in (("inference", not inference.sees_whole_images), ("postprocess", postprocess is not None)):
        if other:
            default = {"inference": "whole", "postprocess": "none"}[group]
            raise ConfigError(
                f"{group}={cfg.choices[group]} is for segmentation, but data={cfg.choices.data} is for {data.task}; "
                f"choose {group}={default}"
            )
    return {}


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
        "data": fingerprint(data),
    }
