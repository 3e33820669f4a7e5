"""FCOS: Tian, Shen, Chen & He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019.

https://arxiv.org/abs/1904.01355. Names, and the settings of `fcos_resnet50_fpn`, are torchvision's: distances by a
rectifier instead of the paper's exponential, points at the corners of cells instead of their middles.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.factory import innermost
from cnn_train.layers.norm import GroupNorm
from cnn_train.models.detection.priors import Distances, Outputs, PriorGrid, Priors, flatten_levels
from cnn_train.models.detection.pyramid import PyramidEncoder

__all__ = ["fcos", "fcos_resnet50_fpn"]

RARE = 0.01  # what the classes' probabilities start at (Lin et al. 2017, section 4.1)


class Tower(nn.Sequential):
    """3x3 convolutions with norm and activation, numbered through; all levels share them."""

    def __init__(self, channels: int, depth: int, *, layers: LayerFactory):
        super().__init__()
        for _ in range(depth):
            self.append(layers.conv(channels, channels, 3, bias=True))
            if layers.has_norm:
                self.append(layers.norm(channels))
            self.append(layers.act(channels))


class ClassificationHead(nn.Module):
    """A tower and class scores of every place: maps (N, channels, H_i, W_i) -> (N, P, num_classes)."""

    def __init__(self, channels: int, num_classes: int, depth: int, *, layers: LayerFactory):
        super().__init__()
        self.num_classes = num_classes
        self.conv = Tower(channels, depth, layers=layers)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return flatten_levels([self.cls_logits(self.conv(m)) for m in maps], self.num_classes)


class NonNegative(nn.Module):
    """Distances as they are, those below zero cut."""

    def forward(self, x: Tensor, level: int) -> Tensor:
        return x.clamp(min=0)


class ScaledExp(nn.Module):
    """Distances as the exponential of a learned multiple for each level (section 3.2)."""

    def __init__(self, levels: int):
        super().__init__()
        self.scales = nn.Parameter(torch.ones(levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        return (x * self.scales[level]).clamp(max=8).exp()


class RegressionHead(nn.Module):
    """A tower, four distances and the centerness of every place: maps -> (N, P, 4), (N, P)."""

    def __init__(self, channels: int, depth: int, *, distance: str, levels: int, layers: LayerFactory):
        super().__init__()
        if distance not in ("exp", "relu"):
            raise ValueError(f"distance must be 'exp' (the paper) or 'relu' (torchvision), got {distance!r}")
        self.conv = Tower(channels, depth, layers=layers)
        self.bbox_reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.bbox_ctrness = nn.Conv2d(channels, 1, 3, padding=1)
        self.distance = ScaledExp(levels) if distance == "exp" else NonNegative()

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        features = [self.conv(m) for m in maps]
        distances = [self.distance(self.bbox_reg(feature), level) for level, feature in enumerate(features)]
        centerness = [self.bbox_ctrness(feature) for feature in features]
        return flatten_levels(distances, 4), flatten_levels(centerness, 1).squeeze(-1)


class FCOSHead(nn.Module):
    """Two towers that all levels share (Fig. 2)."""

    def __init__(
        self, channels: int, num_classes: int, depth: int, *, distance: str, levels: int, layers: LayerFactory
    ):
        super().__init__()
        self.classification_head = ClassificationHead(channels, num_classes, depth, layers=layers)
        self.regression_head = RegressionHead(channels, depth, distance=distance, levels=levels, layers=layers)

    def forward(self, maps: Sequence[Tensor]) -> Outputs:
        codes, centerness = self.regression_head(maps)
        return Outputs(codes, self.classification_head(maps), centerness)


class FCOS(nn.Module):
    """A pyramid and two towers: (N, in_channels, H, W) -> `Outputs` of one point for each place of each level.

    Codes are the distances to the four sides in strides, at least 0; quality is the centerness. Points are in the
    middle of cells, or, with `corners`, at their upper left corners.
    """

    task = "detection"

    def __init__(
        self, backbone: PyramidEncoder, head: FCOSHead, *, in_channels: int, corners: bool = False, layers: LayerFactory
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.min_size = backbone.min_size
        layers.init(head, paper=small_normal)
        start_rare(head.classification_head.cls_logits)
        strides = [float(stride) for stride in backbone.strides]
        self.grid = PriorGrid(
            backbone,
            [[(stride, stride)] for stride in strides],
            in_channels=in_channels,
            coding=Distances(),
            strides=None if corners else strides,
            offset=0.0 if corners else 0.5,
        )

    def forward(self, x: Tensor) -> Outputs:
        return self.head(self.backbone(x))

    def priors(self, size: Sequence[int], device: torch.device | None = None) -> Priors:
        """One point for each place of each level, as boxes with the stride as side."""
        return self.grid(size, device)

    def decode(self, outputs: Outputs, priors: Priors) -> tuple[Tensor, Tensor]:
        """Boxes (N, P, 4) and scores (N, P, K): the geometric mean of class probability and centerness."""
        assert outputs.quality is not None
        scores = (outputs.classes.sigmoid() * outputs.quality.sigmoid()[..., None]).sqrt()
        return priors.decode(outputs.codes), scores


def small_normal(module: nn.Module) -> None:
    """N(0, 0.01^2) for convolutions, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def start_rare(scores: nn.Conv2d) -> None:
    """Set the bias so that every class starts as rare: otherwise the many negatives' loss explodes."""
    assert scores.bias is not None
    nn.init.constant_(scores.bias, -math.log((1 - RARE) / RARE))


def fcos(
    num_classes: int = 80,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "resnet50",
    encoder_widths: Sequence[int] | None = None,
    encoder_options: Mapping[str, Any] | None = None,
    strides: Sequence[int] = (8, 16, 32, 64, 128),
    channels: int = 256,
    depth: int = 4,
    distance: str = "exp",
    layers: LayerFactory = LayerFactory(),
) -> FCOS:
    """FCOS on any encoder, by default the paper's ResNet-50: 32,297,370 parameters at 80 classes.

    `encoder_widths` are the channels of a ResNet's stages, None its own. `strides` are those of the levels, `depth` the
    convolutions of each tower.
    """
    narrow = {} if encoder_widths is None else {"widths": encoder_widths}
    backbone = PyramidEncoder(
        encoder,
        strides,
        channels,
        in_channels=in_channels,
        network_options={**narrow, **(encoder_options or {})},
        layers=layers,
    )
    head = FCOSHead(channels, num_classes, depth, distance=distance, levels=len(strides), layers=layers)
    return FCOS(backbone, head, in_channels=in_channels, layers=layers)


def fcos_resnet50_fpn(
    num_classes: int = 91,
    *,
    in_channels: int = 3,
    distance: str = "relu",
    layers: LayerFactory = LayerFactory(),
) -> FCOS:
    """FCOS on ResNet-50 as torchvision has it: 32,322,720 parameters at 91 columns, of which class 0 is never used.

    Where the encoder has batch norm, the towers have group norm, as their levels cannot share a batch's statistics.
    """
    backbone = PyramidEncoder("resnet50", (8, 16, 32, 64, 128), 256, in_channels=in_channels, layers=layers)
    grouped = replace(layers, norm_layer=partial(GroupNorm, num_groups=32))
    towers = grouped if innermost(layers.norm_layer) is nn.BatchNorm2d else layers
    head = FCOSHead(256, num_classes, 4, distance=distance, levels=5, layers=towers)
    return FCOS(backbone, head, in_channels=in_channels, corners=True, layers=layers)
