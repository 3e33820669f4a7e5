"""Pooling: what a window keeps, where the error goes back to, and how much a shift still changes.

Mean, maximum and stochastic pooling, forward and backward, and their invariance measured.
"""

import numpy as np
import torch
from torch.nn import functional as F

from cnn_train.explain.check import agree, limits, number, require
from cnn_train.explain.draw import cells, curves
from cnn_train.explain.page import Page
from cnn_train.layers.pool import StochasticPool2d


def explain(size: int = 4, kernel: int = 2, stride: int = 2, seed: int = 0) -> Page:
    """Windows of `kernel` by `kernel` over a map of `size` by `size`; `seed` draws the stochastic choice."""
    limits(size=(size, 2, 10), kernel=(kernel, 1, 6), stride=(stride, 1, 6))
    require(kernel <= size, f"kernel {kernel} does not fit {size} pixels without padding")
    page = Page("Pooling", "A window becomes one number: its mean, its largest, or one drawn by lot.")
    x = 1.0 + np.random.default_rng(1).permutation(size * size).reshape(size, size)
    o = (size - kernel) // stride + 1
    starts = [(row * stride, column * stride) for row in range(o) for column in range(o)]
    windows = np.array([x[row : row + kernel, column : column + kernel].flatten() for row, column in starts])
    image = torch.tensor(x)[None, None].requires_grad_()
    delta = np.arange(1.0, o * o + 1)

    page.head("Forward")
    page.formula("mean: y = 1/k^{2} Σ_i a_i,   max: y = max_i a_i", "Boureau, Ponce & LeCun 2010")
    mean, largest = windows.mean(1), windows.max(1)
    by_mean, by_max = F.avg_pool2d(image, kernel, stride), F.max_pool2d(image, kernel, stride)
    page.picture(f"""The mean {agree(mean, by_mean.flatten()):✓} and the maximum {agree(largest, by_max.flatten()):✓} of
        each of {o * o} windows of {kernel}×{kernel}, {stride} pixels apart.""",
        cells(x, "pixels"), cells(mean.reshape(o, o), "mean"), cells(largest.reshape(o, o), "max"))  # fmt: skip

    page.head("Backward: the places that the error goes to")
    page.say(f"""Let the error of the outputs be $δ$ = {number(delta)}. The mean hands every pixel of its window the
        same share, $δ/k^{{2}}$. The maximum hands all of it to the pixel that won: a small change of another would not
        have changed the output. Where windows overlap, errors are added.""")
    mean_back, max_back = np.zeros((size, size)), np.zeros((size, size))
    for d, window, (row, column) in zip(delta, windows, starts, strict=True):
        mean_back[row : row + kernel, column : column + kernel] += d / kernel**2
        winner = int(window.argmax())
        max_back[row + winner // kernel, column + winner % kernel] += d
    same = agree(mean_back, back(by_mean, image, delta)), agree(max_back, back(by_max, image, delta))
    page.picture(f"The errors that arrive at the pixels, as autograd has them, too {same[0]:✓} {same[1]:✓}.",
                 cells(mean_back, "through mean"), cells(max_back, "through max", zeros=False))  # fmt: skip

    page.head("By lot")
    page.formula("p_i = a_i / Σ_k a_k,   training: y = a_l with l drawn by p,   evaluation: y = Σ_i p_i a_i",
                 "[Zeiler & Fergus 2013](https://arxiv.org/abs/1301.3557), section 3")  # fmt: skip
    chances = windows / windows.sum(1, keepdims=True)
    pool = StochasticPool2d(kernel, stride)
    expected = agree((chances * windows).sum(1), pool.eval()(image).flatten())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = pool.train()(image)
        many = torch.stack([pool(image).flatten() for _ in range(400)]).mean(0)
    lots, lot_back = drawn.detach().flatten().numpy(), np.zeros((size, size))
    for d, window, lot, (row, column) in zip(delta, windows, lots, starts, strict=True):
        place = list(window).index(lot)
        lot_back[row + place // kernel, column + place % kernel] += d
    page.say(f"""The first window holds {number(windows[0])}, so its chances are {number(chances[0])}. Evaluation gives
        the windows' expected values {expected}; the mean of 400 draws comes near them, {number(many)}
        {agree(many, expected.value, within=0.15):✓}. The error goes to the pixels that were drawn.""")
    same_back = agree(lot_back, back(drawn, image, delta))
    page.picture(f"One draw, seed {seed}: what it gave, and where its error goes {same_back:✓}.",
                 cells(lots.reshape(o, o), "drawn"), cells(lot_back, "through the draw", zeros=False))  # fmt: skip
    shifts(page)
    page.see(layers="torch.nn.MaxPool2d torch.nn.AvgPool2d cnn_train.layers.pool.StochasticPool2d",
             networks="lenet5 alexnet vgg16 googlenet nin segnet",
             topics="convolution upsampling receptive_field",
             claims="docs/claims.md#stochastic_pooling docs/claims.md#global_pooling")  # fmt: skip
    return page


def back(outputs: torch.Tensor, image: torch.Tensor, delta: np.ndarray) -> torch.Tensor:
    """The error of the outputs, sent back to the pixels by autograd."""
    return torch.autograd.grad(outputs, image, torch.tensor(delta).view_as(outputs))[0][0, 0]


def shifts(page: Page, k: int = 4) -> None:
    page.head("Invariance, measured")
    # Found features as single pixels, far apart; a gap of 4k + 1 puts them at every place of a window equally often.
    line = torch.zeros(1, k * k * (4 * k + 1)).double()
    line[0, :: 4 * k + 1] = 1
    ways = {"every kth pixel": lambda x: x[:, ::k], "max of k": lambda x: F.max_pool1d(x, k)}
    moves = range(2 * k + 1)
    change = {
        name: [float((way(line.roll(move, 1)) - way(line)).norm() / way(line).norm()) for move in moves]
        for name, way in ways.items()
    }
    formula = [np.sqrt(2 * min(move, k) / k) for move in moves]
    page.formula("‖y(moved by d) − y‖ / ‖y‖ = √(2d/k),   d ≤ k",
                 "d of k features leave their window, each is missing in one output and new in another")  # fmt: skip
    page.say(f"""Move a map of scattered features by one pixel. If only every {k}th pixel is kept, other features are
        seen than before, and the output changes by {change["every kth pixel"][1]:.2f} of its length. Maxima of {k}
        change by {change["max of k"][1]:.2f}, as the formula says, for every shift
        {agree(change["max of k"], formula):✓}. That helps with small shifts and is no invariance: moved by a whole
        window, the output has moved on by one.""")
    page.picture("How far the output moves; √2 is a map that shares nothing with the old one.",
                 curves(moves, change, "change under a shift", "shift, pixels", dots=True))  # fmt: skip
