"""Optimizers: averages of gradients and their bias, momentum in both forms, RMSProp and Adam, step by step.

Written out and compared with torch's on a narrow valley and on a saddle.
"""

from collections.abc import Callable

import numpy as np
import torch

from cnn_train.explain.check import agree, limits, number
from cnn_train.explain.draw import curves, paths
from cnn_train.explain.page import Page


def explain(lr: float = 0.05, momentum: float = 0.9, condition: float = 30.0, steps: int = 100) -> Page:
    """A valley that is `condition` times as steep across as along; learning rate `lr` for the gradient's methods."""
    limits(lr=(lr, 1e-4, 0.1), momentum=(momentum, 0, 0.99), condition=(condition, 1, 1000), steps=(steps, 2, 500))
    page = Page("Optimizers", "What a step is made of: the gradient, its average, and the average of its square.")

    averages(page, momentum)

    page.head("Four steps, written out")
    page.formula("momentum: v ← μ v + g,   w ← w − η v", "Polyak 1964; Sutskever et al. 2013, section 2, as in torch")
    page.formula("RMSProp: s ← β s + (1 − β) g^{2},   w ← w − η g/(√s + ε)", "Tieleman & Hinton 2012, lecture 6.5")
    page.formula("Adam: m ← β_1 m + (1 − β_1) g,   s ← β_2 s + (1 − β_2) g^{2},   w ← w − η m̂/(√ŝ + ε)",
                 "Kingma & Ba 2015, algorithm 1; the hats are the corrected averages")  # fmt: skip
    curvature = np.array([1.0, condition]) / condition * 20
    valley = race(lambda w: curvature * w, np.array([-4.0, 1.0]), lr, momentum, steps)
    page.say(f"""A valley $f = ½ Σ a_i w_i^{{2}}$, a = {number(curvature)}: its condition number is {condition:g}.
        Gradient descent must take steps below 2/{number(curvature.max())} = {2 / curvature.max():.3g} to stay stable
        across, and then creeps along. Its place after {steps} steps has a closed form, (1 − η a)^t w.""")
    closed = (1 - lr * curvature) ** steps * np.array([-4.0, 1.0])
    descent = agree(valley["gradient descent"][-1], closed, within=1e-7)
    rows = []
    for (name, walk), theirs in zip(valley.items(), by_torch(curvature, lr, momentum, steps), strict=True):
        rows.append([name, agree(walk[-1], theirs, within=1e-6), np.linalg.norm(walk[-1])])
    page.table(["method", f"w after {steps} steps", "distance to the minimum"], rows,
               f"as torch.optim goes; gradient descent also as its closed form {descent:✓}")  # fmt: skip
    ridge = race(lambda w: np.array([w[0], w[1] ** 3 / 4 - w[1]]), np.array([-2.0, 1e-3]), lr, momentum, steps)
    page.picture("Left the valley. Right a saddle, (x² − y²)/2 + y⁴/16, entered almost along its ridge.",
                 paths(lambda x, y: x**2 + condition * y**2, valley, "valley", (-4.5, 2.5), (-1.5, 1.5)),
                 paths(lambda x, y: (x**2 - y**2) / 2 + y**4 / 16, ridge, "saddle", (-2.5, 1.5), (-1, 3)))  # fmt: skip

    page.head("Momentum in both forms")
    page.formula("v ← μ v + (1 − μ) g, w ← w − η' v   equals   v ← μ v + g, w ← w − η v   if η' = η/(1 − μ)",
                 "from v = 0; `optimizer=momentum_average` is the first, `optimizer=momentum` the second")  # fmt: skip
    w, v2 = np.array([-4.0, 1.0]), np.zeros(2)
    for _ in range(steps):
        v2 = momentum * v2 + (1 - momentum) * curvature * w
        w = w - lr / (1 - momentum) * v2
    end = agree(w, valley["momentum"][-1], within=1e-6)
    page.say(f"The average's form with the rate {number(lr / (1 - momentum))} ends where the sum's did, at {end}.")
    page.see(
        layers="torch.optim.SGD torch.optim.RMSprop torch.optim.Adam cnn_train.training.optim.Momentum",
        claims="docs/claims.md#optimizers",
        topics="backpropagation initialization normalization",
    )
    return page


def averages(page: Page, momentum: float) -> None:
    page.head("Exponentially weighted averages")
    page.formula(
        "v_t = β v_{t−1} + (1 − β) g_t,   corrected: v_t/(1 − β^{t})",
        "[Kingma & Ba 2015](https://arxiv.org/abs/1412.6980), section 3",
    )
    draw = np.random.default_rng(0)
    g, v, rows, raw, corrected = 4 + draw.normal(size=40), 0.0, [], list[float](), list[float]()
    for t, value in enumerate(g, 1):
        v = momentum * v + (1 - momentum) * value
        raw.append(v)
        corrected.append(v / (1 - momentum**t))
        if t in (1, 2, 3, 10, 40):
            weights = (1 - momentum) * momentum ** np.arange(t)[::-1]
            direct = torch.tensor(weights).dot(torch.tensor(g[:t]))
            rows.append([t, value, agree(v, direct), agree(corrected[-1], direct / weights.sum())])
    page.say(f"""With $β$ = {momentum:g} the last {number(1 / (1 - momentum), ".3g")} gradients or so count. The average
        starts at 0, so at first it is far too small: its weights sum to $1 − β^{{t}}$. Dividing by that mends it.""")
    page.table(["t", "gradient", "average", "corrected"], rows, "gradients drawn from N(4, 1)")
    lines = {"gradient": g, "average": raw, "corrected": corrected}
    page.picture("The correction matters at the start only.", curves(range(1, 41), lines, "averages", "t"))


def race(
    gradient: Callable[[np.ndarray], np.ndarray], start: np.ndarray, lr: float, mu: float, steps: int
) -> dict[str, np.ndarray]:
    """The path (steps + 1, 2) of each method, in numpy."""
    walks = {name: [start] for name in ("gradient descent", "momentum", "RMSProp", "Adam")}
    v, s, m, s2 = (np.zeros(2) for _ in range(4))
    for t in range(1, steps + 1):
        g = {name: gradient(walk[-1]) for name, walk in walks.items()}
        v = mu * v + g["momentum"]
        s = 0.9 * s + 0.1 * g["RMSProp"] ** 2
        m, s2 = 0.9 * m + 0.1 * g["Adam"], 0.999 * s2 + 0.001 * g["Adam"] ** 2
        unbiased = (m / (1 - 0.9**t)) / (np.sqrt(s2 / (1 - 0.999**t)) + 1e-8)
        moves = (lr * g["gradient descent"], lr * v, lr * g["RMSProp"] / (np.sqrt(s) + 1e-8), lr * unbiased)
        for walk, move in zip(walks.values(), moves, strict=True):
            walk.append(walk[-1] - move)
    return {name: np.array(walk) for name, walk in walks.items()}


def by_torch(curvature: np.ndarray, lr: float, mu: float, steps: int) -> list[torch.Tensor]:
    """Where torch's optimizers end in the valley."""
    ends = []
    for make in (
        lambda w: torch.optim.SGD([w], lr),
        lambda w: torch.optim.SGD([w], lr, momentum=mu),
        lambda w: torch.optim.RMSprop([w], lr, alpha=0.9),
        lambda w: torch.optim.Adam([w], lr),
    ):
        w = torch.tensor([-4.0, 1.0]).double().requires_grad_()
        optimizer = make(w)
        for _ in range(steps):
            optimizer.zero_grad()
            (torch.tensor(curvature) * w * w / 2).sum().backward()
            optimizer.step()
        ends.append(w)
    return ends
