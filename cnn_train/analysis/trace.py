"""Follows one image through any `nn.Module` on the meta device: nothing is computed, no weight is copied.

This module keeps account of the layers: their rows, parameters and work. What each operation reads is in `operations`.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.analysis.graph import Graph, LayerRow, Span, with_sight
from cnn_train.analysis.maps import Unknown
from cnn_train.analysis.modules import in_mode, is_leaf, tensors
from cnn_train.analysis.operations import Operations, expand
from cnn_train.analysis.shapes import Arithmetic, result

_NORM = re.compile(r"(norm|renorm)([123]d)?$|lrn$", re.IGNORECASE)
# fmt: off
_VIEWS = frozenset({
    "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "permute", "transpose", "t", "expand", "slice",
    "select", "split", "split_with_sizes", "unbind", "clone", "detach", "alias", "_to_copy", "contiguous", "copy",
    "narrow", "lift_fresh", "as_strided", "_reshape_alias", "unfold_copy",
})
_CONSTANT = frozenset({
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_empty", "new_full", "bernoulli", "new_empty_strided", "zero",
})
# fmt: on


def is_norm(module: nn.Module) -> bool:
    """Is this a normalization, by torch's classes or by its name (`...Norm`, `...Norm2d`, `LRN`)?"""
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm | nn.LocalResponseNorm):
        return True
    weighty = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)
    return bool(_NORM.search(type(module).__name__)) and not any(isinstance(m, weighty) for m in module.modules())


def trace(module: nn.Module, input_size: Sequence[int]) -> Graph:
    """Follow an image of `input_size` (C, H, W) through the module in evaluation mode.

    Weights are neither read nor copied; the module is left as it was. Where an operation cannot be followed, a
    ValueError names it and its layer.
    """
    channels, height, width = check_size(input_size)
    with on_meta(module) as originals, torch.no_grad(), in_mode(module, training=False):
        dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        image = torch.empty(1, channels, height, width, dtype=dtype, device="meta")
        tracer = _Tracer(module, image, originals)
        tracer.run(image)
    return tracer.graph()


def check_size(input_size: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width), or a ValueError."""
    size = tuple(int(n) for n in input_size)
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"input size {tuple(input_size)} is not (channels, height, width); give e.g. (3, 224, 224)")
    return size


@contextmanager
def on_meta(module: nn.Module) -> Iterator[dict[int, nn.Parameter]]:
    """Replace all parameters, buffers and other tensors of the module by meta tensors for the block.

    Yields the original parameter by the id of its stand-in.
    """
    stand_ins: dict[int, Tensor] = {}
    originals: dict[int, nn.Parameter] = {}
    undo: list[tuple[Any, Any, Any]] = []

    def swap(holder: Any, key: Any, value: Tensor) -> None:
        if id(value) not in stand_ins:
            # Not empty_like, whose meta kernel is in Python and imports sympy.
            meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            if isinstance(value, nn.Parameter):
                meta = nn.Parameter(meta, requires_grad=value.requires_grad)
                originals[id(meta)] = value
            stand_ins[id(value)] = meta
        undo.append((holder, key, value))
        holder[key] = stand_ins[id(value)]

    try:
        for m in module.modules():
            for holder in (m._parameters, m._buffers, m.__dict__):
                for key, value in list(holder.items()):
                    if isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer):
                        raise ValueError(
                            f"{type(m).__name__}.{key} has no shape yet; run the module once on an image first"
                        )
                    if isinstance(value, Tensor):
                        swap(holder, key, value)
            # Recurrent layers keep a second list of their weights.
            flat = m.__dict__.get("_flat_weights")
            if isinstance(flat, list):
                for index, value in enumerate(list(flat)):
                    if isinstance(value, Tensor):
                        swap(flat, index, value)
        yield originals
    finally:
        for holder, key, value in reversed(undo):
            holder[key] = value


class _Dispatch(Arithmetic):
    def __init__(self, record: Callable[[Any, tuple, dict, Any], None]):
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if torch.Tag.pointwise in func.tags and func._schema.name.endswith("_") and _one_shape(args):
            out = args[0]  # in place nothing changes but values, and there are none
        else:
            out = result(func, args, kwargs or {})
        self.record(func, args, kwargs or {}, out)
        return out


class _Call:
    """A module call in progress."""

    def __init__(self, name: str, module: nn.Module, first: int):
        self.name = name
        self.module = module
        self.first = first
        self.opaque = is_norm(module) or isinstance(module, nn.RNNBase)
        self.leaf = self.opaque or is_leaf(module)
        self.connections = 0
        self.multiply_adds = 0
        self.geometry: dict[str, Any] = {}
        self.norm_values: int | None = None


class _Tracer:
    def __init__(self, module: nn.Module, image: Tensor, originals: dict[int, nn.Parameter]):
        self.module = module
        self.input_size = (image.shape[1], image.shape[2], image.shape[3])
        self.operations = Operations(image)
        self.maps, self.nodes = self.operations.maps, self.operations.nodes
        self.rows: list[LayerRow] = []
        self.spans: list[Span] = []
        self.stack: list[_Call] = []
        self.counted: set[int] = set()
        self.parameter_of = originals
        self.levels: tuple[int, ...] = ()

    def run(self, image: Tensor) -> None:
        with ExitStack() as stack:
            for name, m in self.module.named_modules(remove_duplicate=True):
                stack.callback(m.register_forward_pre_hook(self._enter(name), with_kwargs=True).remove)
                stack.callback(m.register_forward_hook(self._leave, with_kwargs=True).remove)
            try:
                with _Dispatch(self._record):
                    output = self.module(image)
            except Unknown as error:
                raise ValueError(str(error)) from None
            except (RuntimeError, NotImplementedError, TypeError, IndexError, ValueError) as error:
                where = self.stack[-1].name if self.stack else ""
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise ValueError(
                    f"the network fails on an input of {self.input_size} at {_at(where)}: {reason}; "
                    "give another input size, or make the forward independent of the values of tensors"
                ) from error
        first = self.maps.get(id(next(tensors(output), None)))
        if first is not None:
            self.levels = first.joined or (first.node,)
        self._unused()

    def graph(self) -> Graph:
        total = sum(p.numel() for p in self.module.parameters())
        return Graph(self.input_size, self.rows, self.nodes, self.spans, total, self.levels)

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.stack.append(_Call(name, module, len(self.rows)))

        return hook

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self.stack.pop()
        self.operations.layer = self._layer()
        out = next((t for t in tensors(output) if id(t) in self.maps), None)
        inputs = [t for t in tensors((args, kwargs)) if id(t) in self.maps]
        outside = not any(c.leaf for c in self.stack)
        if call.opaque and inputs:
            if self.maps[id(inputs[0])].joined:
                raise Unknown(f"cannot follow {_at(call.name)}: it reads maps that were joined side by side")
            if isinstance(module, nn.RNNBase):
                self.operations.recurrent(module, inputs[0], output)
                out = next(iter(tensors(output)), None)
            else:
                out = next(tensors(output), None)
                if out is not None:
                    source = self.maps[id(inputs[0])]
                    self.operations.add(out, source.dims, [(source, {})], kind=type(module).__name__)
        node = self.maps[id(out)].node if out is not None and id(out) in self.maps else None
        shape = tuple(out.shape[1:]) if out is not None else None
        if call.leaf and outside:
            if node is not None and call.norm_values is not None:
                self.nodes[node].norm_values = call.norm_values
            parameters = self._count(p for p in module.parameters())
            self._row(call.name, type(module).__name__, out, node, call, parameters)
        if not call.leaf and call.name and id(last := main_map(call.name, module, output)) in self.maps:
            node, shape = self.maps[id(last)].node, tuple(last.shape[1:])
        self.spans.append(Span(call.name, type(module).__name__, call.first, len(self.rows), shape, node))

    def _layer(self) -> str:
        """The name of the innermost call that the rows know."""
        return next((c.name for c in self.stack if c.leaf), self.stack[-1].name if self.stack else "")

    def _row(self, name: str, kind: str, out: Tensor | None, node: int | None, work: Any, parameters: int) -> None:
        row = LayerRow(
            name=name,
            kind=kind,
            output_shape=tuple(out.shape[1:]) if out is not None else None,
            parameters=parameters,
            connections=work.connections,
            multiply_adds=work.multiply_adds,
            activation_bytes=out.numel() * out.element_size() if out is not None else 0,
            **work.geometry,
        )
        self.rows.append(with_sight(row, self.nodes[node] if node is not None else None))

    def _count(self, parameters: Any) -> int:
        """Numbers in those parameters that no earlier row counted."""
        total = 0
        for p in parameters:
            original = self.parameter_of.get(id(p), p)
            if id(original) not in self.counted:
                self.counted.add(id(original))
                total += original.numel()
        return total

    def _unused(self) -> None:
        """Rows for layers that evaluation does not run, such as auxiliary classifiers: their parameters count too."""
        for name, m in self.module.named_modules():
            rest = self._count(m.parameters(recurse=False))
            if rest:
                self.rows.append(LayerRow(name, type(m).__name__, None, rest, used=False))

    def _record(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        self.operations.alive.append((args, out))
        name = func._schema.name.split("::")[-1]
        base = name if name.startswith("__") else (name[:-1] if name.endswith("_") else name)
        call = self.stack[-1]
        leaf = next((c for c in self.stack if c.leaf), None)
        work = _work(base, args, out)
        target = leaf if leaf is not None else _Call(call.name, call.module, 0)
        target.connections += work["connections"]
        target.multiply_adds += work["multiply_adds"]
        values = _norm_values(base, args)
        if values is not None:
            target.norm_values = values
        tracked = [t for t in tensors((args, kwargs)) if id(t) in self.maps]
        outputs = [t for t in tensors(out)]
        if base in _VIEWS and args and id(args[0]) in self.parameter_of and len(outputs) == 1:
            self.parameter_of[id(outputs[0])] = self.parameter_of[id(args[0])]
        if work["geometry"] and (not target.geometry or (tracked and target.geometry.get("groups") is None)):
            target.geometry = work["geometry"]
        if any(c.opaque for c in self.stack):
            return
        if not tracked or base in _CONSTANT or not outputs:
            if outputs and base in _CONSTANT:
                for t in outputs:
                    self.maps.pop(id(t), None)
            return
        self.operations.layer, self.operations.geometry = self._layer(), work["geometry"]
        try:
            self.operations.follow(base, func, args, kwargs, outputs, tracked)
        except Unknown as reason:
            raise Unknown(f"cannot follow aten.{name} at {_at(call.name)}: {reason}") from None
        node = self.maps[id(outputs[0])].node
        if values is not None:
            self.nodes[node].norm_values = values
        if leaf is None and base not in _VIEWS:
            parameters = self._count(
                self.parameter_of[id(t)] for t in tensors((args, kwargs)) if id(t) in self.parameter_of
            )
            label = f"{call.name}.{base}" if call.name else base
            self._row(label, base, outputs[0], node, target, parameters)


def main_map(name: str, module: nn.Module, output: Any) -> Any:
    """Of a module's outputs the one that stands for it: an encoder's coarsest, which is its last, else the first."""
    maps = [*tensors(output), None]
    inner = name and not is_leaf(module)
    return maps[-2] if inner and len(maps) > 1 else maps[0]


def _one_shape(args: tuple) -> bool:
    """Do all tensors among `args` have the shape of the first, and lie on the meta device?"""
    given = list(tensors(args))
    return bool(given) and all(t.is_meta and t.shape == given[0].shape for t in given) and given[0] is args[0]


def _at(name: str) -> str:
    return f"layer '{name}'" if name else "the network's own forward"


def _norm_values(base: str, args: tuple) -> int | None:
    """Numbers per image that a normalization's statistic averages."""
    if base in ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "batch_norm"):
        return math.prod(args[0].shape[2:])
    if base == "native_group_norm":
        return args[4] * args[5] // args[6]
    if base == "native_layer_norm":
        return math.prod(args[1])
    return None


def _work(base: str, args: tuple, out: Any) -> dict[str, Any]:
    """Connections (a bias counts as one), multiply-adds and geometry of one operation."""
    work: dict[str, Any] = {"connections": 0, "multiply_adds": 0, "geometry": {}}
    if base == "convolution":
        x, weight, _, stride, padding, dilation, is_transposed, _, groups = args
        kernel = tuple(weight.shape[2:])
        places = x.shape[2:] if is_transposed else out.shape[2:]
        work["multiply_adds"] = x.shape[0] * math.prod(places) * weight.numel()
        work["connections"] = work["multiply_adds"] + out.numel()
        work["geometry"] = {
            "kernel_size": kernel,
            "stride": expand(stride, len(kernel)),
            "padding": expand(padding, len(kernel)),
            "dilation": expand(dilation, len(kernel)),
            "groups": groups,
        }
    elif base in ("mm", "bmm", "addmm", "baddbmm"):
        inner = args[0 if base in ("mm", "bmm") else 1].shape[-1]
        work["multiply_adds"] = out.numel() * inner
        work["connections"] = work["multiply_adds"] + out.numel()
    elif base in ("max_pool2d_with_indices", "avg_pool2d"):
        kernel = expand(args[1], 2)
        result = out[0] if isinstance(out, tuple) else out
        work["connections"] = result.numel() * (math.prod(kernel) + 1)
        has_dilation = base == "max_pool2d_with_indices" and len(args) > 4
        work["geometry"] = {
            "kernel_size": kernel,
            "stride": expand(args[2], 2) if len(args) > 2 and args[2] else kernel,
            "padding": expand(args[3], 2) if len(args) > 3 else (0, 0),
            "dilation": expand(args[4], 2) if has_dilation else (1, 1),
        }
    return work
