"""GCN: Peng, Zhang, Yu, Luo & Sun, "Large Kernel Matters: Improve Semantic Segmentation by Global Convolutional
Network", CVPR 2017. https://arxiv.org/abs/1703.02719, Fig. 2.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.upsample import Transposed
from cnn_train.models.encoder import Encoder, make_encoder

__all__ = ["gcn"]


class GlobalConv(nn.Module):
    """k x 1 then 1 x k, plus 1 x k then k x 1 (Fig. 2B): (N, C, H, W) -> (N, num_classes, H, W)."""

    def __init__(self, in_channels: int, num_classes: int, kernel_size: int, *, layers: LayerFactory):
        super().__init__()
        tall, wide = (kernel_size, 1), (1, kernel_size)
        self.left1 = layers.conv(in_channels, num_classes, tall, bias=True)
        self.left2 = layers.conv(num_classes, num_classes, wide, bias=True)
        self.right1 = layers.conv(in_channels, num_classes, wide, bias=True)
        self.right2 = layers.conv(num_classes, num_classes, tall, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.left2(self.left1(x)) + self.right2(self.right1(x))


class BoundaryRefinement(nn.Module):
    """3x3, ReLU, 3x3, added to the scores (Fig. 2C): (N, num_classes, H, W) -> the same."""

    def __init__(self, num_classes: int, *, layers: LayerFactory):
        super().__init__()
        self.conv1 = layers.conv(num_classes, num_classes, 3, bias=True)
        self.act = layers.act(num_classes)
        self.conv2 = layers.conv(num_classes, num_classes, 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act(self.conv1(x)))


class GCN(nn.Module):
    """Scores of four maps by large kernels, refined and added from coarse to fine.

    (N, in_channels, H, W) -> (N, num_classes, H, W).
    """

    task = "segmentation"

    def __init__(self, backbone: Encoder, num_classes: int, *, kernel_size: int, dropout: float, layers: LayerFactory):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if len(backbone.channels) < 5:
            raise ValueError(f"gcn needs an encoder with five maps or more, got {len(backbone.channels)}")
        self.backbone = backbone
        self.min_size = backbone.min_size
        used = backbone.channels[:-5:-1]  # the four coarsest
        self.dropout = nn.Dropout(dropout)
        self.gcns = nn.ModuleList([GlobalConv(channels, num_classes, kernel_size, layers=layers) for channels in used])
        self.refines = nn.ModuleList([BoundaryRefinement(num_classes, layers=layers) for _ in used])
        # After each sum, and after each of the last two upsamplings.
        self.merges = nn.ModuleList([BoundaryRefinement(num_classes, layers=layers) for _ in range(len(used) + 1)])
        self.ups = nn.ModuleList([layers.upsample(num_classes, 2, paper=Transposed) for _ in range(len(used) + 1)])
        for part in (self.gcns, self.refines, self.merges):
            layers.init(part)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        maps = self.backbone(x)
        maps[-1] = self.dropout(maps[-1])
        scores = [refine(conv(y)) for y, conv, refine in zip(maps[:-5:-1], self.gcns, self.refines, strict=True)]
        x = scores[0]
        finer = [*scores[1:], None, None]
        sizes = [*(y.shape[-2:] for y in scores[1:]), maps[-5].shape[-2:], size]
        for up, merge, skip, target in zip(self.ups, self.merges, finer, sizes, strict=True):
            x = up(x, size=target)
            x = merge(x if skip is None else x + skip)
        return x


def gcn(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "resnet152",
    encoder_options: Mapping[str, Any] | None = None,
    kernel_size: int = 15,
    dropout: float = 0.0,
    layers: LayerFactory = LayerFactory(),
) -> GCN:
    """GCN on ResNet-152: 60,723,364 parameters at 21 classes.

    With `kernel_size=7` and bilinear upsampling 59,369,620, as in zijundeng/pytorch-semantic-segmentation.
    """
    backbone = make_encoder(encoder, in_channels=in_channels, layers=layers, network_options=encoder_options)
    return GCN(backbone, num_classes, kernel_size=kernel_size, dropout=dropout, layers=layers)
