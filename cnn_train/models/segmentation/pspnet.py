"""PSPNet: Zhao, Shi, Qi, Wang & Jia, "Pyramid Scene Parsing Network", CVPR 2017. https://arxiv.org/abs/1612.01105

Fig. 3. As in the authors' PyTorch code (semseg), the input comes before the bins 1, 2, 3, 6 in the concatenation, every
block of the last two stages is dilated, and maps are interpolated between corners; images are continued to the sizes
8k + 1 that it demands. The encoder has torchvision's 7x7 stem; the authors' ResNet has three 3x3 convolutions there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.upsample import between_corners
from cnn_train.models.encoder import make_encoder
from cnn_train.models.segmentation.fcn import EncoderHead

__all__ = ["pspnet"]


class PyramidPooling(nn.Module):
    """Means over grids of each size, reduced, upsampled, concatenated (Fig. 3c): (N, C, H, W) -> (N, 2C, H, W)."""

    def __init__(self, in_channels: int, bins: Sequence[int], *, layers: LayerFactory):
        super().__init__()
        channels = in_channels // len(bins)
        self.out_channels = in_channels + channels * len(bins)
        self.features = nn.ModuleList(
            [
                nn.Sequential(nn.AdaptiveAvgPool2d(n), *ConvNormAct(in_channels, channels, 1, layers=layers))
                for n in bins
            ]
        )
        self.ups = nn.ModuleList([between_corners(channels) for _ in bins])

    def forward(self, x: Tensor) -> Tensor:
        pyramid = [up(f(x), size=x.shape[-2:]) for f, up in zip(self.features, self.ups, strict=True)]
        return torch.cat([x, *pyramid], dim=1)


class PSPHead(nn.Sequential):
    """Pyramid pooling, a 3x3 convolution to a quarter of the encoder's channels, 1x1 scores."""

    def __init__(
        self, in_channels: int, num_classes: int, bins: Sequence[int], *, dropout: float, layers: LayerFactory
    ):
        pyramid = PyramidPooling(in_channels, bins, layers=layers)
        channels = in_channels // 4
        super().__init__(
            pyramid,
            *ConvNormAct(pyramid.out_channels, channels, 3, layers=layers),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, num_classes, 1),
        )


def pspnet(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "resnet50",
    encoder_options: Mapping[str, Any] | None = None,
    output_stride: int | None = 8,
    hybrid: Sequence[int] | None = None,
    bins: Sequence[int] = (1, 2, 3, 6),
    aux: bool = True,
    dropout: float = 0.1,
    layers: LayerFactory = LayerFactory(),
) -> EncoderHead:
    """PSPNet on ResNet-50 with its auxiliary head: 48,957,802 parameters at 21 classes.

    hszhao/semseg's has 49,081,578: 123,776 more in its stem and the block after that, none elsewhere.
    """
    backbone = make_encoder(
        encoder,
        in_channels=in_channels,
        layers=layers,
        network_options=encoder_options,
        output_stride=output_stride,
        hybrid=hybrid,
        dilate_strided=True,
    )
    return EncoderHead(
        backbone,
        PSPHead(backbone.channels[-1], num_classes, bins, dropout=dropout, layers=layers),
        num_classes,
        aux=aux,
        aux_weight=0.4,
        align_corners=True,
        layers=layers,
    )
