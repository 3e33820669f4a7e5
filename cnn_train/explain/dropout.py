"""Dropout: a lot for each unit, the scale that keeps the mean, and the ensemble that it averages.

All masks of a small layer counted out, and what dropout does to the variance that batch norm remembers.
"""

from itertools import product

import numpy as np
import torch
from torch.nn import functional as F

from cnn_train.explain.check import agree, limits, number
from cnn_train.explain.draw import cells, curves
from cnn_train.explain.page import Page

SRIVASTAVA = "[Srivastava et al. 2014](https://jmlr.org/papers/v15/srivastava14a.html)"
LI = "[Li et al. 2019](https://arxiv.org/abs/1801.05134)"


def explain(rate: float = 0.5, units: int = 6, classes: int = 3, seed: int = 0) -> Page:
    """Each of `units` inputs of a softmax layer is dropped with probability `rate`; `seed` draws one mask."""
    limits(rate=(rate, 0.01, 0.99), units=(units, 1, 10), classes=(classes, 2, 6))
    page = Page("Dropout", "In training each unit is switched off by lot, so that none can rely on another.")
    keep, draw = 1 - rate, np.random.default_rng(3)
    x, w = draw.integers(1, 6, units).astype(float), draw.normal(size=(classes, units)) / 2

    page.head("One draw")
    page.formula(
        "y_i = m_i x_i/(1 − p),   m_i = 1 with probability 1 − p, else 0",
        f"{SRIVASTAVA}, section 4; scaled in training",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dropped = F.dropout(torch.tensor(x), rate, training=True)
        many = F.dropout(torch.tensor(x).expand(20000, -1), rate, training=True)
    mask = (dropped != 0).double().numpy()
    scaled = agree(mask * x / keep, dropped)
    page.picture(f"With p = {rate:g} what is left is multiplied by {number(1 / keep)}: {scaled}.", cells([x], "inputs"),
                 cells([mask], f"mask of seed {seed}"), cells([dropped], "outputs", spec=".3g"))  # fmt: skip

    page.head("Mean and variance over all masks")
    page.formula("E[y_i] = x_i,   Var[y_i] = x_i^{2} p/(1 − p)", "the moments of m_i; the gradient is scaled alike")
    masks = np.array(list(product((0.0, 1.0), repeat=units)))
    chances = np.prod(np.where(masks == 1, keep, rate), axis=1)
    outputs = masks * x / keep
    mean = chances @ outputs
    variance = chances @ (outputs - mean) ** 2
    page.say(f"""{units} units have {len(masks)} masks, and their chances sum to {agree(chances.sum(), 1)}. Over all of
        them the mean is {agree(mean, x)}, the inputs, which is why evaluation does nothing; the variance is
        {agree(variance, x**2 * rate / keep)}. The means of 20,000 of torch's draws are as near as chance lets them
        {agree(many.mean(0), mean, within=5 * np.sqrt(rate / keep / 20_000)):✓}.""")

    page.head("The ensemble")
    page.formula(
        "Π_m p_m(c)^{P(m)} ∝ softmax(W E[y])_c",
        "Goodfellow, Bengio & Courville 2016, Deep Learning, section 7.12; exact for one softmax layer",
    )
    scores = outputs @ w.T
    scores -= scores.max(1, keepdims=True)  # the same answers, and no overflow
    by_mask = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    geometric = np.exp(chances @ by_mask)
    geometric /= geometric.sum()
    arithmetic = chances @ np.exp(by_mask)
    whole = F.softmax(torch.tensor(w) @ torch.tensor(x), 0)
    page.say(f"""Each mask is a network of its own. The geometric mean of all {len(masks)} networks' answers, made to
        sum to one, is {agree(geometric, whole)}: the answer of the whole network, at the price of one. Their arithmetic
        mean, {number(arithmetic)}, is what many random passes would give.""")

    beside_batch_norm(page)
    page.see(
        layers="torch.nn.Dropout",
        networks="alexnet vgg16 googlenet wrn_28_10 lstm",
        claims="docs/claims.md#dropout_bn",
        topics="normalization label_smoothing",
    )
    return page


def beside_batch_norm(page: Page) -> None:
    page.head("Beside batch norm")
    page.formula("Var_train/Var_eval = (E[x^{2}]/(1 − p) − E[x]^{2})/(E[x^{2}] − E[x]^{2})", f"{LI}, section 3")
    z = np.maximum(np.random.default_rng(0).normal(size=200_000), 0)
    rates = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    formula = [((z**2).mean() / (1 - p) - z.mean() ** 2) / z.var() for p in rates]
    lots = np.random.default_rng(1).random(z.shape)
    measured = [np.where(lots >= p, z / (1 - p), 0).var() / z.var() for p in rates]
    page.say(f"""Dropout keeps the mean but not the variance: behind a rectifier, p = 0.5 makes it
        {formula[5]:.2f} times as large in training {agree(measured, formula, within=0.03):✓}. A batch norm after it
        remembers that variance, meets a smaller one in evaluation, and scales wrongly; so put dropout behind the last
        norm.""")
    page.picture(
        "Behind a rectifier.",
        curves(rates, {"by formula": formula, "measured": measured}, "variance, training/evaluation", "p", dots=True),
    )
