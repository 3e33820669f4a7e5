"""Inception-ResNet v2: Szegedy, Ioffe, Vanhoucke & Alemi, "Inception-v4, Inception-ResNet and the Impact of Residual
Connections on Learning", AAAI 2017. https://arxiv.org/abs/1602.07261, Fig. 15.

The released network, under timm's names, whose state_dict loads as it is. It differs from Fig. 15: its stem is that of
Inception v3 with one module more, it has 10, 20 and 10 blocks instead of 5, 10 and 5, and its residuals are scaled by
0.17, 0.10 and 0.20 (section 3.3).
"""

from functools import partial

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import he_normal
from cnn_train.models.classification.inception_v4 import Parallel, Spec, chain, mean_pool

__all__ = ["inception_resnet_v2"]

DEFAULT = LayerFactory(norm_layer=partial(nn.BatchNorm2d, eps=1e-3))


class InceptionResidual(nn.Module):
    """Branches side by side, joined by a 1x1 convolution, scaled, and added to the input (Fig. 16, 17, 19).

    The scale does what a last norm that starts at zero does in ResNet; here rectifiers follow the norms.
    """

    def __init__(
        self, channels: int, *branches: tuple[Spec, ...], scale: float, layers: LayerFactory, activate: bool = True
    ):
        super().__init__()
        self.num_branches = len(branches)
        for index, specs in enumerate(branches):
            self.add_module(f"branch{index}", chain(channels, *specs, layers=layers))
        self.conv2d = layers.conv(sum(specs[-1][0] for specs in branches), channels, 1, bias=True)
        self.scale = scale
        self.act = layers.act(channels) if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = torch.cat([self.get_submodule(f"branch{i}")(x) for i in range(self.num_branches)], 1)
        return self.act(x + self.scale * self.conv2d(residual))


def mixed_5b(layers: LayerFactory) -> nn.Module:
    """The Inception module that ends the stem: 192 to 320 channels."""
    branch = partial(chain, 192, layers=layers)
    return Parallel(
        branch0=branch((96, 1)),
        branch1=branch((48, 1), (64, 5)),
        branch2=branch((64, 1), (96, 3), (96, 3)),
        branch3=branch((64, 1), pool=mean_pool(layers)),
    )


def block35(layers: LayerFactory) -> nn.Module:
    """Inception-ResNet-A, of the 35x35 map (Fig. 16)."""
    branches: tuple[tuple[Spec, ...], ...] = (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3)))
    return InceptionResidual(320, *branches, scale=0.17, layers=layers)


def reduction_a(layers: LayerFactory) -> nn.Module:
    """35x35 to 17x17 (Fig. 7 with k, l, m, n = 256, 256, 384, 384)."""
    branch = partial(chain, 320, layers=layers)
    return Parallel(
        branch0=branch((384, 3, 2)),
        branch1=branch((256, 1), (256, 3), (384, 3, 2)),
        branch2=layers.pool(3, 2),
    )


def block17(layers: LayerFactory) -> nn.Module:
    """Inception-ResNet-B, of the 17x17 map (Fig. 17)."""
    branches: tuple[tuple[Spec, ...], ...] = (((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1))))
    return InceptionResidual(1088, *branches, scale=0.10, layers=layers)


def reduction_b(layers: LayerFactory) -> nn.Module:
    """17x17 to 8x8 (Fig. 18)."""
    branch = partial(chain, 1088, layers=layers)
    return Parallel(
        branch0=branch((256, 1), (384, 3, 2)),
        branch1=branch((256, 1), (288, 3, 2)),
        branch2=branch((256, 1), (288, 3), (320, 3, 2)),
        branch3=layers.pool(3, 2),
    )


def block8(layers: LayerFactory, scale: float = 0.20, activate: bool = True) -> nn.Module:
    """Inception-ResNet-C, of the 8x8 map (Fig. 19)."""
    branches: tuple[tuple[Spec, ...], ...] = (((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1))))
    return InceptionResidual(2080, *branches, scale=scale, activate=activate, layers=layers)


class InceptionResNetV2(nn.Module):
    """Stem, 10, 20 and 10 residual Inception blocks: (N, in_channels, H, W) -> (N, num_classes)."""

    min_size = 75

    def __init__(self, num_classes: int, *, in_channels: int, dropout: float, layers: LayerFactory):
        super().__init__()
        branch = partial(chain, layers=layers)
        self.conv2d_1a = branch(in_channels, (32, 3, 2))
        self.conv2d_2a = branch(32, (32, 3, 1))
        self.conv2d_2b = branch(32, (64, 3))
        self.maxpool_3a = layers.pool(3, 2)
        self.conv2d_3b = branch(64, (80, 1, 1))
        self.conv2d_4a = branch(80, (192, 3, 1))
        self.maxpool_5a = layers.pool(3, 2)
        self.mixed_5b = mixed_5b(layers)
        self.repeat = nn.Sequential(*[block35(layers) for _ in range(10)])
        self.mixed_6a = reduction_a(layers)
        self.repeat_1 = nn.Sequential(*[block17(layers) for _ in range(20)])
        self.mixed_7a = reduction_b(layers)
        self.repeat_2 = nn.Sequential(*[block8(layers) for _ in range(9)])
        self.block8 = block8(layers, scale=1.0, activate=False)
        self.conv2d_7b = branch(2080, (1536, 1))
        self.avgpool = layers.global_pool(1536)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.classif = nn.Linear(self.avgpool.out_features, num_classes)
        layers.init(self, paper=he_normal)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(x)))
        x = self.repeat(self.mixed_5b(self.maxpool_5a(x)))
        x = self.repeat_1(self.mixed_6a(x))
        x = self.block8(self.repeat_2(self.mixed_7a(x)))
        x = self.flatten(self.avgpool(self.conv2d_7b(x)))
        return self.classif(self.dropout(x))


def inception_resnet_v2(
    num_classes: int = 1000, *, in_channels: int = 3, dropout: float = 0.2, layers: LayerFactory = DEFAULT
) -> InceptionResNetV2:
    """Inception-ResNet v2 (Fig. 15): 55,843,464 parameters at 1000 classes, as timm's."""
    return InceptionResNetV2(num_classes, in_channels=in_channels, dropout=dropout, layers=layers)
