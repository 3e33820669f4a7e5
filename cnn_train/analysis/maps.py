"""The maps of the image that a trace has met: a node for each, and what its units see of the image.

What each operation reads of them is in `operations`.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cnn_train.analysis.fields import BROADCAST, SAME, Interval, Intervals, Reads, clipped_through, hull
from cnn_train.analysis.graph import Edge, Node, Sight

Atom = tuple[int, int | None]  # a factor of a dimension: its size, and its axis (0 rows, 1 columns, None neither)
Dims = tuple[tuple[Atom, ...], ...]


@dataclass(frozen=True)
class Map:
    """A tensor that depends on the image: its node, and which dimension holds which axis.

    `joined`: the nodes of maps whose places stand one after another in it, as a detector's levels do. It has no axes
    then, and its node is the one of them that sees most.
    """

    node: int
    dims: Dims
    joined: tuple[int, ...] = ()


class Unknown(Exception):
    """Why an operation cannot be followed."""


class Maps:
    """Which tensors are maps of the image, and the node that stands for each."""

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

    def join(self, out: Tensor, states: list[Map]) -> None:
        """The places of these maps one after another, or of maps that are so joined already."""
        nodes = tuple(node for state in states for node in (state.joined or (state.node,)))
        most = max(nodes, key=lambda node: sum(sight.size for sight in self.nodes[node].sights))
        self.keep(out, Map(most, (), nodes))

    def pointwise(self, base: str, tracked: list[Tensor], outputs: list[Tensor]) -> None:
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
                if any(axis is not None for _, axis in chosen) and axes_of(chosen) != axes_of(atoms):
                    raise Unknown(
                        "it joins maps whose rows and columns are in different dimensions; permute them first"
                    )
                chosen = atoms
            dims.append(chosen)
        if len(set(axes := [a for atoms in dims for a in axes_of(atoms)])) != len(axes):
            raise Unknown("it pairs every place of a map with every other; there is no single place to follow")
        self.add(out, tuple(dims), [(s, {}) for s in states], base)
        for extra in outputs[1:]:
            if extra.shape == out.shape:
                self.keep(extra, self.maps[id(out)])

    def write_through(self, args: tuple, outputs: list[Tensor]) -> None:
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


def axes_of(atoms: tuple[Atom, ...]) -> tuple[int, ...]:
    return tuple(axis for _, axis in atoms if axis is not None)


def _drift(a: Intervals, b: Intervals, units: int) -> float:
    """Largest distance in pixels between the centres of two maps that are read together."""
    if a.jump == b.jump:
        return float(abs(a.mean_centre - b.mean_centre))
    ends = (a.mean_centre - b.mean_centre, a.mean_centre - b.mean_centre + (a.jump - b.jump) * (units - 1))
    return float(max(abs(e) for e in ends))
