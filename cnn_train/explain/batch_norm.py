"""Batch norm: training against evaluation, moving averages, and what the batch size does.

What gamma and beta can undo, the noise of a batch's mean, and the internal covariate shift, measured.
"""

import numpy as np
import torch
from torch import nn

from cnn_train.explain.check import agree, limits, number
from cnn_train.explain.draw import curves
from cnn_train.explain.page import Page
from cnn_train.layers.norm import GroupNorm

IOFFE = "[Ioffe & Szegedy 2015](https://arxiv.org/abs/1502.03167)"
WU = "[Wu & He 2018](https://arxiv.org/abs/1803.08494)"


def explain(batch: int = 4, momentum: float = 0.1, mean: float = 3.0, deviation: float = 2.0) -> Page:
    """Batches of `batch` maps of 2x2 pixels from N(mean, deviation²); running averages take `momentum` of each."""
    limits(
        batch=(batch, 2, 64), momentum=(momentum, 0.001, 0.99), mean=(mean, -100, 100), deviation=(deviation, 0.01, 100)
    )
    page = Page("Batch norm", "Normalized by its neighbours in training, by remembered averages in evaluation.")

    page.head("Training against evaluation")
    page.formula(
        "running ← (1 − m) running + m batch", f"{IOFFE}, section 3.1; the running variance is the unbiased one"
    )
    norm, eps, draw = nn.BatchNorm2d(1, momentum=momentum).double(), 1e-5, np.random.default_rng(0)
    assert norm.running_mean is not None and norm.running_var is not None
    average, variance, rows = 0.0, 1.0, []
    for step in range(1, 6):
        block = draw.normal(mean, deviation, (batch, 1, 2, 2))
        trained = norm(torch.tensor(block))
        average = (1 - momentum) * average + momentum * block.mean()
        variance = (1 - momentum) * variance + momentum * block.var(ddof=1)
        both = agree(average, norm.running_mean[0]), agree(variance, norm.running_var[0])
        rows.append([step, block.mean(), block.var(ddof=1), *both])
    page.table(["step", "batch mean", "batch variance", "running mean", "running variance"], rows)
    by_batch = agree((block - block.mean()) / np.sqrt(block.var() + eps), trained)
    by_running = agree((block - average) / np.sqrt(variance + eps), norm.eval()(torch.tensor(block)))
    settled = number(np.log(0.01) / np.log(1 - momentum), ".0f")
    page.say(f"""Training normalizes by the batch {by_batch:✓}, evaluation by the running averages {by_running:✓}, so
        that one image's answer does not depend on its neighbours. The averages start at 0 and 1 and forget that by a
        factor of {number(1 - momentum)} a step; after five they are on their way to {number(mean)} and
        {number(deviation**2)}, and evaluation is wrong. {settled} steps leave 1 % of the start.""")
    norm.train()
    with torch.no_grad():
        norm.weight.fill_(np.sqrt(block.var() + eps))
        norm.bias.fill_(block.mean())
    page.say(f"""A scale $γ$ and a shift $β$ follow, and are learned. With $γ$ = {number(norm.weight[0])} and $β$ =
        {number(norm.bias[0])}, deviation and mean of this batch, the layer gives its input back
        {agree(block, norm(torch.tensor(block))):✓}: nothing is lost but what training chooses to lose.""")
    batch_sizes(page)
    shift(page)
    page.see(
        layers="torch.nn.BatchNorm2d cnn_train.layers.norm.FrozenBatchNorm cnn_train.layers.norm.SyncBatchNorm "
        "cnn_train.layers.norm.BatchRenorm",
        networks="resnet50 inception_v3 mobilenet_v2 densenet121",
        claims="docs/claims.md#bn_rate docs/claims.md#bn_speed docs/claims.md#bn_small_batch docs/claims.md#norm_init",
        topics="normalization initialization dropout",
    )
    return page


def batch_sizes(page: Page, pixels: int = 16) -> None:
    page.head("Batch size 1 to 64")
    page.formula("deviation of the batch's mean = σ/√(N H W)", "the standard error of a mean of independent numbers")
    draw, sizes = np.random.default_rng(1), [1, 2, 4, 8, 16, 32, 64]
    noise = [float(draw.normal(size=(1000, size * pixels)).mean(1).std()) for size in sizes]
    formula = [1 / np.sqrt(size * pixels) for size in sizes]
    x = torch.tensor(draw.normal(size=(8, 4, 4, 4)))
    group = GroupNorm(4, 2).double()
    alone = agree(group(x)[:1], group(x[:1]))
    page.say(f"""What is subtracted depends on who else is in the batch. Over 1000 batches of maps of {pixels}
        independent pixels, the mean of 1 map varies by {noise[0]:.3f}, of 64 maps by {noise[-1]:.3f}, as the formula
        has it {agree(noise, formula, within=0.05):✓}. Group norm gives an image the same numbers in any batch
        {alone:✓}; that is why it holds where batches are small ({WU}, figure 1).""")
    lines = {"batch norm": noise, "σ/√(NHW)": formula, "group norm": np.zeros(len(sizes))}
    page.picture("How much what is subtracted varies from batch to batch.",
                 curves(sizes, lines, "noise of the mean", "batch size", dots=True))  # fmt: skip


def shift(page: Page, steps: int = 150, width: int = 32) -> None:
    page.head("Internal covariate shift, measured")
    moves: dict[str, list[float]] = {"no norm": [], "batch norm": []}
    for name, drift in moves.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers: list[nn.Module] = []
            for size in (8, width, width):
                layers += [nn.Linear(size, width), *[nn.BatchNorm1d(width)] * (name == "batch norm"), nn.ReLU()]
            body, head, x = nn.Sequential(*layers[:-1]), nn.Linear(width, 1), torch.rand(256, 8)
        target = (x[:, :1] + x[:, 1:2] > 2 * x[:, 2:3]).float() * 2 - 1
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1)
        start = body(x).detach()
        for _ in range(steps):
            seen = body(x)
            drift.append(float((seen.detach().mean(0) - start.mean(0)).abs().mean() / start.std(0).mean()))
            loss = nn.functional.soft_margin_loss(head(seen.relu()), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    page.say(f"""Two small networks learn the same task. How far have the means of the third layer's sums moved from
        where they started, in deviations? After {steps} steps by {moves["no norm"][-1]:.2f} without norm, by
        {moves["batch norm"][-1]:.2f} with it: behind a norm the mean is $β$, and moves only as that is learned.""")
    page.picture("`callbacks=health` logs the same drift in a real run.",
                 curves(range(steps), moves, "drift of the mean", "step", "deviations"))  # fmt: skip
