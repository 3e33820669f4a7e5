"""U-Net: Ronneberger, Fischer & Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.

https://arxiv.org/abs/1505.04597, Fig. 1. `unet` is the paper's network at any width; `padding="valid"` is the paper's,
whose borders, mirrored as in its section 2, are added here so that the output has the input's size. `unet_encoder` puts
the expanding path on any classification network. Chosen upsamplings, which keep the channels, are followed by a 1x1
convolution that halves them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import ConvNormAct
from cnn_train.layers.init import he_normal
from cnn_train.layers.upsample import fit
from cnn_train.models.encoder import Encoder, make_encoder

__all__ = ["unet", "unet_encoder"]

PLAIN = LayerFactory(norm_layer=None)


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions: (N, C, H, W) -> (N, out_channels, H, W), or (H - 4, W - 4) without padding."""

    def __init__(self, in_channels: int, out_channels: int, *, padding: int = 1, layers: LayerFactory):
        super().__init__(
            *ConvNormAct(in_channels, out_channels, 3, padding=padding, layers=layers),
            *ConvNormAct(out_channels, out_channels, 3, padding=padding, layers=layers),
        )


class UpConv(nn.Module):
    """The 2x2 "up-convolution" to twice the size and other channels, or the chosen upsampling and a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, layers: LayerFactory):
        super().__init__()
        self.up: nn.Module
        self.reduce: nn.Module
        if layers.upsample_layer is None:
            self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
            self.reduce = nn.Identity()
        else:
            self.up = layers.upsample(in_channels, 2)
            self.reduce = layers.conv(in_channels, out_channels, 1, bias=True)

    def forward(self, x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        if isinstance(self.up, nn.ConvTranspose2d) and isinstance(self.reduce, nn.Identity):
            return fit(self.up(x), size)
        return self.reduce(self.up(x, size=size))


class Up(nn.Module):
    """Upsample, concatenate the skip, convolve twice; a larger skip is cropped to its centre."""

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        padding: int = 1,
        layers: LayerFactory,
    ):
        super().__init__()
        self.padding = padding
        self.up = UpConv(in_channels, out_channels, layers=layers)
        self.conv = DoubleConv(out_channels + skip_channels, out_channels, padding=padding, layers=layers)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.padding:
            return self.conv(torch.cat([skip, self.up(x, skip.shape[-2:])], dim=1))
        height, width = 2 * x.size(-2), 2 * x.size(-1)
        top, left = (skip.size(-2) - height) // 2, (skip.size(-1) - width) // 2
        skip = skip[..., top : top + height, left : left + width]
        return self.conv(torch.cat([skip, self.up(x, (height, width))], dim=1))


class MirrorPad(nn.Module):
    """Continue an image by mirroring, as often as needed: (N, C, H, W) -> (N, C, H + before + after, ...).

    `padding` is ((before, after) of H, (before, after) of W) in pixels.
    """

    def forward(self, x: Tensor, padding: tuple[tuple[int, int], tuple[int, int]]) -> Tensor:
        for dim, (before, after) in zip((-2, -1), padding, strict=True):
            last = x.size(dim) - 1
            index = torch.arange(-before, last + 1 + after, device=x.device)
            period = max(2 * last, 1)
            x = x.index_select(dim, last - (index.remainder(period) - last).abs() if last else index * 0)
        return x


class UNet(nn.Module):
    """Contracting and expanding path of `depth` steps (Fig. 1): (N, in_channels, H, W) -> (N, num_classes, H, W)."""

    task = "segmentation"

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        width: int = 16,
        depth: int = 4,
        padding: Literal["same", "valid"] = "same",
        dropout: float = 0.0,
        layers: LayerFactory,
    ):
        super().__init__()
        if padding not in ("same", "valid"):
            raise ValueError(f"padding must be 'same' or 'valid' (the paper's), got {padding!r}")
        pad = 1 if padding == "same" else 0
        self.min_size = 2**depth if pad else 1
        widths = [width * 2**i for i in range(depth + 1)]
        self.depth = depth
        self.mirror = None if pad else MirrorPad()
        self.inc = DoubleConv(in_channels, width, padding=pad, layers=layers)
        self.pools = nn.ModuleList([layers.pool(2) for _ in range(depth)])
        self.downs = nn.ModuleList(
            [DoubleConv(widths[i], widths[i + 1], padding=pad, layers=layers) for i in range(depth)]
        )
        # "Drop-out layers at the end of the contracting path" (section 3.1): in the release, of its last two levels.
        self.dropouts = nn.ModuleList([nn.Dropout(dropout if i >= depth - 2 else 0.0) for i in range(depth)])
        self.ups = nn.ModuleList(
            [Up(widths[i + 1], widths[i], widths[i], padding=pad, layers=layers) for i in reversed(range(depth))]
        )
        self.outc = nn.Conv2d(width, num_classes, 1)
        layers.init(self, paper=he_normal)  # section 3

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.mirror is not None:
            x = self.mirror(x, (self._border(height), self._border(width)))
        skips = [self.inc(x)]
        for pool, down, dropout in zip(self.pools, self.downs, self.dropouts, strict=True):
            skips.append(dropout(down(pool(skips[-1]))))
        x = skips.pop()
        for up in self.ups:
            x = up(x, skips.pop())
        return self.outc(x)[..., :height, :width]

    def _border(self, size: int) -> tuple[int, int]:
        """Pixels to add before and after, such that valid convolutions give at least `size` and every map is even."""
        bottom = 1
        while self._sizes(bottom)[1] < size:
            bottom += 1
        given, out = self._sizes(bottom)
        before = (given - out) // 2
        return before, given - size - before

    def _sizes(self, bottom: int) -> tuple[int, int]:
        """Sizes of the input and of the output whose lowest map has `bottom` pixels a side (28 in Fig. 1)."""
        given = bottom + 4
        out = bottom
        for _ in range(self.depth):
            given, out = 2 * given + 4, 2 * out - 4
        return given, out


class EncoderUNet(nn.Module):
    """The expanding path on the maps of a classification network; a last step reaches the input's size."""

    task = "segmentation"

    def __init__(
        self,
        backbone: Encoder,
        num_classes: int,
        *,
        decoder_channels: Sequence[int],
        dropout: float,
        layers: LayerFactory,
    ):
        super().__init__()
        self.backbone = backbone
        self.min_size = backbone.min_size
        # Of several maps with one stride the last counts.
        self.taken = [
            i for i, s in enumerate(backbone.strides) if i + 1 == len(backbone.strides) or backbone.strides[i + 1] != s
        ]
        skips = [backbone.channels[i] for i in self.taken[:-1]]
        if len(decoder_channels) < len(skips):
            raise ValueError(
                f"decoder_channels needs {len(skips)} widths for this encoder, got {len(decoder_channels)}"
            )
        channels = backbone.channels[-1]
        self.dropout = nn.Dropout(dropout)
        self.ups = nn.ModuleList()
        for skip, width in zip(reversed(skips), decoder_channels, strict=False):
            self.ups.append(Up(channels, skip, width, layers=layers))
            channels = width
        self.outc = nn.Conv2d(channels, num_classes, 1)
        self.upsample = layers.upsample(num_classes, backbone.strides[self.taken[0]])
        for head in (self.ups, self.outc):
            layers.init(head, paper=he_normal)  # section 3

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        every = self.backbone(x)
        *skips, x = [every[i] for i in self.taken]
        x = self.dropout(x)
        for up in self.ups:
            x = up(x, skips.pop())
        return self.upsample(self.outc(x), size=size)


def unet(num_classes: int = 21, *, layers: LayerFactory = PLAIN, **options: Any) -> UNet:
    """U-Net a quarter as wide as the paper's: 1,941,445 parameters at 21 classes.

    At width 64 it has 31,033,045, and 31,030,658 with the paper's one channel and two classes. With batch norm, two
    classes and width 64 it has 31,037,698, as milesial/Pytorch-UNet.
    """
    return UNet(num_classes, layers=layers, **options)


def unet_encoder(
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    encoder: str | nn.Module = "resnet34",
    encoder_options: Mapping[str, Any] | None = None,
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    dropout: float = 0.0,
    layers: LayerFactory = LayerFactory(),
) -> EncoderUNet:
    """U-Net on ResNet-34: 24,343,381 parameters at 21 classes."""
    backbone = make_encoder(encoder, in_channels=in_channels, layers=layers, network_options=encoder_options)
    return EncoderUNet(backbone, num_classes, decoder_channels=decoder_channels, dropout=dropout, layers=layers)
