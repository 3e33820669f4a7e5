"""MobileNetV2: Sandler, Howard, Zhu, Zhmoginov & Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018.

CVPR 2018, https://arxiv.org/abs/1801.04381, Table 2. Names and initialization are torchvision's.
"""

from typing import Any

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.init import he_convolutions_normal_dense, zero_last_norms

__all__ = ["mobilenet_v2"]

# Expansion, channels, depth and first stride of each group of blocks (Table 2).
SPEC = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def round_channels(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, to no less than it and not down by more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """1x1 expand, 3x3 depthwise, linear 1x1 (Fig. 4d); a shortcut where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int, layers: LayerFactory):
        super().__init__()
        hidden = in_channels * expansion
        self.conv = nn.Sequential()
        if expansion != 1:
            self.conv.append(ConvNormAct(in_channels, hidden, 1, act=nn.ReLU6, layers=layers))
        self.conv.append(ConvNormAct(hidden, hidden, 3, stride=stride, groups=hidden, act=nn.ReLU6, layers=layers))
        self.conv.append(layers.conv(hidden, out_channels, 1))
        self.conv.append(layers.norm(out_channels))
        self.residual = stride == 1 and in_channels == out_channels

    @property
    def last_norm(self) -> nn.Module | None:
        return self.conv[-1] if self.residual else None

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """A convolution, 17 inverted residuals, a 1x1 convolution (Table 2): (N, in_channels, H, W) -> (N, num_classes).

    `width_mult` multiplies all channels but the last map's, which only grows (section 5). `zero_init_residual` starts
    each residual branch at zero.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        width_mult: float = 1.0,
        zero_init_residual: bool = False,
        dropout: float = 0.2,
        layers: LayerFactory,
    ):
        super().__init__()
        channels = round_channels(32 * width_mult)
        self.features = nn.Sequential(ConvNormAct(in_channels, channels, 3, stride=2, act=nn.ReLU6, layers=layers))
        self.cuts = [0]  # where `features` halves the resolution
        for expansion, width, depth, first_stride in SPEC:
            out_channels = round_channels(width * width_mult)
            for i in range(depth):
                stride = first_stride if i == 0 else 1
                if stride == 2:
                    self.cuts.append(len(self.features))
                self.features.append(
                    InvertedResidual(channels, out_channels, stride=stride, expansion=expansion, layers=layers)
                )
                channels = out_channels
        last = round_channels(1280 * max(1.0, width_mult))
        self.features.append(ConvNormAct(channels, last, 1, act=nn.ReLU6, layers=layers))
        self.avgpool = layers.global_pool(last)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.avgpool.out_features, num_classes))
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


def mobilenet_v2(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> MobileNetV2:
    """MobileNetV2: 3,504,872 parameters at 1000 classes and width multiplier 1, as torchvision's."""
    return MobileNetV2(num_classes, layers=layers, **options)
