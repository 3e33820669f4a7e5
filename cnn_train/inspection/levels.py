"""The levels of a detection network: where its priors stand, how large they are, and which objects they reach."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch comes after the config is checked
    from torch import Tensor

    from cnn_train.analysis import Finding, Graph
    from cnn_train.data.data import Data

HEADS = ("level", "layer", "stride", "places", "priors", "sizes", "field")
MOST_IMAGES = 500  # that the reach of priors is measured on


@dataclass(frozen=True)
class Level:
    """One map of a detector: pairs are (height, width), sizes of priors (width, height), all but `places` in pixels."""

    layer: str
    stride: float
    places: tuple[int, int]
    sizes: tuple[tuple[float, float], ...]  # of the priors of a place
    receptive_field: tuple[int, int]


@dataclass(frozen=True)
class Reach:
    """Of the objects of some training images, those that priors reach and those that can be learned, by size.

    Small objects are below 1/64 of the image's area, large ones above 1/16.
    """

    images: int
    objects: dict[str, int]
    reached: dict[str, int]  # some prior has an IoU of 0.5 or more with them, or a point of FCOS is theirs
    learned: dict[str, int]  # the loss gives them a prior of their own


def levels(network: Any, graph: "Graph") -> list[Level]:
    """The levels in the order of the network's priors; none for a network that does not detect."""
    if not hasattr(network, "priors"):
        return []
    priors = network.priors(graph.input_size[1:])
    result = []
    for number, index in enumerate(graph.levels):
        mine = priors.boxes[priors.levels == number]
        node = graph.nodes[index]
        rows = mine[:, 1].unique().numel()
        columns = mine[:, 0].unique().numel()
        each = mine[: len(mine) // max(rows * columns, 1), 2:]
        stride = float(priors.strides[priors.levels == number][0])
        sizes = tuple((round(float(w), 1), round(float(h), 1)) for w, h in each)
        height, width = node.sights
        while node.kind != "conv" and len(node.edges) == 1:
            node = graph.nodes[node.edges[0].source]
        result.append(Level(node.layer, stride, (rows, columns), sizes, (height.size, width.size)))
    return result


def too_large(found: Sequence[Level]) -> "list[Finding]":
    """A warning for each level with a prior that no unit of its map sees as a whole."""
    from cnn_train.analysis import Finding

    result = []
    for level in found:
        height, width = level.receptive_field
        beyond = [(w, h) for w, h in level.sizes if w > width or h > height]
        if beyond:
            w, h = max(beyond, key=lambda side: side[0] * side[1])
            result.append(
                Finding(
                    "prior",
                    level.layer,
                    f"a prior of {w:g}x{h:g} pixels (width x height) is larger than the receptive field, {width}x"
                    f"{height}; give such priors to a coarser level, or make the network deeper",
                )
            )
    return result


def reach(network: Any, loss: Any, data: "Data") -> Reach:
    """Match up to 500 training images, evenly drawn and unaltered, with the network's priors as the loss does."""
    from cnn_train.boxes import iou
    from cnn_train.data.box_sample import training_boxes
    from cnn_train.models.detection.priors import Distances
    from cnn_train.tasks.average_precision import PARTS

    priors = network.priors(data.image_size)
    bounds = {"all": (0.0, 1e10), **{name.removeprefix("part_"): share for name, share in PARTS.items()}}
    objects, reached, learned = (dict.fromkeys(bounds, 0) for _ in range(3))
    targets = training_boxes(data, MOST_IMAGES)
    for part in targets.split(20):
        real = (part[..., 4] >= 0) & (part[..., 5] == 0)
        rows = loss.assign(part, priors).objects  # (N, P)
        own = (rows[..., None] == _rows(part)).any(1) & real
        near = own if isinstance(priors.coding, Distances) else _near(iou(priors.corners, part[..., :4])) & real
        share = (part[..., 2:4] - part[..., :2]).prod(-1) / (data.image_size[0] * data.image_size[1])
        for name, (low, high) in bounds.items():
            here = real & (share >= low) & (share < high)
            for counts, chosen in ((objects, here), (reached, near & here), (learned, own & here)):
                counts[name] += int(chosen.sum())
    return Reach(len(targets), objects, reached, learned)


def _near(overlaps: "Tensor") -> "Tensor":
    """Objects (N, M) that some prior overlaps by half, of (N, P, M)."""
    return overlaps.amax(1) >= 0.5


def _rows(targets: "Tensor") -> "Tensor":
    import torch

    return torch.arange(targets.size(1))


def cells(number: int, level: Level) -> tuple[str, ...]:
    """A level as a row of a table."""

    def pair(values: Sequence[float]) -> str:
        return f"{values[0]:g}" if values[0] == values[1] else f"{values[0]:g}x{values[1]:g}"

    return (
        str(number),
        level.layer,
        f"{level.stride:g}",
        "x".join(map(str, level.places)),
        str(len(level.sizes)),
        " ".join(f"{w:g}x{h:g}" for w, h in level.sizes),
        pair(level.receptive_field),
    )


def reach_lines(found: Reach) -> dict[str, str]:
    """What the reach of priors says, as lines under a table."""
    lines = {}
    for title, counts in (("reached by a prior", found.reached), ("with a prior of their own", found.learned)):
        parts = [f"{counts[name] / n:.1%} of {n:,} {name}" for name, n in found.objects.items() if n and name != "all"]
        total = found.objects["all"]
        lines[title] = f"{counts['all'] / max(total, 1):.1%} of {total:,} objects in {found.images:,} training images"
        lines[title] += f" ({', '.join(parts)})" if parts else ""
    return lines
