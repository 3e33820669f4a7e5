"""Inception v4: Szegedy, Ioffe, Vanhoucke & Alemi, "Inception-v4, Inception-ResNet and the Impact of Residual
Connections on Learning", AAAI 2017. https://arxiv.org/abs/1602.07261, Fig. 9.

Names are timm's, whose state_dict loads as it is. The auxiliary classifier of the release is not in the paper's
figures, nor here. The paper is silent on the initial weights: they are by He et al. 2015, as in the release.
"""

from functools import partial

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import BasicConv2d
from cnn_train.layers.init import he_normal

__all__ = ["inception_v4"]

DEFAULT = LayerFactory(norm_layer=partial(nn.BatchNorm2d, eps=1e-3))

# Channels and kernel of a convolution that keeps the map; with a stride as third entry it is not padded.
Kernel = int | tuple[int, int]
Spec = tuple[int, Kernel] | tuple[int, Kernel, int]


def chain(channels: int, *specs: Spec, layers: LayerFactory, pool: nn.Module | None = None) -> nn.Module:
    """Make a pooling, if one is given, and convolutions one after another; a single layer is not wrapped."""
    units: list[nn.Module] = [] if pool is None else [pool]
    for width, kernel, *stride in specs:
        height, breadth = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if stride else (height // 2, breadth // 2)
        units.append(
            BasicConv2d(channels, width, kernel, stride=stride[0] if stride else 1, padding=padding, layers=layers)
        )
        channels = width
    return units[0] if len(units) == 1 else nn.Sequential(*units)


def mean_pool(layers: LayerFactory) -> nn.Module:
    """Average over 3x3, where the padding does not count."""
    return layers.pool(3, 1, 1, paper=partial(nn.AvgPool2d, count_include_pad=False))


class Parallel(nn.Module):
    """Branches, run side by side on the same map; their channels are concatenated in the order given."""

    def __init__(self, **branches: nn.Module):
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


def stem(in_channels: int, layers: LayerFactory) -> list[nn.Module]:
    """299x299 to 35x35 with 384 channels (Fig. 3)."""
    branch = partial(chain, layers=layers)
    return [
        branch(in_channels, (32, 3, 2)),
        branch(32, (32, 3, 1)),
        branch(32, (64, 3)),
        Parallel(maxpool=layers.pool(3, 2), conv=branch(64, (96, 3, 2))),
        Parallel(
            branch0=branch(160, (64, 1), (96, 3, 1)),
            branch1=branch(160, (64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1)),
        ),
        Parallel(conv=branch(192, (192, 3, 2)), maxpool=layers.pool(3, 2)),
    ]


def inception_a(layers: LayerFactory) -> nn.Module:
    """The block of the 35x35 map (Fig. 4)."""
    branch = partial(chain, 384, layers=layers)
    return Parallel(
        branch0=branch((96, 1)),
        branch1=branch((64, 1), (96, 3)),
        branch2=branch((64, 1), (96, 3), (96, 3)),
        branch3=branch((96, 1), pool=mean_pool(layers)),
    )


def reduction_a(layers: LayerFactory) -> nn.Module:
    """35x35 to 17x17 (Fig. 7 with k, l, m, n = 192, 224, 256, 384)."""
    branch = partial(chain, 384, layers=layers)
    return Parallel(
        branch0=branch((384, 3, 2)),
        branch1=branch((192, 1), (224, 3), (256, 3, 2)),
        branch2=layers.pool(3, 2),
    )


def inception_b(layers: LayerFactory) -> nn.Module:
    """The block of the 17x17 map (Fig. 5)."""
    branch = partial(chain, 1024, layers=layers)
    return Parallel(
        branch0=branch((384, 1)),
        branch1=branch((192, 1), (224, (1, 7)), (256, (7, 1))),
        branch2=branch((192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
        branch3=branch((128, 1), pool=mean_pool(layers)),
    )


def reduction_b(layers: LayerFactory) -> nn.Module:
    """17x17 to 8x8 (Fig. 8)."""
    branch = partial(chain, 1024, layers=layers)
    return Parallel(
        branch0=branch((192, 1), (192, 3, 2)),
        branch1=branch((256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)),
        branch2=layers.pool(3, 2),
    )


class InceptionC(nn.Module):
    """The block of the 8x8 map, with branches that fork into 1x3 and 3x1 (Fig. 6)."""

    def __init__(self, layers: LayerFactory):
        super().__init__()
        branch = partial(chain, layers=layers)
        self.branch0 = branch(1536, (256, 1))
        self.branch1_0 = branch(1536, (384, 1))
        self.branch1_1a = branch(384, (256, (1, 3)))
        self.branch1_1b = branch(384, (256, (3, 1)))
        self.branch2_0 = branch(1536, (384, 1))
        self.branch2_1 = branch(384, (448, (3, 1)))
        self.branch2_2 = branch(448, (512, (1, 3)))
        self.branch2_3a = branch(512, (256, (1, 3)))
        self.branch2_3b = branch(512, (256, (3, 1)))
        self.branch3 = branch(1536, (256, 1), pool=mean_pool(layers))

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch1_0(x)
        double = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        branches = [
            self.branch0(x),
            self.branch1_1a(single),
            self.branch1_1b(single),
            self.branch2_3a(double),
            self.branch2_3b(double),
            self.branch3(x),
        ]
        return torch.cat(branches, 1)


class InceptionV4(nn.Module):
    """Stem, 4 blocks A, 7 blocks B, 3 blocks C (Fig. 9): (N, in_channels, H, W) -> (N, num_classes)."""

    min_size = 75

    def __init__(self, num_classes: int, *, in_channels: int, dropout: float, layers: LayerFactory):
        super().__init__()
        self.features = nn.Sequential(
            *stem(in_channels, layers),
            *[inception_a(layers) for _ in range(4)],
            reduction_a(layers),
            *[inception_b(layers) for _ in range(7)],
            reduction_b(layers),
            *[InceptionC(layers) for _ in range(3)],
        )
        self.avgpool = layers.global_pool(1536)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(self.avgpool.out_features, num_classes)
        layers.init(self, paper=he_normal)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(self.avgpool(self.features(x)))
        return self.last_linear(self.dropout(x))


def inception_v4(
    num_classes: int = 1000, *, in_channels: int = 3, dropout: float = 0.2, layers: LayerFactory = DEFAULT
) -> InceptionV4:
    """Inception v4 (Fig. 9): 42,679,816 parameters at 1000 classes, as timm's."""
    return InceptionV4(num_classes, in_channels=in_channels, dropout=dropout, layers=layers)
