"""Normalization: which numbers share a mean, training against evaluation, and what the batch size does.

Batch, layer, instance, group and local response normalization on one block of numbers.
"""

import numpy as np
import torch
from torch import nn

from cnn_train.explain.check import agree, limits, number, require
from cnn_train.explain.draw import cells, curves
from cnn_train.explain.page import Page
from cnn_train.layers.norm import GroupNorm, InstanceNorm, LayerNorm, LocalResponseNorm

IOFFE = "[Ioffe & Szegedy 2015](https://arxiv.org/abs/1502.03167)"
WU = "[Wu & He 2018](https://arxiv.org/abs/1803.08494)"


def explain(batch: int = 3, channels: int = 6, groups: int = 2, momentum: float = 0.1) -> Page:
    """A block of `batch` samples, `channels` channels and 2x2 pixels; group norm with `groups` groups."""
    limits(batch=(batch, 2, 8), channels=(channels, 2, 12), groups=(groups, 1, 12), momentum=(momentum, 0.001, 1))
    require(channels % groups == 0, f"groups must divide channels {channels}, got {groups}")
    page = Page("Normalization", "Subtract a mean, divide by a deviation: the question is, of which numbers.")
    draw = np.random.default_rng(0)
    x = draw.normal(draw.normal(0, 2, (1, channels, 1, 1)), 1.5, (batch, channels, 2, 2))

    page.head("Which numbers share a mean")
    page.formula(
        "y = γ_c (x − μ)/√(σ^{2} + ε) + β_c",
        f"{IOFFE}, algorithm 1; one μ and σ for each set of numbers, {WU}, equations 1 to 5",
    )
    split = x.reshape(batch, groups, -1, 2, 2)
    eps = 1e-5

    def normalized(block: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        mean, variance = block.mean(axes, keepdims=True), block.var(axes, keepdims=True)
        return ((block - mean) / np.sqrt(variance + eps)).reshape(x.shape)

    n, c = np.mgrid[0:batch, 0:channels]
    size = channels // groups
    kinds = {
        "batch": (normalized(x, (0, 2, 3)), nn.BatchNorm2d(channels), c),
        "layer": (normalized(x, (1, 2, 3)), LayerNorm(channels), n),
        "instance": (normalized(x, (2, 3)), InstanceNorm(channels), n * channels + c),
        "group": (normalized(split, (2, 3, 4)), GroupNorm(channels, groups), n * groups + c // size),
    }
    rows, figures = [], []
    for name, (ours, module, sets) in kinds.items():
        same = agree(ours, module.double()(torch.tensor(x)), within=1e-7)
        rows.append([name, len(np.unique(sets)), x.size // len(np.unique(sets)), f"{same:✓}"])
        figures.append(cells(sets + 1, f"{name}: sets of (N, C)"))
    page.table(["norm", "sets", "numbers in each", "as torch"], rows, f"a block of {batch}×{channels}×2×2 numbers")
    page.picture(
        "Rows are samples, columns channels, a cell a whole map of H×W. Cells of one number share a mean.", *figures
    )
    squares = np.array([(x[:, max(0, i - 2) : i + 3] ** 2).sum(1) for i in range(channels)]).transpose(1, 0, 2, 3)
    response = agree(x / (2 + 1e-4 * squares) ** 0.75, LocalResponseNorm(channels)(torch.tensor(x)), within=1e-7)
    page.say(f"""Local response normalization subtracts nothing: it divides each number by what is strong in up to five
        neighbouring channels at its pixel, $(2 + 10^{{−4}} Σ x^{{2}})^{{0.75}}$ {response:✓} (Krizhevsky et al. 2012,
        section 3.3).""")

    page.head("Training against evaluation")
    page.formula(
        "running ← (1 − m) running + m batch", f"{IOFFE}, section 3.1; the running variance is the unbiased one"
    )
    norm, mean, variance, table = nn.BatchNorm2d(channels, momentum=momentum).double(), 0.0, 1.0, []
    for step in range(1, 5):
        block = draw.normal(3, 2, (batch, channels, 2, 2))
        norm(torch.tensor(block))
        mean = (1 - momentum) * mean + momentum * block[:, 0].mean()
        variance = (1 - momentum) * variance + momentum * block[:, 0].var(ddof=1)
        assert norm.running_mean is not None and norm.running_var is not None
        table.append(
            [step, block[:, 0].mean(), agree(mean, norm.running_mean[0]), agree(variance, norm.running_var[0])]
        )
    ours = (block - norm.running_mean.numpy()[:, None, None]) / np.sqrt(norm.running_var.numpy()[:, None, None] + eps)
    page.table(
        ["step", "batch mean", "running mean", "running variance"],
        table,
        f"channel 0, drawn from N(3, 2²), m = {number(momentum)}",
    )
    evaluated = agree(ours, norm.eval()(torch.tensor(block)), within=1e-7)
    page.say(f"""In training the batch's own numbers are used, in evaluation the running ones {evaluated:✓}, so that one
        image's answer does not hang on its neighbours. A running mean starts at 0 and forgets that by a factor of
        {number(1 - momentum)} a step: after few steps, evaluation is wrong. $γ$ and $β$, learned, can undo it all.""")

    batch_sizes(page)
    shift(page)
    page.see(
        layers="torch.nn.BatchNorm2d cnn_train.layers.norm.GroupNorm cnn_train.layers.norm.LayerNorm "
        "cnn_train.layers.norm.InstanceNorm cnn_train.layers.norm.BatchRenorm cnn_train.layers.norm.SwitchableNorm",
        networks="resnet50 inception_v3 mobilenet_v2 alexnet_2012",
        topics="initialization dropout",
    )
    return page


def batch_sizes(page: Page, values: int = 16) -> None:
    page.head("Batch size 1 to 64")
    page.formula("deviation of the batch mean = σ/√(N H W)", "the standard error of a mean of independent numbers")
    draw, sizes = np.random.default_rng(1), [1, 2, 4, 8, 16, 32, 64]
    noise, theory = [], []
    for size in sizes:
        means = draw.normal(size=(1000, size * values)).mean(1)
        noise.append(float(means.std()))
        theory.append(1 / np.sqrt(size * values))
    page.say(f"""What batch norm subtracts hangs on who else is in the batch. From maps of {values} independent pixels the
        mean of 1000 batches of 1 varies by {noise[0]:.3f}, of 64 by {noise[-1]:.3f}, as the formula has it
        {agree(noise, theory, within=0.05):✓}. Group and layer norm do not know the batch: for them nothing changes.""")
    lines = {"batch norm": noise, "σ/√(NHW)": theory, "group norm": np.zeros(len(sizes))}
    page.picture("How much what is subtracted varies from batch to batch.",
                 curves(sizes, lines, "noise of the mean", "batch size", dots=True))  # fmt: skip


def shift(page: Page, steps: int = 60, width: int = 32) -> None:
    page.head("Internal covariate shift, measured")
    moves = {}
    for name in ("no norm", "batch norm"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = nn.Sequential(
                nn.Linear(8, width), *([nn.BatchNorm1d(width)] if name == "batch norm" else []), nn.Tanh()
            )
            last = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
            x = torch.randn(256, 8)
        target = (x[:, :1] * x[:, 1:2]).sign()
        optimizer = torch.optim.SGD([*first.parameters(), *last.parameters()], lr=0.5)
        start, moves[name] = None, []
        for _ in range(steps):
            before = first[:-1](x)
            start = before.detach() if start is None else start
            moves[name].append(float((before.detach().mean(0) - start.mean(0)).abs().mean() / start.std(0).mean()))
            loss = nn.functional.soft_margin_loss(last(first[-1](before)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    page.say(f"""Two small networks learn the same task. How far has the mean of the second layer's inputs moved from
        its start, in deviations? Without norm {moves["no norm"][-1]:.2f}, with batch norm
        {moves["batch norm"][-1]:.2f} after {steps} steps: a normalized mean is $β$, and moves only as that is learned.""")
    page.picture("`callbacks=health` logs the same drift of a real run.",
                 curves(range(steps), moves, "drift of the mean", "step", "deviations"))  # fmt: skip
