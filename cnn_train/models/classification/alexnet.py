"""AlexNet: Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS
2012. https://papers.nips.cc/paper/4824

`alexnet_2012` is the network of its Fig. 2, on two GPUs: two groups of filters, local response normalization,
overlapping pooling, dropout. The paper's images of 224 pixels are padded by 2, so that the maps are 55x55 as it says.
`alexnet` is the one-column form without normalization of Krizhevsky, "One weird trick for parallelizing convolutional
neural networks", 2014 (https://arxiv.org/abs/1404.5997), under torchvision's names.
"""

from functools import partial

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import normal
from cnn_train.layers.norm import LocalResponseNorm
from cnn_train.layers.pool import GlobalAvgPool

__all__ = ["alexnet", "alexnet_2012"]

ONE_COLUMN = LayerFactory(norm_layer=None)
TWO_GPUS = LayerFactory(norm_layer=LocalResponseNorm)


class AlexNet(nn.Module):
    """Five convolutions and three dense layers in one column: (N, in_channels, H, W) -> (N, num_classes).

    A norm, if one is chosen, stands before each activation of the convolutions.
    """

    min_size = 63

    def __init__(self, num_classes: int, *, in_channels: int, dropout: float, layers: LayerFactory):
        super().__init__()
        self.features = nn.Sequential()

        def convolution(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> None:
            padding = 2 if stride > 1 else None
            self.features.append(layers.conv(inputs, outputs, kernel_size, stride=stride, padding=padding, bias=True))
            if layers.has_norm:
                self.features.append(layers.norm(outputs))
            self.features.append(layers.act(outputs))

        convolution(in_channels, 64, 11, stride=4)
        self.features.append(layers.pool(3, 2))
        convolution(64, 192, 5)
        self.features.append(layers.pool(3, 2))
        convolution(192, 384, 3)
        convolution(384, 256, 3)
        convolution(256, 256, 3)
        self.features.append(layers.pool(3, 2))
        self.avgpool = layers.global_pool(256, paper=partial(GlobalAvgPool, size=6))
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(self.avgpool.out_features, 4096),
            layers.act(4096),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            layers.act(4096),
            nn.Linear(4096, num_classes),
        )
        layers.init(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


def normal_with_unit_biases(network: nn.Module) -> None:
    """N(0, 0.01^2), bias 1 in conv2, conv4, conv5 and the hidden dense layers, else 0 (section 5)."""
    normal(network, std=0.01)
    for name in ("conv2", "conv4", "conv5", "fc6", "fc7"):
        nn.init.ones_(network.get_submodule(name).bias)  # type: ignore[arg-type]


class AlexNet2012(nn.Module):
    """The network on two GPUs (Fig. 2): (N, in_channels, H, W) -> (N, num_classes).

    The second, fourth and fifth convolution see only the half of the maps that is on their GPU. The norm follows the
    activation, and there are two of them (section 3.3).
    """

    min_size = 63

    def __init__(self, num_classes: int, *, in_channels: int, dropout: float, layers: LayerFactory):
        super().__init__()
        self.conv1 = layers.conv(in_channels, 96, 11, stride=4, padding=2, bias=True)
        self.act1 = layers.act(96)
        self.norm1 = layers.norm(96)
        self.pool1 = layers.pool(3, 2)
        self.conv2 = layers.conv(96, 256, 5, groups=2, bias=True)
        self.act2 = layers.act(256)
        self.norm2 = layers.norm(256)
        self.pool2 = layers.pool(3, 2)
        self.conv3 = layers.conv(256, 384, 3, bias=True)
        self.act3 = layers.act(384)
        self.conv4 = layers.conv(384, 384, 3, groups=2, bias=True)
        self.act4 = layers.act(384)
        self.conv5 = layers.conv(384, 256, 3, groups=2, bias=True)
        self.act5 = layers.act(256)
        self.pool5 = layers.pool(3, 2)
        self.avgpool = layers.global_pool(256, paper=partial(GlobalAvgPool, size=6))
        self.flatten = nn.Flatten()
        self.fc6 = nn.Linear(self.avgpool.out_features, 4096)
        self.act6 = layers.act(4096)
        self.dropout6 = nn.Dropout(dropout)
        self.fc7 = nn.Linear(4096, 4096)
        self.act7 = layers.act(4096)
        self.dropout7 = nn.Dropout(dropout)
        self.fc8 = nn.Linear(4096, num_classes)
        layers.init(self, paper=normal_with_unit_biases)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.norm1(self.act1(self.conv1(x))))
        x = self.pool2(self.norm2(self.act2(self.conv2(x))))
        x = self.act4(self.conv4(self.act3(self.conv3(x))))
        x = self.pool5(self.act5(self.conv5(x)))
        x = self.flatten(self.avgpool(x))
        x = self.dropout6(self.act6(self.fc6(x)))
        x = self.dropout7(self.act7(self.fc7(x)))
        return self.fc8(x)


def alexnet(
    num_classes: int = 1000, *, in_channels: int = 3, dropout: float = 0.5, layers: LayerFactory = ONE_COLUMN
) -> AlexNet:
    """AlexNet in one column (2014): 61,100,840 parameters at 1000 classes, as torchvision's."""
    return AlexNet(num_classes, in_channels=in_channels, dropout=dropout, layers=layers)


def alexnet_2012(
    num_classes: int = 1000, *, in_channels: int = 3, dropout: float = 0.5, layers: LayerFactory = TWO_GPUS
) -> AlexNet2012:
    """AlexNet on two GPUs (Fig. 2; 60 million in section 1): 60,965,224 parameters at 1000 classes."""
    return AlexNet2012(num_classes, in_channels=in_channels, dropout=dropout, layers=layers)
