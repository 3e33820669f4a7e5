"""Normalization: which numbers share a mean.

Batch, layer, instance, group and local response normalization on one block of numbers.
"""

import numpy as np
import torch
from torch import nn

from cnn_train.explain.check import agree, limits, require
from cnn_train.explain.draw import cells
from cnn_train.explain.page import Page
from cnn_train.layers.norm import GroupNorm, InstanceNorm, LayerNorm, LocalResponseNorm

IOFFE = "[Ioffe & Szegedy 2015](https://arxiv.org/abs/1502.03167)"
WU = "[Wu & He 2018](https://arxiv.org/abs/1803.08494)"


def explain(batch: int = 3, channels: int = 6, groups: int = 2) -> Page:
    """A block of `batch` samples, `channels` channels and 2x2 pixels; group norm with `groups` groups."""
    limits(batch=(batch, 2, 8), channels=(channels, 2, 12), groups=(groups, 1, 12))
    require(channels % groups == 0, f"groups must divide channels {channels}, got {groups}")
    page = Page("Normalization", "Subtract a mean, divide by a deviation: the question is, of which numbers.")
    draw = np.random.default_rng(0)
    x = draw.normal(draw.normal(0, 2, (1, channels, 1, 1)), 1.5, (batch, channels, 2, 2))

    page.head("Which numbers share a mean")
    page.formula(
        "y = γ_c (x − μ)/√(σ^{2} + ε) + β_c",
        f"{IOFFE}, algorithm 1; one μ and σ for each set of numbers, {WU}, equations 1 to 7",
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

    alone = agree(GroupNorm(channels, groups).double()(torch.tensor(x))[:1], kinds["group"][1](torch.tensor(x[:1])))
    page.say(f"""Only batch norm looks across samples. To the others the rest of the batch does not matter: the first
        sample alone gets the same numbers {alone:✓}. `batch_norm` says what that means in training.""")
    page.see(
        layers="torch.nn.BatchNorm2d cnn_train.layers.norm.GroupNorm cnn_train.layers.norm.LayerNorm "
        "cnn_train.layers.norm.InstanceNorm cnn_train.layers.norm.LocalResponseNorm",
        networks="resnet50 inception_v3 mobilenet_v2 alexnet_2012",
        claims="docs/claims.md#bn_small_batch docs/claims.md#bn_rate",
        topics="batch_norm initialization",
    )
    return page
