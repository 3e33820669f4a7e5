"""Initialization: how large signals and gradients are, layer by layer, for each initializer and activation.

The variance that a layer passes on, by formula and measured in a deep stack.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cnn_train.explain.check import agree, limits, number
from cnn_train.explain.draw import curves
from cnn_train.explain.page import Page
from cnn_train.layers import init

HE = "[He et al. 2015](https://arxiv.org/abs/1502.01852)"
ACTS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "identity": nn.Identity}
INITIALIZERS = {
    "normal, 0.01": init.normal,
    "lecun_normal": init.lecun_normal,
    "xavier_normal": init.xavier_normal,
    "xavier_uniform": init.xavier_uniform,
    "he_normal": init.he_normal,
    "he_uniform": init.he_uniform,
    "orthogonal": init.orthogonal,
}


def explain(act: Literal["relu", "tanh", "sigmoid", "identity"] = "relu", depth: int = 20, width: int = 256) -> Page:
    """`depth` dense layers of `width` units, each followed by `act`, on standard normal numbers."""
    limits(depth=(depth, 2, 50), width=(width, 128, 512))
    page = Page("Initialization", "A deep network learns if its first signals and gradients neither fade nor explode.")

    page.head("What one layer does to the size of a signal")
    page.formula(
        "Var[s] = n Var[w] E[x^{2}],   so E[x_l^{2}] stays if n Var[w] E[f(z)^{2}] = 1",
        f"n inputs, independent weights of mean 0; {HE}, section 2.2",
    )
    page.say(f"""Xavier's weights have the variance $2/(n_{{in}} + n_{{out}})$, which keeps signal and gradient of a
        linear layer. A rectifier drops half of the signal's square, so He's have $2/n$: Xavier's halve it in every
        layer, and after {depth} layers $2^{{−{depth}}}$ = {number(2.0**-depth)} of it is left.""")

    variances = {
        "normal, 0.01": 1e-4, "lecun_normal": 1 / width, "xavier_normal": 1 / width, "xavier_uniform": 1 / width,
        "he_normal": init.gain(ACTS[act]) ** 2 / width, "he_uniform": init.gain(ACTS[act]) ** 2 / width,
        "orthogonal": init.gain(ACTS[act]) ** 2 / width,
    }  # fmt: skip
    page.head(f"Measured: {depth} layers of {width} units with {act}")
    rows, forward, backward = [], {}, {}
    for name, initializer in INITIALIZERS.items():
        layers = [nn.Linear(width, width, device="meta").to_empty(device="cpu") for _ in range(depth)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            x = torch.randn(128, width)
            for layer in layers:
                initializer(layer, act=ACTS[act])
        signals, gradients = through(x, layers, ACTS[act]())
        forward[name], backward[name] = signals, gradients
        weight = torch.stack([layer.weight.detach() for layer in layers])
        drawn = agree(variances[name], float(weight.var()), within=0.05)
        first = agree(np.sqrt(width * variances[name]), signals[1] / signals[0], within=0.05)
        rows.append([name, drawn, first, signals[-1], gradients[0] / gradients[-1]])
    heads = ["init=", "Var[w], by formula", "first layer's factor", "signal at the end", "gradient, first/last"]
    page.table(heads, rows, "root mean squares before the activation; ticks: as drawn, and as measured, within 5 %")
    if act in ("relu", "identity"):
        chance = 4 / np.sqrt(width * (depth - 1))  # each layer's factor is that of a finite number of random weights
        keep, signal = {"relu": 0.5, "identity": 1.0}[act], forward["xavier_normal"]
        factor = agree(np.sqrt(keep), (signal[-1] / signal[1]) ** (1 / (depth - 1)), chance)
        page.say(f"""Behind the first layer, {act} and Xavier's weights multiply the signal by {factor:.3f} in every
            layer: the root of {keep:g}, as near as chance lets it.""")
    page.picture("Both should be level. Lines that fall by a factor per layer are straight on this scale.",
                 curves(range(depth + 1), forward, "signal", "layer", "root mean square", log=True),
                 curves(range(1, depth + 1), backward, "gradient", "layer", "root mean square", log=True))  # fmt: skip
    page.see(
        layers="cnn_train.layers.init.he_normal cnn_train.layers.init.xavier_uniform cnn_train.layers.init.lsuv",
        networks="lenet5 vgg16 resnet50 densenet121",
        claims="docs/claims.md#he_xavier docs/claims.md#norm_init",
        topics="activations normalization backpropagation",
    )
    return page


def through(x: Tensor, layers: list[nn.Linear], act: nn.Module) -> tuple[list[float], list[float]]:
    """Root mean squares: of the input and of each layer's output, and of the gradient by each output, first to last."""
    sums, size = [], [float(x.square().mean().sqrt())]
    for layer in layers:
        x = layer(x)
        sums.append(x)
        size.append(float(x.detach().square().mean().sqrt()))
        x = act(x)
    error = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(sums[-1], sums[:-1], error)
    return size, [float(gradient.square().mean().sqrt()) for gradient in (*found, error)]
