"""Follows one image through any `nn.Module`, on the meta device: nothing is computed, no weight is copied.

Every operation that reaches the dispatcher is either known here or named in an error. Normalizations count as
transparent: what they see of the image is a statistic, not a path.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.analysis.fields import (
    BROADCAST,
    SAME,
    WHOLE,
    Interval,
    Intervals,
    Reads,
    adaptive,
    clipped_through,
    hull,
    pad,
    pick,
    resize,
    transposed,
    window,
)
from cnn_train.analysis.graph import Edge, Graph, LayerRow, Node, Sight, Span, with_sight
from cnn_train.analysis.shapes import Arithmetic, result

_NORM = re.compile(r"(norm|renorm)([123]d)?$|lrn$", re.IGNORECASE)
# fmt: off
_VIEWS = frozenset({
    "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "permute", "transpose", "t", "expand", "slice",
    "select", "split", "split_with_sizes", "unbind", "clone", "detach", "alias", "_to_copy", "contiguous", "copy",
    "narrow", "lift_fresh", "as_strided", "_reshape_alias", "unfold_copy",
})
_POINTWISE = frozenset({
    "hardswish", "hardtanh", "hardsigmoid", "relu6", "dropout", "native_dropout", "clone", "detach", "alias",
    "_to_copy", "copy", "contiguous", "lift_fresh", "native_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm", "_batch_norm_with_update",
    "native_group_norm", "native_layer_norm", "channel_shuffle", "native_channel_shuffle", "prelu", "_prelu_kernel",
    "rrelu", "celu", "selu", "alpha_dropout", "masked_fill", "fill", "_fused_rms_norm",
})
_CONSTANT = frozenset({
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_empty", "new_full", "bernoulli", "new_empty_strided", "zero",
})
_REDUCTIONS = frozenset({
    "mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "var", "std", "var_mean", "std_mean",
    "logsumexp", "prod", "norm", "linalg_vector_norm", "any", "all", "cumsum",
})
# fmt: on


def is_norm(module: nn.Module) -> bool:
    """Is this a normalization, by torch's classes or by its name (`...Norm`, `...Norm2d`, `LRN`)?"""
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm | nn.LocalResponseNorm):
        return True
    weighty = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)
    return bool(_NORM.search(type(module).__name__)) and not any(isinstance(m, weighty) for m in module.modules())


def trace(module: nn.Module, input_size: Sequence[int]) -> Graph:
    """Follows an image of `input_size` (C, H, W) through the module in evaluation mode.

    Weights are neither read nor copied; the module is left as it was. ValueError names the operation and the layer
    where the trace cannot go on.
    """
    channels, height, width = _check_size(input_size)
    tracer = _Tracer(module, (channels, height, width))
    with on_meta(module) as originals, torch.no_grad():
        modes = {m: m.training for m in module.modules()}
        try:
            for m in modes:
                m.training = False
            dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
            image = torch.empty(1, channels, height, width, dtype=dtype, device="meta")
            tracer.run(image, originals)
        finally:
            for m, mode in modes.items():
                m.training = mode
    return tracer.graph()


def _check_size(input_size: Sequence[int]) -> tuple[int, int, int]:
    size = tuple(int(n) for n in input_size)
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"input size {tuple(input_size)} is not (channels, height, width); give e.g. (3, 224, 224)")
    return size


@contextmanager
def on_meta(module: nn.Module) -> Iterator[dict[int, nn.Parameter]]:
    """Puts meta tensors in the place of all parameters, buffers and other tensors, and the originals back afterwards.

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


Atom = tuple[int, int | None]  # a factor of a dimension: its size, and its axis (0 rows, 1 columns, None neither)
Dims = tuple[tuple[Atom, ...], ...]


@dataclass(frozen=True)
class _Map:
    """A tensor that depends on the image: its node, and which dimension holds which axis."""

    node: int
    dims: Dims


class _Unknown(Exception):
    """Why an operation cannot be followed."""


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
        self.leaf = self.opaque or not any(True for _ in module.children())
        self.connections = 0
        self.multiply_adds = 0
        self.geometry: dict[str, Any] = {}
        self.norm_values: int | None = None


class _Tracer:
    def __init__(self, module: nn.Module, input_size: tuple[int, int, int]):
        self.module = module
        self.input_size = input_size
        self.maps: dict[int, _Map] = {}
        self.alive: list[Any] = []  # ids stay unique as long as the tensors live
        self.nodes: list[Node] = []
        self.rows: list[LayerRow] = []
        self.spans: list[Span] = []
        self.stack: list[_Call] = []
        self.counted: set[int] = set()
        self.windows: dict[int, tuple[int, dict[str, Any]]] = {}  # of max pooling, by the id of its indices
        self.parameter_of: dict[int, nn.Parameter] = {}
        self.pending: dict[str, Any] = {}

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, image: Tensor, originals: dict[int, nn.Parameter]) -> None:
        self.parameter_of = originals
        sights = tuple(Sight(Intervals(), tuple((i, i) for i in range(n))) for n in image.shape[2:])
        self.nodes.append(
            Node(0, "input", "input", (image.shape[2], image.shape[3]), (sights[0], sights[1]), channels=image.shape[1])
        )
        dims: Dims = ((), ((image.shape[1], None),), ((image.shape[2], 0),), ((image.shape[3], 1),))
        self._keep(image, _Map(0, dims))
        with ExitStack() as stack:
            for name, m in self.module.named_modules(remove_duplicate=True):
                stack.callback(m.register_forward_pre_hook(self._enter(name), with_kwargs=True).remove)
                stack.callback(m.register_forward_hook(self._leave, with_kwargs=True).remove)
            try:
                with _Dispatch(self._record):
                    self.module(image)
            except _Unknown as error:
                raise ValueError(str(error)) from None
            except (RuntimeError, NotImplementedError, TypeError, IndexError, ValueError) as error:
                where = self.stack[-1].name if self.stack else ""
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise ValueError(
                    f"the network fails on an input of {self.input_size} at {_at(where)}: {reason}; "
                    "give another input size, or make the forward independent of the values of tensors"
                ) from error
        self._unused()

    def graph(self) -> Graph:
        total = sum(p.numel() for p in self.module.parameters())
        return Graph(self.input_size, self.rows, self.nodes, self.spans, total)

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.stack.append(_Call(name, module, len(self.rows)))

        return hook

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self.stack.pop()
        out = next((t for t in _tensors(output) if id(t) in self.maps), None)
        inputs = [t for t in _tensors((args, kwargs)) if id(t) in self.maps]
        outside = not any(c.leaf for c in self.stack)
        if call.opaque and inputs:
            if isinstance(module, nn.RNNBase):
                self._recurrent(module, inputs[0], output)
                out = next(iter(_tensors(output)), None)
            else:
                out = next(_tensors(output), None)
                if out is not None:
                    source = self.maps[id(inputs[0])]
                    self._add(out, source.dims, [(source, {})], kind=type(module).__name__)
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

    def _keep(self, tensor: Tensor, state: _Map) -> None:
        self.alive.append(tensor)
        self.maps[id(tensor)] = state

    # -- one operation ---------------------------------------------------------------------------------------------

    def _record(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        self.alive.append((args, out))
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
        tracked = [t for t in _tensors((args, kwargs)) if id(t) in self.maps]
        outputs = [t for t in _tensors(out)]
        if work["geometry"] and (not target.geometry or (tracked and target.geometry.get("groups") is None)):
            target.geometry = work["geometry"]
        if any(c.opaque for c in self.stack):
            return
        if not tracked or base in _CONSTANT or not outputs:
            if outputs and base in _CONSTANT:
                for t in outputs:
                    self.maps.pop(id(t), None)
            return
        self.pending = work["geometry"]
        try:
            self._follow(base, func, args, kwargs, out, outputs, tracked)
        except _Unknown as reason:
            raise _Unknown(f"cannot follow aten.{name} at {_at(call.name)}: {reason}") from None
        node = self.maps[id(outputs[0])].node
        if values is not None:
            self.nodes[node].norm_values = values
        if leaf is None and base not in _VIEWS:
            parameters = self._count(
                self.parameter_of[id(t)] for t in _tensors((args, kwargs)) if id(t) in self.parameter_of
            )
            label = f"{call.name}.{base}" if call.name else base
            self._row(label, base, outputs[0], node, target, parameters)

    def _follow(
        self, base: str, func: Any, args: tuple, kwargs: dict, out: Any, outputs: list[Tensor], tracked: list[Tensor]
    ) -> None:
        rule = getattr(self, f"_op_{base.lstrip('_')}", None)
        if rule is not None:
            named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
            for argument in func._schema.arguments:
                if argument.name not in named and argument.has_default_value():
                    named[argument.name] = argument.default_value
            rule(named, outputs)
        elif base in _REDUCTIONS:
            named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
            if isinstance(named.get("other"), Tensor):
                self._pointwise(base, tracked, outputs)
            else:
                self._reduce(base, named, outputs)
        elif base in _POINTWISE or torch.Tag.pointwise in func.tags:
            self._pointwise(base, tracked, outputs)
        else:
            raise _Unknown(
                "there is no rule for what it reads; use a known operation there, or analyse the part before it"
            )
        self._write_through(args, outputs)

    def _write_through(self, args: tuple, outputs: list[Tensor]) -> None:
        """An in-place change of a view changes the tensor that it looks at."""
        if not (args and isinstance(args[0], Tensor) and outputs and outputs[0] is args[0]):
            return
        view = outputs[0]
        base = view._base
        if base is None or base is view:
            return
        state = self.maps[id(view)]
        if base.dim() != view.dim() or any(
            self.nodes[state.node].units[axis] != base.shape[d]
            for d, atoms in enumerate(state.dims)
            for _, axis in atoms
            if axis is not None
        ):
            raise _Unknown("it writes into a part of a map; write the parts with torch.cat instead")
        edges: list[tuple[_Map, dict[int, Reads]]] = [(state, {})]
        if id(base) in self.maps:
            edges.append((self.maps[id(base)], {}))
        dims = tuple(
            atoms if any(a is not None for _, a in atoms) else ((base.shape[d], None),)
            for d, atoms in enumerate(state.dims)
        )
        self._add(base, dims, edges, kind="write")

    def _add(
        self,
        out: Tensor,
        dims: Dims,
        edges: list[tuple[_Map, dict[int, Reads]]],
        kind: str,
        **extra: Any,
    ) -> Node:
        """Makes the node of `out`; `edges` say how each input map is read along each axis (default: the same place)."""
        if out.numel() == 0:
            raise _Unknown(f"its output has no elements ({tuple(out.shape[1:])}); give a larger image")
        sizes = {axis: size for atoms in dims for size, axis in atoms if axis is not None}
        units = (sizes.get(0, 1), sizes.get(1, 1))
        made: list[Edge] = []
        for state, reads in edges:
            source = self.nodes[state.node]
            full = []
            for axis in (0, 1):
                default = SAME if source.units[axis] == units[axis] else BROADCAST
                full.append(reads.get(axis, default))
            made.append(Edge(source.index, (full[0], full[1])))
        made = list(dict.fromkeys(made))
        if len(made) == 1 and made[0].reads == (SAME, SAME):
            sights, drift = self.nodes[made[0].source].sights, (0.0, 0.0)
        else:
            pairs = [self._see(made, axis, units[axis]) for axis in (0, 1)]
            sights, drift = (pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1])
        names = [c.name for c in self.stack if c.leaf][:1] or [self.stack[-1].name if self.stack else ""]
        shape = out.shape
        node = Node(
            len(self.nodes),
            kind,
            names[0],
            units,
            sights,
            made,
            channels=shape[1] if len(shape) > 1 else 0,
            geometry=self.pending,
            misaligned=drift,
            **extra,
        )
        self.pending = {}
        self.nodes.append(node)
        self._keep(out, _Map(node.index, dims))
        return node

    def _see(self, edges: list[Edge], axis: int, units: int) -> tuple[Sight, float]:
        """What the new map's units see along one axis, and by how many pixels its inputs are misaligned."""
        locals_: list[Intervals] = []
        inside: list[tuple[Interval, ...]] = []
        wholes: list[tuple[int, int]] = []
        collapsed: list[Intervals] = []
        for edge in edges:
            source = self.nodes[edge.source]
            sight, reads = source.sights[axis], edge.reads[axis]
            if sight.whole is not None:
                wholes.append(sight.whole)
            if sight.collapsed:
                collapsed.append(sight.local)
            elif reads.whole:
                seen = hull(sight.clipped) or (0, 0)
                wholes.append(seen)
                collapsed.append(Intervals((seen[0],), (seen[1],), 0))
            else:
                locals_.append(sight.local if reads == SAME else sight.local.through(reads))
                inside.append(clipped_through(sight.clipped, reads, units))
        whole = hull(wholes)
        drift = 0.0
        group = locals_ or collapsed
        local = group[0]
        for other in group[1:]:
            if locals_ and units > 1:
                drift = max(drift, _drift(local, other, units))
            local = local.union(other, units)
        if not locals_:
            return Sight(local, (whole,) * units, whole, True), drift
        clipped = inside[0] if len(set(inside)) == 1 else tuple(hull(seen) for seen in zip(*inside, strict=True))
        return Sight(local, clipped, whole), drift

    # -- rules -----------------------------------------------------------------------------------------------------

    def _pointwise(self, base: str, tracked: list[Tensor], outputs: list[Tensor]) -> None:
        out = outputs[0]
        states = [self.maps[id(t)] for t in tracked]
        dims: list[tuple[Atom, ...]] = []
        for d in range(-out.dim(), 0):
            chosen: tuple[Atom, ...] = () if out.shape[d] == 1 else ((out.shape[d], None),)
            for tensor, state in zip(tracked, states, strict=True):
                if -d > tensor.dim() or tensor.shape[d] != out.shape[d]:
                    continue
                atoms = state.dims[d]
                if not any(axis is not None for _, axis in atoms):
                    continue
                if any(axis is not None for _, axis in chosen) and _axes(chosen) != _axes(atoms):
                    raise _Unknown(
                        "it joins maps whose rows and columns are in different dimensions; permute them first"
                    )
                chosen = atoms
            dims.append(chosen)
        if len(set(axes := [a for atoms in dims for a in _axes(atoms)])) != len(axes):
            raise _Unknown("it pairs every place of a map with every other; there is no single place to follow")
        self._add(out, tuple(dims), [(s, {}) for s in states], base)
        for extra in outputs[1:]:
            if extra.shape == out.shape:
                self._keep(extra, self.maps[id(out)])

    def _reduce(self, base: str, named: dict, outputs: list[Tensor]) -> None:
        x = named["self"]
        state = self.maps[id(x)]
        given = named.get("dim")
        dims = (
            list(range(x.dim())) if given is None or given == [] else [given] if isinstance(given, int) else list(given)
        )
        dims = [d % x.dim() for d in dims]
        reads = {axis: WHOLE for d in dims for _, axis in state.dims[d] if axis is not None}
        kept = base == "cumsum" or "softmax" in base
        if kept:
            new: Dims = state.dims
        elif outputs[0].dim() == x.dim():
            new = tuple(
                tuple((1, a) for _, a in atoms if a is not None) if d in dims else atoms
                for d, atoms in enumerate(state.dims)
            )
        else:
            new = tuple(atoms for d, atoms in enumerate(state.dims) if d not in dims)
        for out in outputs:
            self._add(out, new, [(state, reads)], base)

    def _op_softmax(self, named: dict, outputs: list[Tensor]) -> None:
        self._reduce("softmax", named, outputs)

    _op_log_softmax = _op_softmax

    def _spatial(self, x: Tensor, out: Tensor, reads: Sequence[Reads], kind: str, **extra: Any) -> None:
        """An operation on the last dimensions of `x`; the others keep their axes."""
        state = self.maps[id(x)]
        dims = list(state.dims)
        used = {a for atoms in dims for a in _axes(atoms)}
        by_axis: dict[int, Reads] = {}
        for d, read in zip(range(-len(reads), 0), reads, strict=True):
            axes = _axes(dims[d])
            if not axes and len(reads) == 2 and x.shape[d] == 1 and d + 2 not in used:
                axes = (d + 2,)
            if not axes:
                dims[d] = () if out.shape[d] == 1 else ((out.shape[d], None),)
            elif len(axes) == 1:
                by_axis[axes[0]] = read
                dims[d] = ((out.shape[d], axes[0]),)
            elif read.taps == ((0,),) and read.step == 1:
                continue
            else:
                raise _Unknown("it slides over rows and columns that were flattened into one dimension")
        channel = -len(reads) - 1
        if x.dim() >= -channel and x.shape[channel] != out.shape[channel]:
            if _axes(dims[channel]):
                by_axis |= dict.fromkeys(_axes(dims[channel]), WHOLE)
            dims[channel] = ((out.shape[channel], None),)
        self._add(out, tuple(dims), [(state, by_axis)], kind, **extra)

    def _op_convolution(self, named: dict, outputs: list[Tensor]) -> None:
        x, weight = named["input"], named["weight"]
        if id(x) not in self.maps or id(weight) in self.maps:
            raise _Unknown("its weights depend on the image; there is no fixed window to follow")
        kernel = weight.shape[2:]
        n = len(kernel)
        make = transposed if named["transposed"] else window
        stride, padding, dilation = (_expand(named[k], n) for k in ("stride", "padding", "dilation"))
        reads = [make(*values) for values in zip(kernel, stride, padding, dilation, strict=True)]
        state = self.maps[id(x)]
        mixing = [axis for axis in _axes(state.dims[-n - 1])]
        if mixing:
            raise _Unknown("it mixes channels that hold rows or columns of the map")
        self._spatial(x, outputs[0], reads, "conv_transpose" if named["transposed"] else "conv")

    def _pool(self, named: dict, outputs: list[Tensor], n: int, kind: str) -> None:
        kernel = _expand(named["kernel_size"], n)
        stride = _expand(named.get("stride") or kernel, n)
        padding = _expand(named.get("padding", 0), n)
        dilation = _expand(named.get("dilation", 1), n)
        reads = [window(*values) for values in zip(kernel, stride, padding, dilation, strict=True)]
        self._spatial(named["self"], outputs[0], reads, kind)
        if len(outputs) > 1:
            self._keep(outputs[1], self.maps[id(outputs[0])])
            self.windows[id(outputs[1])] = (
                n,
                {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation},
            )

    def _op_max_pool2d_with_indices(self, named: dict, outputs: list[Tensor]) -> None:
        self._pool(named, outputs, 2, "max_pool")

    def _op_max_pool3d_with_indices(self, named: dict, outputs: list[Tensor]) -> None:
        self._pool(named, outputs, 3, "max_pool")

    def _op_avg_pool1d(self, named: dict, outputs: list[Tensor]) -> None:
        self._pool(named, outputs, 1, "avg_pool")

    def _op_avg_pool2d(self, named: dict, outputs: list[Tensor]) -> None:
        self._pool(named, outputs, 2, "avg_pool")

    def _op_avg_pool3d(self, named: dict, outputs: list[Tensor]) -> None:
        self._pool(named, outputs, 3, "avg_pool")

    def _op_max_unpool2d(self, named: dict, outputs: list[Tensor]) -> None:
        x, indices = named["self"], named["indices"]
        if id(indices) not in self.windows:
            raise _Unknown("its indices do not come straight from a max pooling; pass those unchanged")
        _, w = self.windows[id(indices)]
        reads = [
            transposed(*values) for values in zip(w["kernel"], w["stride"], w["padding"], w["dilation"], strict=True)
        ]
        if id(x) not in self.maps:
            raise _Unknown("its input does not depend on the image")
        self._spatial(x, outputs[0], reads, "max_unpool")

    def _op_adaptive_avg_pool2d(self, named: dict, outputs: list[Tensor]) -> None:
        x, out = named["self"], outputs[0]
        reads = [adaptive(x.shape[d], out.shape[d]) for d in (-2, -1)]
        self._spatial(x, out, reads, "adaptive_pool")
        for extra in outputs[1:]:
            self._keep(extra, self.maps[id(out)])

    _op_adaptive_max_pool2d = _op_adaptive_avg_pool2d

    def _resize(self, mode: str, named: dict, outputs: list[Tensor]) -> None:
        x, out = named["self"], outputs[0]
        corners = bool(named.get("align_corners", False))
        reads = [
            resize(mode, x.shape[d], out.shape[d], align_corners=corners, scale=named.get(key))
            for d, key in ((-2, "scales_h"), (-1, "scales_w"))
        ]
        self._spatial(x, out, reads, "interpolate")

    def _op_upsample_nearest2d(self, named: dict, outputs: list[Tensor]) -> None:
        self._resize("nearest", named, outputs)

    def _op_upsample_nearest_exact2d(self, named: dict, outputs: list[Tensor]) -> None:
        self._resize("nearest-exact", named, outputs)

    def _op_upsample_bilinear2d(self, named: dict, outputs: list[Tensor]) -> None:
        self._resize("bilinear", named, outputs)

    def _op_upsample_bicubic2d(self, named: dict, outputs: list[Tensor]) -> None:
        self._resize("bicubic", named, outputs)

    def _pad(self, named: dict, outputs: list[Tensor], edge: str) -> None:
        x, widths = named["self"], named["pad" if "pad" in named else "padding"]
        n = len(widths) // 2
        reads = [pad(widths[2 * (n - 1 - d)], edge) for d in range(n)]
        self._spatial(x, outputs[0], reads, "pad")

    def _op_constant_pad_nd(self, named: dict, outputs: list[Tensor]) -> None:
        self._pad(named, outputs, "skip")

    def _op_reflection_pad2d(self, named: dict, outputs: list[Tensor]) -> None:
        self._pad(named, outputs, "reflect")

    def _op_replication_pad2d(self, named: dict, outputs: list[Tensor]) -> None:
        self._pad(named, outputs, "clamp")

    def _op_pixel_shuffle(self, named: dict, outputs: list[Tensor]) -> None:
        factor = named["upscale_factor"]
        self._spatial(named["self"], outputs[0], [Reads(((0,),) * factor, 1)] * 2, "pixel_shuffle")

    def _op_pixel_unshuffle(self, named: dict, outputs: list[Tensor]) -> None:
        factor = named["downscale_factor"]
        self._spatial(named["self"], outputs[0], [window(factor, factor)] * 2, "pixel_unshuffle")

    # -- rules: moving dimensions ----------------------------------------------------------------------------------

    def _view(self, named: dict, outputs: list[Tensor]) -> None:
        x, out = named["self"], outputs[0]
        state = self.maps[id(x)]
        self._add(out, _regroup([a for atoms in state.dims for a in atoms], out.shape), [(state, {})], "view")

    _op_view = _op_unsafe_view = _op_reshape = _op_reshape_alias = _op_unsqueeze = _op_squeeze = _view

    def _op_as_strided(self, named: dict, outputs: list[Tensor]) -> None:
        x = named["self"]
        if tuple(named["size"]) != tuple(x.shape) or named.get("storage_offset") not in (None, 0):
            raise _Unknown("it takes numbers out of memory by strides; use view, permute or slices")
        self._pointwise("as_strided", [x], outputs)

    def _op_permute(self, named: dict, outputs: list[Tensor]) -> None:
        state = self.maps[id(named["self"])]
        order = [d % len(state.dims) for d in named["dims"]]
        self._add(outputs[0], tuple(state.dims[d] for d in order), [(state, {})], "view")

    def _op_transpose(self, named: dict, outputs: list[Tensor]) -> None:
        state = self.maps[id(named["self"])]
        dims = list(state.dims)
        a, b = named["dim0"], named["dim1"]
        dims[a], dims[b] = dims[b], dims[a]
        self._add(outputs[0], tuple(dims), [(state, {})], "view")

    def _op_t(self, named: dict, outputs: list[Tensor]) -> None:
        state = self.maps[id(named["self"])]
        self._add(outputs[0], state.dims[::-1], [(state, {})], "view")

    def _op_expand(self, named: dict, outputs: list[Tensor]) -> None:
        self._pointwise("expand", [named["self"]], outputs)

    def _cut(self, state: _Map, out: Tensor, dim: int, read: Reads, *, drop: bool = False) -> None:
        axes = _axes(state.dims[dim])
        if len(axes) > 1 or (axes and len([a for a in state.dims[dim] if a[0] > 1]) > 1):
            raise _Unknown("it cuts a dimension into which rows, columns or channels were flattened together")
        dims = list(state.dims)
        if drop:
            del dims[dim]
        else:
            dims[dim] = ((out.shape[dim], axes[0]),) if axes else ((out.shape[dim], None),)
        self._add(out, tuple(dims), [(state, {axes[0]: read} if axes else {})], "view")

    def _op_slice(self, named: dict, outputs: list[Tensor]) -> None:
        x = named["self"]
        dim = named["dim"] % x.dim()
        size = x.shape[dim]
        start, _, step = slice(named["start"], named["end"], named["step"]).indices(size)
        self._cut(self.maps[id(x)], outputs[0], dim, pick(start, step))

    def _op_select(self, named: dict, outputs: list[Tensor]) -> None:
        x = named["self"]
        dim = named["dim"] % x.dim()
        self._cut(self.maps[id(x)], outputs[0], dim, pick(named["index"] % x.shape[dim], 0), drop=True)

    def _op_unbind(self, named: dict, outputs: list[Tensor]) -> None:
        x = named["self"]
        for index, out in enumerate(outputs):
            self._cut(self.maps[id(x)], out, named["dim"] % x.dim(), pick(index, 0), drop=True)

    def _op_split(self, named: dict, outputs: list[Tensor]) -> None:
        x = named["self"]
        dim = named["dim"] % x.dim()
        start = 0
        for out in outputs:
            self._cut(self.maps[id(x)], out, dim, pick(start))
            start += out.shape[dim]

    _op_split_with_sizes = _op_split

    def _op_flip(self, named: dict, outputs: list[Tensor]) -> None:
        x = named["self"]
        state = self.maps[id(x)]
        reads: dict[int, Reads] = {}
        for d in named["dims"]:
            axes = _axes(state.dims[d])
            if len(axes) > 1:
                raise _Unknown("it flips rows and columns that were flattened into one dimension")
            reads |= {axis: pick(x.shape[d] - 1, -1) for axis in axes}
        self._add(outputs[0], state.dims, [(state, reads)], "flip")

    def _op_cat(self, named: dict, outputs: list[Tensor]) -> None:
        tensors = [t for t in named["tensors"] if id(t) in self.maps and t.numel()]
        out = outputs[0]
        dim = named["dim"] % out.dim()
        states = [self.maps[id(t)] for t in tensors]
        if len(named["tensors"]) > 1 and any(size > 1 for s in states for size, a in s.dims[dim] if a is not None):
            raise _Unknown("it joins maps side by side; only joining channels keeps places apart")
        dims = list(max((s.dims for s in states), key=lambda d: sum(len(_axes(atoms)) for atoms in d)))
        dims[dim] = ((out.shape[dim], None),)
        self._add(out, tuple(dims), [(s, {}) for s in states], "cat")

    def _op_stack(self, named: dict, outputs: list[Tensor]) -> None:
        tensors = [t for t in named["tensors"] if id(t) in self.maps]
        out = outputs[0]
        states = [self.maps[id(t)] for t in tensors]
        dims = list(states[0].dims)
        dims.insert(named["dim"] % out.dim(), ((out.shape[named["dim"] % out.dim()], None),))
        self._add(out, tuple(dims), [(s, {}) for s in states], "cat")

    def _op_repeat(self, named: dict, outputs: list[Tensor]) -> None:
        x, out = named["self"], outputs[0]
        state = self.maps[id(x)]
        front = out.dim() - x.dim()
        dims: list[tuple[Atom, ...]] = [((out.shape[d], None),) for d in range(front)]
        for d, atoms in enumerate(state.dims):
            times = named["repeats"][front + d]
            if times > 1 and any(size > 1 for size, axis in atoms if axis is not None):
                raise _Unknown("it tiles a map; use interpolation to enlarge one")
            dims.append(atoms if times == 1 else ((out.shape[front + d], None),))
        self._add(out, tuple(dims), [(state, {})], "repeat")

    # -- rules: products -------------------------------------------------------------------------------------------

    def _product(self, a: Tensor, b: Tensor, out: Tensor, extra: list[_Map]) -> None:
        """(..., i, k) times (..., k, j)."""
        edges: list[tuple[_Map, dict[int, Reads]]] = [(m, {}) for m in extra]
        rows: tuple[Atom, ...] = ((out.shape[-2], None),)
        columns: tuple[Atom, ...] = ((out.shape[-1], None),)
        lead: Dims = tuple(((n, None),) for n in out.shape[:-2])
        for tensor, outer, inner in ((a, -2, -1), (b, -1, -2)):
            state = self.maps.get(id(tensor))
            if state is None:
                continue
            if outer == -2:
                rows = state.dims[-2]
            else:
                columns = state.dims[-1]
            if any(_axes(atoms) for atoms in state.dims[:-2]):
                lead = state.dims[:-2]
            edges.append((state, dict.fromkeys(_axes(state.dims[inner]), WHOLE)))
        dims = (*lead, rows, columns)
        if len(set(axes := [x for atoms in dims for x in _axes(atoms)])) != len(axes):
            raise _Unknown(
                "it pairs every place of a map with every other (attention); there is no single place to follow"
            )
        self._add(out, dims, edges, "linear")

    def _op_mm(self, named: dict, outputs: list[Tensor]) -> None:
        other = named.get("mat2")
        assert other is not None
        self._product(named["self"], other, outputs[0], [])

    _op_bmm = _op_mm

    def _op_addmm(self, named: dict, outputs: list[Tensor]) -> None:
        first = named.get("mat1", named.get("batch1"))
        second = named.get("mat2", named.get("batch2"))
        assert first is not None and second is not None
        bias = self.maps.get(id(named["self"]))
        self._product(first, second, outputs[0], [bias] if bias else [])

    _op_baddbmm = _op_addmm

    def _recurrent(self, module: nn.RNNBase, x: Tensor, output: Any) -> None:
        """A recurrent layer: every step sees the steps before it (and after it, if bidirectional)."""
        self.pending = {}
        state = self.maps[id(x)]
        steps = (1 if module.batch_first else 0) if x.dim() == 3 else 0
        sequence, last = output
        inner = dict.fromkeys(_axes(state.dims[-1]), WHOLE)
        over = _axes(state.dims[steps])
        reads = dict(inner)
        for axis in over:
            n = x.shape[steps]
            if module.bidirectional or len(over) > 1:
                reads[axis] = WHOLE
            else:
                reads[axis] = Reads(tuple(tuple(range(step + 1)) for step in range(n)), n)
        dims = (*state.dims[:-1], ((sequence.shape[-1], None),))
        self._add(sequence, dims, [(state, reads)], type(module).__name__)
        for tensor in _tensors(last):
            # (layers, N, D): the batch may hold rows or columns.
            batch = state.dims[1 - steps] if x.dim() == 3 else ()
            final: Dims = (((tensor.shape[0], None),), batch, ((tensor.shape[-1], None),))[: tensor.dim()]
            self._add(tensor, final, [(state, inner | dict.fromkeys(over, WHOLE))], type(module).__name__)


def main_map(name: str, module: nn.Module, output: Any) -> Any:
    """Of a module's outputs the one that stands for it: an encoder's coarsest, which is its last, else the first."""
    tensors = [*_tensors(output), None]
    inner = name and any(True for _ in module.children())
    return tensors[-2] if inner and len(tensors) > 1 else tensors[0]


def _one_shape(args: tuple) -> bool:
    """Do all tensors among `args` have the shape of the first, and lie on the meta device?"""
    tensors = list(_tensors(args))
    return bool(tensors) and all(t.is_meta and t.shape == tensors[0].shape for t in tensors) and tensors[0] is args[0]


def _at(name: str) -> str:
    return f"layer '{name}'" if name else "the network's own forward"


def _axes(atoms: tuple[Atom, ...]) -> tuple[int, ...]:
    return tuple(axis for _, axis in atoms if axis is not None)


def _expand(value: Any, n: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def _regroup(atoms: list[Atom], shape: Sequence[int]) -> Dims:
    """Distributes the factors of a tensor's dimensions over the new shape of a view."""
    rest = [atom for atom in atoms if atom[0] > 1 or atom[1] is not None]
    dims: list[tuple[Atom, ...]] = []
    for place, size in enumerate(shape):
        taken: list[Atom] = []
        missing = size
        while missing > 1:
            if not rest:
                raise _Unknown("its shapes do not match")
            n, axis = rest.pop(0)
            if missing % n == 0:
                taken.append((n, axis))
                missing //= n
            elif axis is None and n % missing == 0:
                taken.append((missing, None))
                rest.insert(0, (n // missing, None))
                missing = 1
            else:
                raise _Unknown(
                    "it splits rows or columns of a map over several dimensions; use pixel_unshuffle or slices"
                )
        if size == 1 and rest and rest[0][0] == 1:
            taken.append(rest.pop(0))
        if place == len(shape) - 1:
            taken.extend(rest)
            rest = []
        dims.append(tuple(taken))
    return tuple(dims)


def _drift(a: Intervals, b: Intervals, units: int) -> float:
    """Largest distance in pixels between the centres of two maps that are read together."""
    if a.jump == b.jump:
        return float(abs(a.mean_centre - b.mean_centre))
    ends = (a.mean_centre - b.mean_centre, a.mean_centre - b.mean_centre + (a.jump - b.jump) * (units - 1))
    return float(max(abs(e) for e in ends))


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
    """Connections (a bias is one, too), multiply-adds and geometry of one operation."""
    work: dict[str, Any] = {"connections": 0, "multiply_adds": 0, "geometry": {}}
    if base == "convolution":
        x, weight, _, stride, padding, dilation, is_transposed, _, groups = args
        kernel = tuple(weight.shape[2:])
        places = x.shape[2:] if is_transposed else out.shape[2:]
        work["multiply_adds"] = x.shape[0] * math.prod(places) * weight.numel()
        work["connections"] = work["multiply_adds"] + out.numel()
        work["geometry"] = {
            "kernel_size": kernel,
            "stride": _expand(stride, len(kernel)),
            "padding": _expand(padding, len(kernel)),
            "dilation": _expand(dilation, len(kernel)),
            "groups": groups,
        }
    elif base in ("mm", "bmm", "addmm", "baddbmm"):
        inner = args[0 if base in ("mm", "bmm") else 1].shape[-1]
        work["multiply_adds"] = out.numel() * inner
        work["connections"] = work["multiply_adds"] + out.numel()
    elif base in ("max_pool2d_with_indices", "avg_pool2d"):
        kernel = _expand(args[1], 2)
        result = out[0] if isinstance(out, tuple) else out
        work["connections"] = result.numel() * (math.prod(kernel) + 1)
        has_dilation = base == "max_pool2d_with_indices" and len(args) > 4
        work["geometry"] = {
            "kernel_size": kernel,
            "stride": _expand(args[2], 2) if len(args) > 2 and args[2] else kernel,
            "padding": _expand(args[3], 2) if len(args) > 3 else (0, 0),
            "dilation": _expand(args[4], 2) if has_dilation else (1, 1),
        }
    return work
