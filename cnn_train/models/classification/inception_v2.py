"""Inception v2, BN-Inception: Ioffe & Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
Internal Covariate Shift", ICML 2015. https://arxiv.org/abs/1502.03167, Fig. 5.

The totals that Fig. 5 gives for modules 4c, 4d and 4e do not add up; as in the releases for Caffe and MXNet the widths
of the branches decide, so that 4c and 4d have 608 channels and 4e has 1056. Convolutions have no bias, which batch norm
would cancel (section 3.2). Module names are those of `googlenet`; `from_caffe` translates the release's.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import BasicConv2d
from cnn_train.layers.factory import Make
from cnn_train.layers.init import xavier_uniform

__all__ = ["inception_v2"]


class Inception(nn.Module):
    """1x1, 3x3, double 3x3 and a pooling side by side: the 5x5 of GoogLeNet became two 3x3."""

    def __init__(
        self,
        in_channels: int,
        ch1x1: int,
        ch3x3_reduce: int,
        ch3x3: int,
        double_reduce: int,
        double: int,
        pool_proj: int,
        *,
        pool: Make = nn.AvgPool2d,
        layers: LayerFactory,
    ):
        super().__init__()
        conv = partial(BasicConv2d, layers=layers)
        self.branch1 = conv(in_channels, ch1x1, 1)
        self.branch2 = nn.Sequential(conv(in_channels, ch3x3_reduce, 1), conv(ch3x3_reduce, ch3x3, 3, padding=1))
        self.branch3 = nn.Sequential(
            conv(in_channels, double_reduce, 1),
            conv(double_reduce, double, 3, padding=1),
            conv(double, double, 3, padding=1),
        )
        self.branch4 = nn.Sequential(layers.pool(3, 1, 1, paper=pool), conv(in_channels, pool_proj, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class HalvingPool(nn.Module):
    """A 3x3 pooling of stride 2 to half the map, rounded up; the last row and column of an odd map are repeated.

    With Caffe's windows, which start in the corner, an odd map would lose a row against the padded convolutions.
    """

    def __init__(self, layers: LayerFactory):
        super().__init__()
        self.pool: Any = layers.pool(3, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        # Read from the layer: an encoder may have taken its stride.
        stride = self.pool.stride
        return self.pool(F.pad(x, (0, x.size(-1) % stride, 0, x.size(-2) % stride), mode="replicate"))


class Reduction(nn.Module):
    """An Inception module of stride 2 (3c and 4e): without 1x1 branch, and the pooling passes through."""

    def __init__(
        self,
        in_channels: int,
        ch3x3_reduce: int,
        ch3x3: int,
        double_reduce: int,
        double: int,
        *,
        layers: LayerFactory,
    ):
        super().__init__()
        conv = partial(BasicConv2d, layers=layers)
        self.branch2 = nn.Sequential(
            conv(in_channels, ch3x3_reduce, 1), conv(ch3x3_reduce, ch3x3, 3, stride=2, padding=1)
        )
        self.branch3 = nn.Sequential(
            conv(in_channels, double_reduce, 1),
            conv(double_reduce, double, 3, padding=1),
            conv(double, double, 3, stride=2, padding=1),
        )
        self.branch4 = HalvingPool(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class InceptionV2(nn.Module):
    """Ten Inception modules with batch norm (Fig. 5): (N, in_channels, H, W) -> (N, num_classes)."""

    min_size = 7

    def __init__(self, num_classes: int, *, in_channels: int, dropout: float, layers: LayerFactory):
        super().__init__()
        conv = partial(BasicConv2d, layers=layers)
        inception = partial(Inception, layers=layers)
        self.conv1 = conv(in_channels, 64, 7, stride=2, padding=3)
        self.maxpool1 = layers.pool(3, 2, ceil_mode=True)
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3, padding=1)
        self.maxpool2 = layers.pool(3, 2, ceil_mode=True)
        self.inception3a = inception(192, 64, 64, 64, 64, 96, 32)
        self.inception3b = inception(256, 64, 64, 96, 64, 96, 64)
        self.inception3c = Reduction(320, 128, 160, 64, 96, layers=layers)
        self.inception4a = inception(576, 224, 64, 96, 96, 128, 128)
        self.inception4b = inception(576, 192, 96, 128, 96, 128, 128)
        self.inception4c = inception(576, 160, 128, 160, 128, 160, 128)
        self.inception4d = inception(608, 96, 128, 192, 160, 192, 128)
        self.inception4e = Reduction(608, 128, 192, 192, 256, layers=layers)
        self.inception5a = inception(1056, 352, 192, 320, 160, 224, 128)
        self.inception5b = inception(1024, 352, 192, 320, 192, 224, 128, pool=nn.MaxPool2d)
        self.avgpool = layers.global_pool(1024)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.avgpool.out_features, num_classes)
        layers.init(self, paper=xavier_uniform)

    @property
    def stages(self) -> list[nn.Module]:
        """The network without its head, cut where the resolution halves."""
        third = nn.Sequential(self.maxpool2, self.inception3a, self.inception3b)
        fourth = nn.Sequential(self.inception3c, self.inception4a, self.inception4b, self.inception4c, self.inception4d)
        fifth = nn.Sequential(self.inception4e, self.inception5a, self.inception5b)
        return [self.conv1, nn.Sequential(self.maxpool1, self.conv2, self.conv3), third, fourth, fifth]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.maxpool1(self.conv1(x))))
        x = self.inception3b(self.inception3a(self.maxpool2(x)))
        x = self.inception4a(self.inception3c(x))
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        x = self.inception5b(self.inception5a(self.inception4e(x)))
        return self.fc(self.dropout(self.flatten(self.avgpool(x))))


def inception_v2(
    num_classes: int = 1000, *, in_channels: int = 3, dropout: float = 0.0, layers: LayerFactory = LayerFactory()
) -> InceptionV2:
    """Inception v2, BN-Inception (Fig. 5): 11,285,224 parameters at 1000 classes.

    The release's less its convolutions' biases.
    """
    return InceptionV2(num_classes, in_channels=in_channels, dropout=dropout, layers=layers)


def from_caffe(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the Caffe release as converted to PyTorch (`inception_3a_1x1.weight`, ..., `last_linear.weight`).

    The release has a bias before each batch norm: it goes into the running mean. The release takes BGR in [0, 255].
    """
    places = {
        "1x1": "branch1",
        "3x3_reduce": "branch2.0",
        "3x3": "branch2.1",
        "double_3x3_reduce": "branch3.0",
        "double_3x3_1": "branch3.1",
        "double_3x3_2": "branch3.2",
        "pool_proj": "branch4.1",
    }
    stem = {"conv1_7x7_s2": "conv1", "conv2_3x3_reduce": "conv2", "conv2_3x3": "conv3"}
    result = {}
    for key, value in state_dict.items():
        layer, _, kind = key.rpartition(".")
        if layer in ("last_linear", "fc"):
            result[f"fc.{kind}"] = value
            continue
        base = layer.removesuffix("_bn")
        if base in stem:
            name = stem[base]
        else:
            module, _, place = base.removeprefix("inception_").partition("_")
            name = f"inception{module}.{places[place]}"
        if layer != base:
            result[f"{name}.bn.{kind}"] = value - state_dict[f"{base}.bias"] if kind == "running_mean" else value
        elif kind == "weight":
            result[f"{name}.conv.weight"] = value
    return result
