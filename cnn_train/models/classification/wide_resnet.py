"""Wide ResNet: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016. https://arxiv.org/abs/1605.07146

The ImageNet networks are ResNets whose 3x3 convolutions are wider (Table 8), under torchvision's names. The CIFAR
networks are pre-activation ResNets of 6n + 4 layers, widened by k (Table 1), with a dropout between the convolutions of
each block (section 2.4; 0.3 in the paper where it is used).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from cnn_train.layers import LayerFactory
from cnn_train.models.classification.preact_resnet import PreActBasicBlock, PreActResNet
from cnn_train.models.classification.resnet import Bottleneck, ResNet

__all__ = ["wide_resnet50_2", "wide_resnet101_2", "wrn_16_8", "wrn_28_10", "wrn_40_4"]


def wide_resnet50_2(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """Wide ResNet-50-2-bottleneck (Table 8): 68,883,240 parameters at 1000 classes, as torchvision's."""
    return ResNet(partial(Bottleneck, width_per_group=128), (3, 4, 6, 3), num_classes, layers=layers, **options)


def wide_resnet101_2(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """Wide ResNet-101-2-bottleneck: 126,886,696 parameters at 1000 classes, as torchvision's."""
    return ResNet(partial(Bottleneck, width_per_group=128), (3, 4, 23, 3), num_classes, layers=layers, **options)


def _wrn(
    depth: int, num_classes: int, widths: Sequence[int], layers: LayerFactory, dropout: float = 0.0, **options: Any
) -> PreActResNet:
    """Three stages of n = (depth - 4) / 6 blocks of width 16k, 32k, 64k behind a 3x3 convolution of 16 (Table 1)."""
    block = partial(PreActBasicBlock, dropout=dropout)
    depths = [(depth - 4) // 6] * 3
    options = {"stem": "small"} | options
    return PreActResNet(block, depths, num_classes, widths=widths, stem_channels=16, layers=layers, **options)


def wrn_16_8(
    num_classes: int = 10,
    *,
    widths: Sequence[int] = (128, 256, 512),
    layers: LayerFactory = LayerFactory(),
    **options: Any,
) -> PreActResNet:
    """WRN-16-8 for CIFAR (11.0M in Table 5): 10,961,370 parameters at 10 classes."""
    return _wrn(16, num_classes, widths, layers, **options)


def wrn_28_10(
    num_classes: int = 10,
    *,
    widths: Sequence[int] = (160, 320, 640),
    layers: LayerFactory = LayerFactory(),
    **options: Any,
) -> PreActResNet:
    """WRN-28-10 for CIFAR (36.5M in Table 5): 36,479,194 parameters at 10 classes."""
    return _wrn(28, num_classes, widths, layers, **options)


def wrn_40_4(
    num_classes: int = 10,
    *,
    widths: Sequence[int] = (64, 128, 256),
    layers: LayerFactory = LayerFactory(),
    **options: Any,
) -> PreActResNet:
    """WRN-40-4 for CIFAR (8.9M in Table 5): 8,949,210 parameters at 10 classes."""
    return _wrn(40, num_classes, widths, layers, **options)
