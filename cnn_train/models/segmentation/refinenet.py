"""RefineNet: Lin, Milan, Shen & Reid, "RefineNet: Multi-Path Refinement Networks", CVPR 2017.

https://arxiv.org/abs/1611.06612, Figs. 2 and 3. Four cascaded blocks refine the maps of stride 32 to 4. There is no
norm in them, "batch-normalization layers are removed" (section 3.2). Only a unit's first convolution has a bias, as in
DrSleep/refinenet-pytorch, where `pooling_blocks=4`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.models.encoder import Encoder, make_encoder

__all__ = ["refinenet"]


class ResidualConvUnit(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, added to the input (Fig. 3b): (N, C, H, W) -> the same."""

    def __init__(self, channels: int, *, layers: LayerFactory):
        super().__init__()
        self.act1 = layers.act(channels)
        self.conv1 = layers.conv(channels, channels, 3, bias=True)
        self.act2 = layers.act(channels)
        self.conv2 = layers.conv(channels, channels, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act2(self.conv1(self.act1(x))))


class MultiResolutionFusion(nn.Module):
    """A 3x3 convolution for each path, upsampling to the finest, sum (Fig. 3c)."""

    def __init__(self, in_channels: list[int], channels: int, *, layers: LayerFactory):
        super().__init__()
        self.convs = nn.ModuleList([layers.conv(before, channels, 3, bias=False) for before in in_channels])
        self.ups = nn.ModuleList([layers.upsample(channels, 2) for _ in in_channels[1:]])

    def forward(self, fine: Tensor, *coarse: Tensor) -> Tensor:
        first, *others = self.convs
        total = first(fine)
        for conv, up, x in zip(others, self.ups, coarse, strict=True):
            total = total + up(conv(x), size=fine.shape[-2:])
        return total


class ChainedResidualPooling(nn.Module):
    """Poolings 5x5 of stride 1, each on the last one's convolution, all added (Fig. 3d): (N, C, H, W) -> the same."""

    def __init__(self, channels: int, *, blocks: int, layers: LayerFactory):
        super().__init__()
        self.act = layers.act(channels)
        self.pools = nn.ModuleList([layers.pool(5, 1, 2) for _ in range(blocks)])
        self.convs = nn.ModuleList([layers.conv(channels, channels, 3, bias=False) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        x = path = self.act(x)
        for pool, conv in zip(self.pools, self.convs, strict=True):
            path = conv(pool(path))
            x = x + path
        return x


class RefineNetBlock(nn.Module):
    """Units on each path, fusion, chained pooling, output units (Fig. 3a); the first path is the finest."""

    def __init__(
        self,
        in_channels: list[int],
        channels: int,
        *,
        pooling_blocks: int,
        output_units: int,
        layers: LayerFactory,
    ):
        super().__init__()
        self.units = nn.ModuleList(
            [nn.Sequential(*(ResidualConvUnit(width, layers=layers) for _ in range(2))) for width in in_channels]
        )
        self.fusion = MultiResolutionFusion(in_channels, channels, layers=layers) if len(in_channels) > 1 else None
        self.pooling = ChainedResidualPooling(channels, blocks=pooling_blocks, layers=layers)
        self.output = nn.Sequential(*(ResidualConvUnit(channels, layers=layers) for _ in range(output_units)))

    def forward(self, *paths: Tensor) -> Tensor:
        refined = [units(x) for units, x in zip(self.units, paths, strict=True)]
        x = refined[0] if self.fusion is None else self.fusion(*refined)
        return self.output(self.pooling(x))


class RefineNet(nn.Module):
    """The cascade on the last four maps of an encoder: (N, in_channels, H, W) -> (N, num_classes, H, W)."""

    task = "segmentation"

    def __init__(
        self,
        backbone: Encoder,
        num_classes: int,
        *,
        channels: int,
        pooling_blocks: int,
        output_units: int,
        dropout: float,
        layers: LayerFactory,
    ):
        super().__init__()
        if len(backbone.channels) < 4:
            raise ValueError(f"refinenet needs an encoder with four maps or more, got {len(backbone.channels)}")
        self.backbone = backbone
        self.min_size = backbone.min_size
        coarsest, *finer = reversed(backbone.channels[-4:])
        widths = [2 * channels, channels, channels, channels]
        self.reduce = nn.ModuleList(
            [
                layers.conv(before, after, 3, bias=False)
                for before, after in zip([coarsest, *finer], widths, strict=True)
            ]
        )
        self.dropouts = nn.ModuleList([nn.Dropout(dropout) for _ in widths[:2]])
        self.blocks = nn.ModuleList()
        for index, width in enumerate(widths):
            self.blocks.append(
                RefineNetBlock(
                    [width] if index == 0 else [width, widths[index - 1]],
                    width,
                    pooling_blocks=pooling_blocks,
                    output_units=output_units,
                    layers=layers,
                )
            )
        self.last_units = nn.Sequential(*(ResidualConvUnit(channels, layers=layers) for _ in range(2)))
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.upsample = layers.upsample(num_classes, backbone.strides[-4])
        for part in (self.reduce, self.blocks, self.last_units, self.score):
            layers.init(part)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        maps = [conv(y) for conv, y in zip(self.reduce, reversed(self.backbone(x)[-4:]), strict=True)]
        # As in the release, the two coarsest maps are dropped out.
        maps[:2] = [dropout(y) for dropout, y in zip(self.dropouts, maps, strict=False)]
        first, *later = self.blocks
        x = first(maps[0])
        for block, y in zip(later, maps[1:], strict=True):
            x = block(y, x)
        return self.upsample(self.score(self.dropout(self.last_units(x))), size=size)


def refinenet(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "resnet101",
    encoder_options: Mapping[str, Any] | None = None,
    channels: int = 256,
    pooling_blocks: int = 2,
    output_units: int = 1,
    dropout: float = 0.5,
    layers: LayerFactory = LayerFactory(),
) -> RefineNet:
    """RefineNet on ResNet-101: 109,794,901 parameters at 21 classes.

    With `pooling_blocks=4` it has 118,052,437, as DrSleep/refinenet-pytorch.
    """
    backbone = make_encoder(encoder, in_channels=in_channels, layers=layers, network_options=encoder_options)
    return RefineNet(
        backbone,
        num_classes,
        channels=channels,
        pooling_blocks=pooling_blocks,
        output_units=output_units,
        dropout=dropout,
        layers=layers,
    )
