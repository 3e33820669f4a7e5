"""RetinaNet: Lin, Goyal, Girshick, He & Dollar, "Focal Loss for Dense Object Detection", ICCV 2017.

https://arxiv.org/abs/1708.02002. Names, and the settings of `retinanet_resnet50_fpn`, are torchvision's: anchors of
whole pixels at the corners of cells, P6 from P5.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.models.detection.fcos import small_normal, start_rare
from cnn_train.models.detection.priors import Offsets, Outputs, PriorGrid, Priors, flatten_levels
from cnn_train.models.detection.pyramid import PyramidEncoder

__all__ = ["retinanet", "retinanet_resnet50_fpn"]


class Head(nn.Module):
    """A tower that all levels share, and `columns` numbers of each of A priors: maps -> (N, P, columns)."""

    def __init__(
        self, name: str, channels: int, num_anchors: int, columns: int, depth: int, *, norm: bool, layers: LayerFactory
    ):
        super().__init__()
        self.columns = columns
        self.conv = nn.Sequential()
        for _ in range(depth):
            if norm:
                self.conv.append(ConvNormAct(channels, channels, 3, layers=layers))
            else:
                self.conv.append(nn.Sequential(layers.conv(channels, channels, 3, bias=True), layers.act(channels)))
        self.name = name
        self.add_module(name, nn.Conv2d(channels, num_anchors * columns, 3, padding=1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        last = self.get_submodule(self.name)
        return flatten_levels([last(self.conv(m)) for m in maps], self.columns)


class RetinaNetHead(nn.Module):
    """Class scores and offsets of all anchors (Fig. 3 c, d)."""

    def __init__(
        self, channels: int, num_anchors: int, num_classes: int, depth: int, *, norm: bool, layers: LayerFactory
    ):
        super().__init__()
        options: dict[str, Any] = {"norm": norm, "layers": layers}
        self.classification_head = Head("cls_logits", channels, num_anchors, num_classes, depth, **options)
        self.regression_head = Head("bbox_reg", channels, num_anchors, 4, depth, **options)

    def forward(self, maps: Sequence[Tensor]) -> Outputs:
        return Outputs(self.regression_head(maps), self.classification_head(maps))


class RetinaNet(nn.Module):
    """A pyramid and two towers: (N, in_channels, H, W) -> `Outputs` of A anchors for each place of each level.

    `anchors` are the widths and heights of each level, in pixels. They are centred in the middle of cells, or, with
    `corners`, on their upper left corners.
    """

    task = "detection"

    def __init__(
        self,
        backbone: PyramidEncoder,
        num_classes: int,
        anchors: Sequence[Sequence[Sequence[float]]],
        *,
        in_channels: int,
        depth: int,
        tower_norm: bool,
        corners: bool = False,
        layers: LayerFactory,
    ):
        super().__init__()
        self.backbone = backbone
        self.min_size = backbone.min_size
        channels = backbone.channels
        self.head = RetinaNetHead(channels, len(anchors[0]), num_classes, depth, norm=tower_norm, layers=layers)
        layers.init(self.head, paper=small_normal)
        scores: Any = self.head.classification_head.get_submodule("cls_logits")
        start_rare(scores)
        self.grid = PriorGrid(
            backbone,
            anchors,
            in_channels=in_channels,
            coding=Offsets(),
            strides=None if corners else backbone.strides,
            offset=0.0 if corners else 0.5,
        )

    def forward(self, x: Tensor) -> Outputs:
        return self.head(self.backbone(x))

    def priors(self, size: Sequence[int], device: torch.device | None = None) -> Priors:
        """The anchors of images of (height, width)."""
        return self.grid(size, device)

    def decode(self, outputs: Outputs, priors: Priors) -> tuple[Tensor, Tensor]:
        """Boxes (N, P, 4) and class probabilities (N, P, K)."""
        return priors.decode(outputs.codes), outputs.classes.sigmoid()


def anchor_shapes(
    bases: Sequence[float], ratios: Sequence[float] = (0.5, 1.0, 2.0), octaves: int = 3, whole: bool = False
) -> list[list[tuple[float, float]]]:
    """Widths and heights of each level: `octaves` steps from its base towards the double, each in `ratios`, h / w.

    With `whole`, sides are rounded down before and to even pixels after the ratio is applied, as in torchvision.
    """
    levels = []
    for base in bases:
        sizes = [base * 2 ** (i / octaves) for i in range(octaves)]
        shapes = []
        for ratio in ratios:
            for size in sizes:
                side = float(int(size)) if whole else size
                width, height = side / ratio**0.5, side * ratio**0.5
                shapes.append((2.0 * round(width / 2), 2.0 * round(height / 2)) if whole else (width, height))
        levels.append(shapes)
    return levels


def retinanet(
    num_classes: int = 80,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "resnet50",
    encoder_widths: Sequence[int] | None = None,
    encoder_options: Mapping[str, Any] | None = None,
    strides: Sequence[int] = (8, 16, 32, 64, 128),
    channels: int = 256,
    depth: int = 4,
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    anchor_octaves: int = 3,
    extra_from: str = "encoder",
    tower_norm: bool = True,
    layers: LayerFactory = LayerFactory(),
) -> RetinaNet:
    """RetinaNet on any encoder, by default the paper's ResNet-50: 37,970,740 parameters at 80 classes.

    `encoder_widths` are the channels of a ResNet's stages, None its own. `strides` and `anchor_sizes` are those of the
    levels, `depth` the convolutions of each tower, with a norm after each unless `tower_norm` is false (the paper).
    """
    if len(anchor_sizes) != len(strides):
        raise ValueError(f"anchor_sizes must be one for each of the strides {list(strides)}, got {list(anchor_sizes)}")
    narrow = {} if encoder_widths is None else {"widths": encoder_widths}
    backbone = PyramidEncoder(
        encoder,
        strides,
        channels,
        in_channels=in_channels,
        network_options={**narrow, **(encoder_options or {})},
        extra_from=extra_from,
        layers=layers,
    )
    anchors = anchor_shapes(anchor_sizes, anchor_ratios, anchor_octaves)
    return RetinaNet(
        backbone, num_classes, anchors, in_channels=in_channels, depth=depth, tower_norm=tower_norm, layers=layers
    )


def retinanet_resnet50_fpn(
    num_classes: int = 91, *, in_channels: int = 3, layers: LayerFactory = LayerFactory()
) -> RetinaNet:
    """RetinaNet on ResNet-50 as torchvision has it: 34,068,119 parameters at 91 columns, of which 0 is never used."""
    backbone = PyramidEncoder("resnet50", (8, 16, 32, 64, 128), 256, in_channels=in_channels, layers=layers)
    anchors = anchor_shapes((32, 64, 128, 256, 512), whole=True)
    options: dict[str, Any] = {"depth": 4, "tower_norm": False, "corners": True}
    return RetinaNet(backbone, num_classes, anchors, in_channels=in_channels, layers=layers, **options)
