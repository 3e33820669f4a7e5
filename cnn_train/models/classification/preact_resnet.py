"""Pre-activation ResNet: He, Zhang, Ren & Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016.

https://arxiv.org/abs/1603.05027, Fig. 4 (e). The ImageNet networks are timm's `resnetv2_*`, which stride in the 3x3
convolution; `stride_in_1x1=True` is the authors' form, which ResNet-164 has. Names are torchvision's ResNet's;
`from_timm` translates. The paper activates before the first unit splits into its two paths (appendix), where timm's
basic blocks (18, 34 layers, not in the paper) send the shortcut past the activation.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import he_convolutions
from cnn_train.models.classification.resnet import PadShortcut

__all__ = [
    "preact_resnet18",
    "preact_resnet34",
    "preact_resnet50",
    "preact_resnet101",
    "preact_resnet110",
    "preact_resnet152",
    "preact_resnet164",
]


class PreActBasicBlock(nn.Module):
    """Norm, activation and 3x3 convolution, twice; a shortcut that is not the identity starts after the activation.

    `dropout` stands between the convolutions, as in Wide ResNet.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        dropout: float = 0.0,
        layers: LayerFactory,
    ):
        super().__init__()
        self.bn1 = layers.norm(in_channels)
        self.act1 = layers.act(in_channels)
        self.conv1 = layers.conv(in_channels, channels, 3, stride=stride)
        self.bn2 = layers.norm(channels)
        self.act2 = layers.act(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = layers.conv(channels, channels, 3)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.bn1(x))
        out = self.act2(self.bn2(self.conv1(activated)))
        out = self.conv2(self.dropout(out))
        return out + (x if self.downsample is None else self.downsample(activated))


class PreActBottleneck(nn.Module):
    """Norm and activation before each of 1x1 reduce, 3x3, 1x1 expand by 4; shortcuts as in the basic block."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        stride_in_1x1: bool = False,
        layers: LayerFactory,
    ):
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.bn1 = layers.norm(in_channels)
        self.act1 = layers.act(in_channels)
        self.conv1 = layers.conv(in_channels, channels, 1, stride=first)
        self.bn2 = layers.norm(channels)
        self.act2 = layers.act(channels)
        self.conv2 = layers.conv(channels, channels, 3, stride=second)
        self.bn3 = layers.norm(channels)
        self.act3 = layers.act(channels)
        self.conv3 = layers.conv(channels, channels * self.expansion, 1)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.bn1(x))
        out = self.act2(self.bn2(self.conv1(activated)))
        out = self.act3(self.bn3(self.conv2(out)))
        return self.conv3(out) + (x if self.downsample is None else self.downsample(activated))


class PreActResNet(nn.Module):
    """Stem, stages of pre-activation units, a last norm and activation: (N, in_channels, H, W) -> (N, num_classes).

    `stem="imagenet"` is a 7x7 convolution and a max pooling, together of stride 4; `stem="small"` one 3x3 convolution.
    `shortcut="pad"` is ResNet's option A, `"projection"` option B. `split_after_act=False` sends an identity shortcut
    of the first unit past its activation. ResNet's `zero_init_residual` has no counterpart: an activation follows each
    branch's last norm, and where a rectifier sees zeros only, no gradient passes.
    """

    def __init__(
        self,
        block: type[nn.Module] | partial,
        depths: Sequence[int],
        num_classes: int,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        stem: Literal["imagenet", "small"] = "imagenet",
        stem_channels: int = 64,
        shortcut: Literal["projection", "pad"] = "projection",
        stride_in_1x1: bool = False,
        split_after_act: bool = True,
        dropout: float = 0.0,
        layers: LayerFactory,
    ):
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise ValueError(f"stem must be 'imagenet' or 'small', got {stem!r}")
        if shortcut not in ("projection", "pad"):
            raise ValueError(f"shortcut must be 'projection' or 'pad', got {shortcut!r}")
        if stem == "imagenet":
            self.conv1 = layers.conv(in_channels, stem_channels, 7, stride=2)
            self.maxpool = layers.pool(3, 2, 1)
        else:
            self.conv1 = layers.conv(in_channels, stem_channels, 3)
            self.maxpool = nn.Identity()

        if stride_in_1x1:
            block = partial(block, stride_in_1x1=True)
        kind: Any = block.func if isinstance(block, partial) else block
        channels = stem_channels
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            stage = nn.Sequential()
            for i in range(depth):
                stride = 2 if index > 1 and i == 0 else 1
                out_channels = width * kind.expansion
                path: nn.Module | None = None
                if stride != 1 or channels != out_channels:
                    path = (
                        PadShortcut(channels, out_channels, stride)
                        if shortcut == "pad"
                        else layers.conv(channels, out_channels, 1, stride=stride)
                    )
                elif index == 1 and i == 0 and split_after_act:
                    path = nn.Identity()
                stage.append(block(channels, width, stride=stride, shortcut=path, layers=layers))
                channels = out_channels
            self.add_module(f"layer{index}", stage)
        self.num_stages = len(depths)

        self.bn = layers.norm(channels)
        self.act = layers.act(channels)
        self.avgpool = layers.global_pool(channels)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.avgpool.out_features, num_classes)
        layers.init(self, paper=he_convolutions)

    @property
    def stages(self) -> list[nn.Module]:
        """The network without its head, cut where the resolution halves; only the last map is activated."""
        parts = [self.get_submodule(f"layer{i}") for i in range(1, self.num_stages + 1)]
        parts[-1] = nn.Sequential(parts[-1], self.bn, self.act)
        if isinstance(self.maxpool, nn.Identity):
            return [nn.Sequential(self.conv1, parts[0]), *parts[1:]]
        return [self.conv1, nn.Sequential(self.maxpool, parts[0]), *parts[1:]]

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for index in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{index}")(x)
        x = self.flatten(self.avgpool(self.act(self.bn(x))))
        return self.fc(self.dropout(x))


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of timm's `resnetv2_*` (BN, plain stem) to ours; its last layer is a 1x1 convolution."""

    def rename(key: str) -> str:
        key = re.sub(r"^stages\.(\d)\.blocks\.", lambda stage: f"layer{int(stage[1]) + 1}.", key)
        key = re.sub(r"\.norm(\d)\.", r".bn\1.", key)
        key = key.replace("downsample.conv.", "downsample.").replace("stem.conv.", "conv1.")
        return key.replace("head.fc.", "fc.").replace("norm.", "bn.")

    return {rename(key): value.flatten(1) if key == "head.fc.weight" else value for key, value in state.items()}


def preact_resnet18(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> PreActResNet:
    """Pre-activation ResNet-18: 11,687,720 parameters at 1000 classes, as timm's."""
    options = {"split_after_act": False} | options
    return PreActResNet(PreActBasicBlock, (2, 2, 2, 2), num_classes, layers=layers, **options)


def preact_resnet34(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> PreActResNet:
    """Pre-activation ResNet-34: 21,795,880 parameters at 1000 classes, as timm's."""
    options = {"split_after_act": False} | options
    return PreActResNet(PreActBasicBlock, (3, 4, 6, 3), num_classes, layers=layers, **options)


def preact_resnet50(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> PreActResNet:
    """Pre-activation ResNet-50: 25,549,352 parameters at 1000 classes, as timm's."""
    return PreActResNet(PreActBottleneck, (3, 4, 6, 3), num_classes, layers=layers, **options)


def preact_resnet101(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> PreActResNet:
    """Pre-activation ResNet-101: 44,541,480 parameters at 1000 classes, as timm's."""
    return PreActResNet(PreActBottleneck, (3, 4, 23, 3), num_classes, layers=layers, **options)


def preact_resnet152(num_classes: int = 1000, *, layers: LayerFactory = LayerFactory(), **options: Any) -> PreActResNet:
    """Pre-activation ResNet-152 (Table 5): 60,185,128 parameters at 1000 classes, as timm's."""
    return PreActResNet(PreActBottleneck, (3, 8, 36, 3), num_classes, layers=layers, **options)


def _cifar(block: type[nn.Module], num_classes: int, layers: LayerFactory, **options: Any) -> PreActResNet:
    """Three stages of 18 units (section 3.1), as ResNet-110 and ResNet-164 have."""
    defaults: dict[str, Any] = {"stem": "small", "stem_channels": 16, "widths": (16, 32, 64)}
    options = defaults | options
    return PreActResNet(block, (18, 18, 18), num_classes, layers=layers, **options)


def preact_resnet110(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> PreActResNet:
    """Pre-activation ResNet-110 for CIFAR (1.7M in Table 3), no projections: 1,727,962 parameters at 10 classes."""
    options = {"shortcut": "pad"} | options
    return _cifar(PreActBasicBlock, num_classes, layers, **options)


def preact_resnet164(num_classes: int = 10, *, layers: LayerFactory = LayerFactory(), **options: Any) -> PreActResNet:
    """Pre-activation ResNet-164 for CIFAR (1.7M in Table 3), bottlenecks: 1,703,258 parameters at 10 classes."""
    options = {"stride_in_1x1": True} | options
    return _cifar(PreActBottleneck, num_classes, layers, **options)
