"""How a choice of norm, activation, pooling, upsampling and initializer reaches every layer of a network."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from cnn_train.layers.init import lsuv
from cnn_train.layers.norm import WSConv2d
from cnn_train.layers.pool import GlobalAvgPool
from cnn_train.layers.protocols import Activation, Norm, innermost, says
from cnn_train.layers.upsample import Bilinear

Make = Callable[..., nn.Module]


@dataclass(frozen=True)
class LayerFactory:
    """The swappable layers of a network, chosen once and handed down to every block.

    A block never names `BatchNorm2d`, `ReLU` or `MaxPool2d`: it asks for `layers.norm(channels)`,
    `layers.act(channels)`, `layers.pool(3, 2)`. None means the paper's own choice, which each slot states itself; for
    `norm_layer`, None means that there is none.
    """

    norm_layer: Make | None = nn.BatchNorm2d
    act_layer: Make | None = None
    pool_layer: Make | None = None
    global_pool_layer: Make | None = None
    upsample_layer: Make | None = None
    initializer: Callable[..., None] | None = None

    @property
    def has_norm(self) -> bool:
        return self.norm_layer is not None

    @property
    def standardizes_weights(self) -> bool:
        return says(self.norm_layer, Norm, "standardize_weights")

    @property
    def needs_images(self) -> bool:
        """Whether `lsuv_calibrate` is to follow the initializer."""
        return innermost(self.initializer) is lsuv

    def norm(self, channels: int) -> nn.Module:
        """Normalize (N, channels, H, W); `nn.Identity` where there is no norm."""
        return nn.Identity() if self.norm_layer is None else self.norm_layer(channels)

    def act(self, channels: int, paper: Make = nn.ReLU) -> nn.Module:
        """Make the chosen activation of (N, channels, ...), or the paper's. Every slot gets a module of its own."""
        make = self.act_layer or paper
        return make(channels) if says(make, Activation, "takes_channels") else make()

    def pool(
        self,
        kernel_size: int,
        stride: int | None = None,
        padding: int = 0,
        *,
        ceil_mode: bool = False,
        paper: Make = nn.MaxPool2d,
    ) -> nn.Module:
        """Make the chosen pooling over windows, or the paper's; stride defaults to the kernel size."""
        return (self.pool_layer or paper)(kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode)

    def global_pool(self, channels: int, *, paper: Make = GlobalAvgPool) -> Any:
        """Make what stands between the last map and the dense layers: see `protocols.GlobalPool`."""
        return (self.global_pool_layer or paper)(channels)

    def upsample(self, channels: int, scale_factor: int, *, paper: Make = Bilinear) -> nn.Module:
        """Make the chosen upsampling of (N, channels, H, W), called as `up(x)` or `up(x, size=(height, width))`."""
        return (self.upsample_layer or paper)(channels, scale_factor)

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool | None = None,
    ) -> nn.Conv2d:
        """Make a convolution; padding None keeps the size at stride 1, bias None means "only if there is no norm"."""
        if padding is None:
            height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
            padding = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
        conv = WSConv2d if self.standardizes_weights else nn.Conv2d
        return conv(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=not self.has_norm if bias is None else bias,
        )

    def init(self, module: nn.Module, paper: Callable[[nn.Module], None] | None = None) -> None:
        """Initialize all weights of `module` in place by the chosen initializer, or by the paper's (None: torch's)."""
        if self.initializer is not None:
            self.initializer(module, act=partial(self.act, 1))
        elif paper is not None:
            paper(module)
