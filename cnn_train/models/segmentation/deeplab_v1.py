"""DeepLab v1: Chen, Papandreou, Kokkinos, Murphy & Yuille, "Semantic Image Segmentation with Deep Convolutional Nets
and Fully Connected CRFs", ICLR 2015. https://arxiv.org/abs/1412.7062

DeepLab-LargeFOV (section 3.1, Table 1; released prototxt): VGG-16 whose poolings are 3x3, the last two without stride,
conv5 with holes, fc6 as a 3x3 convolution of 1024 maps at rate 12. Images are continued to 8k + 1 pixels, as the 321 of
the release, by zeros. The fully connected CRF is `postprocess=crf`.
"""

from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.init import normal
from cnn_train.layers.upsample import between_corners, fit, pad_to_grid
from cnn_train.models.classification import builder
from cnn_train.models.encoder import Encoder

__all__ = ["deeplabv1"]

PLAIN = LayerFactory(norm_layer=None)


def vgg16_with_holes(*, in_channels: int, width: int, layers: LayerFactory) -> Encoder:
    """VGG-16 of stride 8 whose poolings are 3x3, one map after each."""
    network: Any = builder("vgg16")(in_channels=in_channels, width=width, layers=layers)
    for index in network.pools[:3]:
        pool = network.features[index]
        pool.kernel_size, pool.padding = 3, 1
    ends = [0, *(index + 1 for index in network.pools)]
    stages = [network.features[start:end] for start, end in pairwise(ends)]
    return Encoder(network, stages=stages, output_stride=8)


class LargeFOV(nn.Sequential):
    """fc6 at a wide rate, fc7, scores: (N, 512, H, W) -> (N, num_classes, H, W)."""

    def __init__(
        self, in_channels: int, num_classes: int, *, channels: int, rate: int, dropout: float, layers: LayerFactory
    ):
        super().__init__(
            *ConvNormAct(in_channels, channels, 3, dilation=rate, bias=True, layers=layers),
            nn.Dropout(dropout),
            *ConvNormAct(channels, channels, 1, bias=True, layers=layers),
            nn.Dropout(dropout),
            nn.Conv2d(channels, num_classes, 1),
        )


class DeepLabV1(nn.Module):
    """VGG-16 with holes and LargeFOV: (N, in_channels, H, W) -> (N, num_classes, H, W)."""

    task = "segmentation"

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int,
        width: int,
        channels: int,
        rate: int,
        dropout: float,
        layers: LayerFactory,
    ):
        super().__init__()
        self.backbone = vgg16_with_holes(in_channels=in_channels, width=width, layers=layers)
        self.avgpool = layers.pool(3, 1, 1, paper=nn.AvgPool2d)
        self.classifier = LargeFOV(8 * width, num_classes, channels=channels, rate=rate, dropout=dropout, layers=layers)
        self.upsample = layers.upsample(num_classes, 8, paper=between_corners)
        layers.init(self.classifier, paper=partial(normal, std=0.01))

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_to_grid(x, 8)
        pool5 = self.backbone(padded)[-1]
        scores = self.upsample(self.classifier(self.avgpool(pool5)), size=padded.shape[-2:])
        return fit(scores, x.shape[-2:])


def deeplabv1(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    width: int = 64,
    channels: int = 1024,
    rate: int = 12,
    dropout: float = 0.5,
    layers: LayerFactory = PLAIN,
) -> DeepLabV1:
    """DeepLab-LargeFOV on VGG-16: 20,505,429 parameters at 21 classes (20.5M in Table 2)."""
    return DeepLabV1(
        num_classes,
        in_channels=in_channels,
        width=width,
        channels=channels,
        rate=rate,
        dropout=dropout,
        layers=layers,
    )
