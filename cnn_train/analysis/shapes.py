"""Results of operations on meta tensors, without PyTorch's Python kernels for the commonest.

PyTorch infers their shapes in Python, and importing what it needs for that (sympy, torch._dynamo) takes ten times
longer than following a whole network.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Shape = Sequence[int]


def result(func: Any, args: tuple, kwargs: dict) -> Any:
    """What `func` returns: by arithmetic where it is known and its arguments fit, else by calling it."""
    x = args[0] if args else None
    rule = _RULES.get(func)
    if rule is not None and isinstance(x, Tensor) and x.is_meta and not kwargs:
        shape = rule(x.shape, *args[1:])
        if shape is not None and min(shape, default=1) > 0:
            out = x.new_empty(shape)
            if func is _aten.max_pool2d_with_indices.default:
                return out, x.new_empty(shape, dtype=torch.int64)
            if func is _aten.native_batch_norm.default:
                count = x.shape[1] if args[5] else 0
                return out, x.new_empty(count), x.new_empty(count)
            return out
    return func(*args, **kwargs)


class Arithmetic(TorchDispatchMode):
    """Within, operations on meta tensors are taken from `result`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True, the default, would import torch._dynamo, to keep it away from a mode that nobody compiles.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return result(func, args, kwargs or {})


# -- rules: the shape of the output; None where the arguments do not fit, and PyTorch should say so --------------------


def _same(shape: Shape, *_: Any) -> Shape:
    return shape


def _sum(shape: Shape, other: Any, *_: Any) -> Shape | None:
    return shape if isinstance(other, Tensor) and other.shape == shape and other.is_floating_point() else None


def _batch_norm(shape: Shape, *arguments: Any) -> Shape | None:
    # In training mode one value per channel is an error.
    return shape if len(shape) > 1 and (not arguments[4] or math.prod(shape) > shape[1]) else None


def _mean(shape: Shape, axes: Sequence[int] | None, keepdim: bool = False, *_: Any) -> Shape | None:
    if not axes:
        return None
    reduced = {axis % len(shape) for axis in axes}
    return [1 if axis in reduced else n for axis, n in enumerate(shape) if keepdim or axis not in reduced]


def _adaptive_pool(shape: Shape, sizes: Shape) -> Shape:
    return (*shape[:-2], *sizes)


def _dense(shape: Shape, x: Tensor, weight: Tensor, *_: Any) -> Shape | None:
    fits = x.dim() == weight.dim() == 2 and x.shape[1] == weight.shape[0] and tuple(shape) == (weight.shape[1],)
    return (x.shape[0], weight.shape[1]) if fits else None


def _convolution(
    shape: Shape,
    weight: Tensor,
    bias: Tensor | None,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    transposed: bool,
    output_padding: Shape,
    groups: int,
) -> Shape | None:
    axes = weight.dim() - 2
    if len(shape) != axes + 2 or weight.shape[0] % groups:
        return None
    channels = weight.shape[0], weight.shape[1] * groups
    channels_out, channels_in = reversed(channels) if transposed else channels
    if shape[1] != channels_in or (bias is not None and bias.shape != (channels_out,)):
        return None
    geometry = [_per_axis(v, axes) for v in (stride, padding, dilation, output_padding)]
    sizes = []
    for n, k, s, p, d, extra in zip(shape[2:], weight.shape[2:], *geometry, strict=True):
        window = d * (k - 1) + 1
        sizes.append((n - 1) * s - 2 * p + window + extra if transposed else (n + 2 * p - window) // s + 1)
    return (shape[0], channels_out, *sizes)


def _max_pool(
    shape: Shape, kernel: Shape, stride: Shape = (), padding: Shape = (0,), dilation: Shape = (1,), ceil: bool = False
) -> Shape | None:
    if len(shape) != 4 or ceil:
        return None
    geometry = [_per_axis(v, 2) for v in (kernel, stride or kernel, padding, dilation)]
    if any(2 * p > k for k, _, p, _ in zip(*geometry, strict=True)):
        return None
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(shape[2:], *geometry, strict=True)]
    return (*shape[:2], *sizes)


def _per_axis(values: Shape, axes: int) -> Shape:
    return tuple(values) * axes if len(values) == 1 else values


_aten = torch.ops.aten
_RULES: dict[Any, Callable[..., Shape | None]] = {
    _aten.convolution.default: _convolution,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.max_pool2d_with_indices.default: _max_pool,
    _aten.mean.dim: _mean,
    _aten._adaptive_avg_pool2d.default: _adaptive_pool,
    _aten.addmm.default: _dense,
    _aten.add.Tensor: _sum,
    _aten.mul.Tensor: _sum,
    _aten.relu.default: _same,
}
