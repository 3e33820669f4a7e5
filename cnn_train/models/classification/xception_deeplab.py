"""Xception as DeepLab v3+ has it: Chen, Zhu, Papandreou, Schroff & Adam, "Encoder-Decoder with Atrous Separable
Convolution for Semantic Image Segmentation", ECCV 2018. https://arxiv.org/abs/1802.02611, section 3.2, Fig. 4.

Strided separable convolutions instead of pooling, a norm after the depthwise convolutions, a longer middle flow. As in
the authors' release, the activation after a depthwise convolution is in the exit flow's last module only; elsewhere it
stands before. Names are timm's (`xception41/65/71`), whose state_dict loads as it is.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import BasicConv2d
from cnn_train.layers.init import he_convolutions, zero_last_norms

__all__ = ["xception41", "xception65", "xception71"]

DEFAULT = LayerFactory(norm_layer=partial(nn.BatchNorm2d, eps=1e-3))


class SeparableConvNorm(nn.Module):
    """3x3 depthwise and 1x1 convolution with a norm after each; with `act` an activation follows each norm."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, act: bool, layers: LayerFactory):
        super().__init__()
        self.conv_dw = layers.conv(in_channels, in_channels, 3, stride=stride, groups=in_channels)
        self.bn_dw = layers.norm(in_channels)
        self.act_dw = layers.act(in_channels) if act else nn.Identity()
        self.conv_pw = layers.conv(in_channels, out_channels, 1)
        self.bn_pw = layers.norm(out_channels)
        self.act_pw = layers.act(out_channels) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act_dw(self.bn_dw(self.conv_dw(x)))
        return self.act_pw(self.bn_pw(self.conv_pw(x)))


class XceptionModule(nn.Module):
    """Three separable convolutions beside a shortcut; the last one strides.

    With `residual=False`, the exit flow's form, there is no shortcut, and activations follow instead of leading.
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, int, int],
        *,
        stride: int = 1,
        residual: bool = True,
        layers: LayerFactory,
    ):
        super().__init__()
        self.stride = stride
        self.residual = residual
        self.shortcut = nn.Sequential()
        if residual and (stride != 1 or in_channels != widths[-1]):
            self.shortcut.conv = layers.conv(in_channels, widths[-1], 1, stride=stride)
            self.shortcut.bn = layers.norm(widths[-1])
        self.stack = nn.Sequential()
        channels = in_channels
        for i, width in enumerate(widths, start=1):
            if residual:
                self.stack.add_module(f"act{i}", layers.act(channels))
            conv = SeparableConvNorm(channels, width, stride=stride if i == 3 else 1, act=not residual, layers=layers)
            self.stack.add_module(f"conv{i}", conv)
            channels = width

    @property
    def last_norm(self) -> nn.Module | None:
        return self.stack.get_submodule("conv3.bn_pw") if self.residual else None

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x) + self.shortcut(x) if self.residual else self.stack(x)


class XceptionDeepLab(nn.Module):
    """Entry, middle and exit flow (Fig. 4): (N, in_channels, H, W) -> (N, num_classes).

    `entry` is (width, stride) of each module of the entry flow, `depth` the number of modules of the middle flow.
    `zero_init_residual` starts each residual branch at zero.
    """

    def __init__(
        self,
        entry: tuple[tuple[int, int], ...],
        depth: int,
        num_classes: int,
        *,
        in_channels: int = 3,
        zero_init_residual: bool = False,
        dropout: float = 0.0,
        layers: LayerFactory,
    ):
        super().__init__()
        self.stem = nn.Sequential(
            BasicConv2d(in_channels, 32, 3, stride=2, padding=1, layers=layers),
            BasicConv2d(32, 64, 3, padding=1, layers=layers),
        )
        self.blocks = nn.Sequential()
        channels = 64
        for width, stride in (*entry, *[(728, 1)] * depth):
            self.blocks.append(XceptionModule(channels, (width, width, width), stride=stride, layers=layers))
            channels = width
        self.blocks.append(XceptionModule(728, (728, 1024, 1024), stride=2, layers=layers))
        self.blocks.append(XceptionModule(1024, (1536, 1536, 2048), residual=False, layers=layers))
        avgpool = layers.global_pool(2048)
        self.head = nn.Sequential(
            OrderedDict(
                avgpool=avgpool,
                flatten=nn.Flatten(),
                dropout=nn.Dropout(dropout),
                fc=nn.Linear(avgpool.out_features, num_classes),
            )
        )
        layers.init(self, paper=he_convolutions)
        if zero_init_residual:
            zero_last_norms(self)

    @property
    def stages(self) -> list[nn.Module]:
        """The network without its head, cut where the resolution halves."""
        stages: list[nn.Sequential] = [self.stem]
        for block in self.blocks:
            if block.stride == 2:
                stages.append(nn.Sequential())
            stages[-1].append(block)
        return list(stages)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def xception41(num_classes: int = 1000, *, layers: LayerFactory = DEFAULT, **options: Any) -> XceptionDeepLab:
    """Xception-41, a middle flow of 8: 26,969,560 parameters at 1000 classes, as timm's."""
    return XceptionDeepLab(((128, 2), (256, 2), (728, 2)), 8, num_classes, layers=layers, **options)


def xception65(num_classes: int = 1000, *, layers: LayerFactory = DEFAULT, **options: Any) -> XceptionDeepLab:
    """Xception-65, a middle flow of 16: 39,916,312 parameters at 1000 classes, as timm's."""
    return XceptionDeepLab(((128, 2), (256, 2), (728, 2)), 16, num_classes, layers=layers, **options)


def xception71(num_classes: int = 1000, *, layers: LayerFactory = DEFAULT, **options: Any) -> XceptionDeepLab:
    """Xception-71, an entry flow of five and a middle flow of 16: 42,338,736 parameters at 1000 classes, as timm's."""
    entry = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
    return XceptionDeepLab(entry, 16, num_classes, layers=layers, **options)
