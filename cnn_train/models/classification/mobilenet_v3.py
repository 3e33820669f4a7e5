"""MobileNetV3: Howard et al., "Searching for MobileNetV3", ICCV 2019. https://arxiv.org/abs/1905.02244, Tables 1 and 2.

Names, initialization and batch norm (eps 1e-3, momentum 0.01) are torchvision's. Channel gates are hard sigmoids, which
are part of the block and do not follow the choice of activation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct, SqueezeExcitation
from cnn_train.layers.init import he_convolutions_normal_dense, zero_last_norms
from cnn_train.models.classification.mobilenet_v2 import round_channels

__all__ = ["mobilenet_v3_large", "mobilenet_v3_small"]

DEFAULT = LayerFactory(norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01))
RE, HS = nn.ReLU, nn.Hardswish
# Kernel, expanded channels, output channels, channel gates, activation, stride.
Row = tuple[int, int, int, bool, type[nn.Module], int]
LARGE: tuple[Row, ...] = (
    (3, 16, 16, False, RE, 1),
    (3, 64, 24, False, RE, 2),
    (3, 72, 24, False, RE, 1),
    (5, 72, 40, True, RE, 2),
    (5, 120, 40, True, RE, 1),
    (5, 120, 40, True, RE, 1),
    (3, 240, 80, False, HS, 2),
    (3, 200, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 480, 112, True, HS, 1),
    (3, 672, 112, True, HS, 1),
    (5, 672, 160, True, HS, 2),
    (5, 960, 160, True, HS, 1),
    (5, 960, 160, True, HS, 1),
)
SMALL: tuple[Row, ...] = (
    (3, 16, 16, True, RE, 2),
    (3, 72, 24, False, RE, 2),
    (3, 88, 24, False, RE, 1),
    (5, 96, 40, True, HS, 2),
    (5, 240, 40, True, HS, 1),
    (5, 240, 40, True, HS, 1),
    (5, 120, 48, True, HS, 1),
    (5, 144, 48, True, HS, 1),
    (5, 288, 96, True, HS, 2),
    (5, 576, 96, True, HS, 1),
    (5, 576, 96, True, HS, 1),
)


class InvertedResidual(nn.Module):
    """MobileNetV2's block with channel gates after the depthwise convolution (Fig. 4)."""

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int,
        gated: bool,
        act: type[nn.Module],
        layers: LayerFactory,
    ):
        super().__init__()
        self.block = nn.Sequential()
        if hidden != in_channels:
            self.block.append(ConvNormAct(in_channels, hidden, 1, act=act, layers=layers))
        self.block.append(
            ConvNormAct(hidden, hidden, kernel_size, stride=stride, groups=hidden, act=act, layers=layers)
        )
        if gated:
            squeezed = round_channels(hidden // 4)
            self.block.append(SqueezeExcitation(hidden, squeezed, gate=nn.Hardsigmoid, layers=layers))
        self.block.append(ConvNormAct(hidden, out_channels, 1, act=None, layers=layers))
        self.residual = stride == 1 and in_channels == out_channels

    @property
    def last_norm(self) -> nn.Module | None:
        return self.block[-1].get_submodule("1") if self.residual else None

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class MobileNetV3(nn.Module):
    """A convolution, inverted residuals, a 1x1 convolution, two dense ones: (N, in_channels, H, W) -> (N, num_classes).

    `width_mult` multiplies all channels (section 6.1.1). `zero_init_residual` starts each residual branch at zero.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        hidden_features: int,
        num_classes: int,
        *,
        in_channels: int = 3,
        width_mult: float = 1.0,
        zero_init_residual: bool = False,
        dropout: float = 0.2,
        layers: LayerFactory,
    ):
        super().__init__()
        channels = round_channels(16 * width_mult)
        self.features = nn.Sequential(ConvNormAct(in_channels, channels, 3, stride=2, act=HS, layers=layers))
        self.cuts = [0]  # where `features` halves the resolution
        for kernel_size, expanded, width, gated, act, stride in rows:
            if stride == 2:
                self.cuts.append(len(self.features))
            hidden, out_channels = round_channels(expanded * width_mult), round_channels(width * width_mult)
            self.features.append(
                InvertedResidual(
                    channels,
                    hidden,
                    out_channels,
                    kernel_size=kernel_size,
                    stride=stride,
                    gated=gated,
                    act=act,
                    layers=layers,
                )
            )
            channels = out_channels
        self.features.append(ConvNormAct(channels, 6 * channels, 1, act=HS, layers=layers))
        self.avgpool = layers.global_pool(6 * channels)
        self.flatten = nn.Flatten()
        hidden_features = round_channels(hidden_features * width_mult)
        self.classifier = nn.Sequential(
            nn.Linear(self.avgpool.out_features, hidden_features),
            layers.act(hidden_features, HS),
            nn.Dropout(dropout),
            nn.Linear(hidden_features, num_classes),
        )
        layers.init(self, paper=he_convolutions_normal_dense)
        if zero_init_residual:
            zero_last_norms(self)

    @property
    def stages(self) -> list[nn.Module]:
        """The network without its head, cut where the resolution halves."""
        ends = [*self.cuts[1:], len(self.features)]
        return [self.features[start:end] for start, end in zip(self.cuts, ends, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


def mobilenet_v3_large(num_classes: int = 1000, *, layers: LayerFactory = DEFAULT, **options: Any) -> MobileNetV3:
    """MobileNetV3-Large (Table 1): 5,483,032 parameters at 1000 classes and width 1, as torchvision's."""
    return MobileNetV3(LARGE, 1280, num_classes, layers=layers, **options)


def mobilenet_v3_small(num_classes: int = 1000, *, layers: LayerFactory = DEFAULT, **options: Any) -> MobileNetV3:
    """MobileNetV3-Small (Table 2): 2,542,856 parameters at 1000 classes and width 1, as torchvision's."""
    return MobileNetV3(SMALL, 1024, num_classes, layers=layers, **options)
