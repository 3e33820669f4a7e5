"""LSTM: gates and a cell state, and why its gradient survives where a plain cell's vanishes.

One step with real numbers, then the gradient measured over many.
"""

import numpy as np
import torch
from torch import nn

from cnn_train.explain.check import agree, limits, number
from cnn_train.explain.draw import curves
from cnn_train.explain.page import Page

HOCHREITER = "[Hochreiter & Schmidhuber 1997](https://doi.org/10.1162/neco.1997.9.8.1735)"
GERS = "[Gers et al. 2000](https://doi.org/10.1162/089976600300015015)"
JOZEFOWICZ = "[Jozefowicz et al. 2015](https://proceedings.mlr.press/v37/jozefowicz15.html)"


def explain(inputs: int = 2, hidden: int = 3, steps: int = 60, forget_bias: float = 3.0) -> Page:
    """A cell of `hidden` units on `inputs` numbers a step; gradients over `steps` steps with this forget bias."""
    limits(inputs=(inputs, 1, 6), hidden=(hidden, 1, 6), steps=(steps, 2, 200), forget_bias=(forget_bias, -10, 10))
    page = Page("LSTM", "A memory that is added to and scaled, not overwritten: its gates decide what stays.")

    page.head("One step")
    page.formula(
        "(i, f, g, o) = W x + U h + b,   c' = σ(f) c + σ(i) tanh(g),   h' = σ(o) tanh(c')",
        f"{HOCHREITER}; the forget gate f: {GERS}",
    )
    draw = np.random.default_rng(0)
    w, u, b = (
        draw.normal(size=(4 * hidden, inputs)),
        draw.normal(size=(4 * hidden, hidden)),
        draw.normal(size=4 * hidden) / 2,
    )
    x, h, c = (draw.normal(size=size).round(1) for size in (inputs, hidden, hidden))
    i, f, g, o = np.split(w @ x + u @ h + b, 4)
    i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
    g = np.tanh(g)
    c_next = f * c + i * g
    h_next = o * np.tanh(c_next)
    cell = nn.LSTMCell(inputs, hidden, device="meta").to_empty(device="cpu").double()
    with torch.no_grad():
        for parameter, value in zip(cell.parameters(), (w, u, b, np.zeros_like(b)), strict=True):
            parameter.copy_(torch.tensor(value))
        h_torch, c_torch = cell(torch.tensor(x)[None], (torch.tensor(h)[None], torch.tensor(c)[None]))
    page.table(["", *(f"unit {unit}" for unit in range(hidden))],
               [["input gate σ(i)", *i], ["forget gate σ(f)", *f], ["candidate tanh(g)", *g], ["output gate σ(o)", *o],
                ["c before", *c], ["kept: σ(f) c", *(f * c)], ["new: σ(i) tanh(g)", *(i * g)],
                ["c after", *map(agree, c_next, c_torch[0])], ["h after", *map(agree, h_next, h_torch[0])]],
               f"x = {number(x)}, h = {number(h)}; as `torch.nn.LSTMCell`")  # fmt: skip
    weights = 4 * (hidden * inputs + hidden * hidden + hidden)
    page.say(f"""Four gates, each with weights for the input, for the last output, and a bias:
        4 (H D + H² + H) = {agree(weights, w.size + u.size + b.size)} numbers. (Torch adds two biases.)""")

    page.head("Why the gradient survives")
    page.formula("along the cell state: ∂c_T/∂c_0 ≈ Π_t σ(f_t),   plain: ∂h_T/∂h_0 = Π_t (1 − h_t^{2}) u",
                 f"{HOCHREITER}, section 3; exact if nothing else leads from c_0 to c_T; one unit")  # fmt: skip
    gate = 1 / (1 + np.exp(-forget_bias))
    plain, gated, factor = one_unit(steps, forget_bias)
    t = np.arange(steps + 1)
    first, last = agree(plain[1], factor), agree(gated[-1], gate**steps, within=1e-6)
    page.say(f"""A plain unit $h' = tanh(x + u h)$, here with $u$ = 1, multiplies the error by $(1 − h^{{2}}) u$ in
        every step, in the first by {first:.3f}. A cell state is multiplied by its forget gate alone; with a bias of
        {forget_bias:g} that is {gate:.3f}. After {steps} steps {number(plain[-1], ".1e")} of the plain cell's error is
        left, and of the LSTM's {last:.3g}, which is $σ({forget_bias:g})^{{{steps}}}$. {JOZEFOWICZ} therefore start the
        forget bias at 1 or more. The gate is below 1, so along this path nothing explodes, either.""")
    half = one_unit(steps, 0.0)[1]
    lines = {"plain tanh": plain, "LSTM, forget bias 0": half, f"LSTM, forget bias {forget_bias:g}": gated}
    page.picture(f"""What is left of an error, by steps back in time, measured by autograd. With a bias of 0 the gate
        is half open, and $2^{{−{steps}}}$ = {agree(half[-1], 0.5**steps):.1e} is left.""",
                 curves(t, lines, "gradient over time", "steps", log=True))  # fmt: skip
    page.see(
        layers="torch.nn.LSTM cnn_train.models.classification.lstm.LSTMCell",
        networks="lstm",
        claims="docs/claims.md#lstm_length",
        topics="activations backpropagation initialization",
    )
    return page


def one_unit(steps: int, forget_bias: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Gradients by the first state after 0 ... `steps` steps, of a plain unit and of an LSTM's cell state.

    Also, the plain unit's first factor by formula. The inputs are random numbers.
    """
    inputs = torch.tensor(np.random.default_rng(2).normal(size=steps))
    start = torch.tensor(0.5).double().requires_grad_()
    h, plain = start, [1.0]
    for x in inputs:
        h = torch.tanh(x + h)
        plain.append(float(torch.autograd.grad(h, start, retain_graph=True)[0]))
    factor = float(1 - np.tanh(float(inputs[0]) + 0.5) ** 2)
    cell = nn.LSTMCell(1, 1, device="meta").to_empty(device="cpu").double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.weight_ih.fill_(0.5)
        cell.weight_ih[1] = 0  # the forget gate is its bias alone
        cell.bias_ih[1] = forget_bias
    c, gated = start.view(1, 1), [1.0]
    out = torch.zeros(1, 1).double()
    for x in inputs:
        out, c = cell(x.view(1, 1), (out, c))
        gated.append(float(torch.autograd.grad(c, start, retain_graph=True)[0]))
    return np.array(plain), np.array(gated), factor
