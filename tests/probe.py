"""The receptive field measured: an independent check of the arithmetic in `trace`.

The network is run as it is, except that convolutions and dense layers average their window, normalizations and
activations pass their input on, max pooling averages, and products of maps are sums. Then every path
carries a positive gradient, and what reaches the image is the receptive field. The gradient of every operation is cut
to 0 and 1, so that depth makes nothing vanish.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cnn_train.analysis.modules import in_mode
from cnn_train.analysis.operations import expand
from cnn_train.analysis.trace import check_size, is_norm, main_map

# fmt: off
_TRANSPARENT = frozenset({
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "rrelu_", "elu", "elu_", "celu",
    "selu", "gelu", "silu", "mish", "softplus", "softsign", "sigmoid", "sigmoid_", "tanh", "tanh_", "logsigmoid",
    "hardtanh", "hardtanh_", "hardswish", "hardsigmoid", "threshold", "threshold_", "softmax", "log_softmax",
    "dropout", "dropout_", "dropout1d", "dropout2d", "feature_dropout", "alpha_dropout", "batch_norm", "group_norm",
    "layer_norm", "instance_norm", "local_response_norm", "clamp", "clamp_", "clip", "normalize",
})
# fmt: on


@dataclass(frozen=True)
class Measured:
    """The pixels from which a unit can be reached: `mask` (H, W), and the first and last row and column of them."""

    mask: Tensor
    rows: tuple[int, int] | None
    columns: tuple[int, int] | None


def probe(
    module: nn.Module,
    input_size: Sequence[int],
    layer: str | None = None,
    unit: tuple[int, int] | None = None,
    *,
    gates: bool = True,
) -> Measured:
    """The receptive field of one unit (row, column; the middle one) of `layer`'s output, by the gradient.

    Without `gates`, global average pooling passes no gradient, which leaves squeeze-and-excitation out.
    """
    (measured,) = probe_places(module, input_size, [(layer or "", unit)], gates=gates).values()
    return measured


Place = tuple[str, tuple[int, int] | None]  # a layer and one of its units (row, column); None: the middle one


def probe_places(
    module: nn.Module,
    input_size: Sequence[int],
    places: Sequence[Place],
    *,
    gates: bool = True,
) -> dict[Place, Measured]:
    """As `probe`, for several places with one run of the network."""
    size = check_size(input_size)
    image = torch.full((1, *size), 0.5, dtype=torch.float64, requires_grad=True)
    modules = dict(module.named_modules())
    maps: dict[str, Tensor] = {}

    def store(name: str) -> Callable[..., None]:
        def hook(m: nn.Module, _: Any, output: Any) -> None:
            maps[name] = main_map(name, m, output)

        return hook

    with ExitStack() as stack:
        for m in modules.values():
            if is_norm(m):
                stack.callback(_replace_forward(m, lambda x, *_, **__: x))
            elif isinstance(m, nn.RNNBase):
                stack.callback(_replace_forward(m, _sums_over_steps(m)))
        for name in dict.fromkeys(name for name, _ in places):
            if name not in modules:
                raise ValueError(f"no layer {name!r}; layers are named as in named_modules()")
            stack.callback(modules[name].register_forward_hook(store(name)).remove)
        with in_mode(module, training=False), torch.enable_grad(), _Summing(gates):
            module(_Even.apply(image))
    result = {}
    for name, unit in places:
        y = maps[name]
        value = y[0]
        if y.dim() == 4:
            row, column = unit or (y.shape[2] // 2, y.shape[3] // 2)
            value = y[0, :, row, column]
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), image, retain_graph=True, allow_unused=True)
        mask = torch.zeros(size[1:], dtype=torch.bool) if gradient is None else (gradient[0] > 0).any(0)
        result[name, unit] = Measured(mask, _extent(mask.any(1)), _extent(mask.any(0)))
    return result


def _extent(line: Tensor) -> tuple[int, int] | None:
    places = line.nonzero().flatten()
    return (int(places[0]), int(places[-1])) if len(places) else None


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    module.forward = forward
    return lambda: module.__dict__.pop("forward", None) and None


def _sums_over_steps(module: nn.RNNBase) -> Callable[..., Any]:
    def forward(x: Tensor, *_: Any) -> Any:
        steps = 1 if module.batch_first and x.dim() == 3 else 0
        seen = x.sum(-1, keepdim=True).cumsum(steps)
        if module.bidirectional:
            seen = seen + x.sum(-1, keepdim=True).flip(steps).cumsum(steps).flip(steps)
        size = (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
        sequence = seen.expand(*seen.shape[:-1], size)
        last = seen.sum(steps, keepdim=True).transpose(0, steps)
        last = last.expand(module.num_layers * (2 if module.bidirectional else 1), *last.shape[1:-1], size)
        return sequence, ((last, last) if isinstance(module, nn.LSTM) else last)

    return forward


class _Even(torch.autograd.Function):
    """Passes its input on; of the gradient only where it is more than rounding, as 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Bicubic weights are negative at the ends.
        size = gradient.abs()
        return (size > 1e-6 * size.max()).to(gradient)


class _Summing(TorchFunctionMode):
    """Replaces operations by ones with positive weights and the same windows."""

    def __init__(self, gates: bool):
        super().__init__()
        self.gates = gates

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        x = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("input")
        if isinstance(x, Tensor) and x.requires_grad:
            if name in _TRANSPARENT:
                return x
            rule = getattr(self, f"_{name}", None)
            if rule is not None:
                return rule(func, *args, **kwargs)
        if name in _PRODUCTS and len(args) == 2 and all(_carries_path(a) for a in args):
            # Both factors carry a path, and a sum does not shrink from gate to gate.
            return _Even.apply(args[0] + args[1])
        # Scales and shifts that the network learns must not be zero or negative.
        args, kwargs = _without_parameters(args), _without_parameters(kwargs)
        out = func(*args, **kwargs)
        if not self.gates and name in ("mean", "adaptive_avg_pool2d") and isinstance(out, Tensor) and out.dim() == 4:
            return out.detach() if out.shape[-2:] == (1, 1) else out
        if isinstance(out, Tensor) and out.requires_grad and out.is_floating_point() and name in _EVENED:
            return _Even.apply(out)
        return out

    def _conv2d(
        self,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        # With equal weights all channels of a group are one mean.
        summed = _by_group(input, groups)
        ones = input.new_ones(groups, 1, *weight.shape[2:])
        out = F.conv2d(summed, ones, None, stride, padding, dilation, groups)
        return _Even.apply(out / ones[0].numel()).repeat_interleave(weight.shape[0] // groups, 1)

    def _conv_transpose2d(
        self,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor:
        summed = _by_group(input, groups)
        ones = input.new_ones(groups, 1, *weight.shape[2:])
        out = F.conv_transpose2d(summed, ones, None, stride, padding, output_padding, groups, dilation)
        return _Even.apply(out / ones[0].numel()).repeat_interleave(weight.shape[1], 1)

    def _linear(self, func: Any, input: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
        return _Even.apply(input.mean(-1, keepdim=True)).repeat_interleave(weight.shape[0], -1)

    def _max_pool2d(
        self,
        func: Any,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        with torch._C.DisableTorchFunction():
            like, indices = torch.nn.functional.max_pool2d_with_indices(
                input.detach(), kernel_size, stride, padding, dilation, ceil_mode
            )
        kernel, steps, pads, gaps = (
            expand(v, 2) for v in (kernel_size, stride if stride else kernel_size, padding, dilation)
        )
        # Zeros behind the border make room for the windows that ceil_mode adds.
        room = [
            max(0, (like.shape[d + 2] - 1) * steps[d] + gaps[d] * (kernel[d] - 1) + 1 - input.shape[d + 2])
            for d in (0, 1)
        ]
        padded = F.pad(input, (pads[1], room[1], pads[0], room[0]))
        channels = input.shape[1]
        ones = input.new_ones(channels, 1, *kernel)
        out = F.conv2d(padded, ones, None, steps, 0, gaps, channels)[:, :, : like.shape[2], : like.shape[3]]
        out = _Even.apply(out / ones[0].numel())
        if func.__name__.endswith("_with_indices") or return_indices:
            indices.window = (kernel, steps, pads, gaps)  # type: ignore[attr-defined]
            return out, indices
        return out

    _max_pool2d_with_indices = _max_pool2d

    def _max_unpool2d(
        self,
        func: Any,
        input: Tensor,
        indices: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        output_size: Any = None,
    ) -> Tensor:
        with torch._C.DisableTorchFunction():
            like = F.max_unpool2d(
                input.detach(), indices.as_subclass(Tensor), kernel_size, stride, padding, output_size
            )
        kernel, steps, pads, gaps = indices.window  # type: ignore[attr-defined]
        channels = input.shape[1]
        out = F.conv_transpose2d(input, input.new_ones(channels, 1, *kernel), None, steps, 0, 0, channels, gaps)
        height, width = like.shape[2:]
        out = F.pad(out, (0, max(0, width + pads[1] - out.shape[3]), 0, max(0, height + pads[0] - out.shape[2])))
        return _Even.apply(out[:, :, pads[0] : pads[0] + height, pads[1] : pads[1] + width])

    def _adaptive_max_pool2d(self, func: Any, input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
        return F.adaptive_avg_pool2d(input, output_size)


# fmt: off
_PRODUCTS = frozenset({"mul", "__mul__", "__imul__", "__rmul__", "mul_", "multiply"})
_EVENED = frozenset({
    "interpolate", "upsample", "avg_pool2d", "adaptive_avg_pool2d", "mean", "sum", "cat", "add", "add_", "__add__",
    "__iadd__", "__radd__", "mul", "__mul__", "__imul__", "__rmul__", "mul_", "stack", "pad", "matmul",
})
# fmt: on


def _carries_path(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)


def _by_group(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1)).mean(2)


def _without_parameters(tree: Any) -> Any:
    if isinstance(tree, nn.Parameter):
        return torch.ones(tree.shape, dtype=torch.float64)
    if isinstance(tree, tuple | list):
        return type(tree)(_without_parameters(value) for value in tree) if type(tree) in (tuple, list) else tree
    if isinstance(tree, dict):
        return {key: _without_parameters(value) for key, value in tree.items()}
    return tree
