"""What views, slices, flips and joins read: the operations that move the dimensions of a map."""

from collections.abc import Sequence

from torch import Tensor

from cnn_train.analysis.fields import Reads, pick
from cnn_train.analysis.maps import Atom, Dims, Map, Maps, Unknown, axes_of

# fmt: off
MOVES = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "permute", "transpose", "t", "expand",
    "slice", "select", "split", "split_with_sizes", "unbind", "cat", "clone", "softmax", "_softmax",
})
# fmt: on


class Moves(Maps):
    """The rules for operations that move, cut and join dimensions."""

    def _view(self, named: dict, outputs: list[Tensor]) -> None:
        x, out = named["self"], outputs[0]
        state = self.maps[id(x)]
        self.add(out, _regroup([a for atoms in state.dims for a in atoms], out.shape), [(state, {})], "view")

    _op_view = _op_unsafe_view = _op_reshape = _op_reshape_alias = _op_unsqueeze = _op_squeeze = _view

    def _op_as_strided(self, named: dict, outputs: list[Tensor]) -> None:
        x = named["self"]
        if tuple(named["size"]) != tuple(x.shape) or named.get("storage_offset") not in (None, 0):
            raise Unknown("it takes numbers out of memory by strides; use view, permute or slices")
        self.pointwise("as_strided", [x], outputs)

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
        self.pointwise("expand", [named["self"]], outputs)

    def _cut(self, state: Map, out: Tensor, dim: int, read: Reads, *, drop: bool = False) -> None:
        axes = axes_of(state.dims[dim])
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
            axes = axes_of(state.dims[d])
            if len(axes) > 1:
                raise Unknown("it flips rows and columns that were flattened into one dimension")
            reads |= {axis: pick(x.shape[d] - 1, -1) for axis in axes}
        self.add(outputs[0], state.dims, [(state, reads)], "flip")

    def _op_cat(self, named: dict, outputs: list[Tensor]) -> None:
        out = outputs[0]
        dim = named["dim"] % out.dim()
        states = [self.maps[id(t)] for t in named["tensors"] if id(t) in self.maps and t.numel()]
        if len(named["tensors"]) == 1:
            self.pointwise("cat", list(named["tensors"]), outputs)
            return
        if any(size > 1 for s in states for size, a in s.dims[dim] if a is not None):
            self.join(out, states)
            return
        dims = list(max((s.dims for s in states), key=lambda d: sum(len(axes_of(atoms)) for atoms in d)))
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
