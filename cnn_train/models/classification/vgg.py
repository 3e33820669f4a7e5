"""VGG: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.

https://arxiv.org/abs/1409.1556, Table 1. Names are torchvision's: without a norm, as in the paper, those of its `vgg*`;
with one those of its `vgg*_bn`, where the convolutions keep their bias. The paper starts its deeper networks from the
trained network A; weights here start as torchvision's, by He et al. 2015, from which all of them can be trained.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import he_convolutions_normal_dense
from cnn_train.layers.pool import GlobalAvgPool

__all__ = ["vgg11", "vgg13", "vgg16", "vgg19"]

PLAIN = LayerFactory(norm_layer=None)


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions and three dense layers: (N, in_channels, H, W) -> (N, num_classes).

    `depths` is the number of convolutions in each block, `width` the channels of the first; all other layers are
    proportional to it. `kernel_size` is that of every convolution.
    """

    min_size = 32

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int,
        *,
        in_channels: int = 3,
        width: int = 64,
        kernel_size: int = 3,
        dropout: float = 0.5,
        layers: LayerFactory,
    ):
        super().__init__()
        self.features = nn.Sequential()
        self.pools: list[int] = []
        channels = in_channels
        for depth, factor in zip(depths, (1, 2, 4, 8, 8), strict=True):
            for _ in range(depth):
                self.features.append(layers.conv(channels, factor * width, kernel_size, bias=True))
                channels = factor * width
                if layers.has_norm:
                    self.features.append(layers.norm(channels))
                self.features.append(layers.act(channels))
            self.pools.append(len(self.features))
            self.features.append(layers.pool(2))
        self.avgpool = layers.global_pool(channels, paper=partial(GlobalAvgPool, size=7))
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(self.avgpool.out_features, 64 * width),
            layers.act(64 * width),
            nn.Dropout(dropout),
            nn.Linear(64 * width, 64 * width),
            layers.act(64 * width),
            nn.Dropout(dropout),
            nn.Linear(64 * width, num_classes),
        )
        layers.init(self, paper=he_convolutions_normal_dense)

    @property
    def stages(self) -> list[nn.Module]:
        """The features, cut before each pooling: stage k has stride 2^k; the sixth is the last pooling alone."""
        return [self.features[start:end] for start, end in pairwise([0, *self.pools, len(self.features)])]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


def vgg11(num_classes: int = 1000, *, layers: LayerFactory = PLAIN, **options: Any) -> VGG:
    """VGG-11 (Table 1, A): 132,863,336 parameters at 1000 classes, as torchvision's."""
    return VGG((1, 1, 2, 2, 2), num_classes, layers=layers, **options)


def vgg13(num_classes: int = 1000, *, pairs_as_5x5: bool = False, layers: LayerFactory = PLAIN, **options: Any) -> VGG:
    """VGG-13 (Table 1, B): 133,047,848 parameters at 1000 classes, as torchvision's.

    `pairs_as_5x5` has one 5x5 convolution in place of each pair of 3x3, which sees as much (section 4.1).
    """
    form: Any = {"depths": (1,) * 5, "kernel_size": 5} if pairs_as_5x5 else {"depths": (2,) * 5}
    return VGG(num_classes=num_classes, layers=layers, **form, **options)


def vgg16(num_classes: int = 1000, *, layers: LayerFactory = PLAIN, **options: Any) -> VGG:
    """VGG-16 (Table 1, D): 138,357,544 parameters at 1000 classes, as torchvision's."""
    return VGG((2, 2, 3, 3, 3), num_classes, layers=layers, **options)


def vgg19(num_classes: int = 1000, *, layers: LayerFactory = PLAIN, **options: Any) -> VGG:
    """VGG-19 (Table 1, E): 143,667,240 parameters at 1000 classes, as torchvision's."""
    return VGG((2, 2, 4, 4, 4), num_classes, layers=layers, **options)
