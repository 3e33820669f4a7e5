"""GoogLeNet: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015. https://arxiv.org/abs/1409.4842, Table 1.

Names and layers are torchvision's: batch norm after every convolution, 3x3 where the paper has 5x5, and a last pooling
of 2x2. `variant="paper"` has the 5x5 convolutions and the 3x3 pooling; with `norm=none` it is the network of 2014 but
for its two local response normalizations. The paper is silent on the initial weights: they are by Glorot & Bengio 2010,
as in the release for Caffe.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import BasicConv2d
from cnn_train.layers.init import xavier_uniform
from cnn_train.layers.pool import GlobalAvgPool

__all__ = ["googlenet"]

DEFAULT = LayerFactory(norm_layer=partial(nn.BatchNorm2d, eps=1e-3))


class Inception(nn.Module):
    """Convolutions of several sizes and a pooling side by side (Fig. 2b); `kernel_size` is that of the largest."""

    def __init__(
        self,
        in_channels: int,
        ch1x1: int,
        ch3x3_reduce: int,
        ch3x3: int,
        ch5x5_reduce: int,
        ch5x5: int,
        pool_proj: int,
        *,
        kernel_size: int,
        layers: LayerFactory,
    ):
        super().__init__()
        conv = partial(BasicConv2d, layers=layers)
        self.branch1 = conv(in_channels, ch1x1, 1)
        self.branch2 = nn.Sequential(conv(in_channels, ch3x3_reduce, 1), conv(ch3x3_reduce, ch3x3, 3, padding=1))
        self.branch3 = nn.Sequential(
            conv(in_channels, ch5x5_reduce, 1),
            conv(ch5x5_reduce, ch5x5, kernel_size, padding=kernel_size // 2),
        )
        self.branch4 = nn.Sequential(layers.pool(3, 1, 1), conv(in_channels, pool_proj, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class InceptionAux(nn.Module):
    """An auxiliary classifier (section 5), whose pooling gives 4x4 for any map."""

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float, layers: LayerFactory):
        super().__init__()
        self.avgpool = GlobalAvgPool(in_channels, 4)
        self.conv = BasicConv2d(in_channels, 128, 1, layers=layers)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.act = layers.act(1024)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(self.conv(self.avgpool(x)))
        return self.fc2(self.dropout(self.act(self.fc1(x))))


class GoogLeNet(nn.Module):
    """Nine Inception modules (Table 1): (N, in_channels, H, W) -> (N, num_classes).

    In training, the logits and those of the two auxiliary classifiers, after modules 4a and 4d.
    """

    min_size = 15
    aux_weight = 0.3

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        variant: Literal["torchvision", "paper"] = "torchvision",
        aux: bool = True,
        dropout: float = 0.4,
        dropout_aux: float = 0.7,
        layers: LayerFactory,
    ):
        super().__init__()
        if variant not in ("torchvision", "paper"):
            raise ValueError(f"variant must be 'torchvision' or 'paper', got {variant!r}")
        conv = partial(BasicConv2d, layers=layers)
        inception = partial(Inception, kernel_size=5 if variant == "paper" else 3, layers=layers)
        self.conv1 = conv(in_channels, 64, 7, stride=2, padding=3)
        self.maxpool1 = layers.pool(3, 2, ceil_mode=True)
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3, padding=1)
        self.maxpool2 = layers.pool(3, 2, ceil_mode=True)
        self.inception3a = inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = inception(256, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = layers.pool(3, 2, ceil_mode=True)
        self.inception4a = inception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = inception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = inception(528, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = layers.pool(3 if variant == "paper" else 2, 2, ceil_mode=True)
        self.inception5a = inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = inception(832, 384, 192, 384, 48, 128, 128)
        self.aux1 = InceptionAux(512, num_classes, dropout=dropout_aux, layers=layers) if aux else None
        self.aux2 = InceptionAux(528, num_classes, dropout=dropout_aux, layers=layers) if aux else None
        self.avgpool = layers.global_pool(1024)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.avgpool.out_features, num_classes)
        layers.init(self, paper=xavier_uniform)

    @property
    def stages(self) -> list[nn.Module]:
        """The network without its heads, cut where the resolution halves."""
        third = nn.Sequential(self.maxpool2, self.inception3a, self.inception3b)
        fourth = nn.Sequential(
            self.maxpool3, self.inception4a, self.inception4b, self.inception4c, self.inception4d, self.inception4e
        )
        fifth = nn.Sequential(self.maxpool4, self.inception5a, self.inception5b)
        return [self.conv1, nn.Sequential(self.maxpool1, self.conv2, self.conv3), third, fourth, fifth]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.conv3(self.conv2(self.maxpool1(self.conv1(x))))
        x = self.inception3b(self.inception3a(self.maxpool2(x)))
        after_4a = self.inception4a(self.maxpool3(x))
        after_4d = self.inception4d(self.inception4c(self.inception4b(after_4a)))
        x = self.maxpool4(self.inception4e(after_4d))
        x = self.inception5b(self.inception5a(x))
        logits = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        if self.training and self.aux1 is not None and self.aux2 is not None:
            return logits, self.aux1(after_4a), self.aux2(after_4d)
        return logits


def googlenet(num_classes: int = 1000, *, layers: LayerFactory = DEFAULT, **options: Any) -> GoogLeNet:
    """GoogLeNet (Table 1): 13,004,888 parameters at 1000 classes, as torchvision's.

    6,624,904 without the auxiliary classifiers.
    """
    return GoogLeNet(num_classes, layers=layers, **options)
