"""What a trace records: the operations, a row per layer, and queries on them."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cnn_train.analysis.fields import SAME, Interval, Intervals, Reads, hull

_AXES = ("height", "width")


@dataclass(frozen=True)
class Sight:
    """What the units of a map see along one axis.

    `local` follows the windows on an unbounded axis, `clipped` those of each unit inside the image (None: it sees
    padding only). `whole` is the interval that global operations (pooling, squeeze-and-excitation, a dense layer) add
    for every unit, and `collapsed` says that nothing but global operations lead here.
    """

    local: Intervals
    clipped: tuple[Interval, ...]
    whole: tuple[int, int] | None = None
    collapsed: bool = False

    @property
    def size(self) -> int:
        """Receptive field in pixels, global operations included."""
        return self.whole[1] - self.whole[0] + 1 if self.whole else self.local.size

    def at(self, unit: int) -> Interval:
        """First and last pixel inside the image that `unit` sees; None if it sees padding only."""
        return hull([self.whole, self.clipped[unit]])


@dataclass(frozen=True)
class Edge:
    """An operation reads the map of node `source`: by row and by column."""

    source: int
    reads: tuple[Reads, Reads] = (SAME, SAME)


@dataclass
class Node:
    """One operation's output map: `units` are its rows and columns, `sights` what they see of the image."""

    index: int
    kind: str
    layer: str
    units: tuple[int, int]
    sights: tuple[Sight, Sight]
    edges: list[Edge] = field(default_factory=list)
    channels: int = 0
    geometry: dict[str, Any] = field(default_factory=dict)
    norm_values: int | None = None
    misaligned: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class LayerRow:
    """One layer as a table shows it; pairs are (height, width), sizes are for one image.

    `receptive_field` counts global operations (squeeze-and-excitation, image pooling), `local_receptive_field` leaves
    them out; both in pixels and unclipped: padding counts. `jump` is the effective stride and `start` the centre of the
    first unit in pixels (the first pixel's centre is 0). `varies`: behind upsampling, units see fields of different
    size or spacing and the largest is given. All of these are None where the layer does not depend on the image or is
    not `used` in evaluation. `connections` counts map size x channels x (in-channels / groups x kernel area + 1).
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    parameters: int = 0
    connections: int = 0
    multiply_adds: int = 0
    activation_bytes: int = 0
    kernel_size: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int | None = None
    receptive_field: tuple[int, int] | None = None
    local_receptive_field: tuple[int, int] | None = None
    jump: tuple[float, float] | None = None
    start: tuple[float, float] | None = None
    varies: bool = False
    used: bool = True
    node: int | None = None


@dataclass(frozen=True)
class Finding:
    """A warning: `kind` in one word, the `layer`, what it means and what to do; `mask`: a picture, where one helps."""

    kind: str
    layer: str
    message: str
    mask: Tensor | None = None


@dataclass
class Span:
    """The rows that one call of a module made, and the map that it returned."""

    name: str
    kind: str
    first: int
    last: int
    shape: tuple[int, ...] | None
    node: int | None


@dataclass
class Graph:
    """A traced network: `rows` per layer in order of execution, `nodes` per operation, totals.

    `parameters` counts every parameter of the module once, used or not; `multiply_adds` counts convolutions and matrix
    products, for one image, as half of `torch.utils.flop_counter`'s flops. `levels` are the nodes of the maps whose
    places a detector's output joins, in its order, or else the output's own.
    """

    input_size: tuple[int, int, int]
    rows: list[LayerRow]
    nodes: list[Node]
    spans: list[Span]
    parameters: int
    levels: tuple[int, ...] = ()

    @property
    def multiply_adds(self) -> int:
        return sum(row.multiply_adds for row in self.rows)

    @property
    def connections(self) -> int:
        return sum(row.connections for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """Bytes of all layers' outputs for one image."""
        return sum(row.activation_bytes for row in self.rows)

    def node_of(self, layer: str | None = None) -> Node:
        """The last map that the module or operation `layer` returned; without a name, the network's.

        An unknown name, or one that does not depend on the image, is a ValueError.
        """
        if layer is None:
            return self.nodes[next(s.node for s in reversed(self.spans) if s.name == "" and s.node is not None)]
        found = [row.node for row in self.rows if row.name == layer] or [s.node for s in self.spans if s.name == layer]
        known = [index for index in found if index is not None]
        if known:
            return self.nodes[known[-1]]
        if found:
            raise ValueError(f"layer {layer!r} does not depend on the image in evaluation; choose another layer")
        names = ", ".join([row.name for row in self.rows if row.used][-3:])
        raise ValueError(f"no layer {layer!r}; layers are named like modules, e.g. {names}")

    def intervals(self, layer: str | None = None, *, gates: bool = True) -> tuple[list[Interval], list[Interval]]:
        """First and last pixel inside the image that each row, and each column, of a layer's map sees.

        A row sees what any of its units does: where branches end in different columns, units at the border see less.
        Without `gates`, global operations are left out.
        """
        node = self.node_of(layer)
        rows, columns = (
            [sight.at(unit) for unit in range(units)] if gates else list(sight.clipped)
            for units, sight in zip(node.units, node.sights, strict=True)
        )
        return rows, columns

    def reached(
        self,
        layer: str | None = None,
        unit: tuple[int, int] | None = None,
        *,
        source: str | None = None,
        gates: bool = True,
    ) -> Tensor:
        """Booleans (H, W): the pixels that some path leads from to `unit` (row, column; the middle one) of a layer.

        Exact, borders included. With `source`, the units of that layer instead of pixels; without `gates`, paths
        through global operations are left out.
        """
        node = self.node_of(layer)
        goal = 0 if source is None else self.node_of(source).index
        return self.reached_nodes(node.index, unit, goal, gates=gates)

    def reached_nodes(
        self, index: int, unit: tuple[int, int] | None = None, goal: int = 0, *, gates: bool = True
    ) -> Tensor:
        """As `reached`, for nodes of the graph."""
        node = self.nodes[index]
        row, column = unit or (node.units[0] // 2, node.units[1] // 2)
        if not (0 <= row < node.units[0] and 0 <= column < node.units[1]):
            raise ValueError(f"no unit {(row, column)} in a map of {node.units[0]}x{node.units[1]}; count from (0, 0)")
        start = torch.zeros(node.units)
        start[row, column] = 1
        masks = {index: start}
        matrices: dict[tuple[Reads, int, int], Tensor] = {}
        for current in range(index, goal, -1):
            mask = masks.pop(current, None)
            if mask is None:
                continue
            for edge in self.nodes[current].edges:
                if edge.source < goal or (not gates and self._is_gate(edge.source)):
                    continue
                read = mask
                units = self.nodes[edge.source].units
                for axis in (0, 1):
                    reads = edge.reads[axis]
                    if reads == SAME and mask.shape[axis] == units[axis]:
                        continue
                    key = (reads, mask.shape[axis], units[axis])
                    if key not in matrices:
                        matrices[key] = reads.matrix(mask.shape[axis], units[axis]).float()
                    read = matrices[key].T @ read if axis == 0 else read @ matrices[key]
                before = masks.get(edge.source)
                masks[edge.source] = (read > 0).float() if before is None else ((read + before) > 0).float()
        return masks.get(goal, torch.zeros(self.nodes[goal].units)) > 0

    def _is_gate(self, index: int) -> bool:
        return any(sight.collapsed for sight in self.nodes[index].sights)

    def collapse(self, depth: int) -> list[LayerRow]:
        """Rows summed up by module, `depth` names deep: `layer1.0.conv1` belongs to `layer1` at depth 1."""
        if depth < 1:
            raise ValueError(f"depth {depth} is not a number of names; give 1 or more")
        blocks = {s.first: s for s in self.spans if s.name and s.name.count(".") + 1 == depth and s.last > s.first}
        leaves = {index for index, row in enumerate(self.rows) if row.name.count(".") + 1 <= depth}
        result: list[LayerRow] = []
        index = 0
        while index < len(self.rows):
            span = blocks.get(index)
            if span is None or index in leaves:
                result.append(self.rows[index])
                index += 1
                continue
            inside = self.rows[span.first : span.last]
            summed = LayerRow(
                name=span.name,
                kind=span.kind,
                output_shape=span.shape,
                parameters=sum(row.parameters for row in inside),
                connections=sum(row.connections for row in inside),
                multiply_adds=sum(row.multiply_adds for row in inside),
                activation_bytes=sum(row.activation_bytes for row in inside),
            )
            result.append(with_sight(summed, self.nodes[span.node] if span.node is not None else None))
            index = span.last
        return result


def with_sight(row: LayerRow, node: Node | None) -> LayerRow:
    """The row with the receptive field, jump and start of `node`."""
    if node is None:
        return row
    rows, columns = node.sights
    return replace(
        row,
        node=node.index,
        receptive_field=(rows.size, columns.size),
        local_receptive_field=(rows.local.size, columns.local.size),
        jump=(_number(rows.local.jump), _number(columns.local.jump)),
        start=(rows.local.start, columns.local.start),
        varies=any(not s.collapsed and len(s.local.low) > 1 for s in node.sights),
    )


def _number(value: Any) -> float:
    return int(value) if value == math.floor(value) else float(value)
