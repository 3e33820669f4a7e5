"""Network in Network: Lin, Chen & Yan, "Network In Network", ICLR 2014. https://arxiv.org/abs/1312.4400

The network for CIFAR (Fig. 2, section 4.2). The paper gives no widths: they are those of the authors' release, with its
ceil-mode pooling. The last layer scores the classes, so that no norm stands behind it.
"""

from functools import partial

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.init import normal

__all__ = ["nin"]

PLAIN = LayerFactory(norm_layer=None)


class MLPConv(nn.Sequential):
    """A convolution whose filters are small dense networks: `kernel_size`, then two times 1x1 (section 3.1)."""

    def __init__(self, in_channels: int, kernel_size: int, *widths: int, layers: LayerFactory):
        super().__init__()
        for width in widths:
            self.append(ConvNormAct(in_channels, width, kernel_size, layers=layers, bias=True))
            in_channels, kernel_size = width, 1


class NiN(nn.Module):
    """Three MLP convolutions and the global average: (N, in_channels, H, W) -> (N, num_classes).

    The last MLP convolution has a map for each class, whose average is the class' score (section 3.2). A head that
    leaves more than one value of each map gets a dense layer.
    """

    min_size = 4

    def __init__(self, num_classes: int, *, in_channels: int, dropout: float, layers: LayerFactory):
        super().__init__()
        self.mlpconv1 = MLPConv(in_channels, 5, 192, 160, 96, layers=layers)
        self.pool1 = layers.pool(3, 2, ceil_mode=True)
        self.dropout1 = nn.Dropout(dropout)
        self.mlpconv2 = MLPConv(96, 5, 192, 192, 192, layers=layers)
        self.pool2 = layers.pool(3, 2, ceil_mode=True)
        self.dropout2 = nn.Dropout(dropout)
        self.mlpconv3 = MLPConv(192, 3, 192, 192, layers=layers)
        self.score = layers.conv(192, num_classes, 1, bias=True)
        self.act = layers.act(num_classes)
        self.avgpool = layers.global_pool(num_classes)
        self.flatten = nn.Flatten()
        features = self.avgpool.out_features
        self.fc = nn.Identity() if features == num_classes else nn.Linear(features, num_classes)
        layers.init(self, paper=partial(normal, std=0.05))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout1(self.pool1(self.mlpconv1(x)))
        x = self.dropout2(self.pool2(self.mlpconv2(x)))
        x = self.act(self.score(self.mlpconv3(x)))
        return self.fc(self.flatten(self.avgpool(x)))


def nin(num_classes: int = 10, *, in_channels: int = 3, dropout: float = 0.5, layers: LayerFactory = PLAIN) -> NiN:
    """Network in Network for CIFAR (Fig. 2): 966,986 parameters at 10 classes."""
    return NiN(num_classes, in_channels=in_channels, dropout=dropout, layers=layers)
