"""DeepLab v2: Chen, Papandreou, Kokkinos, Murphy & Yuille, "DeepLab: Semantic Image Segmentation with Deep
Convolutional Nets, Atrous Convolution, and Fully Connected CRFs", TPAMI 2018. https://arxiv.org/abs/1606.00915

ResNet-101 in Caffe's form (stride in the first 1x1) or VGG-16, of stride 8, and the sum of classifiers at four rates
(Fig. 7). `scales=[0.5, 0.75]` adds scaled inputs, fused by the maximum, each with a loss of its own (section 4.1.2).
Images are continued to sk + 1 pixels for a stride of s, as the 321 of the release, and scaled to such sizes, as its 161
and 241. The fully connected CRF is `postprocess=crf`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import normal
from cnn_train.layers.upsample import between_corners, fit, pad_to_grid
from cnn_train.models.encoder import Encoder, make_encoder
from cnn_train.models.segmentation.deeplab_v1 import PLAIN, LargeFOV, vgg16_with_holes

__all__ = ["deeplabv2", "deeplabv2_vgg16"]


class SummedASPP(nn.Module):
    """Classifiers at several rates, summed (Fig. 7): (N, C, H, W) -> (N, num_classes, H, W)."""

    def __init__(self, branches: Sequence[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = [branch(x) for branch in self.branches]
        for scores in others:
            first = first + scores
        return first


class DeepLabV2(nn.Module):
    """Scores of the image and of its scaled copies: (N, in_channels, H, W) -> (N, num_classes, H, W).

    In training with `scales`: (maximum, scores of the image, scores of each scale), all of input size.
    """

    task = "segmentation"

    aux_weight = 1.0

    def __init__(
        self,
        backbone: Encoder,
        classifier: nn.Module,
        num_classes: int,
        *,
        scales: Sequence[float],
        layers: LayerFactory,
    ):
        super().__init__()
        if any(not 0 < scale < 1 for scale in scales):
            raise ValueError(f"scales are those besides 1, between 0 and 1, got {list(scales)}")
        self.backbone = backbone
        self.min_size = backbone.min_size
        self.classifier = classifier
        self.scales = list(scales)
        self.stride = backbone.strides[-1]
        self.resize = between_corners(backbone.channels[0])
        self.upsample = layers.upsample(num_classes, self.stride, paper=between_corners)
        self.fuse_upsample = between_corners(num_classes)
        layers.init(classifier, paper=lambda module: normal(module, std=0.01))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        size = x.shape[-2:]
        x = pad_to_grid(x, self.stride)
        every = [self.classifier(self.backbone(x)[-1])]
        for scale in self.scales:
            small = self.resize(x, size=[self._scaled(extent, scale) for extent in x.shape[-2:]])
            scores = self.classifier(self.backbone(small)[-1])
            every.append(self.fuse_upsample(scores, size=every[0].shape[-2:]))
        if self.scales:
            every.insert(0, torch.stack(every).amax(0))
        if not self.training:
            every = every[:1]
        first, *others = [fit(self.upsample(scores, size=x.shape[-2:]), size) for scores in every]
        return (first, *others) if others else first

    def _scaled(self, extent: int, scale: float) -> int:
        """The size nearest to the scaled one whose outermost pixels have scores."""
        return self.stride * max(round((extent - 1) // self.stride * scale), 1) + 1


def deeplabv2(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    encoder: str = "resnet101",
    encoder_options: Mapping[str, Any] | None = None,
    stride_in_1x1: bool = True,
    output_stride: int = 8,
    hybrid: Sequence[int] | None = None,
    atrous_rates: Sequence[int] = (6, 12, 18, 24),
    scales: Sequence[float] = (),
    dropout: float = 0.0,
    layers: LayerFactory = LayerFactory(),
) -> DeepLabV2:
    """DeepLab v2 on ResNet-101: 44,048,532 parameters at 21 classes, as kazuto1011/deeplab-pytorch."""
    options = {**(encoder_options or {}), **({"stride_in_1x1": True} if stride_in_1x1 else {})}
    backbone = make_encoder(
        encoder,
        in_channels=in_channels,
        layers=layers,
        network_options=options,
        output_stride=output_stride,
        hybrid=hybrid,
    )
    branches = [nn.Conv2d(backbone.channels[-1], num_classes, 3, padding=rate, dilation=rate) for rate in atrous_rates]
    head = nn.Sequential(nn.Dropout(dropout), SummedASPP(branches))
    return DeepLabV2(backbone, head, num_classes, scales=scales, layers=layers)


def deeplabv2_vgg16(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    width: int = 64,
    channels: int = 1024,
    atrous_rates: Sequence[int] = (6, 12, 18, 24),
    scales: Sequence[float] = (),
    dropout: float = 0.5,
    layers: LayerFactory = PLAIN,
) -> DeepLabV2:
    """DeepLab v2 on VGG-16, fc6 to fc8 at each rate: 37,877,652 parameters at 21 classes."""
    backbone = vgg16_with_holes(in_channels=in_channels, width=width, layers=layers)
    branches = [
        LargeFOV(8 * width, num_classes, channels=channels, rate=rate, dropout=dropout, layers=layers)
        for rate in atrous_rates
    ]
    return DeepLabV2(backbone, SummedASPP(branches), num_classes, scales=scales, layers=layers)
