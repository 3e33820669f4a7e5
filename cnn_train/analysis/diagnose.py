"""Warnings on a traced network that a reader can act on."""

from collections import defaultdict

import torch
from torch import Tensor

from cnn_train.analysis.graph import Finding, Graph, Node

_FAR_LARGER = (
    3  # times the input: Richter et al. 2021 find layers unproductive from 1 on, deep residual nets live with 2
)
_FEW = 0.01
_SOME = 0.05


def diagnose(graph: Graph) -> list[Finding]:
    """Findings of every kind, each kind once per place or summed up: see the functions below."""
    return [
        *_field_size(graph),
        *_misaligned(graph),
        *_outrun(graph),
        *_gridding(graph),
        *_norms(graph),
        *_groups(graph),
    ]


def _field_size(graph: Graph) -> list[Finding]:
    """The last map that windows lead to sees less than the image, or far more."""
    maps = [node for node in graph.nodes[1:] if not any(sight.collapsed for sight in node.sights)]
    if not any(node.kind.startswith("conv") for node in maps):  # an LSTM over rows has no windows to widen
        return []
    last = max(maps, key=lambda node: (sum(s.local.size for s in node.sights), -node.index))
    after = (n for n in graph.nodes[last.index + 1 :] if any(sight.collapsed for sight in n.sights))
    head = next(after, None)
    dense = head is not None and head.kind == "linear"  # a dense layer over all places sees the image as a whole
    findings = []
    for axis, word in enumerate(("high", "wide")):
        seen, pixels = last.sights[axis].local.size, graph.input_size[axis + 1]
        if seen < pixels and not dense:
            message = (
                f"the largest receptive field is {seen} pixels {word}, the image {pixels}: no unit sees all of it "
                "before global pooling; add depth, strides or dilation, or give smaller images"
            )
            findings.append(Finding("small-field", last.layer, message))
        elif seen > _FAR_LARGER * pixels:
            first = next(n for n in maps if n.sights[axis].local.size > _FAR_LARGER * pixels)
            rows = [r for r in graph.rows if r.node is not None and r.node >= first.index]
            share = sum(r.parameters for r in rows) / max(graph.parameters, 1)
            message = (
                f"from here on the receptive field is over {_FAR_LARGER} times the image's {pixels} pixels {word} "
                f"(at most {seen}); {share:.0%} of the parameters lie there; "
                "give larger images, or fewer layers or strides"
            )
            if share > _SOME:
                findings.append(Finding("large-field", first.layer, message))
        if findings and graph.input_size[1] == graph.input_size[2]:
            break
    return findings


def _misaligned(graph: Graph) -> list[Finding]:
    found = [node for node in graph.nodes if max(node.misaligned) > 1e-6]
    if not found:
        return []
    worst = max(found, key=lambda node: max(node.misaligned))
    message = (
        f"branches joined here lie up to {max(worst.misaligned):g} pixels apart on the image "
        f"({len(found)} such places in the network); make paddings (k - 1) / 2 on every branch, or "
        "choose an input size that the strides divide"
    )
    return [Finding("misaligned", worst.layer or worst.kind, message)]


def _outrun(graph: Graph) -> list[Finding]:
    """Strides longer than kernels skip positions; a finding only where no other path reads them."""
    readers: dict[int, list[tuple[Node, int]]] = defaultdict(list)
    for node in graph.nodes:
        for place, edge in enumerate(node.edges):
            readers[edge.source].append((node, place))
    skipped: dict[int, float] = {}
    for source, users in readers.items():
        gaps = [n for n, place in users if any(_gapped(r.taps, r.step) for r in n.edges[place].reads if not r.whole)]
        if not gaps:
            continue
        units = graph.nodes[source].units
        read = torch.zeros(units, dtype=torch.bool)
        for node, place in users:
            rows, columns = (
                node.edges[place].reads[axis].matrix(node.units[axis], units[axis]).any(0) for axis in (0, 1)
            )
            read |= rows[:, None] & columns[None, :]
        unread = 1 - read.float().mean().item()
        if unread > 0.1 and all(n.kind not in ("view", "input") for n in gaps):
            skipped[gaps[0].index] = unread
    if not skipped:
        return []
    worst = max(skipped, key=lambda index: skipped[index])
    message = (
        f"its stride is longer than its kernel: {skipped[worst]:.0%} of the positions before it are read by nothing "
        f"({len(skipped)} such places in the network); stride in the wider convolution, or pool first"
    )
    return [Finding("stride-outruns-kernel", graph.nodes[worst].layer, message)]


def _gapped(taps: tuple[tuple[int, ...], ...], step: int) -> bool:
    """Do windows that move by `step` leave positions between them unread?"""
    if abs(step) <= 1:
        return False
    return len({tap % abs(step) for group in taps for tap in group}) < abs(step)


def _gridding(graph: Graph) -> list[Finding]:
    """Runs of two and more dilated convolutions whose middle unit skips positions of the map where their stride began.

    Wang et al. 2018 ("Understanding convolution for semantic segmentation", section 3.2): dilations 2-2-2 of 3x3
    kernels read every second position, 1-2-5 all.
    """
    begins: dict[int, int] = {0: 0}  # the earliest map at the same resolution that windows lead from
    dilated: dict[int, int] = {}
    ends: dict[int, tuple[int, int]] = {}
    for node in graph.nodes[1:]:
        if any(sight.collapsed for sight in node.sights) or not all(_plain(edge.reads) for edge in node.edges):
            begins[node.index] = node.index
            continue
        begins[node.index] = min(begins.get(edge.source, node.index) for edge in node.edges)
        longest = max(dilated.get(edge.source, 0) for edge in node.edges)
        if node.kind == "conv" and max(node.geometry.get("dilation", (1,))) > 1:
            longest += 1
            if longest > 1:
                begin = begins[node.index]
                ends[begin] = max(ends.get(begin, (0, 0)), (longest, node.index))
        dilated[node.index] = longest
    findings = []
    for begin, (_, end) in ends.items():
        mask = _hull(graph.reached_nodes(end, None, begin))
        holes = unread_share(mask)
        if holes > _FEW:
            message = (
                f"gridding: {holes:.0%} of the positions inside its {mask.shape[0]}x{mask.shape[1]} window on the map "
                "where the dilated run begins are read by no path; use dilations without a common factor, such as 1-2-5"
            )
            findings.append(Finding("gridding", graph.nodes[end].layer, message, mask))
    return findings


def _plain(reads: tuple) -> bool:
    return all(not r.whole and r.step == 1 and len(r.taps) == 1 for r in reads)


def _hull(mask: Tensor) -> Tensor:
    """The mask from its first to its last row and column that hold anything."""
    if not mask.any():
        return mask[:0, :0]
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return mask[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def unread_share(mask: Tensor) -> float:
    """Share of the positions inside a mask's bounding box that are not in the mask."""
    hull = _hull(mask)
    return 1 - hull.float().mean().item() if hull.numel() else 0.0


def _norms(graph: Graph) -> list[Finding]:
    findings = []
    for kind, condition, message in (
        (
            "norm-over-one-value",
            lambda row, values: values == 1 and "Batch" not in row.kind and "batch" not in row.kind,
            "its statistic averages one value, so its output is the shift whatever the image; drop the norm here",
        ),
        (
            "norm-over-one-value",
            lambda row, values: values == 1 and ("Batch" in row.kind or "batch" in row.kind),
            "it averages one value per image: training fails with one image per batch, and is noisy with few; use more "
            "images per batch, another norm here, or none",
        ),
    ):
        places = [
            row
            for row in graph.rows
            if row.node is not None
            and graph.nodes[row.node].norm_values is not None
            and condition(row, graph.nodes[row.node].norm_values)
        ]
        if places:
            suffix = f" ({len(places)} such places)" if len(places) > 1 else ""
            findings.append(Finding(kind, places[0].name, message + suffix))
    return findings


def _groups(graph: Graph) -> list[Finding]:
    """Grouped convolutions one after the other, and nothing between them that mixes channels."""
    apart: dict[int, int] = {}  # number of groups of channels that nothing has mixed yet
    findings: list[Finding] = []
    for node in graph.nodes:
        sources = [apart.get(edge.source, 1) for edge in node.edges]
        groups = node.geometry.get("groups")
        before = sources[0] if sources else 1
        if groups is not None:
            fresh = graph.nodes[node.edges[0].source].channels
            # Depthwise convolutions keep channels apart on purpose.
            if before > 1 and 1 < groups < fresh and before % groups == groups % before == 0 and not findings:
                message = (
                    f"{groups} groups follow {before} groups and nothing mixes channels between them: "
                    f"{groups} networks side by side; shuffle channels, or put a 1x1 convolution with groups=1 between"
                )
                findings.append(Finding("unmixed-groups", node.layer, message))
            apart[node.index] = groups if 1 < groups < fresh else (before if groups == fresh > 1 else 1)
        elif node.kind in ("view", "cat", "linear", "channel_shuffle", "native_channel_shuffle", "pixel_shuffle"):
            apart[node.index] = 1
        else:
            apart[node.index] = before if len(set(sources)) == 1 else 1
    return findings
