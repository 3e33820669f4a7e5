"""Deconvnet: what of an image excites a unit, brought back through the network.

Three ways back through a rectifier on real numbers, and a corner detector asked what it saw.
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cnn_train.explain.check import agree, limits, number
from cnn_train.explain.draw import heat
from cnn_train.explain.page import Page

ZEILER = "[Zeiler & Fergus 2014](https://arxiv.org/abs/1311.2901)"
SPRINGENBERG = "[Springenberg et al. 2015](https://arxiv.org/abs/1412.6806)"


def explain(size: int = 16, square: int = 7) -> Page:
    """A bright square of side `square` on a dark image of `size` by `size` pixels."""
    limits(size=(size, 12, 32), square=(square, 5, size - 4))
    page = Page("Deconvnet", "Which pixels excite a unit: the network run backwards, from one activation to the image.")
    page.head("Three ways back through a rectifier")
    page.formula("gradient: R (x > 0),   deconvnet: max(R, 0),   guided: max(R, 0)(x > 0)",
                 f"x went in, R arrives from above; {ZEILER}, section 2.1; {SPRINGENBERG}, figure 1")  # fmt: skip
    x, above = np.array([3.0, -1.0, 2.0, -4.0]), np.array([-2.0, 5.0, 1.0, -3.0])
    ways = {"gradient": above * (x > 0), "deconvnet": np.maximum(above, 0), "guided": np.maximum(above, 0) * (x > 0)}
    into = torch.tensor(x).requires_grad_()
    out = into.relu()
    (by_torch,) = torch.autograd.grad(out, into, torch.tensor(above), retain_graph=True)
    (by_rule,) = torch.autograd.grad(Deconvnet.apply(into), into, torch.tensor(above))
    (positive,) = torch.autograd.grad(out, into, torch.tensor(above).relu())
    confirmed = [agree(way, other) for way, other in zip(ways.values(), (by_torch, by_rule, positive), strict=True)]
    heads = ["way", *(f"x = {number(value)}, R = {number(r)}" for value, r in zip(x, above, strict=True)), "autograd"]
    page.table(heads, [[name, *ways[name], f"{same:✓}"] for name, same in zip(ways, confirmed, strict=True)])
    page.say("""Everything else is the backward pass: through a convolution the *transposed* filter, through max pooling
        *unpooling* to where the maximum was. So a deconvnet is backpropagation with another rule for ReLU, which keeps
        what speaks for the unit, whether or not the path was open.""")

    page.head("A corner detector, asked")
    image = torch.full((1, 1, size, size), 0.1).double()
    first = (size - square) // 2
    image[..., first : first + square, first : first + square] = 1
    edge = torch.tensor([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]]).double()
    filters = torch.stack([edge, edge.T, -edge, -edge.T])[:, None]  # dark above, left of, below, right of the edge
    corner = torch.zeros(1, 4, 3, 3).double()
    corner[0, 0, 1], corner[0, 1, :, 1] = torch.tensor(
        [[-1.0, 1, 1]] * 2
    )  # edges to the right and down, and no further
    edges = F.conv2d(image, filters, padding=1)
    pooled, places = F.max_pool2d(edges.relu(), 2, return_indices=True)
    scores = F.conv2d(pooled, corner, padding=1)
    place = int(scores.argmax())
    row, column = divmod(place, scores.size(3))
    page.say(f"""Four filters find edges, their maxima are pooled, and one unit adds up a horizontal edge and a vertical
        one that begin there. On a bright square it answers most in row {row} and column {column} of its
        {scores.size(2)}×{scores.size(3)} map, with {number(scores.max())}. Start there and go back: the transposed
        second filter, unpooling, rectification, the transposed first filters.""")
    start = torch.zeros_like(scores)
    start.view(-1)[place] = scores.max()
    back = F.conv_transpose2d(start, corner, padding=1)
    back = F.max_unpool2d(back, places, (2, 2), output_size=edges.shape).relu()
    back = F.conv_transpose2d(back, filters, padding=1)
    leaf = image.clone().requires_grad_()
    way = F.max_pool2d(Deconvnet.apply(F.conv2d(leaf, filters, padding=1)), 2)
    unit = F.conv2d(way, corner, padding=1).view(-1)[place]
    (reference,) = torch.autograd.grad(unit, leaf, scores.max())
    page.picture(f"""The image; the answers; what excites the strongest {agree(back, reference):✓}: red should be
        bright, blue dark. It is the upper left corner.""",
        heat(image[0, 0], "image"), heat(scores[0, 0], "answers"), heat(back[0, 0], "brought back", signed=True),
    )  # fmt: skip
    page.see(
        layers="torch.nn.ConvTranspose2d torch.nn.MaxUnpool2d cnn_train.layers.upsample.Unpool",
        networks="alexnet vgg16 segnet",
        claims="docs/inspect.md#the-pictures",
        topics="upsampling backpropagation receptive_field",
    )
    return page


class Deconvnet(torch.autograd.Function):
    """A ReLU whose gradient is rectified, whatever went in."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].clamp(min=0)
