"""FCN: Shelhamer, Long & Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 and TPAMI 2017.

https://arxiv.org/abs/1605.06211. `fcn32s/16s/8s` are the released networks on VGG-16, names of the new layers included;
a norm, which the paper has not, also follows fc6 and fc7. `fcn_resnet50/101` are torchvision's form, names included: a
ResNet of output stride 8 and a small convolutional head.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import normal
from cnn_train.layers.upsample import Bilinear, Transposed, between_corners, fit, pad_to_grid
from cnn_train.models.classification import builder
from cnn_train.models.encoder import Encoder, make_encoder

__all__ = ["fcn8s", "fcn16s", "fcn32s", "fcn_resnet50", "fcn_resnet101"]

PLAIN = LayerFactory(norm_layer=None)


def dense(layer: nn.Module) -> None:
    """N(0, 0.01^2), the dense layers' start in VGG."""
    normal(layer, std=0.01)


def zeros(layer: nn.Module) -> None:
    """Weights 0, as the release starts its score layers."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class FCN(nn.Module):
    """VGG-16 with its dense layers turned into convolutions (Fig. 3): (N, in_channels, H, W) -> (N, num_classes, H, W).

    `stride` is 32, 16 or 8: scores of pool4, and of pool3, are added before the last upsampling. With `pad_input` the
    first convolution pads by 100 and fc6 not at all, as in the release, which costs much on small images; without,
    every convolution keeps the size. `scale_pool4` and `scale_pool3` are 0.01 and 1e-4 to train in one go (the
    release's at-once nets), 1 to train in stages. `learn_upsampling=False` keeps the transposed convolutions bilinear,
    as the release does. `width` is the channels of VGG's first block; all other layers are proportional to it.
    """

    task = "segmentation"

    dense_layers: ClassVar[dict[str, str]] = {"fc6": "classifier.0", "fc7": "classifier.3"}  # in VGG

    def __init__(
        self,
        stride: int,
        num_classes: int,
        *,
        in_channels: int = 3,
        width: int = 64,
        pad_input: bool = True,
        scale_pool4: float = 1.0,
        scale_pool3: float = 1.0,
        learn_upsampling: bool = True,
        dropout: float = 0.5,
        layers: LayerFactory,
    ):
        super().__init__()
        network: Any = builder("vgg16")(in_channels=in_channels, width=width, layers=layers)
        features = network.features
        features[0].padding = (100, 100) if pad_input else (1, 1)
        for index in network.pools:
            features[index].ceil_mode = True
        ends = [0, *(index + 1 for index in network.pools)]
        self.backbone = Encoder(network, stages=[features[start:end] for start, end in pairwise(ends)])
        self.pad_input = pad_input
        self.scale_pool4, self.scale_pool3 = scale_pool4, scale_pool3

        # Not fc6's own padding: on a CPU its gradient on a map of 2x2 would take 14 times as long.
        self.pad6 = nn.ZeroPad2d(0 if pad_input else 3)
        self.fc6 = layers.conv(8 * width, 64 * width, 7, padding=0, bias=True)
        self.bn6 = layers.norm(64 * width)
        self.act6 = layers.act(64 * width)
        self.drop6 = nn.Dropout(dropout)
        self.fc7 = layers.conv(64 * width, 64 * width, 1, bias=True)
        self.bn7 = layers.norm(64 * width)
        self.act7 = layers.act(64 * width)
        self.drop7 = nn.Dropout(dropout)
        self.score_fr = nn.Conv2d(64 * width, num_classes, 1)
        layers.init(self.fc6, paper=dense)
        layers.init(self.fc7, paper=dense)
        layers.init(self.score_fr, paper=zeros)
        if stride <= 16:
            self.upscore2 = layers.upsample(num_classes, 2, paper=Transposed)
            self.score_pool4 = nn.Conv2d(8 * width, num_classes, 1)
            layers.init(self.score_pool4, paper=zeros)
        if stride <= 8:
            self.upscore_pool4 = layers.upsample(num_classes, 2, paper=Transposed)
            self.score_pool3 = nn.Conv2d(4 * width, num_classes, 1)
            layers.init(self.score_pool3, paper=zeros)
        self.upscore = layers.upsample(num_classes, stride, paper=Transposed)
        self.stride = stride
        if not learn_upsampling:
            for module in self.modules():
                if isinstance(module, Transposed):
                    module.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        *_, pool3, pool4, pool5 = self.backbone(x)
        x = self.drop6(self.act6(self.bn6(self.fc6(self.pad6(pool5)))))
        x = self.drop7(self.act7(self.bn7(self.fc7(x))))
        x = self.score_fr(x)
        if self.stride <= 16:
            x = self._add(self.upscore2, x, self.score_pool4(pool4 * self.scale_pool4), 6)
        if self.stride <= 8:
            x = self._add(self.upscore_pool4, x, self.score_pool3(pool3 * self.scale_pool3), 12)
        if not self.pad_input:
            return self.upscore(x, size=(height, width))
        # The padding less what fc6 covers leaves the map three pixels before the image.
        return self.upscore(x)[..., 3 : 3 + height, 3 : 3 + width]

    def _add(self, upsample: nn.Module, x: Tensor, skip: Tensor, offset: int) -> Tensor:
        """Upsample by two and add; with the input padded, the finer scores begin `offset` cells before ours."""
        if not self.pad_input:
            return upsample(x, size=skip.shape[-2:]) + skip
        x = upsample(x)
        return x + skip[..., offset : offset + x.size(-2), offset : offset + x.size(-1)]


def fcn32s(num_classes: int = 21, *, layers: LayerFactory = PLAIN, **options: Any) -> FCN:
    """FCN-32s on VGG-16: 136,152,917 parameters at 21 classes, as the release's voc-fcn32s."""
    return FCN(32, num_classes, layers=layers, **options)


def fcn16s(num_classes: int = 21, *, layers: LayerFactory = PLAIN, **options: Any) -> FCN:
    """FCN-16s on VGG-16: 134,815,994 parameters at 21 classes, as the release's voc-fcn16s."""
    return FCN(16, num_classes, layers=layers, **options)


def fcn8s(num_classes: int = 21, *, layers: LayerFactory = PLAIN, **options: Any) -> FCN:
    """FCN-8s on VGG-16: 134,489,759 parameters at 21 classes, as the release's voc-fcn8s."""
    return FCN(8, num_classes, layers=layers, **options)


class FCNHead(nn.Sequential):
    """3x3 convolution to a quarter of the channels, dropout, 1x1 scores: (N, C, H, W) -> (N, num_classes, H, W)."""

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.1, layers: LayerFactory):
        channels = in_channels // 4
        super().__init__(
            layers.conv(in_channels, channels, 3),
            layers.norm(channels),
            layers.act(channels),
            nn.Dropout(dropout),
            nn.Conv2d(channels, num_classes, 1),
        )


class EncoderHead(nn.Module):
    """An encoder, a head on its last map, upsampling: (N, in_channels, H, W) -> (N, num_classes, H, W).

    With `align_corners` images are continued to sk + 1 pixels, s the stride, and scores interpolated between corners.
    In training with an auxiliary head on the map `aux_stage`: (scores, auxiliary scores), both of input size, the
    latter to be weighted by `aux_weight` in the loss.
    """

    task = "segmentation"

    def __init__(
        self,
        backbone: Encoder,
        classifier: nn.Module,
        num_classes: int,
        *,
        aux: bool,
        aux_stage: int = -2,
        aux_weight: float = 0.5,
        align_corners: bool = False,
        layers: LayerFactory,
    ):
        super().__init__()
        self.aux_weight = aux_weight
        self.backbone = backbone
        self.min_size = backbone.min_size
        self.classifier = classifier
        self.grid = backbone.strides[-1] if align_corners else 1
        paper = between_corners if align_corners else Bilinear
        self.upsample = layers.upsample(num_classes, backbone.strides[-1], paper=paper)
        self.aux_stage = aux_stage
        self.aux_classifier = FCNHead(backbone.channels[aux_stage], num_classes, layers=layers) if aux else None
        self.aux_upsample = layers.upsample(num_classes, backbone.strides[aux_stage], paper=paper) if aux else None
        layers.init(self.classifier)
        if self.aux_classifier is not None:
            layers.init(self.aux_classifier)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        size = x.shape[-2:]
        x = pad_to_grid(x, self.grid)
        maps = self.backbone(x)
        scores = fit(self.upsample(self.classifier(maps[-1]), size=x.shape[-2:]), size)
        if not self.training or self.aux_classifier is None or self.aux_upsample is None:
            return scores
        aux_scores = self.aux_upsample(self.aux_classifier(maps[self.aux_stage]), size=x.shape[-2:])
        return scores, fit(aux_scores, size)


def _fcn(
    encoder: str,
    num_classes: int,
    layers: LayerFactory,
    *,
    in_channels: int = 3,
    encoder_options: Mapping[str, Any] | None = None,
    output_stride: int | None = 8,
    multi_grid: Sequence[int] | None = None,
    hybrid: Sequence[int] | None = None,
    aux: bool = True,
    dropout: float = 0.1,
) -> EncoderHead:
    options: dict[str, Any] = {"output_stride": output_stride, "multi_grid": multi_grid, "hybrid": hybrid}
    backbone = make_encoder(encoder, in_channels=in_channels, layers=layers, network_options=encoder_options, **options)
    head = FCNHead(backbone.channels[-1], num_classes, dropout=dropout, layers=layers)
    return EncoderHead(backbone, head, num_classes, aux=aux, layers=layers)


def fcn_resnet50(num_classes: int = 21, *, layers: LayerFactory = LayerFactory(), **options: Any) -> EncoderHead:
    """FCN on ResNet-50 with its auxiliary head (torchvision): 35,322,218 parameters at 21 classes."""
    return _fcn("resnet50", num_classes, layers, **options)


def fcn_resnet101(num_classes: int = 21, *, layers: LayerFactory = LayerFactory(), **options: Any) -> EncoderHead:
    """FCN on ResNet-101 with its auxiliary head (torchvision): 54,314,346 parameters at 21 classes."""
    return _fcn("resnet101", num_classes, layers, **options)
