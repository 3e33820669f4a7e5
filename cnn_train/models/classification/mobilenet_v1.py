"""MobileNet: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017.

https://arxiv.org/abs/1704.04861, Table 1. Names are timm's (`mobilenetv1_100`). The activation is ReLU6, as in the
authors' release and timm, where the paper writes ReLU.
"""

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import he_convolutions
from cnn_train.models.classification.mobilenet_v2 import round_channels

__all__ = ["mobilenet_v1"]


class DepthwiseSeparable(nn.Module):
    """3x3 depthwise and 1x1 convolution, a norm and an activation after each (Fig. 3)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, layers: LayerFactory):
        super().__init__()
        self.conv_dw = layers.conv(in_channels, in_channels, 3, stride=stride, groups=in_channels)
        self.bn1 = layers.norm(in_channels)
        self.act1 = layers.act(in_channels, nn.ReLU6)
        self.conv_pw = layers.conv(in_channels, out_channels, 1)
        self.bn2 = layers.norm(out_channels)
        self.act2 = layers.act(out_channels, nn.ReLU6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv_dw(x)))
        return self.act2(self.bn2(self.conv_pw(x)))


class FullConvolution(nn.Module):
    """3x3 convolution, norm and activation: what a separable one stands for (Table 4)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, layers: LayerFactory):
        super().__init__()
        self.conv = layers.conv(in_channels, out_channels, 3, stride=stride)
        self.bn1 = layers.norm(out_channels)
        self.act1 = layers.act(out_channels, nn.ReLU6)

    def forward(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(self.conv(x)))


class MobileNetV1(nn.Module):
    """A convolution and 13 separable ones (Table 1): (N, in_channels, H, W) -> (N, num_classes).

    `width_mult` is the width multiplier (section 3.3); `separable=False` has full convolutions instead (Table 4).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int,
        width_mult: float,
        separable: bool,
        dropout: float,
        layers: LayerFactory,
    ):
        super().__init__()
        block = DepthwiseSeparable if separable else FullConvolution
        channels = round_channels(32 * width_mult)
        self.conv_stem = layers.conv(in_channels, channels, 3, stride=2)
        self.bn1 = layers.norm(channels)
        self.act1 = layers.act(channels, nn.ReLU6)
        self.blocks = nn.Sequential()
        for width, depth in ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2)):
            group = nn.Sequential()
            out_channels = round_channels(width * width_mult)
            for i in range(depth):
                stride = 2 if i == 0 and width > 64 else 1
                group.append(block(channels, out_channels, stride=stride, layers=layers))
                channels = out_channels
            self.blocks.append(group)
        self.avgpool = layers.global_pool(channels)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.avgpool.out_features, num_classes)
        layers.init(self, paper=he_convolutions)

    @property
    def stages(self) -> list[nn.Module]:
        """The network without its head, cut where the resolution halves."""
        first, *rest = self.blocks
        return [nn.Sequential(self.conv_stem, self.bn1, self.act1, first), *rest]

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act1(self.bn1(self.conv_stem(x))))
        return self.classifier(self.dropout(self.flatten(self.avgpool(x))))


def mobilenet_v1(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    width_mult: float = 1.0,
    separable: bool = True,
    dropout: float = 0.0,
    layers: LayerFactory = LayerFactory(),
) -> MobileNetV1:
    """MobileNet v1 (4.2M in Table 6): 4,231,976 parameters at 1000 classes and width multiplier 1, as timm's.

    Of full convolutions, `separable=False`, it has 29,294,088 (29.3M in Table 4).
    """
    return MobileNetV1(
        num_classes,
        in_channels=in_channels,
        width_mult=width_mult,
        separable=separable,
        dropout=dropout,
        layers=layers,
    )
