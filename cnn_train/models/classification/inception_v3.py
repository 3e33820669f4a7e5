"""Inception v3: Szegedy, Vanhoucke, Ioffe, Shlens & Wojna, "Rethinking the Inception Architecture for Computer Vision",
CVPR 2016. https://arxiv.org/abs/1512.00567

The released network, under torchvision's names, which the paper's Table 1 only outlines. Modules A, C and E are those
of Fig. 5, 6 and 7; B and D reduce the map as in Fig. 10. On maps smaller than those of a 299-pixel image the auxiliary
classifier pools to a grid of 5x5.
"""

from functools import partial

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import BasicConv2d
from cnn_train.layers.init import he_normal
from cnn_train.layers.pool import GlobalAvgPool

__all__ = ["inception_v3"]

DEFAULT = LayerFactory(norm_layer=partial(nn.BatchNorm2d, eps=1e-3))


class InceptionA(nn.Module):
    """1x1, 5x5, double 3x3, pooling (Fig. 5)."""

    def __init__(self, in_channels: int, pool_features: int, *, layers: LayerFactory):
        super().__init__()
        conv = partial(BasicConv2d, layers=layers)
        self.branch1x1 = conv(in_channels, 64, 1)
        self.branch5x5_1 = conv(in_channels, 48, 1)
        self.branch5x5_2 = conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = conv(in_channels, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = conv(96, 96, 3, padding=1)
        self.pool = layers.pool(3, 1, 1, paper=nn.AvgPool2d)
        self.branch_pool = conv(in_channels, pool_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(self.pool(x)),
        ]
        return torch.cat(branches, 1)


class InceptionB(nn.Module):
    """Reduction from 35x35 to 17x17: 3x3, double 3x3, pooling, all of stride 2 (Fig. 10)."""

    def __init__(self, in_channels: int, *, layers: LayerFactory):
        super().__init__()
        conv = partial(BasicConv2d, layers=layers)
        self.branch3x3 = conv(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = conv(in_channels, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = conv(96, 96, 3, stride=2)
        self.pool = layers.pool(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.pool(x),
        ]
        return torch.cat(branches, 1)


class InceptionC(nn.Module):
    """1x1, 7x7 and double 7x7 in one-dimensional factors, pooling (Fig. 6)."""

    def __init__(self, in_channels: int, channels_7x7: int, *, layers: LayerFactory):
        super().__init__()
        conv = partial(BasicConv2d, layers=layers)
        row = partial(conv, kernel_size=(1, 7), padding=(0, 3))
        column = partial(conv, kernel_size=(7, 1), padding=(3, 0))
        self.branch1x1 = conv(in_channels, 192, 1)
        self.branch7x7_1 = conv(in_channels, channels_7x7, 1)
        self.branch7x7_2 = row(channels_7x7, channels_7x7)
        self.branch7x7_3 = column(channels_7x7, 192)
        self.branch7x7dbl_1 = conv(in_channels, channels_7x7, 1)
        self.branch7x7dbl_2 = column(channels_7x7, channels_7x7)
        self.branch7x7dbl_3 = row(channels_7x7, channels_7x7)
        self.branch7x7dbl_4 = column(channels_7x7, channels_7x7)
        self.branch7x7dbl_5 = row(channels_7x7, 192)
        self.pool = layers.pool(3, 1, 1, paper=nn.AvgPool2d)
        self.branch_pool = conv(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(self.pool(x)),
        ]
        return torch.cat(branches, 1)


class InceptionD(nn.Module):
    """Reduction from 17x17 to 8x8: 3x3, 7x7 then 3x3, pooling."""

    def __init__(self, in_channels: int, *, layers: LayerFactory):
        super().__init__()
        conv = partial(BasicConv2d, layers=layers)
        self.branch3x3_1 = conv(in_channels, 192, 1)
        self.branch3x3_2 = conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = conv(in_channels, 192, 1)
        self.branch7x7x3_2 = conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = conv(192, 192, 3, stride=2)
        self.pool = layers.pool(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(long), self.pool(x)], 1)


class InceptionE(nn.Module):
    """1x1, 3x3 and double 3x3 whose ends fork into 1x3 and 3x1, pooling (Fig. 7)."""

    def __init__(self, in_channels: int, *, layers: LayerFactory):
        super().__init__()
        conv = partial(BasicConv2d, layers=layers)
        row = partial(conv, kernel_size=(1, 3), padding=(0, 1))
        column = partial(conv, kernel_size=(3, 1), padding=(1, 0))
        self.branch1x1 = conv(in_channels, 320, 1)
        self.branch3x3_1 = conv(in_channels, 384, 1)
        self.branch3x3_2a = row(384, 384)
        self.branch3x3_2b = column(384, 384)
        self.branch3x3dbl_1 = conv(in_channels, 448, 1)
        self.branch3x3dbl_2 = conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = row(384, 384)
        self.branch3x3dbl_3b = column(384, 384)
        self.pool = layers.pool(3, 1, 1, paper=nn.AvgPool2d)
        self.branch_pool = conv(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ]
        return torch.cat(branches, 1)


class InceptionAux(nn.Module):
    """The auxiliary classifier on the last 17x17 map (Fig. 8)."""

    def __init__(self, in_channels: int, num_classes: int, *, layers: LayerFactory):
        super().__init__()
        self.pool = layers.pool(5, 3, paper=nn.AvgPool2d)
        self.grid = GlobalAvgPool(in_channels, 5)
        self.conv0 = BasicConv2d(in_channels, 128, 1, layers=layers)
        self.conv1 = BasicConv2d(128, 768, 5, layers=layers)
        self.avgpool = GlobalAvgPool(768)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        # 17 is the smallest map from which windows of 5 at stride 3 leave the 5x5 that conv1 needs.
        x = self.pool(x) if min(x.shape[-2:]) >= 17 else self.grid(x)
        return self.fc(self.flatten(self.avgpool(self.conv1(self.conv0(x)))))


def truncated_normal(network: nn.Module) -> None:
    """N(0, 0.1^2) cut at two deviations, of 0.01 and 0.001 at the end of the auxiliary classifier (the release)."""
    small = {"AuxLogits.conv1.conv": 0.01, "AuxLogits.fc": 0.001}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            std = small.get(name, 0.1)
            nn.init.trunc_normal_(layer.weight, 0.0, std, -2 * std, 2 * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class InceptionV3(nn.Module):
    """Eleven Inception modules: (N, in_channels, H, W) -> (N, num_classes); in training the auxiliary logits too."""

    min_size = 75
    aux_weight = 0.4

    def __init__(self, num_classes: int, *, in_channels: int, aux: bool, dropout: float, layers: LayerFactory):
        super().__init__()
        conv = partial(BasicConv2d, layers=layers)
        self.Conv2d_1a_3x3 = conv(in_channels, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, 3)
        self.Conv2d_2b_3x3 = conv(32, 64, 3, padding=1)
        self.maxpool1 = layers.pool(3, 2)
        self.Conv2d_3b_1x1 = conv(64, 80, 1)
        self.Conv2d_4a_3x3 = conv(80, 192, 3)
        self.maxpool2 = layers.pool(3, 2)
        self.Mixed_5b = InceptionA(192, 32, layers=layers)
        self.Mixed_5c = InceptionA(256, 64, layers=layers)
        self.Mixed_5d = InceptionA(288, 64, layers=layers)
        self.Mixed_6a = InceptionB(288, layers=layers)
        self.Mixed_6b = InceptionC(768, 128, layers=layers)
        self.Mixed_6c = InceptionC(768, 160, layers=layers)
        self.Mixed_6d = InceptionC(768, 160, layers=layers)
        self.Mixed_6e = InceptionC(768, 192, layers=layers)
        self.AuxLogits = InceptionAux(768, num_classes, layers=layers) if aux else None
        self.Mixed_7a = InceptionD(768, layers=layers)
        self.Mixed_7b = InceptionE(1280, layers=layers)
        self.Mixed_7c = InceptionE(2048, layers=layers)
        self.avgpool = layers.global_pool(2048)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.avgpool.out_features, num_classes)
        # A standard deviation that knows no fan-in overflows in fifty layers that nothing normalizes.
        layers.init(self, paper=truncated_normal if layers.has_norm else he_normal)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool2(x))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        after_6e = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(after_6e)))
        logits = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        if self.training and self.AuxLogits is not None:
            return logits, self.AuxLogits(after_6e)
        return logits


def inception_v3(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    aux: bool = True,
    dropout: float = 0.5,
    layers: LayerFactory = DEFAULT,
) -> InceptionV3:
    """Inception v3: 27,161,264 parameters at 1000 classes, as torchvision's; 23,834,568 without the auxiliary."""
    return InceptionV3(num_classes, in_channels=in_channels, aux=aux, dropout=dropout, layers=layers)
