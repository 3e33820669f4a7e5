"""Activations: functions and slopes, saturation, zero-centredness, and dead units made to happen.

Why a stack of sigmoids learns slowly, and how a rectifier dies of too large a step.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from cnn_train.explain.check import agree, limits, number
from cnn_train.explain.draw import curves
from cnn_train.explain.page import Page
from cnn_train.layers.init import gain

GLOROT = "[Glorot & Bengio 2010](https://proceedings.mlr.press/v9/glorot10a.html)"
rectify = partial(np.maximum, 0.0)


def explain(slope: float = 0.1, rate: float = 0.2, units: int = 64) -> Page:
    """`slope` of the leaky rectifier; `rate` and `units` of the network whose rectifiers die."""
    limits(slope=(slope, 0, 1), rate=(rate, 0.001, 1), units=(units, 4, 256))
    page = Page("Activations", "What stands between two linear layers, so that together they are more than one.")
    functions(page, slope)
    saturation(page)
    centre(page)
    dead(page, rate, units)
    page.see(
        layers="torch.nn.ReLU cnn_train.layers.act.PReLU cnn_train.layers.init.gain",
        networks="lenet5 alexnet mobilenet_v2 mobilenet_v3_large",
        claims="docs/claims.md#dying_relu docs/claims.md#relu_sparsity docs/claims.md#sigmoid_depth",
        topics="initialization backpropagation normalization",
    )
    return page


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def functions(page: Page, a: float) -> None:
    page.head("Functions and their slopes")
    page.formula("σ(z) = 1/(1 + e^{−z}),   σ' = σ(1 − σ),   tanh' = 1 − tanh^{2},   ReLU' = [z > 0]",
                 "LeCun et al. 1998, Efficient BackProp, section 4.4; Nair & Hinton 2010")  # fmt: skip
    kinds: dict[str, Any] = {
        "sigmoid": (sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z)), nn.Sigmoid()),
        "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2, nn.Tanh()),
        "ReLU": (rectify, lambda z: (z > 0) * 1.0, nn.ReLU()),
        f"leaky, {a:g}": (lambda z: np.where(z > 0, z, a * z), lambda z: np.where(z > 0, 1, a), nn.LeakyReLU(a)),
        "ELU": (lambda z: np.where(z > 0, z, np.expm1(z)), lambda z: np.where(z > 0, 1, np.exp(z)), nn.ELU()),
        "SiLU": (lambda z: z * sigmoid(z), lambda z: sigmoid(z) * (1 + z * (1 - sigmoid(z))), nn.SiLU()),
    }
    rows, points = [], torch.tensor([-2.0, -0.5, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    for name, (value, derivative, module) in kinds.items():
        y, z = module(points), points.detach().numpy()
        (slopes,) = torch.autograd.grad(y.sum(), points)
        rows.append([name, agree(value(z), y, within=1e-7), agree(derivative(z), slopes, within=1e-7)])
    page.table(["activation", "values", "slopes"], rows, f"at z = {number(points)}")
    z = np.linspace(-4, 4, 161)
    page.picture("The functions, and their slopes.",
                 curves(z, {name: value(z) for name, (value, _, _) in kinds.items()}, "activation", "z"),
                 curves(z, {name: slope(z) for name, (_, slope, _) in kinds.items()}, "slope", "z"))  # fmt: skip


def saturation(page: Page, depth: int = 10) -> None:
    page.head("Saturation")
    page.formula("max σ' = σ'(0) = 1/4,   max tanh' = tanh'(0) = 1", f"{GLOROT}, section 3")
    z = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    y = z
    for _ in range(depth):
        y = torch.sigmoid(y) - 0.5  # moved back to 0, where the next one is steepest
    (steepest,), flat = torch.autograd.grad(y, z), np.array(5.0)
    page.say(f"""Far from zero a sigmoid is flat: at z = 5 its slope is {sigmoid(flat) * (1 - sigmoid(flat)):.4f}, and
        hardly any error passes. Even at its steepest it passes a quarter: with weights of 1, {depth} in a row pass at
        most $4^{{−{depth}}}$ = {agree(0.25**depth, steepest):.2g}. A rectifier passes all or nothing.""")


def centre(page: Page) -> None:
    page.head("Zero-centredness, and what a layer does to the size of a signal")
    page.formula("ReLU: E[f(z)] = 1/√(2π),   E[f(z)^{2}] = 1/2,   gain = 1/√E[f(z)^{2}] = √2",
                 "z ~ N(0, 1); [He et al. 2015](https://arxiv.org/abs/1502.01852), section 2.2")  # fmt: skip
    z, step = np.linspace(-12, 12, 240001, retstep=True)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * step
    kinds: dict[str, Any] = {"sigmoid": (sigmoid, nn.Sigmoid), "tanh": (np.tanh, nn.Tanh), "ReLU": (rectify, nn.ReLU)}
    means = {name: density @ value(z) for name, (value, _) in kinds.items()}
    squares = {name: density @ value(z) ** 2 for name, (value, _) in kinds.items()}
    gains = {name: agree(1 / np.sqrt(squares[name]), gain(make), within=1e-5) for name, (_, make) in kinds.items()}
    rows = [[name, round(means[name], 6), squares[name], gains[name]] for name in kinds]
    page.table(["activation", "E[f]", "E[f²]", "gain"], rows, "of a standard normal z; `init=he_normal` uses the gain")
    page.say(f"""Where all inputs of a layer are positive, the gradients of one unit's weights all have one sign, and it
        can only move in zigzags. A sigmoid's mean is 0.5, a rectifier's
        {agree(means["ReLU"], 1 / np.sqrt(2 * np.pi), within=1e-6)}, that of tanh is 0.""")


def dead(page: Page, rate: float, units: int, steps: int = 30) -> None:
    page.head("Dead units, made to happen")
    draw, x = np.random.default_rng(0), np.linspace(-1, 1, 32)[:, None]
    start = draw.normal(size=(units, 1)), draw.normal(size=units) / 2, draw.normal(size=(1, units)) / np.sqrt(units)
    target, shares = np.sin(3 * x), dict[str, list[float]]()
    for lr in (rate / 100, rate / 10, rate):
        (w, b, v), theirs = start, [torch.tensor(value).requires_grad_() for value in start]
        optimizer = torch.optim.SGD(theirs, lr=lr)
        silent = shares[f"rate {lr:g}"] = []
        for _ in range(steps):
            z = x @ w.T + b
            silent.append(float((z <= 0).all(0).mean()))
            error = 2 * (rectify(z) @ v.T - target) / len(x)
            back = (error @ v) * (z > 0)
            w, b, v = w - lr * back.T @ x, b - lr * back.sum(0), v - lr * error.T @ rectify(z)
            optimizer.zero_grad()
            sums = torch.tensor(x) @ theirs[0].T + theirs[1]
            nn.functional.mse_loss(sums.relu() @ theirs[2].T, torch.tensor(target)).backward()
            optimizer.step()
        same = agree(silent[-1], float((sums.relu().amax(0) == 0).double().mean()))
    page.say(f"""{units} rectifiers learn a sine by gradient descent. A step that is too large can push a unit's input
        below zero for every sample; then its slope is 0 for every sample, and no gradient brings it back. At
        rate {rate:g}, {same.value:.0%} of the units are dead after {steps} steps, as in torch's own run {same:✓}.""")
    page.picture("Units that are zero on all samples.", curves(range(steps), shares, "dead units", "step", "share"))
