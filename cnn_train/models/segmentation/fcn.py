"""FCN: Long, Shelhamer & Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 (and Shelhamer et
al., TPAMI 2017, https://arxiv.org/abs/1605.06211).

`fcn_resnet50/101` are torchvision's form, names included: a ResNet of output stride 8 and a small convolutional head.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.models.encoder import Encoder, make_encoder

__all__ = ["fcn_resnet50", "fcn_resnet101"]


class FCNHead(nn.Sequential):
    """3x3 convolution to a quarter of the channels, dropout, 1x1 scores: (N, C, H, W) -> (N, num_classes, H, W)."""

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.1, layers: LayerFactory):
        channels = in_channels // 4
        super().__init__(
            layers.conv(in_channels, channels, 3),
            layers.norm(channels),
            layers.act(),
            nn.Dropout(dropout),
            nn.Conv2d(channels, num_classes, 1),
        )


class EncoderHead(nn.Module):
    """An encoder, a head on its last map, upsampling: (N, in_channels, H, W) -> (N, num_classes, H, W).

    In training with an auxiliary head on the map `aux_stage`: (scores, auxiliary scores), both of input size.
    """

    aux_weight = 0.5

    def __init__(
        self,
        backbone: Encoder,
        classifier: nn.Module,
        num_classes: int,
        *,
        aux: bool,
        aux_stage: int = -2,
        layers: LayerFactory,
    ):
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.upsample = layers.upsample(num_classes, backbone.strides[-1])
        self.aux_stage = aux_stage
        self.aux_classifier = FCNHead(backbone.channels[aux_stage], num_classes, layers=layers) if aux else None
        self.aux_upsample = layers.upsample(num_classes, backbone.strides[aux_stage]) if aux else None
        layers.init(self.classifier)
        if self.aux_classifier is not None:
            layers.init(self.aux_classifier)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        size = x.shape[-2:]
        maps = self.backbone(x)
        scores = self.upsample(self.classifier(maps[-1]), size=size)
        if not self.training or self.aux_classifier is None or self.aux_upsample is None:
            return scores
        return scores, self.aux_upsample(self.aux_classifier(maps[self.aux_stage]), size=size)


def _fcn(
    encoder: str,
    num_classes: int,
    layers: LayerFactory,
    *,
    in_channels: int = 3,
    output_stride: int | None = 8,
    multi_grid: Sequence[int] | None = None,
    hybrid: Sequence[int] | None = None,
    aux: bool = True,
    dropout: float = 0.1,
) -> EncoderHead:
    options: dict[str, Any] = {"output_stride": output_stride, "multi_grid": multi_grid, "hybrid": hybrid}
    backbone = make_encoder(encoder, in_channels=in_channels, layers=layers, **options)
    head = FCNHead(backbone.channels[-1], num_classes, dropout=dropout, layers=layers)
    return EncoderHead(backbone, head, num_classes, aux=aux, layers=layers)


def fcn_resnet50(num_classes: int = 21, *, layers: LayerFactory = LayerFactory(), **options: Any) -> EncoderHead:
    """FCN on ResNet-50 with its auxiliary head (torchvision): 35,322,218 parameters at 21 classes."""
    return _fcn("resnet50", num_classes, layers, **options)


def fcn_resnet101(num_classes: int = 21, *, layers: LayerFactory = LayerFactory(), **options: Any) -> EncoderHead:
    """FCN on ResNet-101 with its auxiliary head (torchvision): 54,314,346 parameters at 21 classes."""
    return _fcn("resnet101", num_classes, layers, **options)
