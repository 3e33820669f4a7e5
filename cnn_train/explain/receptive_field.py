"""Receptive field: what of the image a unit sees, layer by layer, and how little of that counts.

The recurrences as a table being filled, checked by the trace of `cnn-train inspect`; the effective field over it.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cnn_train.analysis import effective_receptive_field, receptive_field
from cnn_train.explain.check import agree, limits, require
from cnn_train.explain.draw import curves, heat
from cnn_train.explain.page import Page
from cnn_train.layers.init import he_normal

ARAUJO = "[Araujo, Norris & Sim 2019](https://distill.pub/2019/computing-receptive-fields/)"
LUO = "[Luo et al. 2016](https://arxiv.org/abs/1701.04128)"


def explain(stack: str = "3,3,2/2,3,3,2/2,3", deep: int = 16) -> Page:
    """A stack of windows, kernel/stride/dilation each; then 1 to `deep` plain 3x3 convolutions."""
    windows = [read(word, stack) for word in stack.replace("+", ",").split(",")]
    limits(layers=(len(windows), 1, 24), deep=(deep, 2, 32))
    total = int(np.prod([stride for _, stride, _ in windows]))
    require(total <= 64, f"the strides of stack may multiply to 64, got {total}")
    page = Page(
        "Receptive field", "A unit sees a window of the image: how large it is, where it lies, and what in it counts."
    )

    page.head("A table being filled")
    page.formula(
        "k' = k + (k − 1)(d − 1),   r ← r + (k' − 1) j,   c ← c + ((k' − 1)/2 − p) j,   j ← j s", f"{ARAUJO}, section 2"
    )
    page.say("""Three numbers go through the network: the field's size $r$ in pixels, the jump $j$ from one unit's field
        to the next, and the centre $c$ of the first. A layer adds $k' − 1$ steps of the jump before it, so what comes
        after strides grows the field fastest.""")
    r, jump, start = 1, 1, 0.0
    layers = [nn.Conv2d(1, 1, k, s, dilation * (k - 1) // 2, dilation, device="meta") for k, s, dilation in windows]
    traced = receptive_field(nn.Sequential(*layers), (1, 2048, 2048))
    rows: list[list[object]] = []
    for place, ((k, s, dilation), found) in enumerate(zip(windows, traced, strict=True), 1):
        reach, padding = k + (k - 1) * (dilation - 1), dilation * (k - 1) // 2
        r, start, jump = r + (reach - 1) * jump, start + ((reach - 1) / 2 - padding) * jump, jump * s
        assert found.receptive_field and found.jump and found.start
        theirs = found.receptive_field[0], found.jump[0], found.start[0]
        rows.append([place, k, s, dilation, padding, *map(agree, (r, jump, start), theirs)])
    page.table(
        ["layer", "k", "s", "d", "p", "field", "jump", "centre"], rows, "pixels; confirmed by the trace of `inspect`"
    )

    effective(page, deep)
    page.see(
        layers="cnn_train.analysis.receptive_field cnn_train.analysis.effective_receptive_field",
        networks="vgg16 resnet50 googlenet deeplabv3 pspnet",
        claims="docs/claims.md#two_3x3 docs/segmentation.md#what-the-papers-claim",
        topics="convolution dilation deconvnet",
    )
    return page


def read(word: str, stack: str) -> tuple[int, int, int]:
    """Kernel, stride and dilation of a word such as 3, 2/2 or 3/1/2."""
    parts = word.strip().split("/")
    fine = len(parts) <= 3 and all(part.isdigit() and 1 <= int(part) <= 16 for part in parts)
    require(
        fine, f"stack lists kernel/stride/dilation, each up to 16, as in stack=3,2/2,3/1/2; got {word!r} in {stack!r}"
    )
    kernel, stride, dilation = [int(part) for part in parts] + [1] * (3 - len(parts))
    return kernel, stride, dilation


def effective(page: Page, deep: int, k: int = 3) -> None:
    page.head("The effective field")
    page.formula(
        "σ = √(n (k^{2} − 1)/12),   σ/r ≈ √((k + 1)/(12 n (k − 1)))",
        f"n convolutions with equal weights; after {LUO}, section 2",
    )
    page.say(f"""Many paths lead from the middle of the field to the unit, few from its rim. With equal weights, what
        $n$ layers of {k} taps make of a line of pixels is $n$ box functions convolved, nearly a Gaussian. Its deviation
        $σ$ grows with the root of the depth, the field $r$ with the depth: the share that counts shrinks.""")
    rows, lines = [], []
    depths = [n for n in (1, 2, 4, 8, 16, 32) if n < deep] + [deep]
    for n in depths:
        field = 1 + n * (k - 1)
        line = torch.zeros(1, 1, field).double().requires_grad_()
        y = line
        for _ in range(n):
            y = F.conv1d(y, torch.full((1, 1, k), 1 / k, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(y.sum(), line)
        places, share = np.arange(field) - field // 2, gradient[0, 0].numpy()
        sigma = agree(np.sqrt(n * (k * k - 1) / 12), np.sqrt((share * places**2).sum()))
        rows.append([n, agree(field, np.count_nonzero(share)), sigma, f"{sigma.value / field:.3f}"])
        lines.append(share)
    page.table(
        ["layers", "field r", "σ of what counts", "σ/r"], rows, f"a line of pixels, convolutions of {k} equal weights"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = []
        for _ in range(4):
            net = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Conv2d(8, 8, k, padding=1), nn.ReLU())])
            net[0] = nn.Conv2d(1, 8, k, padding=1)
            he_normal(net)
            nets.append(net)
    seen = effective_receptive_field(nets, (1, 33, 33), samples=16)
    places = np.arange(len(lines[-1])) - len(lines[-1]) // 2
    page.picture(f"""Left, {deep} layers of equal weights. Right, as measured: the gradient of a unit behind eight
        random convolutions with ReLU. Their field is {1 + 8 * (k - 1)} pixels wide, σ = {seen.deviation[0]:.2f}.""",
        curves(places, {"share": lines[-1] / lines[-1].max()}, "weight of a pixel", "pixels from the middle"),
        heat(seen.map, "effective field", side=2.6))  # fmt: skip
