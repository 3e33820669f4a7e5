"""DenseNet: Huang, Liu, van der Maaten & Weinberger, "Densely Connected Convolutional Networks", CVPR 2017.

https://arxiv.org/abs/1608.06993, DenseNet-BC. Names are torchvision's. The CIFAR networks have three dense blocks
behind one 3x3 convolution, whose norm is the first dense layer's, as in the authors' release.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import he_convolutions

__all__ = ["densenet121", "densenet161", "densenet169", "densenet201", "densenet_bc_100_12", "densenet_bc_190_40"]


class DenseLayer(nn.Module):
    """Norm, activation, 1x1 to 4k, then 3x3 to k new channels, appended to the input's (section 3, "bottleneck")."""

    def __init__(self, in_channels: int, growth_rate: int, *, dropout: float, layers: LayerFactory):
        super().__init__()
        self.norm1 = layers.norm(in_channels)
        self.act1 = layers.act(in_channels)
        self.conv1 = layers.conv(in_channels, 4 * growth_rate, 1)
        self.dropout1 = nn.Dropout(dropout)
        self.norm2 = layers.norm(4 * growth_rate)
        self.act2 = layers.act(4 * growth_rate)
        self.conv2 = layers.conv(4 * growth_rate, growth_rate, 3)
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout1(self.conv1(self.act1(self.norm1(x))))
        out = self.dropout2(self.conv2(self.act2(self.norm2(out))))
        return torch.cat([x, out], 1)


class Transition(nn.Sequential):
    """1x1 convolution and 2x2 average pooling between dense blocks (section 3, "pooling layers")."""

    def __init__(self, in_channels: int, out_channels: int, *, dropout: float, layers: LayerFactory):
        super().__init__()
        self.norm = layers.norm(in_channels)
        self.act = layers.act(in_channels)
        self.conv = layers.conv(in_channels, out_channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.pool = layers.pool(2, paper=nn.AvgPool2d)


class DenseNet(nn.Module):
    """Stem, dense blocks of `depths` layers with transitions that halve: (N, in_channels, H, W) -> (N, num_classes).

    `stem="imagenet"` is a 7x7 convolution and a max pooling, together of stride 4; `stem="small"` one 3x3 convolution.
    `dropout` follows each convolution but the first (section 4.2; 0.2 in the paper without data augmentation).
    """

    def __init__(
        self,
        growth_rate: int,
        depths: Sequence[int],
        num_classes: int,
        *,
        in_channels: int = 3,
        stem_channels: int = 64,
        stem: Literal["imagenet", "small"] = "imagenet",
        dropout: float = 0.0,
        layers: LayerFactory,
    ):
        super().__init__()
        self.features = nn.Sequential()
        if stem == "imagenet":
            self.features.conv0 = layers.conv(in_channels, stem_channels, 7, stride=2)
            self.features.norm0 = layers.norm(stem_channels)
            self.features.act0 = layers.act(stem_channels)
            self.features.pool0 = layers.pool(3, 2, 1)
        elif stem == "small":
            self.features.conv0 = layers.conv(in_channels, stem_channels, 3)
        else:
            raise ValueError(f"stem must be 'imagenet' or 'small', got {stem!r}")
        # Each transition's 2x2 pooling needs two pixels.
        least = 2 ** (len(depths) - 1)
        self.min_size = 4 * least - 3 if stem == "imagenet" else least

        channels = stem_channels
        for index, depth in enumerate(depths, start=1):
            block = nn.Sequential()
            for i in range(1, depth + 1):
                block.add_module(f"denselayer{i}", DenseLayer(channels, growth_rate, dropout=dropout, layers=layers))
                channels += growth_rate
            self.features.add_module(f"denseblock{index}", block)
            if index < len(depths):
                transition = Transition(channels, channels // 2, dropout=dropout, layers=layers)
                self.features.add_module(f"transition{index}", transition)
                channels //= 2
        # The norm is called 5 in torchvision, however many blocks there are.
        self.features.norm5 = layers.norm(channels)
        self.features.act5 = layers.act(channels)
        self.avgpool = layers.global_pool(channels)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(self.avgpool.out_features, num_classes)
        layers.init(self, paper=he_convolutions)

    @property
    def stages(self) -> list[nn.Module]:
        """The network without its head, cut where the resolution halves."""
        stages = [nn.Sequential()]
        for name, part in self.features.named_children():
            if name.startswith(("pool", "transition")):
                stages.append(nn.Sequential())
            stages[-1].append(part)
        return list(stages)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


def from_old_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of torchvision's published DenseNet files, `denselayer1.norm.1.weight`, to ours."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", key): value for key, value in state.items()}


def densenet121(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> DenseNet:
    """DenseNet-121, k = 32 (Table 1): 7,978,856 parameters at 1000 classes, as torchvision's."""
    return DenseNet(32, (6, 12, 24, 16), num_classes, layers=layers, **options)


def densenet161(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> DenseNet:
    """DenseNet-161, k = 48 (the authors' release): 28,681,000 parameters at 1000 classes, as torchvision's."""
    return DenseNet(48, (6, 12, 36, 24), num_classes, stem_channels=96, layers=layers, **options)


def densenet169(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> DenseNet:
    """DenseNet-169, k = 32 (Table 1): 14,149,480 parameters at 1000 classes, as torchvision's."""
    return DenseNet(32, (6, 12, 32, 32), num_classes, layers=layers, **options)


def densenet201(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> DenseNet:
    """DenseNet-201, k = 32 (Table 1): 20,013,928 parameters at 1000 classes, as torchvision's."""
    return DenseNet(32, (6, 12, 48, 32), num_classes, layers=layers, **options)


def densenet_bc_100_12(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> DenseNet:
    """DenseNet-BC of 100 layers for CIFAR, k = 12 (0.8M in Table 2): 769,162 parameters at 10 classes."""
    options = {"stem": "small"} | options
    return DenseNet(12, (16, 16, 16), num_classes, stem_channels=24, layers=layers, **options)


def densenet_bc_190_40(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> DenseNet:
    """DenseNet-BC of 190 layers for CIFAR, k = 40 (25.6M in Table 2): 25,624,430 parameters at 10 classes."""
    options = {"stem": "small"} | options
    return DenseNet(40, (31, 31, 31), num_classes, stem_channels=80, layers=layers, **options)
