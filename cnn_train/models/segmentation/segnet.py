"""SegNet: Badrinarayanan, Kendall & Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture", TPAMI 2017.

https://arxiv.org/abs/1511.00561, Fig. 2. The encoder is VGG's, with a norm after each convolution; the decoder mirrors
it, and unpools to where the maxima were. `upsample=bilinear` and the like give the paper's variants without positions;
a pooling that has no maxima brings the bilinear one.
"""

from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.factory import Make
from cnn_train.layers.init import he_convolutions
from cnn_train.layers.protocols import innermost
from cnn_train.layers.upsample import Bilinear, Unpool
from cnn_train.models.classification import builder
from cnn_train.models.encoder import Encoder

__all__ = ["segnet"]


class SegNet(nn.Module):
    """Mirrored encoder and decoder: (N, in_channels, H, W) -> (N, num_classes, H, W)."""

    task = "segmentation"

    def __init__(
        self, encoder: str, num_classes: int, *, in_channels: int, width: int, dropout: float, layers: LayerFactory
    ):
        super().__init__()
        if encoder not in ("vgg11", "vgg13", "vgg16", "vgg19"):
            raise ValueError(f"segnet mirrors vgg11, vgg13, vgg16 or vgg19, got encoder={encoder}")
        network: Any = builder(encoder)(in_channels=in_channels, width=width, layers=layers)
        has_maxima = layers.pool_layer is None or innermost(layers.pool_layer) is nn.MaxPool2d
        paper: Make = Unpool if has_maxima else Bilinear
        upsample = layers.upsample_layer or paper
        by_position = innermost(upsample) is Unpool
        if by_position and not has_maxima:
            raise ValueError("upsample=unpool needs the positions of maxima, which only pool=max has")
        # Cut around the poolings, which are ours, since they also give the positions.
        starts = [0, *(index + 1 for index in network.pools)]
        self.backbone = Encoder(network, stages=[network.features[start : end - 1] for start, end in pairwise(starts)])
        self.by_position = by_position
        self.pools = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.decoders = nn.ModuleList()
        for index, channels in enumerate(self.backbone.channels):
            depth = sum(isinstance(layer, nn.Conv2d) for layer in self.backbone.stages[index].modules())
            # Ceil mode keeps the last row and column of odd maps.
            self.pools.append(
                nn.MaxPool2d(2, ceil_mode=True, return_indices=True) if by_position else layers.pool(2, ceil_mode=True)
            )
            self.ups.append(layers.upsample(channels, 2, paper=paper))
            # The last convolution of a block goes to the channels of the block before; the very last gives the scores.
            widths = [channels] * depth + ([self.backbone.channels[index - 1]] if index else [])
            self.decoders.append(
                nn.Sequential(
                    *(ConvNormAct(before, after, 3, bias=True, layers=layers) for before, after in pairwise(widths))
                )
            )
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(self.backbone.channels[0], num_classes, 3, padding=1)
        for part in (self.decoders, self.score):
            layers.init(part, paper=he_convolutions)

    def forward(self, x: Tensor) -> Tensor:
        sizes, positions = [], []
        for convolutions, pool in zip(self.backbone.stages, self.pools, strict=True):
            x = convolutions(x)
            sizes.append(x.shape[-2:])
            if self.by_position:
                x, indices = pool(x)
                positions.append(indices)
            else:
                x = pool(x)
        for up, decoder in zip(reversed(self.ups), reversed(self.decoders), strict=True):
            x = up(x, size=sizes.pop(), indices=positions.pop()) if self.by_position else up(x, size=sizes.pop())
            x = decoder(x)
        return self.score(self.dropout(x))


def segnet(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    encoder: Literal["vgg11", "vgg13", "vgg16", "vgg19"] = "vgg16",
    width: int = 64,
    dropout: float = 0.0,
    layers: LayerFactory = LayerFactory(),
) -> SegNet:
    """SegNet on VGG-16: 29,455,125 parameters at 21 classes, as the release's segnet_pascal.prototxt."""
    return SegNet(encoder, num_classes, in_channels=in_channels, width=width, dropout=dropout, layers=layers)
