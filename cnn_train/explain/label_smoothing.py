"""Label smoothing: targets that are not quite sure, the lead they ask for, and their gradient.

The loss by hand, its minimum in closed form, and what it does to two classes.
"""

import numpy as np
import torch
from torch.nn import functional as F

from cnn_train.explain.check import agree, limits, number
from cnn_train.explain.draw import cells, curves
from cnn_train.explain.page import Page

SZEGEDY = "[Szegedy et al. 2016](https://arxiv.org/abs/1512.00567)"


def explain(epsilon: float = 0.1, classes: int = 4) -> Page:
    """A share `epsilon` of each target is spread over all `classes`."""
    limits(epsilon=(epsilon, 0.001, 0.9), classes=(classes, 2, 10))
    page = Page("Label smoothing", "A target of 0.9 instead of 1: the network may stop pulling when it is sure enough.")
    scores, true = np.linspace(2, -1, classes), 0
    p = np.exp(scores) / np.exp(scores).sum()
    s, target = torch.tensor(scores[None]).requires_grad_(), torch.tensor([true])

    page.head("The target and the loss")
    page.formula("q_c = (1 − ε)[c = t] + ε/K,   L = −Σ_c q_c ln p_c", f"{SZEGEDY}, section 7")
    q = np.full(classes, epsilon / classes)
    q[true] += 1 - epsilon
    loss = -(q * np.log(p)).sum()
    reference = F.cross_entropy(s, target, label_smoothing=epsilon)
    mixed = (1 - epsilon) * F.cross_entropy(s, target) - epsilon * F.log_softmax(s, 1).mean()
    page.say(f"""With $ε$ = {epsilon:g} and $K$ = {classes} the target is {number(q)}, which sums to
        {agree(q.sum(), 1)}. For the scores {number(scores)} the loss is {agree(loss, reference)}; it is {1 - epsilon:g}
        of the plain one and {epsilon:g} of a pull towards all classes alike, {agree(loss, mixed)}.""")
    page.picture("Targets and probabilities.", cells([np.eye(classes)[true]], "plain target"),
                 cells([q], "smoothed", spec=".3g"), cells([p], "p", spec=".3f"))  # fmt: skip

    page.head("The gradient, and where it ends")
    page.formula(
        "∂L/∂s = p − q,   zero at s_t − s_c = ln(K (1 − ε)/ε + 1)",
        "differentiate; then solve p = q for the lead of the true class",
    )
    (gradient,) = torch.autograd.grad(reference, s)
    lead = np.log(classes * (1 - epsilon) / epsilon + 1)
    best = torch.tensor(np.eye(classes)[true] * lead)[None].requires_grad_()
    least = F.cross_entropy(best, target, label_smoothing=epsilon)
    (still,) = torch.autograd.grad(least, best)
    nothing, entropy = agree(np.abs(still.numpy()).max() < 1e-9, True), agree(-(q * np.log(q)).sum(), least)
    page.say(f"""By the scores the gradient is {agree(p - q, gradient[0])}. Plain targets always ask for more, their
        gradient is never zero. Smoothed ones are content with a lead of {agree(lead, np.log(q[0] / q[1])):.3f}: there
        the gradient vanishes {nothing:✓}, and the loss that is left is the target's own entropy, {entropy:.4f}. So
        losses with and without smoothing cannot be compared.""")
    leads = np.linspace(-2, 10, 121)
    lines = {}
    for share in (0.0, epsilon):
        others = np.log(np.exp(leads) + classes - 1)  # ln of the sum, the others' scores being 0
        lines[f"ε = {share:g}"] = others - (1 - share + share / classes) * leads
    page.picture(
        f"The smoothed loss has a minimum, at a lead of {lead:.2f}.",
        curves(leads, lines, "loss", "lead of the true class"),
    )

    page.head("More smoothing, less certainty")
    shares = [0.01, 0.05, 0.1, 0.2, 0.4]
    rows = []
    for share in shares:
        gap = np.log(classes * (1 - share) / share + 1)
        sure = torch.softmax(torch.tensor(np.eye(classes)[0] * gap), 0)[0]
        rows.append([f"{share:g}", gap, agree(1 - share + share / classes, sure)])
    page.table(["ε", "lead at the minimum", "probability of the true class"], rows)
    page.see(layers="torch.nn.CrossEntropyLoss cnn_train.tasks.losses.CrossEntropy",
             networks="inception_v3 inception_v4 mobilenet_v3_large",
             claims="docs/claims.md#label_smoothing", topics="backpropagation dropout")  # fmt: skip
    return page
