"""Upsampling: (N, C, H, W) -> (N, C, H * scale_factor, W * scale_factor), or to an exact `size` where one is given."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Size = tuple[int, int] | torch.Size


def fit(x: Tensor, size: Size | None) -> Tensor:
    """Crop, or pad by repeating the border, to (height, width) at the bottom and right."""
    if size is None or x.shape[-2:] == tuple(size):
        return x
    height, width = size
    x = x[..., :height, :width]
    missing = (0, width - x.size(-1), 0, height - x.size(-2))
    return F.pad(x, missing, mode="replicate") if any(missing) else x


def pad_to_grid(x: Tensor, stride: int) -> Tensor:
    """Continue images by zeros, at the bottom and right, to sk + 1 pixels: (N, C, H, W) -> (N, C, H', W').

    A convolution of odd size and of stride s, padded by its half, looks at the pixels 0, s, 2s, ...: of sk + 1 at the
    first and the last, and only then interpolation between corners brings each value back to where it came from.
    """
    height, width = x.shape[-2:]
    if height % stride == width % stride == 1 % stride:
        return x
    return F.pad(x, (0, -(width - 1) % stride, 0, -(height - 1) % stride))


class Bilinear(nn.Module):
    """Bilinear interpolation between pixel centres, or, with `align_corners`, between those of the outermost pixels."""

    def __init__(self, channels: int, scale_factor: int = 2, align_corners: bool = False):
        super().__init__()
        self.scale_factor = scale_factor
        self.align_corners = align_corners

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        size = size or (x.size(-2) * self.scale_factor, x.size(-1) * self.scale_factor)
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=self.align_corners)

    def extra_repr(self) -> str:
        return f"scale_factor={self.scale_factor}, align_corners={self.align_corners}"


def between_corners(channels: int, scale_factor: int = 2) -> Bilinear:
    """Bilinear interpolation between the outermost pixels' centres, as Caffe's `Interp`; wants `pad_to_grid` before."""
    return Bilinear(channels, scale_factor, align_corners=True)


class Nearest(nn.Module):
    """Repeat each pixel."""

    def __init__(self, channels: int, scale_factor: int = 2):
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        size = size or (x.size(-2) * self.scale_factor, x.size(-1) * self.scale_factor)
        return F.interpolate(x, size=tuple(size), mode="nearest")

    def extra_repr(self) -> str:
        return f"scale_factor={self.scale_factor}"


def bilinear_kernel(kernel_size: int, stride: int) -> Tensor:
    """Weights (kernel_size, kernel_size) that make a transposed convolution interpolate linearly (Long et al. 2015)."""
    centre = (kernel_size - 1) / 2
    ramp = (1 - (torch.arange(kernel_size) - centre).abs() / stride).clamp(min=0)
    return torch.outer(ramp, ramp)


class Transposed(nn.ConvTranspose2d):
    """A transposed convolution that starts as bilinear interpolation (Long et al. 2015, section 3.3).

    Channels do not mix at the start. The kernel is 2s for an even and 2s - 1 for an odd scale factor s, so that the
    output is exactly s times the input.
    """

    def __init__(self, channels: int, scale_factor: int = 2):
        kernel_size = 2 * scale_factor - scale_factor % 2
        padding = (kernel_size - scale_factor) // 2
        super().__init__(channels, channels, kernel_size, stride=scale_factor, padding=padding, bias=False)
        self.start_bilinear()

    @torch.no_grad()
    def start_bilinear(self) -> None:
        """Set each channel to interpolate itself."""
        self.weight.zero_()
        index = torch.arange(self.in_channels)
        self.weight[index, index] = bilinear_kernel(self.kernel_size[0], self.stride[0]).to(self.weight)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:  # type: ignore[override]
        return fit(super().forward(x), size)


class PixelShuffle(nn.Module):
    """Sub-pixel convolution (Shi et al. 2016): a 3x3 convolution to s^2 times the channels, rearranged in space."""

    def __init__(self, channels: int, scale_factor: int = 2):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * scale_factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale_factor)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        return fit(self.shuffle(self.conv(x)), size)


class Unpool(nn.Module):
    """Unpooling to where the maxima were (Zeiler & Fergus 2014); needs the `indices` of the pooling."""

    def __init__(self, channels: int, scale_factor: int = 2):
        super().__init__()
        self.unpool = nn.MaxUnpool2d(scale_factor, scale_factor)

    def forward(self, x: Tensor, size: Size | None = None, indices: Tensor | None = None) -> Tensor:
        if indices is None:
            raise ValueError(
                "upsample=unpool needs the positions of a max pooling, which this network does not keep; "
                "use segnet, or upsample=bilinear"
            )
        return self.unpool(x, indices, output_size=None if size is None else list(size))
