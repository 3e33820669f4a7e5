"""Convolution: a small window of weights, the same at every place of a map.

Sizes, the same as a matrix product, and both gradients written out.
"""

import numpy as np
import torch
from torch.nn import functional as F

from cnn_train.explain.check import agree, limits, number, require
from cnn_train.explain.draw import cells
from cnn_train.explain.page import Page

DUMOULIN = "[Dumoulin & Visin 2016](https://arxiv.org/abs/1603.07285)"


def explain(size: int = 7, kernel: int = 3, stride: int = 2, padding: int = 1, dilation: int = 1) -> Page:
    """A window of `kernel` weights over `size` pixels, first along one axis."""
    limits(size=(size, 1, 16), kernel=(kernel, 1, 9), stride=(stride, 1, 8))
    limits(padding=(padding, 0, 8), dilation=(dilation, 1, 8))
    window = f"kernel {kernel}" + (f" with dilation {dilation}" if dilation > 1 else "")
    fits = dilation * (kernel - 1) + 1 <= size + 2 * padding
    require(fits, f"{window} does not fit {size} pixels with padding {padding}")
    page = Page("Convolution", "A small window of weights, the same at every place: each output is one dot product.")

    draw = np.random.default_rng(0)
    x, w = draw.integers(1, 10, size).astype(float), draw.permutation(np.arange(kernel) - kernel // 2).astype(float)
    one_axis(page, x, w, stride, padding, dilation)
    two_axes(page, size, kernel, stride, padding, dilation)
    page.see(
        layers="torch.nn.Conv2d cnn_train.layers.factory.LayerFactory",
        networks="lenet5 alexnet vgg16 resnet18 unet",
        claims="docs/claims.md#two_3x3",
        topics="channels pooling dilation upsampling receptive_field",
    )
    return page


def one_axis(page: Page, x: np.ndarray, w: np.ndarray, stride: int, padding: int, dilation: int) -> None:
    size, kernel = len(x), len(w)
    page.head("How many outputs, and what each reads")
    page.formula("o = ⌊(n + 2p − d(k − 1) − 1) / s⌋ + 1", f"{DUMOULIN}, relationship 15")
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    places = [[stride * i - padding + dilation * j for j in range(kernel)] for i in range(outputs)]
    y = np.array([sum(w[j] * x[place] for j, place in enumerate(row) if 0 <= place < size) for row in places])
    pixels, weights = (torch.tensor(values)[None, None].requires_grad_() for values in (x, w))
    reference = F.conv1d(pixels, weights, stride=stride, padding=padding, dilation=dilation)
    page.say(f"""$n$ = {size} pixels, $k$ = {kernel} weights, stride $s$ = {stride}, padding $p$ = {padding} and
        dilation $d$ = {dilation} give $o$ = {agree(outputs, reference.size(2))} outputs. Output $i$ reads the places
        $s·i − p + d·j$ for $j$ = 0 ... $k$ − 1; outside the map there are zeros, the padding. (The weights are not
        turned around, so it is strictly a cross-correlation; for weights that are learned this is the same.) Let the
        pixels be $x$ = {number(x)} and the weights $w$ = {number(w)}.""")
    rows = []
    for i, row in enumerate(places):
        products = [f"{number(x[place])}·{number(w[j])}" for j, place in enumerate(row) if 0 <= place < size]
        rows.append([f"$y_{i}$", number(row), " + ".join(products), agree(y[i], reference[0, 0, i])])
    page.table(["output", "places", "products", "sum"], rows)

    page.head("The same as a matrix product, in two ways")
    columns, matrix = np.zeros((outputs, kernel)), np.zeros((outputs, size))
    for i, row in enumerate(places):
        for j, place in enumerate(row):
            if 0 <= place < size:
                columns[i, j], matrix[i, place] = x[place], w[j]
    unfolded = F.unfold(torch.tensor(x).view(1, 1, 1, -1), (1, kernel), (1, dilation), (0, padding), (1, stride))[0].T
    page.say(f"""Copy what each output reads into a row (*im2col*): times the weights, this gives
        $y$ = {agree(columns @ w, y)}, and is what fast libraries compute. Or write the weights into the rows of a
        matrix $T$ that acts on the whole map, each row shifted by the stride (a *Toeplitz* matrix when $s$ = 1): times
        the pixels, it gives $y$ = {agree(matrix @ x, y)}. Of its {matrix.size} entries {np.count_nonzero(matrix)} are
        not zero (that is locality) and only {kernel} are free (that is sharing).""")
    same = agree(columns, unfolded)
    page.picture(f"Left times w, or right times x. Torch's `unfold` makes the same left matrix {same:✓}.",
                 cells(columns, "im2col"), cells(matrix, "matrix T", zeros=False))  # fmt: skip

    page.head("Both gradients, written out")
    page.formula(
        "∂L/∂w_j = Σ_i δ_i x_{s·i − p + d·j},   ∂L/∂x = T^{⊤} δ", f"δ = ∂L/∂y; chain rule, {DUMOULIN}, chapter 4"
    )
    delta = np.arange(1.0, outputs + 1)
    by_pixel, by_weight = torch.autograd.grad(reference, (pixels, weights), torch.tensor(delta)[None, None])
    sums = [sum(delta[i] * columns[i, j] for i in range(outputs)) for j in range(kernel)]
    page.say(f"""Let the error arrive as $δ$ = {number(delta)}. A weight acts at every place, so its gradient is a sum
        over the places: $∂L/∂w$ = {agree(sums, by_weight[0, 0])}. A pixel gets its error from every output that read
        it, through the same weights: $∂L/∂x$ = {agree(matrix.T @ delta, by_pixel[0, 0])}. This product with the
        transposed matrix is the transposed convolution.""")


def two_axes(page: Page, size: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    page.head("On rows and columns")
    draw = np.random.default_rng(1)
    x, w = draw.integers(0, 10, (size, size)), draw.integers(-1, 2, (kernel, kernel))
    pixels, weights = torch.tensor(x)[None, None].double(), torch.tensor(w)[None, None].double()
    y = F.conv2d(pixels, weights, stride=stride, padding=padding, dilation=dilation)[0, 0].numpy()
    middle = len(y) // 2
    places = [middle * stride - padding + dilation * j for j in range(kernel)]
    inside = [(j, place) for j, place in enumerate(places) if 0 <= place < size]
    total = sum(w[i, j] * x[row, column] for i, row in inside for j, column in inside)
    sum_of_products = agree(total, y[middle, middle])
    page.picture(f"The framed output is the sum of the framed pixels, each times its weight: {sum_of_products}.",
                 cells(x, "pixels", marked=[(row, column) for _, row in inside for _, column in inside]),
                 cells(w, "weights"), cells(y, "outputs", marked=[(middle, middle)]))  # fmt: skip
