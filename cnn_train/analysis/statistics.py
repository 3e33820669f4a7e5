"""Activations and gradients per layer on a batch: dead units, saturation, sparsity."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.analysis.modules import in_mode, leaves, tensors

# Lower and upper end of the activations that saturate.
ENDS: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (0.0, 1.0),
    nn.Hardsigmoid: (0.0, 1.0),
    nn.Tanh: (-1.0, 1.0),
    nn.Softsign: (-1.0, 1.0),
}
_NEAR = 0.05  # share of the range at either end that counts as saturated
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Threshold, nn.Hardtanh)


@dataclass
class LayerStatistics:
    """One layer on one batch, of all its calls.

    `dead`: share of channels that are zero everywhere on the batch (rectifiers only). `sparsity`: share of zeros.
    `saturated`: share of values within 5 % of the range's ends (sigmoids, tanh). `gradient_*` are of the loss by the
    layer's output, `weight_gradient` the norm of its by the layer's own parameters. None where it does not apply.
    """

    name: str
    kind: str
    mean: float = 0.0
    deviation: float = 0.0
    sparsity: float = 0.0
    dead: float | None = None
    saturated: float | None = None
    gradient_mean: float | None = None
    gradient_deviation: float | None = None
    weight_gradient: float | None = None


def layer_statistics(
    module: nn.Module,
    images: Tensor,
    loss: Callable[[Any], Tensor] | None = None,
) -> list[LayerStatistics]:
    """Statistics of every leaf module on `images` (N, C, H, W); `loss` maps the network's output to a scalar.

    Runs in the module's present mode; weights, gradients and buffers (running statistics) are left as they were.
    Without `loss` there are no gradients.
    """
    rows: dict[str, LayerStatistics] = {}
    sums: dict[str, list[Tensor]] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(m: nn.Module, _: Any, output: Any) -> None:
            y = next((t for t in tensors(output) if t.is_floating_point()), None)
            if y is None:
                return
            rows[name] = _activation(name, m, y.detach())
            if loss is not None and y.requires_grad:
                y.register_hook(
                    lambda g: sums.setdefault(name, []).append(torch.stack([g.mean(), g.std(correction=0)]))
                )

        return hook

    parameters = [p for p in module.parameters() if p.requires_grad]
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    with ExitStack() as stack:
        for name, m in leaves(module):
            stack.callback(m.register_forward_hook(look(name)).remove)
        with torch.set_grad_enabled(loss is not None):
            output = module(images)
            if loss is not None:
                gradients = torch.autograd.grad(loss(output), parameters, allow_unused=True)
    with torch.no_grad():
        for name, b in module.named_buffers():
            b.copy_(buffers[name])
    if loss is not None:
        by_parameter = {id(p): g for p, g in zip(parameters, gradients, strict=True) if g is not None}
        modules = dict(module.named_modules())
        for name, row in rows.items():
            if name in sums:
                mean, deviation = torch.stack(sums[name]).mean(0).tolist()
                row.gradient_mean, row.gradient_deviation = mean, deviation
            own = [by_parameter[id(p)] for p in modules[name].parameters() if id(p) in by_parameter]
            if own:
                row.weight_gradient = float(torch.stack([g.norm() for g in own]).norm())
    return list(rows.values())


def _activation(name: str, module: nn.Module, y: Tensor) -> LayerStatistics:
    row = LayerStatistics(name, type(module).__name__)
    mean, deviation = moments(y)
    row.mean, row.deviation = float(mean), float(deviation)
    fires = firing(y)
    row.sparsity = 1 - float(fires.mean())
    if isinstance(module, RECTIFIERS) and y.dim() > 1:
        row.dead = float(silent(fires).float().mean())
    if isinstance(module, tuple(ENDS)):
        row.saturated = float(saturation(module, y))
    return row


# Floats all the way: on a CPU sums of booleans, and torch.std_mean, take ten times as long.


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of all values."""
    y = y.float()
    mean = y.mean()
    return mean, (y - mean).square_().mean().sqrt()


def firing(y: Tensor) -> Tensor:
    """1 where a value is not zero, else 0."""
    return y.float().sign().abs_()


def silent(fires: Tensor) -> Tensor:
    """Channels (C) of `firing`'s (N, C, ...) that are zero everywhere."""
    return fires.amax([0, *range(2, fires.dim())]) == 0


def saturation(module: nn.Module, y: Tensor) -> Tensor:
    """Share of the values that lie near either end of a saturating activation's range."""
    low, high = next(ends for kind, ends in ENDS.items() if isinstance(module, kind))
    middle, room = (low + high) / 2, (0.5 - _NEAR) * (high - low)
    return (y.float() - middle).abs_().sub_(room).sign_().clamp_(min=0).mean()


def dead_units(module: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Booleans (C) by rectifier: the channels that fire on no image of the `batches` (N, C, H, W) in evaluation."""
    dead: dict[str, Tensor] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, y: Tensor) -> None:
            now = silent(firing(y))
            dead[name] = dead[name] & now if name in dead else now

        return hook

    with ExitStack() as stack:
        for name, m in module.named_modules():
            if isinstance(m, RECTIFIERS):
                stack.callback(m.register_forward_hook(look(name)).remove)
        with in_mode(module, training=False), torch.no_grad():
            for images in batches:
                module(images)
    return dead
