"""What each operation reads of the maps it is given, and the maps that come of it.

Every operation is either known here or named in an error. Normalizations count as transparent: what they see of the
image is a statistic, not a path.
"""

from collections.abc import Iterator, Sequence
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
from cnn_train.analysis.graph import Edge, Node, Sight

# fmt: off
_POINTWISE = frozenset({
    "hardswish", "hardtanh", "hardsigmoid", "relu6", "dropout", "native_dropout", "clone", "detach", "alias",
    "_to_copy", "copy", "contiguous", "lift_fresh", "native_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm", "_batch_norm_with_update",
    "native_group_norm", "native_layer_norm", "channel_shuffle", "native_channel_shuffle", "prelu", "_prelu_kernel",
    "rrelu", "celu", "selu", "alpha_dropout", "masked_fill", "fill", "_fused_rms_norm",
})
_REDUCTIONS = frozenset({
    "mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "var", "std", "var_mean", "std_mean",
    "logsumexp", "prod", "norm", "linalg_vector_norm", "any", "all", "cumsum",
})
# fmt: on

Atom = tuple[int, int | None]  # a factor of a dimension: its size, and its axis (0 rows, 1 columns, None neither)
Dims = tuple[tuple[Atom, ...], ...]


@dataclass(frozen=True)
class Map:
    """A tensor that depends on the image: its node, and which dimension holds which axis."""

    node: int
    dims: Dims


class Unknown(Exception):
    """Why an operation cannot be followed."""


class Operations:
    """Follows operations, one by one: which tensors are maps of the image, and the node that stands for each."""

    def __init__(self, image: Tensor):
        self.maps: dict[int, Map] = {}  # by the id of the tensor
        self.alive: list[Any] = []  # ids stay unique as long as the tensors live
        self.nodes: list[Node] = []
        self.windows: dict[int, dict[str, Any]] = {}  # of max pooling, by the id of its indices
        self.layer = ""  # where the operation is
        self.geometry: dict[str, Any] = {}  # the operation's window
        height, width = image.shape[2:]
        rows, columns = (Sight(Intervals(), tuple((i, i) for i in range(n))) for n in (height, width))
        self.nodes.append(Node(0, "input", "input", (height, width), (rows, columns), channels=image.shape[1]))
        self.keep(image, Map(0, ((), ((image.shape[1], None),), ((height, 0),), ((width, 1),))))

    def keep(self, tensor: Tensor, state: Map) -> None:
        """This tensor is that map."""
        self.alive.append(tensor)
        self.maps[id(tensor)] = state

    def follow(
        self, base: str, func: Any, args: tuple, kwargs: dict, outputs: list[Tensor], tracked: list[Tensor]
    ) -> None:
        """Make the nodes of an operation's `outputs` from the `tracked` inputs, which are maps.

        Unknown says why it cannot be followed.
        """
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
            raise Unknown(
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
            raise Unknown("it writes into a part of a map; write the parts with torch.cat instead")
        edges: list[tuple[Map, dict[int, Reads]]] = [(state, {})]
        if id(base) in self.maps:
            edges.append((self.maps[id(base)], {}))
        dims = tuple(
            atoms if any(a is not None for _, a in atoms) else ((base.shape[d], None),)
            for d, atoms in enumerate(state.dims)
        )
        self.add(base, dims, edges, kind="write")

    def add(
        self,
        out: Tensor,
        dims: Dims,
        edges: list[tuple[Map, dict[int, Reads]]],
        kind: str,
        **extra: Any,
    ) -> Node:
        """Makes the node of `out`; `edges` say how each input map is read along each axis (default: the same place)."""
        if out.numel() == 0:
            raise Unknown(f"its output has no elements ({tuple(out.shape[1:])}); give a larger image")
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
        shape = out.shape
        node = Node(
            len(self.nodes),
            kind,
            self.layer,
            units,
            sights,
            made,
            channels=shape[1] if len(shape) > 1 else 0,
            geometry=self.geometry,
            misaligned=drift,
            **extra,
        )
        self.geometry = {}
        self.nodes.append(node)
        self.keep(out, Map(node.index, dims))
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
                    raise Unknown(
                        "it joins maps whose rows and columns are in different dimensions; permute them first"
                    )
                chosen = atoms
            dims.append(chosen)
        if len(set(axes := [a for atoms in dims for a in _axes(atoms)])) != len(axes):
            raise Unknown("it pairs every place of a map with every other; there is no single place to follow")
        self.add(out, tuple(dims), [(s, {}) for s in states], base)
        for extra in outputs[1:]:
            if extra.shape == out.shape:
                self.keep(extra, self.maps[id(out)])

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
            self.add(out, new, [(state, reads)], base)

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
                raise Unknown("it slides over rows and columns that were flattened into one dimension")
        channel = -len(reads) - 1
        if x.dim() >= -channel and x.shape[channel] != out.shape[channel]:
            if _axes(dims[channel]):
                by_axis |= dict.fromkeys(_axes(dims[channel]), WHOLE)
            dims[channel] = ((out.shape[channel], None),)
        self.add(out, tuple(dims), [(state, by_axis)], kind, **extra)

    def _op_convolution(self, named: dict, outputs: list[Tensor]) -> None:
        x, weight = named["input"], named["weight"]
        if id(x) not in self.maps or id(weight) in self.maps:
            raise Unknown("its weights depend on the image; there is no fixed window to follow")
        kernel = weight.shape[2:]
        n = len(kernel)
        make = transposed if named["transposed"] else window
        stride, padding, dilation = (expand(named[k], n) for k in ("stride", "padding", "dilation"))
        reads = [make(*values) for values in zip(kernel, stride, padding, dilation, strict=True)]
        state = self.maps[id(x)]
        mixing = [axis for axis in _axes(state.dims[-n - 1])]
        if mixing:
            raise Unknown("it mixes channels that hold rows or columns of the map")
        self._spatial(x, outputs[0], reads, "conv_transpose" if named["transposed"] else "conv")

    def _pool(self, named: dict, outputs: list[Tensor], n: int, kind: str) -> None:
        kernel = expand(named["kernel_size"], n)
        stride = expand(named.get("stride") or kernel, n)
        padding = expand(named.get("padding", 0), n)
        dilation = expand(named.get("dilation", 1), n)
        reads = [window(*values) for values in zip(kernel, stride, padding, dilation, strict=True)]
        self._spatial(named["self"], outputs[0], reads, kind)
        if len(outputs) > 1:
            self.keep(outputs[1], self.maps[id(outputs[0])])
            shape = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
            self.windows[id(outputs[1])] = shape

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
            raise Unknown("its indices do not come straight from a max pooling; pass those unchanged")
        w = self.windows[id(indices)]
        reads = [
            transposed(*values) for values in zip(w["kernel"], w["stride"], w["padding"], w["dilation"], strict=True)
        ]
        if id(x) not in self.maps:
            raise Unknown("its input does not depend on the image")
        self._spatial(x, outputs[0], reads, "max_unpool")

    def _op_adaptive_avg_pool2d(self, named: dict, outputs: list[Tensor]) -> None:
        x, out = named["self"], outputs[0]
        reads = [adaptive(x.shape[d], out.shape[d]) for d in (-2, -1)]
        self._spatial(x, out, reads, "adaptive_pool")
        for extra in outputs[1:]:
            self.keep(extra, self.maps[id(out)])

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
        self.add(out, _regroup([a for atoms in state.dims for a in atoms], out.shape), [(state, {})], "view")

    _op_view = _op_unsafe_view = _op_reshape = _op_reshape_alias = _op_unsqueeze = _op_squeeze = _view

    def _op_as_strided(self, named: dict, outputs: list[Tensor]) -> None:
        x = named["self"]
        if tuple(named["size"]) != tuple(x.shape) or named.get("storage_offset") not in (None, 0):
            raise Unknown("it takes numbers out of memory by strides; use view, permute or slices")
        self._pointwise("as_strided", [x], outputs)

    def _op_permute(self, named: dict, outputs: list[Tensor]) -> None:
        state = self.maps[id(named["self"])]
        order = [d % len(state.dims) for d in named["dims"]]
        self.add(outputs[0], tuple(state.dims[d] for d in order), [(state, {})], "view")

    def _op_transpose(self, named: dict, outputs: list[Tensor]) -> None:
        state = self.maps[id(named["self"])]
        dims = list(state.dims)
        a, b = named["dim0"], named["dim1"]
        dims[a], dims[b] = dims[b], dims[a]
        self.add(outputs[0], tuple(dims), [(state, {})], "view")

    def _op_t(self, named: dict, outputs: list[Tensor]) -> None:
        state = self.maps[id(named["self"])]
        self.add(outputs[0], state.dims[::-1], [(state, {})], "view")

    def _op_expand(self, named: dict, outputs: list[Tensor]) -> None:
        self._pointwise("expand", [named["self"]], outputs)

    def _cut(self, state: Map, out: Tensor, dim: int, read: Reads, *, drop: bool = False) -> None:
        axes = _axes(state.dims[dim])
        if len(axes) > 1 or (axes and len([a for a in state.dims[dim] if a[0] > 1]) > 1):
            raise Unknown("it cuts a dimension into which rows, columns or channels were flattened together")
        dims = list(state.dims)
        if drop:
            del dims[dim]
        else:
            dims[dim] = ((out.shape[dim], axes[0]),) if axes else ((out.shape[dim], None),)
        self.add(out, tuple(dims), [(state, {axes[0]: read} if axes else {})], "view")

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
                raise Unknown("it flips rows and columns that were flattened into one dimension")
            reads |= {axis: pick(x.shape[d] - 1, -1) for axis in axes}
        self.add(outputs[0], state.dims, [(state, reads)], "flip")

    def _op_cat(self, named: dict, outputs: list[Tensor]) -> None:
        out = outputs[0]
        dim = named["dim"] % out.dim()
        states = [self.maps[id(t)] for t in named["tensors"] if id(t) in self.maps and t.numel()]
        if len(named["tensors"]) > 1 and any(size > 1 for s in states for size, a in s.dims[dim] if a is not None):
            raise Unknown("it joins maps side by side; only joining channels keeps places apart")
        dims = list(max((s.dims for s in states), key=lambda d: sum(len(_axes(atoms)) for atoms in d)))
        dims[dim] = ((out.shape[dim], None),)
        self.add(out, tuple(dims), [(s, {}) for s in states], "cat")

    def _op_stack(self, named: dict, outputs: list[Tensor]) -> None:
        out = outputs[0]
        states = [self.maps[id(t)] for t in named["tensors"] if id(t) in self.maps]
        dims = list(states[0].dims)
        dims.insert(named["dim"] % out.dim(), ((out.shape[named["dim"] % out.dim()], None),))
        self.add(out, tuple(dims), [(s, {}) for s in states], "cat")

    def _op_repeat(self, named: dict, outputs: list[Tensor]) -> None:
        x, out = named["self"], outputs[0]
        state = self.maps[id(x)]
        front = out.dim() - x.dim()
        dims: list[tuple[Atom, ...]] = [((out.shape[d], None),) for d in range(front)]
        for d, atoms in enumerate(state.dims):
            times = named["repeats"][front + d]
            if times > 1 and any(size > 1 for size, axis in atoms if axis is not None):
                raise Unknown("it tiles a map; use interpolation to enlarge one")
            dims.append(atoms if times == 1 else ((out.shape[front + d], None),))
        self.add(out, tuple(dims), [(state, {})], "repeat")

    # -- rules: products -------------------------------------------------------------------------------------------

    def _product(self, a: Tensor, b: Tensor, out: Tensor, extra: list[Map]) -> None:
        """(..., i, k) times (..., k, j)."""
        edges: list[tuple[Map, dict[int, Reads]]] = [(m, {}) for m in extra]
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
            raise Unknown(
                "it pairs every place of a map with every other (attention); there is no single place to follow"
            )
        self.add(out, dims, edges, "linear")

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

    def recurrent(self, module: nn.RNNBase, x: Tensor, output: Any) -> None:
        """A recurrent layer: every step sees the steps before it (and after it, if bidirectional)."""
        self.geometry = {}
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
        self.add(sequence, dims, [(state, reads)], type(module).__name__)
        for tensor in tensors(last):
            # (layers, N, D): the batch may hold rows or columns.
            batch = state.dims[1 - steps] if x.dim() == 3 else ()
            final: Dims = (((tensor.shape[0], None),), batch, ((tensor.shape[-1], None),))[: tensor.dim()]
            self.add(tensor, final, [(state, inner | dict.fromkeys(over, WHOLE))], type(module).__name__)


def _axes(atoms: tuple[Atom, ...]) -> tuple[int, ...]:
    return tuple(axis for _, axis in atoms if axis is not None)


def expand(value: Any, n: int) -> tuple[int, ...]:
    """One number for all `n` dimensions, or one for each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


def tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested containers, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)


def _regroup(atoms: list[Atom], shape: Sequence[int]) -> Dims:
    """Distributes the factors of a tensor's dimensions over the new shape of a view."""
    rest = [atom for atom in atoms if atom[0] > 1 or atom[1] is not None]
    dims: list[tuple[Atom, ...]] = []
    for place, size in enumerate(shape):
        taken: list[Atom] = []
        missing = size
        while missing > 1:
            if not rest:
                raise Unknown("its shapes do not match")
            n, axis = rest.pop(0)
            if missing % n == 0:
                taken.append((n, axis))
                missing //= n
            elif axis is None and n % missing == 0:
                taken.append((missing, None))
                rest.insert(0, (n // missing, None))
                missing = 1
            else:
                raise Unknown(
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
