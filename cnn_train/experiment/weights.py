"""The weights that a run starts from: found by name or path, read, adapted to the network, and told in one table."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from cnn_train import atomic
from cnn_train.config.choices import Choices, nearest
from cnn_train.data.data import Data
from cnn_train.errors import ConfigError
from cnn_train.models import pretrained
from cnn_train.models.weights import Report, load_weights
from cnn_train.runs import weights_file
from cnn_train.runs.weights_file import WeightsFile


@dataclass(frozen=True)
class Start:
    """Weights to start from; `preprocessing` is what images went through when they were trained, as far as known."""

    title: str
    file: WeightsFile
    preprocessing: Mapping[str, Any]


def find(cfg: DictConfig) -> Start | None:
    """Read what `weights=` names, fetched if it is not here; None without weights. Raises ConfigError or DataError."""
    text = cfg.weights
    if text is None:
        return None
    if not pretrained.is_name(text):
        path = Path(text).expanduser()
        if not path.exists():
            guess = nearest(text, ["torchvision", "timm"])
            raise ConfigError(f"no checkpoint at {text}" + (f". Did you mean weights={guess}?" if guess else ""))
        file = weights_file.read(path)
        how = file.preprocessing or {}
        # Of a run of ours the normalization counts; images keep the size of this run's data.
        known = {name: how[name] for name in ("mean", "std") if how.get("normalize") == "standardize"}
        return Start(text, file, known)
    given = pretrained.resolve(text, pretrained.names_of(cfg.model, cfg.choices.model, cfg.norm is not None))
    file = weights_file.read(weights_file.fetch(given.address, given.file, given.sha256))
    known = {"mean": given.mean, "std": given.std, "image_size": given.image_size, "resize_to": given.resize}
    return Start(given.title, file, {name: value for name, value in known.items() if value is not None})


def start_from(start: Start, network: nn.Module, cfg: DictConfig, class_names: Sequence[str]) -> Report:
    """Load the weights into the network, adapted where they have to be."""
    trained_on = start.file.class_names
    classes = None if trained_on is None else (trained_on, class_names)
    return load_weights(network, start.file.tensors, start.title, paper_eps(cfg), classes)


def paper_eps(cfg: DictConfig) -> float:
    """The `eps` of the batch norm that the model's paper has, for norms that are folded away."""
    choices = Choices.find()
    option = choices.brought("model", cfg.choices.model).get("norm") or choices.defaults()["norm"]
    return float(choices.body("norm", option).get("eps", 1e-5))


def normalize_like(data: Data, how: Mapping[str, Any]) -> None:
    """Standardize images by a preprocessing's mean and deviation; their means where the number of channels differs."""
    mean, std = list(how["mean"]), list(how["std"])
    if len(mean) != data.in_channels:
        mean, std = ([sum(values) / len(values)] * data.in_channels for values in (mean, std))
    data.normalize_by(mean, std)


def tell(start: Start, report: Report, data: Data, taken_over: bool, folder: Path | None) -> None:
    """Print the table of the weights, and write it whole to weights.csv in the run folder."""
    lines = [f"weights  {start.title} ({start.file.kind})", *report.lines()]
    if taken_over:
        values = "  ".join(
            f"{name} {', '.join(f'{v:.3f}' for v in found)}" for name, found in (("mean", data.mean), ("std", data.std))
        )
        size = "x".join(map(str, data.image_size))
        lines.append(f"images   {values}  {size}, as these weights want; data.mean=[...] data.std=[...] keeps others")
    print("\n".join(lines), file=sys.stderr)
    if folder is not None and (folder / "config.yaml").is_file():
        atomic.write_text(folder / "weights.csv", report.as_csv())
