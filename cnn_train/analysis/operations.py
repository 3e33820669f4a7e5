"""What each operation reads of its input maps, and the maps that it makes.

Operations that only move dimensions are in `moves`, the maps themselves in `maps`. An operation is either known there
or named in an error. Normalizations count as transparent: what they see of the image is a statistic, not a path.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.analysis.fields import (
    WHOLE,
    Reads,
    adaptive,
    pad,
    resize,
    transposed,
    window,
)
from cnn_train.analysis.maps import Atom, Dims, Map, Unknown, axes_of
from cnn_train.analysis.modules import tensors
from cnn_train.analysis.moves import MOVES, Moves

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


class Operations(Moves):
    """Follows operations one by one, each by the rule for it."""

    def follow(
        self, base: str, func: Any, args: tuple, kwargs: dict, outputs: list[Tensor], tracked: list[Tensor]
    ) -> None:
        """Make the nodes of an operation's `outputs` from the `tracked` inputs, which are maps.

        Unknown says why it cannot be followed.
        """
        rule = getattr(self, f"_op_{base.lstrip('_')}", None)
        joined = [state for t in tracked if (state := self.maps[id(t)]).joined]
        if joined:
            if base not in MOVES and base not in _POINTWISE and torch.Tag.pointwise not in func.tags:
                raise Unknown("it reads maps that were joined side by side; only joining channels keeps places apart")
            more = base == "cat" and len(joined) < len(tracked)
            for out in outputs:
                self.join(out, [self.maps[id(t)] for t in tracked] if more else joined[:1])
            return
        if rule is not None:
            named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
            for argument in func._schema.arguments:
                if argument.name not in named and argument.has_default_value():
                    named[argument.name] = argument.default_value
            rule(named, outputs)
        elif base in _REDUCTIONS:
            named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
            if isinstance(named.get("other"), Tensor):
                self.pointwise(base, tracked, outputs)
            else:
                self._reduce(base, named, outputs)
        elif base in _POINTWISE or torch.Tag.pointwise in func.tags:
            self.pointwise(base, tracked, outputs)
        else:
            raise Unknown(
                "there is no rule for what it reads; use a known operation there, or analyse the part before it"
            )
        self.write_through(args, outputs)

    # -- rules -----------------------------------------------------------------------------------------------------

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
        used = {a for atoms in dims for a in axes_of(atoms)}
        by_axis: dict[int, Reads] = {}
        for d, read in zip(range(-len(reads), 0), reads, strict=True):
            axes = axes_of(dims[d])
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
            if axes_of(dims[channel]):
                by_axis |= dict.fromkeys(axes_of(dims[channel]), WHOLE)
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
        mixing = [axis for axis in axes_of(state.dims[-n - 1])]
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
            if any(axes_of(atoms) for atoms in state.dims[:-2]):
                lead = state.dims[:-2]
            edges.append((state, dict.fromkeys(axes_of(state.dims[inner]), WHOLE)))
        dims = (*lead, rows, columns)
        if len(set(axes := [x for atoms in dims for x in axes_of(atoms)])) != len(axes):
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
        inner = dict.fromkeys(axes_of(state.dims[-1]), WHOLE)
        over = axes_of(state.dims[steps])
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


def expand(value: Any, n: int) -> tuple[int, ...]:
    """One number for all `n` dimensions, or one for each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values
