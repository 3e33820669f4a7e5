"""FPN: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.

https://arxiv.org/abs/1612.03144. Names are torchvision's. P6 and P7 are RetinaNet's (Lin et al., ICCV 2017).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.upsample import Nearest
from cnn_train.models.encoder import Encoder, make_encoder


class StridedLevels(nn.Module):
    """Coarser maps by 3x3 convolutions of stride 2, p6, p7, ..., from the last one of the pyramid or of the encoder.

    Between two of them stands an activation (RetinaNet, footnote 2).
    """

    def __init__(self, in_channels: int, channels: int, count: int, *, layers: LayerFactory):
        super().__init__()
        self.from_pyramid = in_channels == channels
        self.acts = nn.ModuleList(layers.act(channels) for _ in range(count - 1))
        self.count = count
        for index in range(count):
            first = in_channels if index == 0 else channels
            self.add_module(f"p{6 + index}", nn.Conv2d(first, channels, 3, stride=2, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.get_submodule("p6")(x)]
        for index, act in enumerate(self.acts, start=7):
            maps.append(self.get_submodule(f"p{index}")(act(maps[-1])))
        return maps


class FeaturePyramid(nn.Module):
    """Maps (N, C_i, H_i, W_i), the finest first -> as many of `channels`, and `extra` coarser ones.

    Each is a 1x1 convolution of its own map plus the upsampled coarser one, then a 3x3 convolution; no activation.
    `extra_from="pyramid"` makes the first extra map from the last one of the pyramid, "encoder" from the encoder's.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        extra: int = 2,
        extra_from: str = "pyramid",
        norm: bool = False,
        layers: LayerFactory,
    ):
        super().__init__()
        if extra_from not in ("pyramid", "encoder"):
            raise ValueError(f"extra_from must be 'pyramid' or 'encoder', got {extra_from!r}")
        self.inner_blocks = nn.ModuleList()
        self.layer_blocks = nn.ModuleList()
        self.upsamples = nn.ModuleList()
        for index, inner in enumerate(in_channels):
            for blocks, first, kernel_size in ((self.inner_blocks, inner, 1), (self.layer_blocks, channels, 3)):
                if norm:
                    blocks.append(ConvNormAct(first, channels, kernel_size, act=None, layers=layers))
                else:
                    blocks.append(nn.Sequential(layers.conv(first, channels, kernel_size, bias=True)))
            if index:
                self.upsamples.append(layers.upsample(channels, 2, paper=Nearest))
        self.extra_from = extra_from
        first = channels if extra_from == "pyramid" else in_channels[-1]
        self.extra_blocks = StridedLevels(first, channels, extra, layers=layers) if extra else None
        layers.init(self, paper=start)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        inner = self.inner_blocks[-1](maps[-1])
        results = [self.layer_blocks[-1](inner)]
        for index in range(len(maps) - 2, -1, -1):
            lateral = self.inner_blocks[index](maps[index])
            inner = lateral + self.upsamples[index](inner, size=lateral.shape[-2:])
            results.insert(0, self.layer_blocks[index](inner))
        if self.extra_blocks is not None:
            results += self.extra_blocks(results[-1] if self.extra_from == "pyramid" else maps[-1])
        return results


def start(module: nn.Module) -> None:
    """U(+-sqrt(3 / fan_in)) for convolutions, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class PyramidEncoder(nn.Module):
    """An encoder and a pyramid on its maps of these `strides`: images -> one map for each stride, the finest first.

    Strides beyond the encoder's are made by the pyramid, each twice the one before; stages that no map needs are
    dropped. `network_options` go to the builder of the encoder.
    """

    def __init__(
        self,
        encoder: str | nn.Module,
        strides: Sequence[int],
        channels: int,
        *,
        in_channels: int,
        network_options: Mapping[str, Any] | None = None,
        extra_from: str = "pyramid",
        norm: bool = False,
        layers: LayerFactory,
    ):
        super().__init__()
        self.strides = list(strides)
        self.channels = channels
        self.body, self.used = cut_encoder(encoder, strides, in_channels, layers, network_options)
        self.min_size = self.body.min_size
        last, more = self.body.strides[-1], list(strides)[len(self.used) :]
        if more != [last * 2 ** (i + 1) for i in range(len(more))]:
            raise ValueError(f"strides beyond the encoder's {last} must each be twice the one before, got {more}")
        inner = [self.body.channels[stage] for stage in self.used]
        self.fpn = FeaturePyramid(inner, channels, extra=len(more), extra_from=extra_from, norm=norm, layers=layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.body(x)
        return self.fpn([maps[stage] for stage in self.used])


def cut_encoder(
    encoder: str | nn.Module,
    strides: Sequence[int],
    in_channels: int,
    layers: LayerFactory,
    network_options: Mapping[str, Any] | None = None,
) -> tuple[Encoder, list[int]]:
    """An encoder without what comes after its last map of one of `strides`, and the stages that have these maps.

    Of several stages of one stride the last counts. Strides beyond the encoder's are left to the caller; ValueError for
    others that it has not.
    """
    whole = make_encoder(encoder, in_channels=in_channels, layers=layers, network_options=network_options)
    last = {stride: index for index, stride in enumerate(whole.strides)}
    used = [last[stride] for stride in strides if stride in last]
    missing = [stride for stride in strides if stride not in last and stride < max(last)]
    if not used or missing:
        raise ValueError(f"this encoder has maps of strides {sorted(last)}, got {list(strides)}; choose among these")
    if used[-1] == len(whole.stages) - 1:
        return whole, used
    cut = Encoder(whole, stages=whole.stages[: used[-1] + 1])
    cut.prefix = whole.prefix
    return cut, used
