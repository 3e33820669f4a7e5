"""Pooling that torch does not have, and the global poolings that end a classification network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GlobalAvgPool(nn.AdaptiveAvgPool2d):
    """Average over the whole map (Lin et al. 2014), or over a grid of it: (N, C, H, W) -> (N, C, size, size)."""

    def __init__(self, channels: int, size: int = 1):
        super().__init__(size)
        self.out_features = channels * size * size


class GlobalMaxPool(nn.AdaptiveMaxPool2d):
    """Maximum over the whole map, or over a grid of it: (N, C, H, W) -> (N, C, size, size)."""

    def __init__(self, channels: int, size: int = 1):
        super().__init__(size)
        self.out_features = channels * size * size


class GlobalDepthwiseConv(nn.Conv2d):
    """A learned weight for each position (Chen et al. 2018, MobileFaceNets): (N, C, size, size) -> (N, C, 1, 1)."""

    def __init__(self, channels: int, size: int = 7):
        super().__init__(channels, channels, size, groups=channels, bias=False)
        self.out_features = channels

    def forward(self, x: Tensor) -> Tensor:
        _check_map(x, self.kernel_size[0], "gdconv")
        return super().forward(x)


class KeepMap(nn.Identity):
    """The map as it is, for dense layers that see every position: (N, C, size, size) -> the same."""

    def __init__(self, channels: int, size: int = 7):
        super().__init__()
        self.size = size
        self.out_features = channels * size * size

    def forward(self, x: Tensor) -> Tensor:
        _check_map(x, self.size, "flatten")
        return x


def _check_map(x: Tensor, size: int, name: str) -> None:
    height, width = x.shape[-2:]
    if (height, width) != (size, size):
        raise ValueError(
            f"global_pool={name} was built for a {size}x{size} map, got {height}x{width}; "
            + (f"set global_pool.size={height}" if height == width else "choose a square image_size")
        )


class StochasticPool2d(nn.Module):
    """Stochastic pooling (Zeiler & Fergus 2013): (N, C, H, W) -> (N, C, H', W'), of the sizes of `nn.MaxPool2d`.

    In training a window gives one of its activations, drawn with probability proportional to its positive part
    (eq. 3-4); in evaluation their probability-weighted mean (eq. 6). A window without a positive activation is uniform.
    Padding is neither drawn nor counted.
    """

    def __init__(self, kernel_size: int, stride: int | None = None, padding: int = 0, ceil_mode: bool = False):
        super().__init__()
        if padding > kernel_size // 2:
            raise ValueError(f"padding must be at most half of kernel_size {kernel_size}, got {padding}")
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode

    def _output_size(self, size: int) -> int:
        steps = size + 2 * self.padding - self.kernel_size
        outputs = (-(-steps // self.stride) if self.ceil_mode else steps // self.stride) + 1
        # As in torch: the last window must start inside the input or its left padding.
        return outputs - 1 if self.ceil_mode and (outputs - 1) * self.stride >= size + self.padding else outputs

    def _windows(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W', kernel_size^2), with zeros outside."""
        height, width = x.shape[-2:]
        out_h, out_w = self._output_size(height), self._output_size(width)
        if min(out_h, out_w) < 1:
            raise ValueError(f"a {height}x{width} map is too small for windows of {self.kernel_size}")
        below = max((out_h - 1) * self.stride + self.kernel_size - height - self.padding, 0)
        right = max((out_w - 1) * self.stride + self.kernel_size - width - self.padding, 0)
        padded = F.pad(x, (self.padding, right, self.padding, below))
        windows = padded.unfold(2, self.kernel_size, self.stride).unfold(3, self.kernel_size, self.stride)
        return windows[:, :, :out_h, :out_w].flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        values = self._windows(x)
        inside = self._windows(torch.ones_like(x[:1, :1]))
        weights = values.detach() if self.training else values
        weights = weights.clamp(min=0).float() if x.dtype in (torch.float16, torch.bfloat16) else weights.clamp(min=0)
        weights = torch.where(weights.sum(-1, keepdim=True) == 0, inside.to(weights.dtype), weights)
        if not self.training:
            return (weights / weights.sum(-1, keepdim=True) * values).sum(-1).to(x.dtype)
        # The first whose cumulative weight exceeds a random share of the total; below 1, so that rounding cannot exceed
        # it. Unlike torch.multinomial this neither waits for the device nor stops at NaN, which the loss will report.
        cumulative = weights.cumsum(-1)
        total = cumulative[..., -1:]
        threshold = torch.rand_like(total).clamp(max=1 - 1e-6) * total
        index = (cumulative <= threshold).sum(-1, keepdim=True).clamp(max=values.size(-1) - 1)
        drawn = torch.where(total.isfinite(), values.gather(-1, index), total.to(x.dtype))
        return drawn.squeeze(-1)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}, ceil_mode={self.ceil_mode}"
