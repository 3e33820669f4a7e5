"""CRF: mean field on twenty pixels, step by step.

Every pixel has an opinion, and pixels that are near and alike talk it over.
"""

import numpy as np
import torch

from cnn_train.explain.check import agree, limits
from cnn_train.explain.draw import cells, curves
from cnn_train.explain.page import Page
from cnn_train.postprocess import DenseCRF

KRAEHENBUEHL = "[Krähenbühl & Koltun 2011](https://arxiv.org/abs/1210.5644)"


def explain(bi_w: float = 4.0, bi_xy: float = 6.0, bi_rgb: float = 20.0, pos_w: float = 2.0, steps: int = 5) -> Page:
    """Weights and widths of the two kernels, as in `postprocess=crf`; `steps` of mean field."""
    limits(bi_w=(bi_w, 0, 50), bi_xy=(bi_xy, 0.1, 100), bi_rgb=(bi_rgb, 0.1, 255), pos_w=(pos_w, 0, 50))
    limits(steps=(steps, 1, 20))
    page = Page("Fully connected CRF", "A network's coarse, doubtful labels are pulled to the edges of the image.")
    draw = np.random.default_rng(1)
    position = np.arange(20.0)
    grey = np.where(position < 12, 60.0, 180.0) + draw.integers(-6, 7, 20)
    blurred = 1 / (1 + np.exp((position - 9) / 2))  # the network is unsure, and sees the edge three pixels too early
    first = np.clip(blurred + draw.normal(0, 0.12, 20), 0.05, 0.95)
    marginals = np.stack([first, 1 - first])  # (classes, pixels)
    page.head("Twenty pixels")
    given = {"grey value / 255": grey / 255, "probability of class 0": first}
    page.picture("An edge in the image between pixels 11 and 12; the network's probability of class 0 falls too early.",
                 curves(position, given, "what is given", "pixel", dots=True))  # fmt: skip

    page.head("Two kernels")
    page.formula("k = w_1 e^{−|p_i − p_j|²/2θ_α² − |I_i − I_j|²/2θ_β²} + w_2 e^{−|p_i − p_j|²/2θ_γ²}",
                 f"{KRAEHENBUEHL}, equation 3: appearance, by position p and colour I, and smoothness")  # fmt: skip
    apart = (position[:, None] - position) ** 2
    alike = (grey[:, None] - grey) ** 2
    appearance = np.exp(-apart / (2 * bi_xy**2) - alike / (2 * bi_rgb**2))
    smoothness = np.exp(-apart / 2)
    kernel = np.zeros((20, 20))
    for weight, part in ((bi_w, appearance), (pos_w, smoothness)):
        scale = 1 / np.sqrt(part.sum(1))
        kernel += weight * scale[:, None] * part * scale
    page.say(f"""Near pixels of one grey talk, across the edge they do not: the kernel of pixels 10 and 11 is
        {kernel[10, 11]:.3f}, of 11 and 12 {kernel[11, 12]:.3f}. Each kernel is divided by the roots of its row sums, as
        in the authors' code, so that a pixel in a corner hears as much as one in the middle.""")

    page.head("Mean field, step by step")
    page.formula(
        "Q_i(l) ← softmax(ln P_i(l) + Σ_j k(i, j) Q_j(l))", f"{KRAEHENBUEHL}, algorithm 1 with Potts compatibility"
    )
    unary, history, rows = np.log(marginals), {"given": first}, []
    for step in range(1, steps + 1):
        message = marginals @ kernel.T
        energy = unary + message
        marginals = np.exp(energy - energy.max(0)) / np.exp(energy - energy.max(0)).sum(0)
        crf = DenseCRF(bi_w, bi_xy, bi_rgb, pos_w, 1.0, iterations=step, exact=True)
        image, prior = torch.tensor(grey).view(1, 1, 1, 20), torch.tensor(np.exp(unary)).view(1, 2, 1, 20)
        same = agree(marginals, crf(image, prior)[0, :, 0], within=1e-6)
        history[f"step {step}"] = marginals[0]
        border = int((marginals[0] > 0.5).sum())
        rows.append([step, message[0, 11], marginals[0, 11], border, f"{same:✓}"])
    page.table(["step", "message to pixel 11", "its probability", "pixels of class 0", "as `postprocess=crf`"], rows)
    page.say(f"""The network alone labels {int((first > 0.5).sum())} pixels as class 0; after {steps} steps there are
        {rows[-1][3]}, and the grey values say 12. Pixel 11 was given {first[11]:.2f}.""")
    shown = dict(list(history.items())[:2] + list(history.items())[-1:])
    page.picture("The labels move to the edge of the image.",
                 curves(position, shown, "probability of class 0", "pixel", dots=True),
                 cells([history[name] for name in shown], ", ".join(shown), spec=".1f"))  # fmt: skip
    page.see(
        layers="cnn_train.postprocess.crf.DenseCRF",
        networks="deeplabv1 deeplabv2",
        claims="docs/segmentation.md#what-the-papers-claim",
        topics="dilation upsampling",
    )
    return page
