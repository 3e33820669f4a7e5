"""LeNet-5: LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 1998.

http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf, Fig. 2. As is usual today, the subsampling layers are plain average
pooling without trainable coefficients, C3 sees all maps of S2, and the output is a dense layer instead of RBF units.
"""

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import fan, weights
from cnn_train.layers.pool import GlobalAvgPool

__all__ = ["lenet5"]


def fan_in_uniform(network: nn.Module) -> None:
    """U(+-2.4 / fan_in) for the weights (appendix A)."""
    for weight in weights(network):
        bound = 2.4 / fan(weight, "fan_in")
        nn.init.uniform_(weight, -bound, bound)


def map_5x5(channels: int) -> nn.Module:
    """The 5x5 map that C5 covers: at the paper's 32x32 input nothing is pooled."""
    return GlobalAvgPool(channels, 5)


class LeNet5(nn.Module):
    """Two convolutions and three dense layers (Fig. 2): (N, in_channels, 32, 32) -> (N, num_classes)."""

    min_size = 12

    def __init__(self, num_classes: int, *, in_channels: int, dropout: float, layers: LayerFactory):
        super().__init__()
        self.conv1 = layers.conv(in_channels, 6, 5, padding=0)
        self.bn1 = layers.norm(6)
        self.act1 = layers.act(6, nn.Tanh)
        self.pool1 = layers.pool(2, paper=nn.AvgPool2d)
        self.conv2 = layers.conv(6, 16, 5, padding=0)
        self.bn2 = layers.norm(16)
        self.act2 = layers.act(16, nn.Tanh)
        self.pool2 = layers.pool(2, paper=nn.AvgPool2d)
        self.avgpool = layers.global_pool(16, paper=map_5x5)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(self.avgpool.out_features, 120)
        self.act3 = layers.act(120, nn.Tanh)
        self.fc2 = nn.Linear(120, 84)
        self.act4 = layers.act(84, nn.Tanh)
        self.dropout = nn.Dropout(dropout)
        self.fc3 = nn.Linear(84, num_classes)
        layers.init(self, paper=fan_in_uniform)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.act1(self.bn1(self.conv1(x))))
        x = self.pool2(self.act2(self.bn2(self.conv2(x))))
        x = self.flatten(self.avgpool(x))
        x = self.act4(self.fc2(self.act3(self.fc1(x))))
        return self.fc3(self.dropout(x))


def lenet5(
    num_classes: int = 10,
    *,
    in_channels: int = 1,
    dropout: float = 0.0,
    layers: LayerFactory = LayerFactory(norm_layer=None),
) -> LeNet5:
    """LeNet-5: 61,706 parameters at 10 classes and one input channel (60,000 in section II.B: see the top)."""
    return LeNet5(num_classes, in_channels=in_channels, dropout=dropout, layers=layers)
