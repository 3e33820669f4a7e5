"""SENet: Hu, Shen & Sun, "Squeeze-and-Excitation Networks", CVPR 2018. https://arxiv.org/abs/1709.01507, Fig. 3

`seresnet50` and `seresnext50_32x4d` are timm's, names included: ResNet's stem and stride in the 3x3 convolution.
`variant="release"` is what the authors published for Caffe: the stem's pooling rounds up instead of padding, and
SE-ResNet strides in its first 1x1; `from_release` translates its keys (timm's `legacy_se*`). SENet-154 has that form
only.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import SqueezeExcitation
from cnn_train.layers.init import he_convolutions
from cnn_train.models.classification.resnet import Bottleneck, ResNet

__all__ = ["senet154", "seresnet50", "seresnext50_32x4d"]


class SEBottleneck(Bottleneck):
    """ResNet's bottleneck with channel gates before the addition (Fig. 3)."""

    def __init__(self, in_channels: int, channels: int, *, reduction: int = 16, layers: LayerFactory, **options: Any):
        super().__init__(in_channels, channels, layers=layers, **options)
        out_channels = channels * self.expansion
        self.se = SqueezeExcitation(out_channels, out_channels // reduction, layers=layers)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.se(self.bn3(self.conv3(out)))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        return self.act3(out)


class SENetBottleneck(SEBottleneck):
    """SENet-154's: 64 groups, a first 1x1 of half the width, 3x3 where a shortcut strides (appendix)."""

    expansion = 2

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1, layers: LayerFactory, **options: Any):
        super().__init__(in_channels, channels, stride=stride, groups=64, width_per_group=2, layers=layers, **options)
        width = out_channels = channels * self.expansion
        self.conv1 = layers.conv(in_channels, channels, 1)
        self.bn1 = layers.norm(channels)
        self.act1 = layers.act(channels)
        self.conv2 = layers.conv(channels, width, 3, stride=stride, groups=64)
        if stride != 1 and self.residual:
            self.downsample = nn.Sequential(
                layers.conv(in_channels, out_channels, 3, stride=stride), layers.norm(out_channels)
            )


def _senet(
    block: type[nn.Module] | partial,
    depths: Sequence[int],
    num_classes: int,
    *,
    in_channels: int = 3,
    stem: Literal["imagenet", "small"] = "imagenet",
    deep_stem: bool = False,
    ceil_pool: bool = False,
    layers: LayerFactory,
    **options: Any,
) -> ResNet:
    """A ResNet of SE blocks: (N, in_channels, H, W) -> (N, num_classes).

    `deep_stem` is three 3x3 convolutions instead of one 7x7; `ceil_pool` rounds the size after the stem's pooling up.
    """
    network = ResNet(block, depths, num_classes, in_channels=in_channels, stem=stem, layers=layers, **options)
    if stem == "small":
        return network
    if deep_stem:
        conv1 = nn.Sequential(
            layers.conv(in_channels, 64, 3, stride=2),
            layers.norm(64),
            layers.act(64),
            layers.conv(64, 64, 3),
            layers.norm(64),
            layers.act(64),
            layers.conv(64, network.conv1.out_channels, 3),
        )
        layers.init(conv1, paper=he_convolutions)
        network.add_module("conv1", conv1)
    if ceil_pool:
        network.maxpool = layers.pool(3, 2, ceil_mode=True)
        network.min_size = 3
    return network


def from_release(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of timm's `legacy_se*` (the authors' release in PyTorch) to ours."""
    names = {"layer0.conv1": "conv1", "layer0.bn1": "bn1", "last_linear": "fc"}
    if "layer0.conv3.weight" in state:
        inner = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6}
        names |= {f"layer0.{name}": f"conv1.{index}" for name, index in inner.items()} | {"layer0.bn3": "bn1"}

    def rename(key: str) -> str:
        module, _, parameter = key.rpartition(".")
        return f"{names.get(module, module)}.{parameter}".replace(".se_module.", ".se.")

    return {rename(key): value for key, value in state.items()}


def _is_release(variant: str) -> bool:
    if variant not in ("timm", "release"):
        raise ValueError(f"variant must be 'timm' or 'release', got {variant!r}")
    return variant == "release"


def seresnet50(
    num_classes: int = 1000,
    *,
    variant: Literal["timm", "release"] = "timm",
    layers: LayerFactory = LayerFactory(),
    **options: Any,
) -> ResNet:
    """SE-ResNet-50 (Table 1): 28,088,024 parameters at 1000 classes, as timm's."""
    release = _is_release(variant)
    options = {"ceil_pool": release, "stride_in_1x1": release} | options
    return _senet(SEBottleneck, (3, 4, 6, 3), num_classes, layers=layers, **options)


def seresnext50_32x4d(
    num_classes: int = 1000,
    *,
    variant: Literal["timm", "release"] = "timm",
    layers: LayerFactory = LayerFactory(),
    **options: Any,
) -> ResNet:
    """SE-ResNeXt-50, 32 groups of 4 (Table 1): 27,559,896 parameters at 1000 classes, as timm's."""
    block = partial(SEBottleneck, groups=32, width_per_group=4)
    options = {"ceil_pool": _is_release(variant)} | options
    return _senet(block, (3, 4, 6, 3), num_classes, layers=layers, **options)


def senet154(
    num_classes: int = 1000, *, dropout: float = 0.2, layers: LayerFactory = LayerFactory(), **options: Any
) -> ResNet:
    """SENet-154 (appendix; ILSVRC 2017's winner): 115,088,984 parameters at 1000 classes, as timm's."""
    options = {"deep_stem": True, "ceil_pool": True} | options
    widths = (128, 256, 512, 1024)
    return _senet(SENetBottleneck, (3, 8, 36, 3), num_classes, widths=widths, dropout=dropout, layers=layers, **options)
