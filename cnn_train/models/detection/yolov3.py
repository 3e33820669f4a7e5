"""YOLOv3: Redmon & Farhadi, "YOLOv3: An Incremental Improvement", 2018.

https://arxiv.org/abs/1804.02767, with the layers of the release's yolov3.cfg. A scale is a stack of 1x1 and 3x3
convolutions; what comes before its last 3x3 goes, upsampled, into the next finer scale.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cnn_train.boxes import cluster_sizes
from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.init import he_normal
from cnn_train.layers.upsample import Nearest
from cnn_train.models.classification.darknet import Leaky
from cnn_train.models.detection.priors import Cells, Coding, Offsets, Outputs, PriorGrid, Priors, flatten_levels
from cnn_train.models.detection.pyramid import cut_encoder

__all__ = ["yolov3"]

# Widths and heights in pixels, of images of 416: from k-means on COCO.
PAPER_ANCHORS = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))


class Stack(nn.Sequential):
    """Five convolutions, 1x1 to `channels` and 3x3 to twice as many in turn."""

    def __init__(self, in_channels: int, channels: int, *, layers: LayerFactory):
        super().__init__()
        for i in range(5):
            wide, kernel_size = (channels, 1) if i % 2 == 0 else (2 * channels, 3)
            self.append(ConvNormAct(in_channels, wide, kernel_size, act=Leaky, layers=layers))
            in_channels = wide


class Scale(nn.Module):
    """The stack of one stride and its predictions: (N, C, H, W) -> features and (N, A * columns, H, W)."""

    def __init__(self, in_channels: int, channels: int, outputs: int, *, layers: LayerFactory):
        super().__init__()
        self.stack = Stack(in_channels, channels, layers=layers)
        self.conv = ConvNormAct(channels, 2 * channels, 3, act=Leaky, layers=layers)
        self.predict = nn.Conv2d(2 * channels, outputs, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.stack(x)
        return features, self.predict(self.conv(features))


class Lead(nn.Module):
    """From one scale to the next finer one: 1x1 to half of the channels, upsampled to the size of the encoder's map."""

    def __init__(self, channels: int, scale_factor: int, *, layers: LayerFactory):
        super().__init__()
        self.conv = ConvNormAct(channels, channels // 2, 1, act=Leaky, layers=layers)
        self.upsample = layers.upsample(channels // 2, scale_factor, paper=Nearest)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([self.upsample(self.conv(x), size=skip.shape[-2:]), skip], dim=1)


class YOLOv3(nn.Module):
    """Three scales: (N, in_channels, H, W) -> `Outputs` of A anchors for each cell of each scale, the coarsest first.

    Quality is the objectness, of which class probabilities are conditional.
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
        channels: Sequence[int] | None,
        anchors: Sequence[Sequence[float]],
        location: str,
        layers: LayerFactory,
    ):
        super().__init__()
        finest_first = sorted(scales)
        self.backbone, used = cut_encoder(encoder, finest_first, in_channels, layers, network_options)
        if len(used) != len(scales):
            raise ValueError(
                f"scales must be strides of the encoder, {sorted(set(self.backbone.strides))}, got {list(scales)}"
            )
        self.used = used[::-1]
        self.min_size = self.backbone.min_size
        wide = [self.backbone.channels[stage] for stage in self.used]
        channels = [c // 2 for c in wide] if channels is None else list(channels)
        self.anchors = [list(anchor) for anchor in anchors]
        by_scale = anchors_by_scale(anchors, len(scales))
        self.columns = 5 + num_classes
        outputs = [len(shapes) * self.columns for shapes in by_scale]
        self.leads = nn.ModuleList()
        self.heads = nn.ModuleList()
        for index, (inner, own) in enumerate(zip(wide, channels, strict=True)):
            before = 0
            if index:
                coarser = channels[index - 1]
                factor = finest_first[-index] // finest_first[-index - 1]
                self.leads.append(Lead(coarser, factor, layers=layers))
                before = coarser // 2
            self.heads.append(Scale(before + inner, own, outputs[index], layers=layers))
        for module in (self.leads, self.heads):
            layers.init(module, paper=start)
        for head in self.heads:
            start_without_objects(head.get_submodule("predict"), self.columns)
        self.grid = PriorGrid(
            Maps(self.backbone, self.used),
            by_scale,
            in_channels=in_channels,
            coding=coding_of(location),
            strides=finest_first[::-1],
        )

    def forward(self, x: Tensor) -> Outputs:
        maps = self.backbone(x)
        features, predictions = None, []
        for index, (stage, head) in enumerate(zip(self.used, self.heads, strict=True)):
            features, said = head(maps[stage] if features is None else self.leads[index - 1](features, maps[stage]))
            predictions.append(said)
        return split_columns(flatten_levels(predictions, self.columns))

    def priors(self, size: Sequence[int], device: torch.device | None = None) -> Priors:
        """The anchors of images of (height, width)."""
        return self.grid(size, device)

    def decode(self, outputs: Outputs, priors: Priors) -> tuple[Tensor, Tensor]:
        """Boxes (N, P, 4) and objectness times class probability (N, P, K)."""
        assert outputs.quality is not None
        return priors.decode(outputs.codes), outputs.quality.sigmoid()[..., None] * outputs.classes.sigmoid()


class Maps(nn.Module):
    """An encoder's maps of some stages."""

    def __init__(self, encoder: nn.Module, stages: Sequence[int]):
        super().__init__()
        self.encoder = encoder
        self.chosen = list(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.encoder(x)
        return [maps[stage] for stage in self.chosen]


def split_columns(values: Tensor) -> Outputs:
    """(N, P, 5 + K), four codes, objectness, classes -> `Outputs`."""
    return Outputs(values[..., :4], values[..., 5:], values[..., 4])


def anchors_by_scale(anchors: Sequence[Sequence[float]], scales: int) -> list[list[tuple[float, float]]]:
    """Anchors (width, height) shared out by area, the largest to the first (coarsest) scale, in rising order."""
    if not anchors or len(anchors) % scales:
        raise ValueError(f"anchors must be as many for each of the {scales} scales, got {len(anchors)}")
    ordered = sorted(((float(width), float(height)) for width, height in anchors), key=lambda wh: wh[0] * wh[1])
    each = len(ordered) // scales
    return [ordered[i * each : (i + 1) * each] for i in reversed(range(scales))]


def resolved_anchors(
    anchors: str | Sequence[Sequence[float]],
    paper: Sequence[Sequence[float]],
    count: int,
    box_sizes: Tensor | None,
) -> list[tuple[float, float]]:
    """Widths and heights as given, the paper's, or by "auto" those of `count` clusters of boxes (n, 2)."""
    if not isinstance(anchors, str):
        return [(float(width), float(height)) for width, height in anchors]
    if anchors == "paper":
        return [(float(width), float(height)) for width, height in paper]
    if anchors != "auto" or box_sizes is None:
        raise ValueError(f"anchors must be sizes, 'paper', or 'auto' with box_sizes, got {anchors!r}")
    return [(round(width, 2), round(height, 2)) for width, height in cluster_sizes(box_sizes, count)[0].tolist()]


def coding_of(location: str) -> Coding:
    """`direct`: the centre stays in its cell; `offset`: it may be anywhere, in units of the anchor (Faster R-CNN)."""
    if location not in ("direct", "offset"):
        raise ValueError(f"location must be 'direct' or 'offset', got {location!r}")
    return Cells() if location == "direct" else Offsets()


def start(module: nn.Module) -> None:
    he_normal(module, nn.ReLU)


def start_without_objects(predict: nn.Module, columns: int, share: float = 0.01) -> None:
    """Start small, with an objectness of `share`, since nearly no prior has an object."""
    assert isinstance(predict, nn.Conv2d) and predict.bias is not None
    nn.init.normal_(predict.weight, std=0.01)
    nn.init.zeros_(predict.bias)
    with torch.no_grad():
        predict.bias.view(-1, columns)[:, 4] = torch.logit(torch.tensor(share))


def yolov3(
    num_classes: int = 80,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "darknet53",
    encoder_widths: Sequence[int] | None = None,
    encoder_options: Mapping[str, Any] | None = None,
    scales: Sequence[int] = (32, 16, 8),
    channels: Sequence[int] | None = None,
    anchors: Literal["paper", "auto"] | Sequence[Sequence[float]] = "paper",
    box_sizes: Tensor | None = None,
    location: Literal["direct", "offset"] = "direct",
    layers: LayerFactory = LayerFactory(),
) -> YOLOv3:
    """YOLOv3 on Darknet-53: 61,949,149 parameters at 80 classes, 61,626,049 at 20.

    `encoder_widths` are the channels of a ResNet's stages, None its own. `scales` are strides, `channels` the width of
    each one's stack, by default half of the encoder's. `anchors` are widths and heights in pixels, the largest at the
    coarsest scale; the paper's are for images of 416, "auto" are three clusters a scale of `box_sizes` (n, 2), width
    and height of the training boxes. `location="offset"` predicts centres as Faster R-CNN.
    """
    narrow = {} if encoder_widths is None else {"widths": encoder_widths}
    return YOLOv3(
        encoder,
        num_classes,
        in_channels=in_channels,
        network_options={**narrow, **(encoder_options or {})},
        scales=scales,
        channels=channels,
        anchors=resolved_anchors(anchors, PAPER_ANCHORS, 3 * len(scales), box_sizes),
        location=location,
        layers=layers,
    )
