"""What a network may say of itself beyond being an `nn.Module`, and how the other wings ask.

A network maps images (N, in_channels, H, W) to scores: (N, num_classes) if it classifies, (N, num_classes, H, W) if it
segments; one that detects gives what `cnn_train.models.detection` says. In training it may return a tuple: its own
scores, then those of auxiliary classifiers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class Network(Protocol):
    """The optional attributes of a network, with the values that hold where it does not say.

    `task`: what it does, "classification", "segmentation" or "detection".
    `min_size`: the smallest side of an image that it takes, in pixels.
    `aux_weight`: the weight of each auxiliary classifier in the loss; one that returns a tuple must say it.
    `stages`: the parts that give one feature map for each stride, in order; `Encoder` needs them.
    `backbone`: the encoder of a segmentation network; None where no part of it is one.
    `dense_layers`: convolutions that were dense layers, by the names that those have in a file of weights.
    """

    task: str = "classification"
    min_size: int = 1
    aux_weight: float
    stages: Sequence[nn.Module] | None = None
    backbone: nn.Module | None = None
    dense_layers: Mapping[str, str] = {}


class Backbone(Protocol):
    """What a `backbone` says: `prefix` stands before its names in the weights of the classification network."""

    prefix: str = ""


def task_of(network: nn.Module) -> str:
    """What the network does: classification, segmentation or detection."""
    return getattr(network, "task", Network.task)


def min_size(network: nn.Module) -> int:
    """The smallest side of an image that the network takes, in pixels."""
    return getattr(network, "min_size", Network.min_size)


def stages_of(network: nn.Module) -> Sequence[nn.Module] | None:
    """The parts of a classification network that give one feature map for each stride; None if it has no such parts."""
    return getattr(network, "stages", Network.stages)


def backbone_of(network: nn.Module) -> nn.Module | None:
    """The encoder of a segmentation network; None where no part of it is one."""
    return getattr(network, "backbone", Network.backbone)


def main_scores(outputs: Any) -> Tensor:
    """The network's own scores, without those of auxiliary classifiers."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def classification_name(network: nn.Module, name: str) -> str:
    """The name that a weight of a segmentation network has in the classification network that it stands on."""
    part, _, rest = name.partition(".")
    if part == "backbone":
        return getattr(backbone_of(network), "prefix", Backbone.prefix) + rest
    return f"{getattr(network, 'dense_layers', Network.dense_layers).get(part, part)}.{rest}"
