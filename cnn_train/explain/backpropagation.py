"""Backpropagation: a small network by hand, every delta with its shape, against autograd.

Three heads on the same scores, softmax, k sigmoids and hinge, with their gradients.
"""

import numpy as np
import torch
from torch.nn import functional as F

from cnn_train.explain.check import agree, limits, number
from cnn_train.explain.draw import cells, curves
from cnn_train.explain.page import Page

RUMELHART = "[Rumelhart, Hinton & Williams 1986](https://doi.org/10.1038/323533a0)"


def explain(batch: int = 2, inputs: int = 3, hidden: int = 4, classes: int = 3) -> Page:
    """A dense network of one hidden layer with ReLU, on `batch` samples of `inputs` numbers."""
    limits(batch=(batch, 1, 8), inputs=(inputs, 1, 8), hidden=(hidden, 1, 8), classes=(classes, 2, 8))
    page = Page("Backpropagation", "The chain rule from the loss back to each weight, one layer at a time.")
    draw = np.random.default_rng(4)
    x = draw.integers(-3, 4, (batch, inputs)).astype(float)
    w1, b1 = draw.integers(-2, 3, (hidden, inputs)) / 2, draw.integers(-1, 2, hidden) / 2
    w2, b2 = draw.integers(-2, 3, (classes, hidden)) / 2, np.zeros(classes)
    target = np.arange(batch) % classes

    page.head("Forward")
    page.formula("z = x W_1^{⊤} + b_1,   h = max(z, 0),   s = h W_2^{⊤} + b_2,   p = softmax(s),   L = −1/N Σ ln p_t",
                 f"{RUMELHART}; N samples, t the true class")  # fmt: skip
    z = x @ w1.T + b1
    h = np.maximum(z, 0)
    s = h @ w2.T + b2
    p = np.exp(s) / np.exp(s).sum(1, keepdims=True)
    loss = -np.log(p[np.arange(batch), target]).mean()
    leaves = [torch.tensor(value).requires_grad_() for value in (w1, b1, w2, b2)]
    tz = torch.tensor(x) @ leaves[0].T + leaves[1]
    th = tz.relu()
    ts = th @ leaves[2].T + leaves[3]
    reference = F.cross_entropy(ts, torch.tensor(target))
    page.say(f"""{batch} samples, true classes {number(target)}: the loss is {agree(loss, reference)}. With equal scores
        it would be ln {classes} = {number(np.log(classes))}.""")
    page.picture("The first number of a row belongs to the first unit.", cells(x, "x"), cells(h, "h"), cells(s, "s"),
                 cells(p, "p", spec=".2f"))  # fmt: skip

    page.head("Backward, delta by delta")
    page.formula("δ_s = (p − y)/N,   ∂L/∂W_2 = δ_s^{⊤} h,   δ_h = δ_s W_2,   δ_z = δ_h (z > 0),   ∂L/∂W_1 = δ_z^{⊤} x",
                 "y is 1 at the true class; a delta has the shape of what it belongs to")  # fmt: skip
    delta_s = p.copy()
    delta_s[np.arange(batch), target] -= 1
    delta_s /= batch
    delta_h = delta_s @ w2
    delta_z = delta_h * (z > 0)
    ours = {"δ_s": delta_s, "δ_h": delta_h, "δ_z": delta_z, "∂L/∂W_2": delta_s.T @ h, "∂L/∂b_2": delta_s.sum(0),
            "∂L/∂W_1": delta_z.T @ x, "∂L/∂b_1": delta_z.sum(0)}  # fmt: skip
    theirs = torch.autograd.grad(reference, [ts, th, tz, leaves[2], leaves[3], leaves[0], leaves[1]])
    rows = []
    for (name, value), other in zip(ours.items(), theirs, strict=True):
        shape, row = "×".join(map(str, value.shape)), np.atleast_2d(value)[-1]
        rows.append([f"${name}$", shape, number(row, ".4f"), f"{agree(value, other):✓}"])
    page.table(["", "shape", "its last row", "as autograd"], rows)
    page.say("""A weight's gradient sums over the samples. A bias acts on every sample, so its gradient is the sum
        of the deltas. Where a hidden unit was silent, no error passes.""")
    page.picture("The error on its way through ReLU.", cells(delta_h, "δ of h", spec=".2f"),
                 cells((z > 0).astype(int), "z > 0"), cells(delta_z, "δ of z", spec=".2f"))  # fmt: skip
    heads(page)
    page.see(
        layers="torch.nn.CrossEntropyLoss torch.nn.BCEWithLogitsLoss torch.nn.MultiMarginLoss "
        "cnn_train.tasks.losses.MultiClassHinge",
        networks="lenet5 alexnet vgg16",
        claims="docs/claims.md#hinge docs/claims.md#sigmoid_depth",
        topics="activations initialization convolution label_smoothing",
    )
    return page


def heads(page: Page) -> None:
    page.head("Three heads on the same scores")
    scores, true, k = np.array([2.0, 0.5, -1.0, 1.5]), 3, 4
    s, target = torch.tensor(scores[None]).requires_grad_(), torch.tensor([true])
    y = np.eye(k)[true]
    p, q = np.exp(scores) / np.exp(scores).sum(), 1 / (1 + np.exp(-scores))
    margins = np.maximum(0, 1 - scores[true] + scores) * (1 - y)
    by_hinge = (margins > 0) * 1.0
    by_hinge[true] = -by_hinge.sum()
    pull = torch.tensor(2 * y - 1)
    kinds = {
        "softmax": (-np.log(p[true]), p - y, F.cross_entropy(s, target)),
        "k sigmoids": (-np.log(np.where(y == 1, q, 1 - q)).sum(), q - y, -F.logsigmoid(s * pull).sum()),
        "hinge": (margins.sum(), by_hinge, F.multi_margin_loss(s, target, reduction="sum") * k),
    }  # fmt: skip
    page.formula("softmax: p − y,   k sigmoids: σ(s) − y,   hinge: [s_i > s_t − 1] for i ≠ t, minus their number for t",
                 "gradients by the scores; Bishop 2006, sections 4.3 and 7.1; Weston & Watkins 1999")  # fmt: skip
    rows = []
    for name, (loss, gradient, theirs) in kinds.items():
        rows.append([name, agree(loss, theirs), agree(gradient, torch.autograd.grad(theirs, s)[0][0])])
    page.table(["head", "loss", "gradient by the scores"], rows, f"scores {number(scores)}, true class {true}")
    page.say("""The first two never stop pulling, more gently the better the score; the hinge lets go of a class once it
        is a margin of 1 behind. Softmax's gradients sum to zero, since only differences of scores count there; sigmoids
        judge each class by itself, so several may be true.""")
    gap = np.linspace(-4, 4, 81)
    losses = {"softmax": np.log1p(np.exp(-gap)), "hinge": np.maximum(0, 1 - gap)}
    page.picture("Two classes.", curves(gap, losses, "loss", "lead of the true class's score"))
