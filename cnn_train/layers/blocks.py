"""Blocks that several papers share."""

from functools import partial

from torch import Tensor, nn

from cnn_train.layers.factory import LayerFactory, Make


class ConvNormAct(nn.Sequential):
    """Convolution, norm, activation, numbered 0, 1, 2; `act=None` leaves the activation out.

    Further keywords go to the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        layers: LayerFactory,
        act: Make | None = nn.ReLU,
        **conv: int | bool | None,
    ):
        super().__init__(
            layers.conv(in_channels, out_channels, kernel_size, **conv),  # type: ignore[arg-type]
            layers.norm(out_channels),
        )
        if act is not None:
            self.append(layers.act(out_channels, act))
        self.out_channels = out_channels


class BasicConv2d(nn.Module):
    """Convolution, norm, activation, named `conv`, `bn`, `act`: the unit of the Inception networks."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        layers: LayerFactory,
        padding: int | tuple[int, int] = 0,
        stride: int = 1,
    ):
        super().__init__()
        self.conv = layers.conv(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.bn = layers.norm(out_channels)
        self.act = layers.act(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class SeparableConv2d(nn.Sequential):
    """A depthwise, then a pointwise convolution (Sifre 2014; Chollet 2017), with nothing in between."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        layers: LayerFactory,
        stride: int = 1,
        dilation: int = 1,
        bias: bool | None = False,
    ):
        super().__init__()
        depthwise = partial(layers.conv, in_channels, in_channels, kernel_size, groups=in_channels)
        self.depthwise = depthwise(stride=stride, dilation=dilation, bias=bias)
        self.pointwise = layers.conv(in_channels, out_channels, 1, bias=bias)


class SqueezeExcitation(nn.Module):
    """Channel gates from the global mean (Hu et al. 2018, section 3): (N, C, H, W) -> the same, each channel rescaled.

    `gate` is the squashing of the scores: a sigmoid in the paper, a hard sigmoid in MobileNetV3.
    """

    def __init__(self, channels: int, squeezed: int, *, layers: LayerFactory, gate: Make = nn.Sigmoid):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.act = layers.act(squeezed)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(self.avgpool(x)))))
