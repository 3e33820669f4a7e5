"""Upsampling against references written by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnn_train.layers import LayerFactory
from cnn_train.layers.init import he_normal
from cnn_train.layers.upsample import (
    Bilinear,
    Nearest,
    PixelShuffle,
    Transposed,
    Unpool,
    bilinear_kernel,
    fit,
    pad_to_grid,
)

ALL = [Bilinear, Nearest, Transposed, PixelShuffle]


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_output_is_scale_times_the_input_or_the_size_asked_for(make, scale):
    up = make(3, scale)
    x = torch.randn(2, 3, 5, 4)
    assert up(x).shape == (2, 3, 5 * scale, 4 * scale)
    for size in [(5 * scale - 1, 4 * scale), (5 * scale + 1, 4 * scale + 2), (7, 9)]:
        assert up(x, size=size).shape == (2, 3, *size)
        assert up(x, size=torch.Size(size)).shape == (2, 3, *size)


@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_is_linear_between_pixel_centres(align_corners):
    x = torch.randn(1, 1, 4, 5, dtype=torch.float64)
    y = Bilinear(1, 3, align_corners=align_corners)(x)
    for i in range(12):
        for j in range(15):
            if align_corners:
                a, b = i * 3 / 11, j * 4 / 14
            else:
                a, b = min(max((i + 0.5) / 3 - 0.5, 0), 3), min(max((j + 0.5) / 3 - 0.5, 0), 4)
            top, left = min(int(a), 2), min(int(b), 3)
            u, v = a - top, b - left
            corners = x[0, 0, top : top + 2, left : left + 2].flatten().tolist()
            shares = [(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v]
            wanted = sum(share * corner for share, corner in zip(shares, corners, strict=True))
            assert y[0, 0, i, j].item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("height", "width", "stride"), [(64, 61, 8), (97, 65, 8), (30, 1, 4), (7, 6, 1)])
def test_on_the_grid_interpolation_between_corners_brings_every_sample_back(height, width, stride):
    y, x = torch.arange(height, dtype=torch.float64)[:, None] / 3, 2 * torch.arange(width)
    ramp = (y + x).expand(1, 1, height, width)
    padded = pad_to_grid(ramp, stride)
    assert torch.equal(padded[..., :height, :width], ramp) and padded.count_nonzero() == ramp.count_nonzero()
    assert all(0 <= now - before < stride for now, before in zip(padded.shape, ramp.shape, strict=True))
    scores = F.conv2d(padded, ramp.new_ones(1, 1, 1, 1), stride=stride)
    back = Bilinear(1, stride, align_corners=True)(scores, size=padded.shape[-2:])
    inside = (..., slice((height - 1) // stride * stride + 1), slice((width - 1) // stride * stride + 1))
    torch.testing.assert_close(back[inside], padded[inside], rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_nearest_repeats_pixels(scale):
    x = torch.randn(2, 3, 4, 5)
    wanted = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    assert torch.equal(Nearest(3, scale)(x), wanted)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 8, 16])
def test_transposed_starts_as_bilinear_interpolation(scale):
    up = Transposed(3, scale).double()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    wanted = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    inside = slice(scale, -scale)
    torch.testing.assert_close(up(x)[..., inside, inside], wanted[..., inside, inside], rtol=0, atol=1e-6)


def test_transposed_keeps_its_start_under_an_initializer_and_learns():
    up = Transposed(3, 2)
    start = up.weight.detach().clone()
    he_normal(nn.Sequential(nn.Conv2d(3, 3, 3), up))
    assert torch.equal(up.weight, start)
    up(torch.randn(1, 3, 4, 4)).square().sum().backward()
    assert up.weight.grad.abs().sum() > 0


def test_bilinear_kernel_by_hand():
    side = torch.tensor([0.25, 0.75, 0.75, 0.25])
    torch.testing.assert_close(bilinear_kernel(4, 2), torch.outer(side, side))
    side = torch.tensor([1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3])
    torch.testing.assert_close(bilinear_kernel(5, 3), torch.outer(side, side))


def test_pixel_shuffle_moves_channels_into_space():
    up = PixelShuffle(2, 3).double()
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    channels, y = up.conv(x), up(x)
    for c in range(2):
        for i in range(9):
            for j in range(12):
                assert y[0, c, i, j] == channels[0, c * 9 + i % 3 * 3 + j % 3, i // 3, j // 3]


@pytest.mark.parametrize("size", [(8, 10), (7, 9), (6, 5)])
def test_unpool_puts_maxima_back_where_they_were(size):
    x = torch.rand(2, 3, *size) + 1
    y, indices = nn.MaxPool2d(2, 2, ceil_mode=True, return_indices=True)(x)
    back = Unpool(3, 2)(y, size=size, indices=indices)
    assert back.shape == x.shape
    kept = back != 0
    assert torch.equal(back[kept], x[kept]) and int(kept.sum()) == y.numel()
    again = nn.MaxPool2d(2, 2, ceil_mode=True)(back)
    assert torch.equal(again, y)


def test_unpool_without_positions_says_what_to_do():
    with pytest.raises(ValueError, match="upsample=unpool needs the positions"):
        Unpool(3, 2)(torch.rand(1, 3, 4, 4))


def test_fit_crops_and_repeats_the_border():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert fit(x, None) is x and fit(x, (2, 3)) is x
    assert fit(x, (1, 4))[0, 0].tolist() == [[0, 1, 2, 2]]
    assert fit(x, (4, 2))[0, 0].tolist() == [[0, 1], [3, 4], [3, 4], [3, 4]]


def test_factory_gives_the_chosen_upsampling_or_the_papers():
    assert isinstance(LayerFactory().upsample(3, 2), Bilinear)
    assert isinstance(LayerFactory().upsample(3, 2, paper=Nearest), Nearest)
    assert isinstance(LayerFactory(upsample_layer=PixelShuffle).upsample(3, 2, paper=Nearest), PixelShuffle)
