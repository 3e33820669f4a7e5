"""Anchors that a run takes from its training boxes: found once, written into its config, and reported."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from cnn_train import atomic
from cnn_train.boxes import shape_iou
from cnn_train.config import load
from cnn_train.data.data import Data
from cnn_train.runs import secrets


def asked_for(cfg: DictConfig) -> bool:
    """Does the config ask for anchors from the training boxes?"""
    return isinstance(cfg.model, DictConfig) and cfg.model.get("anchors") == "auto"


def keep(cfg: DictConfig, network: nn.Module, sizes: Tensor, data: Data, folder: Path | None) -> None:
    """Write the network's anchors into the config, and into that of the run's folder; the header gets a remark."""
    found: Any = network.anchors
    best = shape_iou(sizes.double(), sizes.new_tensor(found).double()).amax(1)
    missed = int((best < 0.5).sum())
    fit = f"mean IoU {float(best.mean()):.3f}, none of 0.5 for {missed:,}"
    data.notes = (*data.notes, f"{len(found)} anchors from {len(sizes):,} objects: {fit}")
    cfg.model.anchors = found
    if folder is not None and (path := folder / "config.yaml").is_file():
        atomic.write_text(path, secrets.mask_settings(load.text(cfg, path)))
