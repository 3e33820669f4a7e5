"""Upsampling: transposed convolution, interpolation and unpooling side by side, and where checkerboards come from.

A transposed convolution as the transpose of a matrix and as zeros between pixels; the overlap that makes patterns.
"""

import numpy as np
import torch
from torch.nn import functional as F

from cnn_train.explain.check import agree, limits, number, require
from cnn_train.explain.draw import cells, heat
from cnn_train.explain.page import Page
from cnn_train.layers.upsample import Transposed, bilinear_kernel

DUMOULIN = "[Dumoulin & Visin 2016](https://arxiv.org/abs/1603.07285)"
ODENA = "[Odena, Dumoulin & Olah 2016](https://distill.pub/2016/deconv-checkerboard/)"


def explain(size: int = 4, kernel: int = 3, stride: int = 2, padding: int = 0) -> Page:
    """From `size` pixels to about `stride` times as many, with a kernel of `kernel`; `padding` crops the output."""
    limits(size=(size, 2, 8), kernel=(kernel, 1, 8), stride=(stride, 1, 4), padding=(padding, 0, 4))
    outputs = stride * (size - 1) + kernel - 2 * padding
    require(padding < kernel, f"padding must be smaller than kernel {kernel}, got {padding}")
    require(outputs > 0, f"padding {padding} crops all of the {outputs + 2 * padding} outputs; make it smaller")
    page = Page("Upsampling", "Ways to a larger map: learned, interpolated, or put back to where it came from.")
    draw = np.random.default_rng(0)
    x, w = draw.integers(1, 10, size).astype(float), draw.permutation(np.arange(1.0, kernel + 1))
    reference = F.conv_transpose1d(
        torch.tensor(x)[None, None], torch.tensor(w)[None, None], stride=stride, padding=padding
    )

    page.head("A transposed convolution: the transpose of the matrix")
    page.formula("o = s (n − 1) + k − 2p,   y = T^{⊤} x", f"{DUMOULIN}, relationship 13")
    matrix = np.zeros((size, outputs))  # of the convolution from `outputs` to `size` pixels
    for i in range(size):
        for j in range(kernel):
            place = stride * i - padding + j
            if 0 <= place < outputs:
                matrix[i, place] = w[j]
    page.say(f"""A convolution of kernel $k$ = {kernel}, stride $s$ = {stride} and padding $p$ = {padding} turns
        {outputs} pixels into $n$ = {size}, by the matrix $T$. Its transpose goes the other way, from {size} to
        {agree(outputs, reference.size(2))}: the path of the gradient, with weights $w$ = {number(w)}. It is not the
        inverse. The pixels $x$ = {number(x)} become {agree(matrix.T @ x, reference[0, 0])}: each pixel stamps the
        kernel, {stride} places from the last stamp, and where stamps overlap they are added.""")
    page.picture("Each column of the right matrix is a stamp.", cells(matrix, "T", zeros=False),
                 cells(matrix.T, "its transpose", zeros=False))  # fmt: skip

    page.head("The same with zeros between the pixels")
    wide = np.zeros(stride * (size - 1) + 1)
    wide[::stride] = x
    convolved = np.convolve(wide, w)[padding : padding + outputs]
    page.say(f"""Spread the pixels out by the stride, {number(wide)}, pad by $k − 1 − p$ = {kernel - 1 - padding}, and
        convolve with stride 1 and the weights turned around: {agree(convolved, reference[0, 0])}.""")

    checkerboard(page, kernel, stride)
    side_by_side(page)
    page.see(
        layers="torch.nn.ConvTranspose2d cnn_train.layers.upsample.Transposed cnn_train.layers.upsample.Bilinear "
        "cnn_train.layers.upsample.Unpool cnn_train.layers.upsample.PixelShuffle",
        networks="fcn8s unet segnet deeplabv3 gcn",
        claims="docs/segmentation.md#what-the-papers-claim",
        topics="convolution pooling deconvnet",
    )
    return page


def checkerboard(page: Page, kernel: int, stride: int, size: int = 12) -> None:
    page.head("Checkerboards")
    page.say(f"""If the stride does not divide the kernel, some outputs get more stamps than others, and a constant
        becomes a pattern that the weights would have to unlearn ({ODENA}).""")
    figures, texts = [], []
    for k in dict.fromkeys([kernel, stride * -(-kernel // stride)]):  # the second is one that the stride divides
        line = np.zeros(stride * (size - 1) + k)
        for i in range(size):
            line[stride * i : stride * i + k] += 1
        overlap = np.outer(line, line)
        ones = torch.ones(1, 1, size, size).double(), torch.ones(1, 1, k, k).double()
        same = agree(overlap, F.conv_transpose2d(*ones, stride=stride)[0, 0])
        inside = overlap[k - 1 : 1 - k or None, k - 1 : 1 - k or None]
        few, many = number(inside.min()), number(inside.max())
        texts.append(f"kernel {k}: {few if few == many else f'{few} to {many}'} stamps for an output inside {same:✓}")
        figures.append(heat(overlap, f"kernel {k}, stride {stride}"))
    page.picture("What a map of ones becomes when all weights are 1. " + "; ".join(texts) + ".", *figures)


def side_by_side(page: Page) -> None:
    page.head("Three ways, side by side")
    page.formula("w_{ij} = (1 − |i − c|/s)(1 − |j − c|/s),   c = (k − 1)/2",
                 "FCN's start, [Long et al. 2015](https://arxiv.org/abs/1411.4038), section 3.3")  # fmt: skip
    x = torch.tensor(np.random.default_rng(3).permutation(16).reshape(1, 1, 4, 4)).double()
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    unpooled = torch.zeros(16).double()
    unpooled[indices.flatten()] = pooled.flatten()
    by_torch = F.max_unpool2d(pooled, indices, (2, 2))[0, 0]
    with torch.random.fork_rng(devices=[]):  # a layer draws weights, even if it then sets them
        learned = Transposed(1).double()(pooled).detach()
    ramp = 1 - np.abs(np.arange(4) - 1.5) / 2
    start = agree(np.outer(ramp, ramp), bilinear_kernel(4, 2), within=1e-6)
    bilinear = F.interpolate(F.pad(pooled, (1, 1, 1, 1)), scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]
    page.say(f"""Pool a map by its maxima and bring it back. *Unpooling* puts each maximum where it was and zeros
        elsewhere {agree(unpooled.view(4, 4), by_torch):✓}. *Interpolation* spreads it
        smoothly. A *transposed convolution* learns what to stamp; started with the weights above {start:✓} it
        interpolates, as if there were zeros around the map {agree(learned[0, 0], bilinear[0, 0]):✓}.""")
    smooth = F.interpolate(pooled, scale_factor=2, mode="bilinear")[0, 0]
    page.picture("The map, its maxima, and three ways back.", cells(x[0, 0], "pixels"), cells(pooled[0, 0], "maxima"),
                 cells(unpooled.view(4, 4), "unpooled", zeros=False), cells(smooth, "bilinear", spec=".3g"),
                 cells(learned[0, 0], "transposed, k = 4", spec=".3g"))  # fmt: skip
