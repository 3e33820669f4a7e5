"""SSD: Liu, Anguelov, Erhan, Szegedy, Reed, Fu & Berg, "SSD: Single Shot MultiBox Detector", ECCV 2016.

https://arxiv.org/abs/1512.02325. Names, and the default boxes of `ssd300_vgg16`, are torchvision's; those of `ssd300`
and `ssd512` are the release's for PASCAL VOC. The first column of the class scores is the background.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.init import xavier_uniform
from cnn_train.models.classification import builder
from cnn_train.models.detection.priors import Offsets, Outputs, PriorGrid, Priors, flatten_levels
from cnn_train.models.detection.pyramid import cut_encoder

__all__ = ["ssd", "ssd300", "ssd300_vgg16", "ssd512"]

PLAIN = LayerFactory(norm_layer=None)
RATIOS_300 = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
RATIOS_512 = ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))
# Sides of the default boxes of each map, and of one map more, as parts of the image.
VOC_300 = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)
COCO_300 = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
VOC_512 = (0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05)


class L2Norm(nn.Module):
    """Unit length over the channels at each place, times a learned scale for each channel (section 3.1)."""

    def __init__(self, channels: int, scale: float = 20.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.view(1, -1, 1, 1) * F.normalize(x)


class ScoringHead(nn.Module):
    """One 3x3 convolution for each map: maps (N, C_i, H_i, W_i) -> (N, P, columns)."""

    def __init__(self, in_channels: Sequence[int], num_boxes: Sequence[int], columns: int):
        super().__init__()
        self.columns = columns
        self.module_list = nn.ModuleList(
            nn.Conv2d(channels, number * columns, 3, padding=1)
            for channels, number in zip(in_channels, num_boxes, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return flatten_levels([conv(m) for conv, m in zip(self.module_list, maps, strict=True)], self.columns)


class SSDHead(nn.Module):
    """Class scores, the background first, and offsets of all default boxes."""

    def __init__(self, in_channels: Sequence[int], num_boxes: Sequence[int], num_classes: int):
        super().__init__()
        self.classification_head = ScoringHead(in_channels, num_boxes, num_classes + 1)
        self.regression_head = ScoringHead(in_channels, num_boxes, 4)

    def forward(self, maps: Sequence[Tensor]) -> Outputs:
        return Outputs(self.regression_head(maps), self.classification_head(maps))


class SSD(nn.Module):
    """Default boxes on several maps: (N, in_channels, H, W) -> `Outputs` of those of each place of each map.

    `scales` are the sides of the default boxes as parts of the image, one more than there are maps; `ratios` the
    aspect ratios of each map besides 1; `steps` the strides of the maps in pixels, None as their sizes say.
    """

    task = "detection"

    def __init__(
        self,
        backbone: Any,
        num_classes: int,
        *,
        in_channels: int,
        scales: Sequence[float],
        ratios: Sequence[Sequence[float]],
        steps: Sequence[float] | None,
        layers: LayerFactory,
    ):
        super().__init__()
        if not len(scales) - 1 == len(ratios) == len(backbone.channels):
            raise ValueError(
                f"there are {len(backbone.channels)} maps; scales must be one more and ratios as many, "
                f"got {len(scales)} and {len(ratios)}"
            )
        self.backbone = backbone
        self.min_size = backbone.min_size
        shapes = default_shapes(scales, ratios)
        self.head = SSDHead(backbone.channels, [len(level) for level in shapes], num_classes)
        layers.init(self.head, paper=xavier_uniform)
        self.grid = PriorGrid(
            backbone, shapes, in_channels=in_channels, coding=Offsets((0.1, 0.2)), strides=steps, relative=True
        )

    def forward(self, x: Tensor) -> Outputs:
        return self.head(self.backbone(x))

    def priors(self, size: Sequence[int], device: torch.device | None = None) -> Priors:
        """The default boxes of images of (height, width)."""
        return self.grid(size, device)

    def decode(self, outputs: Outputs, priors: Priors) -> tuple[Tensor, Tensor]:
        """Boxes (N, P, 4) and class probabilities (N, P, K), without the background."""
        return priors.decode(outputs.codes), outputs.classes.softmax(-1)[..., 1:]


def default_shapes(scales: Sequence[float], ratios: Sequence[Sequence[float]]) -> list[list[tuple[float, float]]]:
    """Widths and heights of each map (section 2.2): s_k, sqrt(s_k s_k+1), and s_k at each ratio and its inverse."""
    levels = []
    for index, level in enumerate(ratios):
        side = scales[index]
        middle = (side * scales[index + 1]) ** 0.5
        shapes = [(side, side), (middle, middle)]
        for ratio in level:
            wide, narrow = side * ratio**0.5, side / ratio**0.5
            shapes += [(wide, narrow), (narrow, wide)]
        levels.append(shapes)
    return levels


class VGGMaps(nn.Module):
    """VGG-16 with holes in fc6 and extra layers: images -> six maps, or seven for images of 512.

    The first, conv4_3, is normalized over its channels. `width` is the number of channels of VGG's first block.
    """

    def __init__(self, *, in_channels: int, width: int, large: bool, layers: LayerFactory):
        super().__init__()
        vgg: Any = builder("vgg16")(1, in_channels=in_channels, width=width, layers=layers)
        third, fourth, fifth = vgg.pools[2:]
        vgg.features[third].ceil_mode = True  # 75 -> 38
        conv4, wide = 8 * width, 16 * width
        self.scale_weight = nn.Parameter(torch.full((conv4,), 20.0))
        self.features = vgg.features[:fourth]
        fc = nn.Sequential(
            layers.pool(3, 1, 1),
            *_unit(conv4, wide, 3, dilation=6, layers=layers),
            *_unit(wide, wide, 1, layers=layers),
        )
        self.extra = nn.ModuleList([nn.Sequential(*vgg.features[fourth:fifth], fc)])
        # Channels of the 1x1 and 3x3 convolution, and how the latter makes its map smaller.
        strided, bare = {"stride": 2}, {"padding": 0}
        plan: list[tuple[int, int, int, dict[str, int]]] = [(4, 8, 3, strided), (2, 4, 3, strided)]
        if large:
            plan += [(2, 4, 3, strided), (2, 4, 3, strided), (2, 4, 4, {"padding": 1})]
        else:
            plan += [(2, 4, 3, bare), (2, 4, 3, bare)]
        self.channels = [conv4, wide]
        for squeezed, out, kernel_size, geometry in plan:
            narrow, out_channels = squeezed * width, out * width
            block = nn.Sequential(
                *_unit(self.channels[-1], narrow, 1, layers=layers),
                *_unit(narrow, out_channels, kernel_size, layers=layers, **geometry),
            )
            self.extra.append(block)
            self.channels.append(out_channels)
        self.min_size = 512 if large else 300
        for module in (fc, *self.extra[1:]):
            layers.init(module, paper=xavier_uniform)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.features(x)
        maps = [self.scale_weight.view(1, -1, 1, 1) * F.normalize(x)]
        for block in self.extra:
            x = block(x)
            maps.append(x)
        return maps


def _unit(
    in_channels: int, out_channels: int, kernel_size: int, *, layers: LayerFactory, **conv: int
) -> list[nn.Module]:
    """Convolution with a bias, norm if there is one, activation."""
    made: list[nn.Module] = [layers.conv(in_channels, out_channels, kernel_size, bias=True, **conv)]
    if layers.has_norm:
        made.append(layers.norm(out_channels))
    return [*made, layers.act(out_channels)]


class EncoderMaps(nn.Module):
    """An encoder's maps of some strides, and coarser ones by 1x1 and strided 3x3 convolutions behind the last."""

    def __init__(
        self,
        encoder: str | nn.Module,
        strides: Sequence[int],
        *,
        in_channels: int,
        extra_channels: int,
        l2_norm: bool,
        network_options: Mapping[str, Any],
        layers: LayerFactory,
    ):
        super().__init__()
        self.body, self.used = cut_encoder(encoder, strides, in_channels, layers, network_options)
        self.min_size = self.body.min_size
        self.channels = [self.body.channels[stage] for stage in self.used]
        self.l2_norm = L2Norm(self.channels[0]) if l2_norm else nn.Identity()
        self.extra = nn.ModuleList()
        for _ in range(len(strides) - len(self.used)):
            narrow = max(extra_channels // 2, 1)
            self.extra.append(
                nn.Sequential(
                    ConvNormAct(self.channels[-1], narrow, 1, layers=layers),
                    ConvNormAct(narrow, extra_channels, 3, stride=2, layers=layers),
                )
            )
            self.channels.append(extra_channels)
        layers.init(self.extra, paper=xavier_uniform)

    def forward(self, x: Tensor) -> list[Tensor]:
        every = self.body(x)
        maps = [every[stage] for stage in self.used]
        x = maps[-1]
        maps[0] = self.l2_norm(maps[0])
        for block in self.extra:
            x = block(x)
            maps.append(x)
        return maps


def ssd(
    num_classes: int = 80,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "resnet50",
    encoder_widths: Sequence[int] | None = None,
    encoder_options: Mapping[str, Any] | None = None,
    strides: Sequence[int] = (8, 16, 32, 64, 128, 256),
    extra_channels: int = 256,
    scales: Sequence[float] = COCO_300,
    ratios: Sequence[Sequence[float]] = RATIOS_300,
    l2_norm: bool = False,
    layers: LayerFactory = LayerFactory(),
) -> SSD:
    """SSD on any encoder, by default ResNet-50: 43,134,262 parameters at 80 classes.

    `encoder_widths` are the channels of a ResNet's stages, None its own. `strides` beyond the encoder's are made by
    extra layers. `scales` are the sides of the default boxes of each map, and of one more, as parts of the image;
    `ratios` their aspect ratios besides 1. `l2_norm` normalizes the first map, as in the paper.
    """
    narrow = {} if encoder_widths is None else {"widths": encoder_widths}
    backbone = EncoderMaps(
        encoder,
        strides,
        in_channels=in_channels,
        extra_channels=extra_channels,
        l2_norm=l2_norm,
        network_options={**narrow, **(encoder_options or {})},
        layers=layers,
    )
    return SSD(backbone, num_classes, in_channels=in_channels, scales=scales, ratios=ratios, steps=None, layers=layers)


def ssd300(
    num_classes: int = 20,
    *,
    in_channels: int = 3,
    width: int = 64,
    scales: Sequence[float] = VOC_300,
    layers: LayerFactory = PLAIN,
) -> SSD:
    """SSD300 on VGG-16 (Fig. 2), for images of 300 pixels: 26,285,486 parameters at 20 classes."""
    backbone = VGGMaps(in_channels=in_channels, width=width, large=False, layers=layers)
    steps = (8, 16, 32, 64, 100, 300)
    options: dict[str, Any] = {"scales": scales, "ratios": RATIOS_300, "steps": steps}
    return SSD(backbone, num_classes, in_channels=in_channels, layers=layers, **options)


def ssd512(
    num_classes: int = 20,
    *,
    in_channels: int = 3,
    width: int = 64,
    scales: Sequence[float] = VOC_512,
    layers: LayerFactory = PLAIN,
) -> SSD:
    """SSD512 on VGG-16, for images of 512 pixels: 27,188,676 parameters at 20 classes."""
    backbone = VGGMaps(in_channels=in_channels, width=width, large=True, layers=layers)
    steps = (8, 16, 32, 64, 128, 256, 512)
    options: dict[str, Any] = {"scales": scales, "ratios": RATIOS_512, "steps": steps}
    return SSD(backbone, num_classes, in_channels=in_channels, layers=layers, **options)


def ssd300_vgg16(num_classes: int = 90, *, in_channels: int = 3, layers: LayerFactory = PLAIN) -> SSD:
    """SSD300 as torchvision has it: 35,641,826 parameters at 90 classes and the background."""
    return ssd300(num_classes, in_channels=in_channels, scales=COCO_300, layers=layers)
