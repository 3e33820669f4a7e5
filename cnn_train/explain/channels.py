"""Channels: what a convolution costs, and grouped, depthwise, separable and 1x1 convolutions.

Parameters and connections are counted by formula and by torch; locality and sharing are what a dense layer lacks.
"""

from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cnn_train.explain.check import agree, limits, number, require
from cnn_train.explain.draw import heat
from cnn_train.explain.page import Page


def explain(size: int = 8, kernel: int = 3, channels: int = 16, outputs: int = 32, groups: int = 4) -> Page:
    """From `channels` to `outputs` channels on `size` by `size` pixels, zero-padded so that the size stays."""
    limits(size=(size, 2, 64), kernel=(kernel, 1, 15), channels=(channels, 1, 512), outputs=(outputs, 1, 512))
    limits(groups=(groups, 1, channels))
    require(kernel % 2 == 1, f"kernel must be odd, so that the padded map keeps its size, got {kernel}")
    require(kernel < size, f"kernel {kernel} must be smaller than the map, whose size is {size}")
    divides = channels % groups == outputs % groups == 0
    require(divides, f"groups must divide channels and outputs, got {groups} for {channels} and {outputs}")
    n, k, c, m = size, kernel, channels, outputs
    page = Page(
        "Channels", "Each output channel sums a window of every input channel, unless it is told to look at fewer."
    )

    page.head("Parameters and connections")
    page.formula("parameters = (k^{2}C/g + 1) N,   connections = o^{2} (k^{2}C/g + 1) N",
                 "C channels in, N out, in g groups; the + 1 is the bias. LeCun et al. 1998, section II.B")  # fmt: skip
    conv = partial(nn.Conv2d, device="meta")  # shapes, no numbers
    depthwise = conv(c, c, k, padding="same", groups=c)
    kinds = {
        "full": [conv(c, m, k, padding="same")],
        "1×1": [conv(c, m, 1)],
        f"{groups} groups": [conv(c, m, k, padding="same", groups=groups)],
        "depthwise (g = C)": [depthwise],
        "separable": [depthwise, conv(c, m, 1)],
        "global depthwise (k = n)": [conv(c, c, n, groups=c)],
    }
    rows = []
    for name, layers in kinds.items():
        ours, bare, connections, counted = 0, 0, 0, 0
        for layer in layers:
            fan_in, o = layer.kernel_size[0] ** 2 * c // layer.groups, 1 if layer.kernel_size[0] == n else n
            ours += (fan_in + 1) * layer.out_channels
            bare += fan_in * layer.out_channels
            connections += o**2 * (fan_in + 1) * layer.out_channels
            with FlopCounterMode(display=False) as counter:  # counts multiplications and additions, no biases
                counted += layer(torch.zeros(1, c, n, n, device="meta")).numel()
            counted += counter.get_total_flops() // 2
        theirs = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
        rows.append([name, agree(ours, theirs), bare, agree(connections, counted)])
    local, dense = (k * k * c + 1) * n * n * m, (n * n * c + 1) * n * n * m
    rows += [["local, but not shared", local, local - n * n * m, local], ["dense", dense, dense - n * n * m, dense]]
    heads = ["layer", "parameters", "without bias", "connections"]
    page.table(heads, rows, f"{n}×{n} pixels, C = {c}, N = {m}, k = {k}")
    figures, texts = [], []
    for name, g in (("full", 1), (f"{groups} groups", groups)):
        reads = np.kron(np.eye(g), np.ones((m // g, c // g)))
        texts.append(f"{name}: {agree(reads.sum() * k * k, kinds[name][0].weight.numel())} weights")
        figures.append(heat(reads, name))
    page.picture(f"Which input channels (columns) an output channel (row) reads. {'; '.join(texts)}.", *figures)
    page.say(f"""Against a dense layer to as many outputs, locality saves a factor of {number(dense / local)}, and
        sharing another {n * n}, the number of places.""")
    full, both = (sum(layer.weight.numel() for layer in kinds[name]) for name in ("full", "separable"))
    separable(page, n, k, c, m, both / full)
    page.see(
        layers="torch.nn.Conv2d cnn_train.layers.blocks.SeparableConv2d cnn_train.layers.pool.GlobalDepthwiseConv",
        networks="nin alexnet_2012 resnext50_32x4d mobilenet_v1 mobilenet_v2 xception deeplabv3plus",
        claims="docs/claims.md#separable docs/claims.md#squeeze_excitation",
        topics="convolution",
    )
    return page


def separable(page: Page, n: int, k: int, c: int, m: int, share: float) -> None:
    page.head("Separable convolutions")
    howard = "[Howard et al. 2017](https://arxiv.org/abs/1704.04861), section 3.1"
    page.formula("(k^{2}C + C·N) / (k^{2}C·N) = 1/N + 1/k^{2}", howard)
    w, x = np.random.default_rng(2).normal(size=(m, c)), np.random.default_rng(3).normal(size=(c, n, n))
    mixed = agree(np.einsum("mc,chw->mhw", w, x), F.conv2d(torch.tensor(x), torch.tensor(w)[:, :, None, None]))
    page.say(f"""A depthwise convolution looks around within a channel, a 1×1 convolution mixes channels. Together
        they have {agree(1 / m + 1 / k**2, share):.3f} of a full one's weights. A 1×1 convolution is
        one {m} by {c} matrix, the same at every pixel: a matrix product per pixel gives the same
        {mixed.value.size:,} numbers {mixed:✓}.""")
