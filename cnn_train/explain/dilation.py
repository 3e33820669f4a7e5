"""Dilation: holes in the kernel, or a thinned-out image; gridding, and fields that grow exponentially.

A dilated convolution from the kernel's side and from the image's, what a stack of them skips, and what it sees.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cnn_train.analysis import receptive_field
from cnn_train.explain.check import agree, limits, number, require
from cnn_train.explain.draw import cells, curves
from cnn_train.explain.page import Page

YU = "[Yu & Koltun 2016](https://arxiv.org/abs/1511.07122)"
WANG = "[Wang et al. 2018](https://arxiv.org/abs/1702.08502)"


def explain(kernel: int = 3, dilation: int = 2, size: int = 8, layers: int = 5) -> Page:
    """A kernel of `kernel` by `kernel`, dilated, on `size` by `size` pixels; a stack of `layers` of them."""
    limits(kernel=(kernel, 2, 5), dilation=(dilation, 2, 4), size=(size, 4, 12), layers=(layers, 2, 7))
    reach = kernel + (kernel - 1) * (dilation - 1)
    require(reach <= size, f"kernel {kernel} with dilation {dilation} spans {reach} pixels, more than size {size}")
    page = Page("Dilation", "A kernel with holes sees further with as many weights, and keeps the resolution.")
    draw = np.random.default_rng(0)
    x = torch.tensor(draw.integers(0, 10, (1, 1, size, size))).double()
    w = torch.tensor(draw.integers(-2, 3, (1, 1, kernel, kernel))).double()
    y = F.conv2d(x, w, dilation=dilation)

    page.head("From the kernel's side: holes")
    page.formula("k' = k + (k − 1)(d − 1)", f"{YU}, section 2")
    side = agree(size - reach + 1, y.shape[-1])
    holes = torch.zeros(1, 1, reach, reach).double()
    holes[..., ::dilation, ::dilation] = w
    page.say(f"""With $d$ = {dilation}, neighbours of the {kernel}×{kernel} weights are {dilation} pixels apart, so that
        the kernel spans $k'$ = {reach} pixels. A plain convolution with this larger kernel gives the same {side} by
        {side} outputs
        {agree(F.conv2d(x, holes), y):✓}; the dilated one leaves out the products with zero.""")
    page.picture(f"{kernel * kernel} weights over {reach * reach} pixels.", cells(w[0, 0], "weights"),
                 cells(holes[0, 0], f"with holes, d = {dilation}", zeros=False), cells(y[0, 0], "outputs"))  # fmt: skip

    page.head("From the image's side: thinned-out images")
    page.say(f"""Or keep one row in {dilation} and one column in {dilation}, starting at each of {dilation**2} places,
        convolve these {dilation**2} small images with the plain kernel, and put the results back where they belong: the
        same numbers. Neighbouring outputs are made of different pixels altogether.""")
    put_together = torch.zeros_like(y)
    for row in range(dilation):
        for column in range(dilation):
            part = x[..., row::dilation, column::dilation]
            if min(part.shape[-2:]) >= kernel:
                put_together[..., row::dilation, column::dilation] = F.conv2d(part, w)
    part = x[0, 0, ::dilation, ::dilation]
    kept = [(row, column) for row in range(0, size, dilation) for column in range(0, size, dilation)]
    same = agree(put_together, y)
    page.picture(f"The image and one of its parts; put together, the parts' outputs are those above {same:✓}.",
                 cells(x[0, 0], "pixels", marked=kept), cells(part, "framed ones"))  # fmt: skip

    gridding(page, dilation)
    growth(page, kernel, layers)
    page.see(
        layers="torch.nn.Conv2d cnn_train.layers.factory.LayerFactory cnn_train.models.encoder.Encoder",
        networks="deeplabv1 deeplabv2 deeplabv3 deeplabv3plus pspnet",
        claims="docs/segmentation.md#what-the-papers-claim",
        topics="convolution receptive_field",
    )
    return page


def ways(rates: list[int]) -> np.ndarray:
    """How many ways lead from each pixel of a line to one unit behind 3-tap convolutions of these rates."""
    count = np.ones(1)
    for rate in rates:
        taps = np.zeros(2 * rate + 1)
        taps[::rate] = 1
        count = np.convolve(count, taps)
    return count


def gridding(page: Page, dilation: int) -> None:
    page.head("Gridding")
    page.formula("paths = h_1 ∗ h_2 ∗ h_3,   h_i = (1, 0 ... 0, 1, 0 ... 0, 1)", f"all weights 1; {WANG}, section 3.2")
    figures, texts = [], []
    for rates in ([dilation] * 3, [1, 2, 5]):
        ours = ways(rates)
        line = torch.zeros(1, 1, 1 + 2 * sum(rates)).double().requires_grad_()
        y = line
        for rate in rates:
            y = F.conv1d(y, torch.ones(1, 1, 3).double(), dilation=rate)
        (reference,) = torch.autograd.grad(y.sum(), line)
        square = np.outer(ours, ours)
        name = f"rates {', '.join(map(str, rates))}"
        texts.append(f"{name}: of {len(ours)}×{len(ours)} pixels {np.mean(square == 0):.0%} are read by no path")
        figures.append(cells([agree(ours, reference[0, 0]).value], f"paths along a line, {name}"))
    page.say(f"""Stack three such layers of one rate, and a unit reads only pixels that lie a multiple of {dilation}
        apart. {WANG} take rates without a common divisor instead. {"; ".join(texts)}.""")
    page.picture("How many paths lead from each pixel to the unit; 0: it is never read.", *figures)


def growth(page: Page, kernel: int, layers: int) -> None:
    page.head("Growth of the field: linear against exponential")
    page.formula("rates 1, 1, 1 ...: r_n = 1 + n (k − 1),   rates 1, 2, 4 ...: r_n = 1 + (2^{n} − 1)(k − 1)",
                 f"{YU}, equation 4 for k = 3")  # fmt: skip
    depths = range(1, layers + 1)
    lines = {
        "rates 1, 1, 1 ...": [1 + n * (kernel - 1) for n in depths],
        "rates 1, 2, 4 ...": [1 + (2**n - 1) * (kernel - 1) for n in depths],
    }
    fields = []
    for formula, base in zip(lines.values(), (1, 2), strict=True):
        rates = [base**n for n in range(layers)]
        stack = nn.Sequential(*[nn.Conv2d(1, 1, kernel, dilation=rate, device="meta") for rate in rates])
        room = sum(rates) * (kernel - 1) + 1
        seen = [row.receptive_field[0] for row in receptive_field(stack, (1, room, room)) if row.receptive_field]
        fields.append([agree(ours, theirs) for ours, theirs in zip(formula, seen, strict=True)])
    rows = [[n, *pair, n * kernel**2] for n, *pair in zip(depths, *fields, strict=True)]
    page.table(["layers", *lines, "weights of either"], rows, "field in pixels, as `cnn-train inspect` traces it")
    page.picture(f"With the same {number(layers * kernel**2)} weights.",
                 curves(depths, lines, "receptive field", "layers", "pixels", dots=True))  # fmt: skip
