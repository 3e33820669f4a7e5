"""YOLOv2: Redmon & Farhadi, "YOLO9000: Better, Faster, Stronger", CVPR 2017.

https://arxiv.org/abs/1612.08242, with the layers of the release's yolov2-voc.cfg: the passthrough first goes through a
1x1 convolution of 64 channels, which the text does not have.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.models.classification.darknet import Leaky
from cnn_train.models.detection.priors import Outputs, PriorGrid, Priors, flatten_levels
from cnn_train.models.detection.pyramid import cut_encoder
from cnn_train.models.detection.yolov3 import (
    Maps,
    coding_of,
    resolved_anchors,
    split_columns,
    start,
    start_without_objects,
)

__all__ = ["yolov2"]

# Widths and heights in pixels: the release's for VOC, in cells of 32 there.
PAPER_ANCHORS = (
    (42.3072, 55.4064),
    (102.168, 128.14144),
    (161.76176, 259.16736),
    (303.07584, 154.89696),
    (359.5648, 320.22976),
)


class SpaceToDepth(nn.Module):
    """Each square of s pixels as channels (section 2, "Fine-Grained Features"): (N, C, H, W) -> (N, s^2 C, H/s, W/s).

    Sides that s does not divide are continued by zeros at the bottom and right, to the size of the coarser map.
    """

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        height, width = size or (-(-x.size(-2) // self.scale), -(-x.size(-1) // self.scale))
        below, right = height * self.scale - x.size(-2), width * self.scale - x.size(-1)
        if below or right:
            x = nn.functional.pad(x, (0, right, 0, below))
        number, channels = x.shape[:2]
        squares = nn.functional.pixel_unshuffle(x, self.scale).view(number, channels, -1, height, width)
        return squares.transpose(1, 2).reshape(number, -1, height, width)


class YOLOv2(nn.Module):
    """One scale with fine features passed through: (N, in_channels, H, W) -> `Outputs` of A anchors for each cell.

    Quality is the objectness, of which the softmax over the classes is conditional.
    """

    task = "detection"

    def __init__(
        self,
        encoder: str | nn.Module,
        num_classes: int,
        *,
        in_channels: int,
        network_options: Mapping[str, Any],
        scales: Sequence[int],
        channels: int,
        passthrough: bool,
        passthrough_channels: int,
        anchors: Sequence[Sequence[float]],
        location: str,
        layers: LayerFactory,
    ):
        super().__init__()
        wanted = sorted(scales)
        if len(wanted) != 2:
            raise ValueError(f"scales must be the stride of the cells and that of the passthrough, got {list(scales)}")
        self.backbone, used = cut_encoder(encoder, wanted, in_channels, layers, network_options)
        if len(used) != 2:
            raise ValueError(
                f"scales must be strides of the encoder, {sorted(set(self.backbone.strides))}, got {list(scales)}"
            )
        self.fine, self.coarse = used
        self.min_size = self.backbone.min_size
        inner = self.backbone.channels
        self.conv1 = ConvNormAct(inner[self.coarse], channels, 3, act=Leaky, layers=layers)
        self.conv2 = ConvNormAct(channels, channels, 3, act=Leaky, layers=layers)
        self.squeeze: nn.Module | None = None
        added = 0
        if passthrough:
            factor = wanted[1] // wanted[0]
            self.squeeze = ConvNormAct(inner[self.fine], passthrough_channels, 1, act=Leaky, layers=layers)
            self.reorg = SpaceToDepth(factor)
            added = passthrough_channels * factor**2
        self.conv3 = ConvNormAct(added + channels, channels, 3, act=Leaky, layers=layers)
        self.anchors = [list(anchor) for anchor in anchors]
        self.columns = 5 + num_classes
        self.predict = nn.Conv2d(channels, len(anchors) * self.columns, 1)
        for module in (self.conv1, self.conv2, self.squeeze, self.conv3):
            if module is not None:
                layers.init(module, paper=start)
        layers.init(self.predict, paper=start)
        start_without_objects(self.predict, self.columns)
        self.grid = PriorGrid(
            Maps(self.backbone, [self.coarse]),
            [[(width, height) for width, height in anchors]],
            in_channels=in_channels,
            coding=coding_of(location),
            strides=wanted[1:],
        )

    def forward(self, x: Tensor) -> Outputs:
        maps = self.backbone(x)
        x = self.conv2(self.conv1(maps[self.coarse]))
        if self.squeeze is not None:
            x = torch.cat([self.reorg(self.squeeze(maps[self.fine]), size=x.shape[-2:]), x], dim=1)
        return split_columns(flatten_levels([self.predict(self.conv3(x))], self.columns))

    def priors(self, size: Sequence[int], device: torch.device | None = None) -> Priors:
        """The anchors of images of (height, width)."""
        return self.grid(size, device)

    def decode(self, outputs: Outputs, priors: Priors) -> tuple[Tensor, Tensor]:
        """Boxes (N, P, 4) and objectness times class probability (N, P, K)."""
        assert outputs.quality is not None
        return priors.decode(outputs.codes), outputs.quality.sigmoid()[..., None] * outputs.classes.softmax(-1)


def yolov2(
    num_classes: int = 20,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "darknet19",
    encoder_widths: Sequence[int] | None = None,
    encoder_options: Mapping[str, Any] | None = None,
    scales: Sequence[int] = (32, 16),
    channels: int = 1024,
    passthrough: bool = True,
    passthrough_channels: int = 64,
    anchors: Literal["paper", "auto"] | Sequence[Sequence[float]] = "paper",
    box_sizes: Tensor | None = None,
    location: Literal["direct", "offset"] = "direct",
    layers: LayerFactory = LayerFactory(),
) -> YOLOv2:
    """YOLOv2 on Darknet-19: 50,655,389 parameters at 20 classes, 50,962,889 at 80.

    `encoder_widths` are the channels of a ResNet's stages, None its own. `scales` are the stride of the cells and that
    of the map passed through to them. `anchors` are widths and heights in pixels; the paper's are VOC's at 416,
    "auto" are five clusters of `box_sizes` (n, 2), width and height of the training boxes.
    `location="offset"` predicts centres as Faster R-CNN.
    """
    narrow = {} if encoder_widths is None else {"widths": encoder_widths}
    return YOLOv2(
        encoder,
        num_classes,
        in_channels=in_channels,
        network_options={**narrow, **(encoder_options or {})},
        scales=scales,
        channels=channels,
        passthrough=passthrough,
        passthrough_channels=passthrough_channels,
        anchors=resolved_anchors(anchors, PAPER_ANCHORS, len(PAPER_ANCHORS), box_sizes),
        location=location,
        layers=layers,
    )
