"""Darknet-19 and Darknet-53: Redmon & Farhadi, "YOLO9000: Better, Faster, Stronger", CVPR 2017, and "YOLOv3", 2018.

https://arxiv.org/abs/1612.08242, Table 6, and https://arxiv.org/abs/1804.02767, Table 1. The activation is their
release's leaky rectifier of slope 0.1; weights start as there, by He's rule.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.init import he_normal

__all__ = ["darknet19", "darknet53"]

Leaky = partial(nn.LeakyReLU, 0.1)


class Darknet19(nn.Module):
    """3x3 convolutions with 1x1 between them, doubled where the map halves: (N, in_channels, H, W) -> (N, num_classes).

    `width` is the number of channels of the first convolution; all else goes with it. The last convolution has a map
    for each class, whose average is the class's score; a head that leaves more than one value of each map gets a dense
    layer.
    """

    min_size = 32

    def __init__(self, num_classes: int, *, in_channels: int, width: int, layers: LayerFactory):
        super().__init__()
        self.features = nn.Sequential()
        channels = in_channels
        for index, depth in enumerate((1, 1, 3, 3, 5, 5)):
            wide = width * 2**index
            stage = nn.Sequential()
            if index:
                stage.append(layers.pool(2))
            for i in range(depth):
                now, kernel_size = (wide, 3) if i % 2 == 0 else (wide // 2, 1)
                stage.append(ConvNormAct(channels, now, kernel_size, act=Leaky, layers=layers))
                channels = now
            self.features.append(stage)
        self.score = layers.conv(channels, num_classes, 1, bias=True)
        self.avgpool = layers.global_pool(num_classes)
        self.flatten = nn.Flatten()
        features = self.avgpool.out_features
        self.fc = nn.Identity() if features == num_classes else nn.Linear(features, num_classes)
        layers.init(self, paper=start)

    @property
    def stages(self) -> list[nn.Module]:
        """The features, each but the first beginning with a pooling: stage k has stride 2^k."""
        return list(self.features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.avgpool(self.score(self.features(x)))))


class Residual(nn.Module):
    """1x1 to half of the channels and 3x3 back, added to the input; the activation comes before the sum."""

    def __init__(self, channels: int, *, layers: LayerFactory):
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels // 2, 1, act=Leaky, layers=layers)
        self.conv2 = ConvNormAct(channels // 2, channels, 3, act=Leaky, layers=layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class Darknet53(nn.Module):
    """Strided 3x3 convolutions, each with residual blocks behind it: (N, in_channels, H, W) -> (N, num_classes).

    `width` is the number of channels of the first convolution; all else goes with it.
    """

    def __init__(self, num_classes: int, *, in_channels: int, width: int, depths: Sequence[int], layers: LayerFactory):
        super().__init__()
        self.stem = ConvNormAct(in_channels, width, 3, act=Leaky, layers=layers)
        self.features = nn.Sequential()
        channels = width
        for depth in depths:
            stage = nn.Sequential(ConvNormAct(channels, 2 * channels, 3, stride=2, act=Leaky, layers=layers))
            channels *= 2
            for _ in range(depth):
                stage.append(Residual(channels, layers=layers))
            self.features.append(stage)
        self.avgpool = layers.global_pool(channels)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(self.avgpool.out_features, num_classes)
        layers.init(self, paper=start)

    @property
    def stages(self) -> list[nn.Module]:
        """The network without its head, cut where the resolution halves."""
        first, *rest = self.features
        return [nn.Sequential(self.stem, first), *rest]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.avgpool(self.features(self.stem(x)))))


def start(module: nn.Module) -> None:
    """N(0, 2 / fan_in), whatever the slope of the rectifier."""
    he_normal(module, nn.ReLU)


def darknet19(
    num_classes: int = 1000, *, in_channels: int = 3, width: int = 32, layers: LayerFactory = LayerFactory()
) -> Darknet19:
    """Darknet-19 (YOLO9000, Table 6): 20,842,376 parameters at 1000 classes."""
    return Darknet19(num_classes, in_channels=in_channels, width=width, layers=layers)


def darknet53(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    width: int = 32,
    depths: Sequence[int] = (1, 2, 8, 8, 4),
    layers: LayerFactory = LayerFactory(),
) -> Darknet53:
    """Darknet-53 (YOLOv3, Table 1): 41,609,928 parameters at 1000 classes."""
    return Darknet53(num_classes, in_channels=in_channels, width=width, depths=depths, layers=layers)
