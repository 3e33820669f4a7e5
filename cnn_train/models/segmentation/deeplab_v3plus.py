"""DeepLab v3+: Chen, Zhu, Papandreou, Schroff & Adam, "Encoder-Decoder with Atrous Separable Convolution for Semantic
Image Segmentation", ECCV 2018. https://arxiv.org/abs/1802.02611, Fig. 2.

DeepLab v3 as the encoder, and a decoder that joins its features with those of stride 4: the last map of that stride,
where the authors' Xception gives one from inside its second module. ASPP and decoder use separable convolutions;
`separable=False` uses full ones. As in the authors' code maps are interpolated between corners; images are continued to
sk + 1 pixels for a stride of s, as their 513 has. The encoder is Xception-65, or any other, such as resnet101 with
multi_grid=[1, 2, 4].
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.upsample import between_corners, fit, pad_to_grid
from cnn_train.models.encoder import Encoder, make_encoder
from cnn_train.models.segmentation.deeplab_v3 import ASPP, check_eval_upsample, separable_conv

__all__ = ["deeplabv3plus"]

DEFAULT = LayerFactory(norm_layer=partial(nn.BatchNorm2d, eps=1e-3))


class DeepLabV3Plus(nn.Module):
    """Encoder, ASPP, decoder (Fig. 2): (N, in_channels, H, W) -> (N, num_classes, H, W)."""

    task = "segmentation"

    def __init__(
        self,
        backbone: Encoder,
        aspp: ASPP,
        num_classes: int,
        *,
        channels: int,
        low_level_channels: int,
        separable: bool,
        layers: LayerFactory,
    ):
        super().__init__()
        if 4 not in backbone.strides[:-1]:
            raise ValueError(f"deeplabv3plus needs an encoder with a map of stride 4, got strides {backbone.strides}")
        self.backbone = backbone
        self.min_size = backbone.min_size
        self.low_level_stage = max(i for i, stride in enumerate(backbone.strides[:-1]) if stride == 4)
        self.aspp = aspp
        self.stride = backbone.strides[-1]
        self.aspp_upsample = layers.upsample(channels, self.stride // 4, paper=between_corners)
        self.low_level = ConvNormAct(backbone.channels[self.low_level_stage], low_level_channels, 1, layers=layers)
        conv = separable_conv if separable else ConvNormAct
        self.classifier = nn.Sequential(
            conv(channels + low_level_channels, channels, 3, layers=layers),
            conv(channels, channels, 3, layers=layers),
            nn.Conv2d(channels, num_classes, 1),
        )
        self.upsample = layers.upsample(num_classes, 4, paper=between_corners)
        for part in (self.aspp, self.low_level, self.classifier):
            layers.init(part)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = pad_to_grid(x, self.stride)
        maps = self.backbone(x)
        low = self.low_level(maps[self.low_level_stage])
        high = self.aspp_upsample(self.aspp(maps[-1]), size=low.shape[-2:])
        scores = self.classifier(torch.cat([high, low], dim=1))
        return fit(self.upsample(scores, size=x.shape[-2:]), size)


def deeplabv3plus(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "xception65",
    encoder_options: Mapping[str, Any] | None = None,
    output_stride: int = 16,
    eval_output_stride: int | None = 8,
    multi_grid: Sequence[int] | None = None,
    hybrid: Sequence[int] | None = None,
    atrous_rates: Sequence[int] = (6, 12, 18),
    channels: int = 256,
    low_level_channels: int = 48,
    separable: bool = True,
    dropout: float = 0.1,
    layers: LayerFactory = DEFAULT,
) -> DeepLabV3Plus:
    """DeepLab v3+ on Xception-65: 41,049,269 parameters at 21 classes.

    bonlime/keras-deeplab-v3-plus has 41,055,413 (41,258,213 with running statistics): 6,144 more, since the authors'
    low-level features have 256 channels where ours have 128.
    `atrous_rates` are those at `output_stride`; at `eval_output_stride`, which evaluation uses, they grow by the ratio.
    """
    check_eval_upsample(output_stride, eval_output_stride, layers)
    backbone = make_encoder(
        encoder,
        in_channels=in_channels,
        layers=layers,
        network_options=encoder_options,
        output_stride=output_stride,
        eval_output_stride=eval_output_stride,
        multi_grid=multi_grid,
        hybrid=hybrid,
    )
    aspp = ASPP(
        backbone.channels[-1],
        channels,
        atrous_rates,
        eval_factor=output_stride / (eval_output_stride or output_stride),
        separable=separable,
        dropout=dropout,
        layers=layers,
    )
    return DeepLabV3Plus(
        backbone,
        aspp,
        num_classes,
        channels=channels,
        low_level_channels=low_level_channels,
        separable=separable,
        layers=layers,
    )
