"""DeepLab v3: Chen, Papandreou, Schroff & Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.

https://arxiv.org/abs/1706.05587. Names and the auxiliary head are torchvision's; so are the settings of
`deeplabv3_resnet50/101` and `deeplabv3_mobilenet_v3_large` (output stride 8 or 16, no multi-grid, rates 12, 24, 36).
The paper's are output_stride=16, multi_grid=[1, 2, 4], atrous_rates=[6, 12, 18] in training, doubled at stride 8.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.upsample import Bilinear
from cnn_train.models.classification import builder
from cnn_train.models.encoder import Encoder, make_encoder
from cnn_train.models.segmentation.fcn import EncoderHead

__all__ = ["deeplabv3", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101"]


class ImagePooling(nn.Sequential):
    """The mean of the image as a feature of every position (section 3.3): (N, C, H, W) -> (N, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, *, layers: LayerFactory):
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            layers.conv(in_channels, out_channels, 1),
            layers.norm(out_channels),
            layers.act(),
            Bilinear(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        *pool, upsample = self
        for layer in pool:
            x = layer(x)
        return upsample(x, size=size)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Fig. 5): 1x1, 3x3 at each rate, image pooling, concatenated and projected."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        atrous_rates: Sequence[int],
        *,
        dropout: float = 0.5,
        image_pooling: bool = True,
        layers: LayerFactory,
    ):
        super().__init__()
        self.convs = nn.ModuleList([ConvNormAct(in_channels, out_channels, 1, layers=layers)])
        for rate in atrous_rates:
            self.convs.append(ConvNormAct(in_channels, out_channels, 3, dilation=rate, layers=layers))
        if image_pooling:
            self.convs.append(ImagePooling(in_channels, out_channels, layers=layers))
        self.project = nn.Sequential(
            *ConvNormAct(len(self.convs) * out_channels, out_channels, 1, layers=layers), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([conv(x) for conv in self.convs], dim=1))


class DeepLabHead(nn.Sequential):
    """ASPP, a 3x3 convolution, 1x1 scores: (N, C, H, W) -> (N, num_classes, H, W)."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        atrous_rates: Sequence[int],
        *,
        channels: int = 256,
        dropout: float = 0.5,
        image_pooling: bool = True,
        layers: LayerFactory,
    ):
        super().__init__(
            ASPP(in_channels, channels, atrous_rates, dropout=dropout, image_pooling=image_pooling, layers=layers),
            *ConvNormAct(channels, channels, 3, layers=layers),
            nn.Conv2d(channels, num_classes, 1),
        )


def deeplabv3(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "resnet18",
    encoder_options: Mapping[str, Any] | None = None,
    output_stride: int | None = 8,
    multi_grid: Sequence[int] | None = None,
    hybrid: Sequence[int] | None = None,
    atrous_rates: Sequence[int] = (12, 24, 36),
    aspp_channels: int = 256,
    image_pooling: bool = True,
    aux: bool = False,
    dropout: float = 0.5,
    layers: LayerFactory = LayerFactory(),
) -> EncoderHead:
    """DeepLab v3 on any encoder."""
    backbone = make_encoder(
        encoder,
        in_channels=in_channels,
        layers=layers,
        network_options=encoder_options,
        output_stride=output_stride,
        multi_grid=multi_grid,
        hybrid=hybrid,
    )
    head = DeepLabHead(
        backbone.channels[-1],
        num_classes,
        atrous_rates,
        channels=aspp_channels,
        dropout=dropout,
        image_pooling=image_pooling,
        layers=layers,
    )
    return EncoderHead(backbone, head, num_classes, aux=aux, layers=layers)


def deeplabv3_resnet50(num_classes: int = 21, *, layers: LayerFactory = LayerFactory(), **options: Any) -> EncoderHead:
    """DeepLab v3 on ResNet-50 with its auxiliary head (torchvision): 42,004,074 parameters at 21 classes."""
    return deeplabv3(num_classes, encoder="resnet50", layers=layers, **{"aux": True} | options)


def deeplabv3_resnet101(num_classes: int = 21, *, layers: LayerFactory = LayerFactory(), **options: Any) -> EncoderHead:
    """DeepLab v3 on ResNet-101 with its auxiliary head (torchvision): 60,996,202 parameters at 21 classes."""
    return deeplabv3(num_classes, encoder="resnet101", layers=layers, **{"aux": True} | options)


def deeplabv3_mobilenet_v3_large(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    atrous_rates: Sequence[int] = (12, 24, 36),
    aux: bool = True,
    encoder_bn_eps: float = 1e-3,
    encoder_bn_momentum: float = 0.01,
    dropout: float = 0.5,
    layers: LayerFactory = LayerFactory(),
) -> EncoderHead:
    """DeepLab v3 on MobileNetV3-Large with its auxiliary head (torchvision): 11,029,328 parameters at 21 classes.

    Batch norm in the encoder has MobileNetV3's eps and momentum, that of the heads its own.
    """
    network: Any = builder("mobilenet_v3_large")(in_channels=in_channels, layers=layers)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = encoder_bn_eps, encoder_bn_momentum
    # The auxiliary head reads the first block of stride 8, in the middle of a stage.
    blocks = network.features
    stages = [blocks[:2], blocks[2:4], blocks[4:5], blocks[5:13], blocks[13:]]
    backbone = Encoder(network, output_stride=16, dilate_strided=True, stages=stages)
    head = DeepLabHead(backbone.channels[-1], num_classes, atrous_rates, dropout=dropout, layers=layers)
    return EncoderHead(backbone, head, num_classes, aux=aux, aux_stage=2, layers=layers)
