"""ResNeXt: Xie, Girshick, Dollár, Tu & He, "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017.

https://arxiv.org/abs/1611.05431, Fig. 3 (c): ResNet's bottleneck with a grouped 3x3 convolution. Names are
torchvision's.
"""

from functools import partial
from typing import Any

from cnn_train.layers import LayerFactory
from cnn_train.models.classification.resnet import Bottleneck, ResNet

__all__ = ["resnext29_8x64d", "resnext50_32x4d", "resnext101_32x8d"]


def resnext50_32x4d(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNeXt-50, 32 groups of 4 (Table 1): 25,028,904 parameters at 1000 classes, as torchvision's."""
    block = partial(Bottleneck, groups=32, width_per_group=4)
    return ResNet(block, (3, 4, 6, 3), num_classes, layers=layers, **options)


def resnext101_32x8d(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNeXt-101, 32 groups of 8: 88,791,336 parameters at 1000 classes, as torchvision's."""
    block = partial(Bottleneck, groups=32, width_per_group=8)
    return ResNet(block, (3, 4, 23, 3), num_classes, layers=layers, **options)


def resnext29_8x64d(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNeXt-29 for CIFAR, 8 groups of 64 (34.4M in Table 7): 34,426,698 parameters at 10 classes."""
    block = partial(Bottleneck, groups=8, width_per_group=64)
    options = {"stem": "small"} | options
    return ResNet(block, (3, 3, 3), num_classes, widths=(64, 128, 256), layers=layers, **options)
