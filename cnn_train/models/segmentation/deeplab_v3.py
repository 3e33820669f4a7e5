"""DeepLab v3: Chen, Papandreou, Schroff & Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.

https://arxiv.org/abs/1706.05587. Names and the auxiliary head are torchvision's; so are the settings of
`deeplabv3_resnet50/101` and `deeplabv3_mobilenet_v3_large` (output stride 8 or 16, no multi-grid, rates 12, 24, 36).
The paper's are output_stride=16, multi_grid=[1, 2, 4], atrous_rates=[6, 12, 18] in training, doubled at stride 8.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.protocols import innermost
from cnn_train.layers.upsample import Bilinear, Nearest
from cnn_train.models.classification import builder
from cnn_train.models.encoder import Encoder, make_encoder
from cnn_train.models.segmentation.fcn import EncoderHead

__all__ = ["deeplabv3", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101"]

TORCHVISION: dict[str, Any] = {
    "encoder_widths": None,
    "atrous_rates": (12, 24, 36),
    "aspp_channels": 256,
    "aux": True,
    "dropout": 0.5,
}


class ImagePooling(nn.Sequential):
    """The mean of the image as a feature of every position (section 3.3): (N, C, H, W) -> (N, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, *, layers: LayerFactory):
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            layers.conv(in_channels, out_channels, 1),
            layers.norm(out_channels),
            layers.act(out_channels),
            Bilinear(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        *pool, upsample = self
        for layer in pool:
            x = layer(x)
        return upsample(x, size=size)


def separable_conv(
    in_channels: int, out_channels: int, kernel_size: int, *, dilation: int = 1, layers: LayerFactory
) -> nn.Sequential:
    """Depthwise and pointwise convolution, each with norm and activation (v3+, section 3.1)."""
    return nn.Sequential(
        *ConvNormAct(in_channels, in_channels, kernel_size, groups=in_channels, dilation=dilation, layers=layers),
        *ConvNormAct(in_channels, out_channels, 1, layers=layers),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Fig. 5): 1x1, 3x3 at each rate, image pooling, concatenated and projected.

    In evaluation mode the rates are multiplied by `eval_factor`, for a map that is as much denser.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        atrous_rates: Sequence[int],
        *,
        eval_factor: float = 1.0,
        separable: bool = False,
        dropout: float = 0.5,
        image_pooling: bool = True,
        layers: LayerFactory,
    ):
        super().__init__()
        conv = separable_conv if separable else ConvNormAct
        self.convs = nn.ModuleList([ConvNormAct(in_channels, out_channels, 1, layers=layers)])
        for rate in atrous_rates:
            self.convs.append(conv(in_channels, out_channels, 3, dilation=rate, layers=layers))
        self.rates = list(atrous_rates)
        self.eval_factor = eval_factor
        if image_pooling:
            self.convs.append(ImagePooling(in_channels, out_channels, layers=layers))
        self.project = nn.Sequential(
            *ConvNormAct(len(self.convs) * out_channels, out_channels, 1, layers=layers), nn.Dropout(dropout)
        )

    def train(self, mode: bool = True) -> Self:
        for branch, rate in zip(self.convs[1:], self.rates, strict=False):
            now = rate if mode else round(rate * self.eval_factor)
            conv: Any = branch.get_submodule("0")
            conv.dilation = conv.padding = (now, now)
        return super().train(mode)

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
        eval_factor: float = 1.0,
        dropout: float = 0.5,
        image_pooling: bool = True,
        layers: LayerFactory,
    ):
        super().__init__(
            ASPP(
                in_channels,
                channels,
                atrous_rates,
                eval_factor=eval_factor,
                dropout=dropout,
                image_pooling=image_pooling,
                layers=layers,
            ),
            *ConvNormAct(channels, channels, 3, layers=layers),
            nn.Conv2d(channels, num_classes, 1),
        )


def check_eval_upsample(output_stride: int | None, eval_output_stride: int | None, layers: LayerFactory) -> None:
    """Raise ValueError if the upsampling has learned one factor and evaluation needs another."""
    chosen = innermost(layers.upsample_layer)
    if eval_output_stride not in (None, output_stride) and chosen not in (None, Bilinear, Nearest):
        raise ValueError(
            f"this upsampling has a fixed factor, but evaluation is at stride {eval_output_stride} and training at "
            f"{output_stride}; set model.eval_output_stride={output_stride} or upsample=bilinear"
        )


def deeplabv3(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "resnet18",
    encoder_widths: Sequence[int] | None = (32, 64, 128, 128),
    encoder_options: Mapping[str, Any] | None = None,
    output_stride: int | None = 8,
    eval_output_stride: int | None = None,
    multi_grid: Sequence[int] | None = None,
    hybrid: Sequence[int] | None = None,
    atrous_rates: Sequence[int] = (2, 4, 6),
    aspp_channels: int = 64,
    image_pooling: bool = True,
    aux: bool = False,
    dropout: float = 0.1,
    layers: LayerFactory = LayerFactory(),
) -> EncoderHead:
    """DeepLab v3 on any encoder, by default a narrow ResNet-18: 1,603,829 parameters at 21 classes.

    `encoder_widths` are the channels of a ResNet's stages, None its own. `atrous_rates` are those at `output_stride`;
    at `eval_output_stride`, if that is another, they grow by the ratio.
    """
    check_eval_upsample(output_stride, eval_output_stride, layers)
    narrow = {} if encoder_widths is None else {"widths": encoder_widths}
    backbone = make_encoder(
        encoder,
        in_channels=in_channels,
        layers=layers,
        network_options={**narrow, **(encoder_options or {})},
        output_stride=output_stride,
        eval_output_stride=eval_output_stride,
        multi_grid=multi_grid,
        hybrid=hybrid,
    )
    head = DeepLabHead(
        backbone.channels[-1],
        num_classes,
        atrous_rates,
        channels=aspp_channels,
        eval_factor=output_stride / eval_output_stride if output_stride and eval_output_stride else 1.0,
        dropout=dropout,
        image_pooling=image_pooling,
        layers=layers,
    )
    return EncoderHead(backbone, head, num_classes, aux=aux, layers=layers)


def deeplabv3_resnet50(num_classes: int = 21, *, layers: LayerFactory = LayerFactory(), **options: Any) -> EncoderHead:
    """DeepLab v3 on ResNet-50 with its auxiliary head (torchvision): 42,004,074 parameters at 21 classes."""
    options = TORCHVISION | options
    return deeplabv3(num_classes, encoder="resnet50", layers=layers, **options)


def deeplabv3_resnet101(num_classes: int = 21, *, layers: LayerFactory = LayerFactory(), **options: Any) -> EncoderHead:
    """DeepLab v3 on ResNet-101 with its auxiliary head (torchvision): 60,996,202 parameters at 21 classes."""
    options = TORCHVISION | options
    return deeplabv3(num_classes, encoder="resnet101", layers=layers, **options)


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
