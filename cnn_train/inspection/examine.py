"""What is known of a network without running it: its graph, findings, memory, and stages by resolution."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cnn_train.config.build import build
from cnn_train.errors import ConfigError
from cnn_train.inspection.levels import Level, Reach, levels, reach, too_large
from cnn_train.inspection.subject import Subject

if TYPE_CHECKING:  # torch comes after the config is checked
    from cnn_train.analysis import Finding, Graph, LayerRow, TrainingMemory


@dataclass(frozen=True)
class Report:
    """What is known of a network without running it."""

    subject: Subject
    graph: "Graph"
    rows: "list[LayerRow]"
    findings: "list[Finding]"
    memory: "TrainingMemory | None"
    batch_size: int
    device: str
    available: int
    levels: list[Level] = field(default_factory=list)
    reach: Reach | None = None


def examine(subject: Subject, *, depth: int | None = None, batch_size: int | None = None) -> Report:
    """Follow an image through the network; rows are summed up `depth` names deep.

    `batch_size` is that of the memory estimate, by default the data's. A detector's levels are examined too, and which
    of the data's objects they reach. Raises ConfigError where an operation cannot be followed, and for images that the
    network cannot take.
    """
    from cnn_train.analysis import diagnose, trace, training_memory

    try:
        graph = trace(subject.network, subject.input_size)
        rows = graph.collapse(depth) if depth else graph.rows
    except ValueError as error:
        raise ConfigError(f"{subject.name}: {error}") from error
    try:
        memory = training_memory(
            subject.network, subject.input_size, optimizer_slots=optimizer_slots(subject.cfg.optimizer)
        )
    except ValueError:  # a network that evaluates but cannot train on images of this size
        memory = None
    device, available = device_memory()
    batch_size = batch_size or subject.cfg.data.get("batch_size") or 1
    stages = levels(subject.network, graph)
    found = [*diagnose(graph), *too_large(stages)]
    if stages:  # no unit of a detector needs to see more than an object
        found = [finding for finding in found if finding.kind != "small-field"]
    seen = reach(subject.network, build(subject.cfg.loss), subject.data) if stages and subject.data else None
    return Report(subject, graph, rows, found, memory, batch_size, device, available, stages, seen)


def optimizer_slots(node: Any) -> int:
    """Tensors that an optimizer keeps per parameter."""
    if node is None:
        return 0
    name = str(node.get("_target_", "")).rpartition(".")[2].lower()
    if name in ("sgd", "momentum", "lars"):
        return 1 if node.get("momentum") else 0
    if "rmsprop" in name:
        return 1 + bool(node.get("momentum")) + bool(node.get("centered"))
    return 1 if name in ("adagrad", "lion") else 2


def device_memory() -> tuple[str, int]:
    """The device at hand and its free bytes: the GPU's, or what the system has available for a new process."""
    import torch

    from cnn_train.data.room import free_memory

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    return "CPU", free_memory()


@dataclass(frozen=True)
class Stage:
    """The last map of one resolution: `layer` is a module where there is one."""

    stride: float
    layer: str
    output_shape: tuple[int, ...]
    receptive_field: tuple[int, int]


def stages(graph: "Graph") -> list[Stage]:
    """The last map of every resolution, fine to coarse, and on a decoder's way back.

    Of modules within each other the outermost is named. Resolutions that are no whole number of pixels, as pyramids of
    pooled maps have, are left out, except for the network's last.
    """
    found: list[tuple[Stage, int]] = []  # with the depth of its name
    calls = Counter(span.name for span in graph.spans)
    for span in graph.spans:
        if not span.name or span.node is None or span.shape is None or len(span.shape) != 3:
            continue
        if calls[span.name] > 1:  # a detector's head, which has a map of each of its levels
            continue
        rows, columns = graph.nodes[span.node].sights
        if rows.collapsed or columns.collapsed:
            continue
        jump, field = rows.local.jump, (rows.local.size, columns.local.size)
        stride = int(jump) if jump.denominator == 1 else float(jump)
        found.append((Stage(stride, span.name, span.shape, field), span.name.count(".")))
    whole = [place for place, (stage, _) in enumerate(found) if stage.stride == int(stage.stride)]
    if not whole:
        return [stage for stage, _ in found[-1:]]
    coarsest = max(found[place][0].stride for place in whole)
    turn = max(place for place in whole if found[place][0].stride == coarsest)
    result: list[Stage] = []
    for way, descending in ((whole[: whole.index(turn) + 1], False), (whole[whole.index(turn) + 1 :], True)):
        last: dict[float, int] = {}
        for place in way:
            before = last.get(found[place][0].stride)
            if before is None or found[place][1] <= found[before][1]:
                last[found[place][0].stride] = place
        result += [found[last[stride]][0] for stride in sorted(last, reverse=descending)]
    return result if len(found) - 1 in whole else [*result, found[-1][0]]
