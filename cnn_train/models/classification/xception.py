"""Xception: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017.

https://arxiv.org/abs/1610.02357, Fig. 5. Names are timm's (`legacy_xception`) but for the depthwise convolutions, whose
`conv1` is `depthwise` here; `from_timm` renames. The first two convolutions are not padded, as in the Keras original.
The paper has a dropout of 0.5 before the last layer in its ImageNet runs.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import SeparableConv2d
from cnn_train.layers.init import he_convolutions, zero_last_norms

__all__ = ["xception"]


class Block(nn.Module):
    """Activation, separable convolution and norm, once for each of `widths`, beside a shortcut.

    `stride` 2 pools at the end and projects the shortcut; `start_with_act=False` leaves out the first activation.
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, ...],
        *,
        stride: int = 1,
        start_with_act: bool = True,
        layers: LayerFactory,
    ):
        super().__init__()
        self.rep = nn.Sequential()
        channels = in_channels
        for i, width in enumerate(widths):
            if i > 0 or start_with_act:
                self.rep.append(layers.act(channels))
            self.rep.append(SeparableConv2d(channels, width, bias=None, layers=layers))
            self.rep.append(layers.norm(width))
            channels = width
        self.skip: nn.Module = nn.Identity()
        self.skipbn: nn.Module = nn.Identity()
        if stride != 1:
            self.rep.append(layers.pool(3, stride, 1))
            self.skip = layers.conv(in_channels, channels, 1, stride=stride)
            self.skipbn = layers.norm(channels)

    @property
    def last_norm(self) -> nn.Module:
        return self.rep[-1 if isinstance(self.skip, nn.Identity) else -2]  # a pooling stands behind it

    def forward(self, x: Tensor) -> Tensor:
        return self.rep(x) + self.skipbn(self.skip(x))


class Xception(nn.Module):
    """Entry, middle and exit flow (Fig. 5): (N, in_channels, H, W) -> (N, num_classes); the paper's H and W are 299.

    `zero_init_residual` starts each residual branch at zero.
    """

    min_size = 7

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        zero_init_residual: bool = False,
        dropout: float = 0.5,
        layers: LayerFactory,
    ):
        super().__init__()
        self.conv1 = layers.conv(in_channels, 32, 3, stride=2, padding=0)
        self.bn1 = layers.norm(32)
        self.act1 = layers.act(32)
        self.conv2 = layers.conv(32, 64, 3, padding=0)
        self.bn2 = layers.norm(64)
        self.act2 = layers.act(64)
        self.block1 = Block(64, (128, 128), stride=2, start_with_act=False, layers=layers)
        self.block2 = Block(128, (256, 256), stride=2, layers=layers)
        self.block3 = Block(256, (728, 728), stride=2, layers=layers)
        for index in range(4, 12):
            self.add_module(f"block{index}", Block(728, (728, 728, 728), layers=layers))
        self.block12 = Block(728, (728, 1024), stride=2, layers=layers)
        self.conv3 = SeparableConv2d(1024, 1536, bias=None, layers=layers)
        self.bn3 = layers.norm(1536)
        self.act3 = layers.act(1536)
        self.conv4 = SeparableConv2d(1536, 2048, bias=None, layers=layers)
        self.bn4 = layers.norm(2048)
        self.act4 = layers.act(2048)
        self.avgpool = layers.global_pool(2048)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.avgpool.out_features, num_classes)
        layers.init(self, paper=he_convolutions)
        if zero_init_residual:
            zero_last_norms(self)

    @property
    def stages(self) -> list[nn.Module]:
        """The network without its head, cut where the resolution halves."""
        middle = [self.get_submodule(f"block{index}") for index in range(3, 12)]
        last = nn.Sequential(self.conv3, self.bn3, self.act3, self.conv4, self.bn4, self.act4)
        return [
            nn.Sequential(self.conv1, self.bn1, self.act1, self.conv2, self.bn2, self.act2),
            self.block1,
            self.block2,
            nn.Sequential(*middle),
            nn.Sequential(self.block12, *last),
        ]

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        for index in range(1, 13):
            x = self.get_submodule(f"block{index}")(x)
        x = self.act3(self.bn3(self.conv3(x)))
        x = self.act4(self.bn4(self.conv4(x)))
        return self.fc(self.dropout(self.flatten(self.avgpool(x))))


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the depthwise convolutions of timm's `legacy_xception`."""
    pattern = r"(rep\.\d+|conv[34])\.conv1\."
    return {re.sub(pattern, r"\1.depthwise.", key): value for key, value in state.items()}


def xception(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> Xception:
    """Xception (Fig. 5): 22,855,952 parameters at 1000 classes, as timm's."""
    return Xception(num_classes, layers=layers, **options)
