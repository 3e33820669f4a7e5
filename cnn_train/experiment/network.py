"""Network and data of a config, built together and checked against each other."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from cnn_train.config.build import build, build_layers
from cnn_train.config.choices import Choices
from cnn_train.config.signatures import signature
from cnn_train.data.box_sample import box_sizes
from cnn_train.data.data import Data
from cnn_train.errors import ConfigError
from cnn_train.experiment import anchors, weights
from cnn_train.layers.init import lsuv_calibrate
from cnn_train.layers.norm import synchronizes
from cnn_train.models.network import main_scores, min_size, task_of

PARTS = ("norm", "act", "pool", "global_pool", "upsample", "init")  # what `layers` holds


def build_network_and_data(
    cfg: DictConfig,
    num_processes: int = 1,
    *,
    saved: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    tells: bool = True,
) -> tuple[nn.Module, Data]:
    """Build both, the data's images at least as large as the network needs, and check that they fit each other.

    `saved` is a checkpoint whose weights will be loaded later, and whose preprocessing the data gets. Otherwise the
    network starts from `weights=`, if there are some, which is reported and written to weights.csv in `folder`.
    """
    start = weights.find(cfg) if saved is None else None
    how = start.preprocessing if start is not None else (saved or {}).get("preprocessing") or {}
    data: Data = build(cfg.data)
    torch.manual_seed(cfg.seed)
    layers = build_layers(cfg)
    given: dict[str, Any] = {"num_classes": data.num_classes, "in_channels": data.in_channels, "layers": layers}
    auto = anchors.asked_for(cfg)
    if auto:
        given["box_sizes"] = box_sizes(data)
    network = build_network(cfg, **given)
    check_task(network, data, cfg)
    least = min_size(network)
    if min(data.image_size) < least:
        if cfg.image_size is not None:
            got = "x".join(map(str, data.image_size))
            raise ConfigError(
                f"{name_of(cfg)} needs images of at least {least}x{least}, got {got}; image_size={least} works"
            )
        data = build(cfg.data, image_size=least)
    data, taken_over = preprocessed(data, cfg, how, whose="run" if saved is not None else "weights")
    if cfg.trainer.overfit_batches:
        data.keep_batches(cfg.trainer.overfit_batches)
    priors: Any = getattr(network, "priors", None)
    data.fit_scales(1 if priors is None else int(priors(data.image_size).strides.max()), least)
    if auto:
        anchors.keep(cfg, network, given["box_sizes"], data, folder if tells else None)
    check_fit(network, data, cfg, num_processes)
    if start is not None:
        report = weights.start_from(start, network, cfg, data.class_names)
        if tells:
            weights.tell(start, report, data, taken_over, folder)
    elif layers.needs_images and saved is None:
        lsuv_calibrate(network, next(data.train_batches(0, device=torch.device("cpu"))).images)
    return network, data


def preprocessed(data: Data, cfg: DictConfig, how: Mapping[str, Any], whose: str) -> tuple[Data, bool]:
    """The data with a preprocessing's mean, deviation and size, unless the config sets its own; whether it has them.

    The size of weights is that of whole images, which segmentation's crops need not have.
    """
    if cfg.data.get("mean") is not None or "mean" not in how:
        return data, False
    size = how.get("image_size")
    resizes = cfg.image_size is None and (whose == "run" or data.task == "classification")
    if size is not None and resizes and tuple(size) != data.image_size:
        data = build(cfg.data, image_size=list(size))
    if data.normalize != "standardize":
        return data, False
    weights.normalize_like(data, how)
    return data, True


def name_of(cfg: DictConfig) -> str:
    """The network's name: the choice of model, and what a library calls its network."""
    inner = cfg.model.get("name") if isinstance(cfg.model, DictConfig) else None
    return f"{cfg.choices.model} {inner}" if inner else cfg.choices.model


def build_network(cfg: DictConfig, **given: Any) -> nn.Module:
    """The network, given what its builder takes of `num_classes`, `in_channels` and `layers`.

    ConfigError if parts were chosen that it cannot be given.
    """
    takes = signature(cfg.model._target_)
    network = build(cfg.model, **{k: v for k, v in given.items() if takes.open_ended or k in takes.parameters})
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model={cfg.choices.model} must build an nn.Module, got {type(network).__name__}")
    if not takes.open_ended and "layers" not in takes.parameters:
        defaults = Choices.find().defaults()
        chosen = [f"{group}={cfg.choices[group]}" for group in PARTS if cfg.choices[group] != defaults[group]]
        if chosen:
            raise ConfigError(
                f"{', '.join(chosen)} cannot be put into model={cfg.choices.model}, whose builder takes no `layers`; "
                "leave it out, or give the builder that parameter"
            )
    return network


def check_task(network: nn.Module, data: Data, cfg: DictConfig) -> None:
    """Raise ConfigError if the network does not do what the data is for."""
    does = {"classification": "classifies images", "segmentation": "segments images", "detection": "detects objects"}
    needed = "classification" if data.task == "multilabel" else data.task
    if task_of(network) != needed:
        raise ConfigError(
            f"{cfg.choices.model} {does[task_of(network)]}, but data={cfg.choices.data} is for {data.task}; "
            "choose another model or data (cnn-train list data)"
        )


def smallest_batch(network: nn.Module, data: Data, split_batches: int | str, num_processes: int) -> tuple[int, str]:
    """How few images a norm will ever see together in training, and what they are."""
    shares = (1 if synchronizes(network) else num_processes) * (1 if split_batches == "auto" else int(split_batches))
    full, last = divmod(data.size("train"), data.batch_size)
    smallest, which = data.batch_size if full else data.size("train"), "a training batch"
    if num_processes <= last and not data.drop_last:
        smallest, which = last, "the last training batch"
    return (max(smallest // shares, 1), f"a part of {which}") if shares > 1 else (smallest, which)


def check_fit(network: nn.Module, data: Data, cfg: DictConfig, num_processes: int) -> None:
    """Run the smallest batch that a norm will ever see in training through the network, on the meta device.

    Raises ConfigError if it does not fit.
    """
    parts = cfg.trainer.split_batches
    smallest, which = smallest_batch(network, data, parts, num_processes)
    model, size = name_of(cfg), "x".join(map(str, data.image_size))
    images = torch.empty(smallest, data.in_channels, *data.image_size, device="meta")
    try:
        outputs = copy.deepcopy(network).to("meta").train()(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise ConfigError(str(error).splitlines()[0]) from error
        fewer = "" if parts in (1, "auto") else "trainer.split_batches=1, "
        raise ConfigError(
            f"norm={cfg.choices.norm} needs more than one value per channel, but {which} is {smallest} image and a map "
            f"of {model} is 1x1; choose {fewer}data.drop_last=true, another data.batch_size, norm=gn or norm=frozen_bn"
        ) from error
    except (RuntimeError, AssertionError) as error:  # torchvision and timm assert what they need
        raise ConfigError(
            f"{model} cannot take images of {size}: {str(error).splitlines()[0]}; try a larger image_size"
        ) from error
    if data.task == "detection":
        return  # its outputs are its own
    scores = main_scores(outputs)
    if scores.ndim > 1 and scores.size(1) != data.num_classes:
        raise ConfigError(
            f"{model} gives {scores.size(1)} scores, but data={cfg.choices.data} has {data.num_classes} classes"
        )
    if (scores.ndim == 4) != (data.task == "segmentation"):
        raise ConfigError(
            f"{model} gives scores of shape {tuple(scores.shape)}, which is none for {data.task}; a network says what "
            'it does in an attribute: task = "segmentation"'
        )
