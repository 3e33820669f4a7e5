"""ResNet: He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016. https://arxiv.org/abs/1512.03385

The ImageNet networks follow torchvision, names included: the bottleneck strides in its 3x3 convolution ("v1.5") and not
in the first 1x1 as in the paper; `stride_in_1x1=True` gives the paper's. The CIFAR networks (section 4.2) have three
stages of width 16, 32, 64 and parameter-free shortcuts (option A). The plain networks are the same without shortcuts.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import he_convolutions, zero_last_norms

__all__ = [
    "plain20",
    "plain56",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
]


class PadShortcut(nn.Module):
    """Option A (section 3.3): every second pixel, and zeros for the channels that are new."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.new_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (Fig. 5, left)."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        residual: bool = True,
        layers: LayerFactory,
    ):
        super().__init__()
        self.conv1 = layers.conv(in_channels, channels, 3, stride=stride)
        self.bn1 = layers.norm(channels)
        self.act1 = layers.act(channels)
        self.conv2 = layers.conv(channels, channels, 3)
        self.bn2 = layers.norm(channels)
        self.downsample = shortcut
        self.act2 = layers.act(channels)
        self.residual = residual

    @property
    def last_norm(self) -> nn.Module | None:
        return self.bn2 if self.residual else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        return self.act2(out)


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3, 1x1 expand by 4 (Fig. 5, right); `groups` and `width` as in ResNeXt and Wide ResNet."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        residual: bool = True,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
        layers: LayerFactory,
    ):
        super().__init__()
        width = channels * width_per_group // 64 * groups
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = layers.conv(in_channels, width, 1, stride=first)
        self.bn1 = layers.norm(width)
        self.act1 = layers.act(width)
        self.conv2 = layers.conv(width, width, 3, stride=second, groups=groups)
        self.bn2 = layers.norm(width)
        self.act2 = layers.act(width)
        self.conv3 = layers.conv(width, channels * self.expansion, 1)
        self.bn3 = layers.norm(channels * self.expansion)
        self.downsample = shortcut
        self.act3 = layers.act(channels * self.expansion)
        self.residual = residual

    @property
    def last_norm(self) -> nn.Module | None:
        return self.bn3 if self.residual else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        return self.act3(out)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global pooling, a dense layer: (N, in_channels, H, W) -> (N, num_classes).

    `stem="imagenet"` is a 7x7 convolution and a max pooling, together of stride 4; `stem="small"` is one 3x3
    convolution for images of 32 pixels. `shortcut="pad"` is option A, `"projection"` option B; `residual=False` is the
    plain network. `zero_init_residual` starts each residual branch at zero (Goyal et al. 2017, section 5.1).
    """

    min_size = 1

    def __init__(
        self,
        block: type[nn.Module] | partial,
        depths: Sequence[int],
        num_classes: int,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        stem: Literal["imagenet", "small"] = "imagenet",
        shortcut: Literal["projection", "pad"] = "projection",
        residual: bool = True,
        stride_in_1x1: bool = False,
        zero_init_residual: bool = False,
        dropout: float = 0.0,
        layers: LayerFactory,
    ):
        super().__init__()
        channels = widths[0]
        if stem == "imagenet":
            self.conv1 = layers.conv(in_channels, channels, 7, stride=2)
        elif stem == "small":
            self.conv1 = layers.conv(in_channels, channels, 3)
        else:
            raise ValueError(f"stem must be 'imagenet' or 'small', got {stem!r}")
        self.bn1 = layers.norm(channels)
        self.act1 = layers.act(channels)
        self.maxpool = layers.pool(3, 2, 1) if stem == "imagenet" else nn.Identity()

        if shortcut not in ("projection", "pad"):
            raise ValueError(f"shortcut must be 'projection' (option B) or 'pad' (option A), got {shortcut!r}")
        if stride_in_1x1:
            block = partial(block, stride_in_1x1=True)
        kind: Any = block.func if isinstance(block, partial) else block
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            stage = nn.Sequential()
            for i in range(depth):
                stride = 2 if index > 1 and i == 0 else 1
                out_channels = width * kind.expansion
                path: nn.Module | None = None
                if residual and (stride != 1 or channels != out_channels):
                    path = (
                        PadShortcut(channels, out_channels, stride)
                        if shortcut == "pad"
                        else nn.Sequential(
                            layers.conv(channels, out_channels, 1, stride=stride),
                            layers.norm(out_channels),
                        )
                    )
                stage.append(block(channels, width, stride=stride, shortcut=path, residual=residual, layers=layers))
                channels = out_channels
            self.add_module(f"layer{index}", stage)
        self.num_stages = len(depths)

        self.avgpool = layers.global_pool(channels)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.avgpool.out_features, num_classes)
        layers.init(self, paper=he_convolutions)
        if zero_init_residual:
            zero_last_norms(self)

    @property
    def stages(self) -> list[nn.Module]:
        """The network without its head, cut where the resolution halves."""
        stem = nn.Sequential(self.conv1, self.bn1, self.act1)
        later = [self.get_submodule(f"layer{i}") for i in range(1, self.num_stages + 1)]
        if isinstance(self.maxpool, nn.Identity):
            return [nn.Sequential(*stem, later[0]), *later[1:]]
        return [stem, nn.Sequential(self.maxpool, later[0]), *later[1:]]

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for index in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{index}")(x)
        x = self.flatten(self.avgpool(x))
        return self.fc(self.dropout(x))


def resnet18(
    num_classes: int = 1000,
    *,
    depths: Sequence[int] = (2, 2, 2, 2),
    layers: LayerFactory = LayerFactory(),
    **options: Any,
) -> ResNet:
    """ResNet-18 (Table 1): 11,689,512 parameters at 1000 classes, as torchvision's.

    With `depths=(1, 1, 1, 1)` the ResNet-10 of other libraries: 5,418,792.
    """
    return ResNet(BasicBlock, depths, num_classes, layers=layers, **options)


def resnet34(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNet-34 (Table 1): 21,797,672 parameters at 1000 classes, as torchvision's."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, layers=layers, **options)


def resnet50(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNet-50 (Table 1): 25,557,032 parameters at 1000 classes, as torchvision's."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, layers=layers, **options)


def resnet101(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNet-101 (Table 1): 44,549,160 parameters at 1000 classes, as torchvision's."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, layers=layers, **options)


def resnet152(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNet-152 (Table 1): 60,192,808 parameters at 1000 classes, as torchvision's."""
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes, layers=layers, **options)


def _cifar(depth: int, num_classes: int, layers: LayerFactory, **options: Any) -> ResNet:
    """6n + 2 layers in three stages of n blocks (section 4.2)."""
    options = {"stem": "small", "shortcut": "pad"} | options
    depths = [(depth - 2) // 6] * 3
    return ResNet(BasicBlock, depths, num_classes, widths=(16, 32, 64), layers=layers, **options)


def resnet20(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNet-20 for CIFAR (0.27M in Table 6): 269,722 parameters at 10 classes."""
    return _cifar(20, num_classes, layers, **options)


def resnet32(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNet-32 for CIFAR (0.46M in Table 6): 464,154 parameters at 10 classes."""
    return _cifar(32, num_classes, layers, **options)


def resnet44(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNet-44 for CIFAR (0.66M in Table 6): 658,586 parameters at 10 classes."""
    return _cifar(44, num_classes, layers, **options)


def resnet56(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNet-56 for CIFAR (0.85M in Table 6): 853,018 parameters at 10 classes."""
    return _cifar(56, num_classes, layers, **options)


def resnet110(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """ResNet-110 for CIFAR (1.7M in Table 6): 1,727,962 parameters at 10 classes."""
    return _cifar(110, num_classes, layers, **options)


def plain20(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """Plain-20 (Fig. 6, left), ResNet-20 without shortcuts: 269,722 parameters at 10 classes."""
    return _cifar(20, num_classes, layers, residual=False, **options)


def plain56(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> ResNet:
    """Plain-56 (Fig. 6, left), ResNet-56 without shortcuts: 853,018 parameters at 10 classes."""
    return _cifar(56, num_classes, layers, residual=False, **options)
