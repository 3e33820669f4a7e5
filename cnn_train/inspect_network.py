"""`cnn-train inspect`: what each layer of a network sees, weighs and costs, without training it.

The network is built on the meta device, where no weight takes memory; nothing here imports lightning or torchvision.
Results go to stdout.
"""

import csv
import gc
import inspect
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cnn_train.config.build import build, build_layers
from cnn_train.config.choices import GROUPS, nearest
from cnn_train.config.compose import compose
from cnn_train.config.load import load
from cnn_train.config.schema import RunConfig
from cnn_train.errors import ConfigError

if TYPE_CHECKING:  # torch comes after the config is checked
    from torch import nn

    from cnn_train.analysis import Finding, Graph, LayerRow, TrainingMemory
    from cnn_train.cli.line import Line
    from cnn_train.data.data import Data

FORMATS = ("table", "json", "csv", "markdown")
OPTIONS = {
    "versus": "another model beside this one",
    "format": f"{', '.join(FORMATS)}",
    "depth": "rows summed up by module, so many names deep",
    "input_size": "side of the image, or [height, width]",
    "batch_size": "of the memory estimate",
    "run": "a run folder, whose network and weights are looked at",
    "picture": "true, or --picture: PNG files and an HTML page",
    "pictures": "the folder for them",
    "image": "the image file for them",
    "samples": "images that the effective receptive field is averaged over",
}
# Sides of the images that networks were published with, where it is not ImageNet's 224 or CIFAR's 32.
PAPER_SIDES = {
    "inception_v3": 299, "inception_v4": 299, "inception_resnet_v2": 299,
    "xception": 299, "xception41": 299, "xception65": 299, "xception71": 299, "lstm": 28,
}  # fmt: skip
# Classes, channels and side of public data, which need not be on disk to look at a network for it.
PUBLIC = {
    "mnist": (10, 1, 28), "fashion_mnist": (10, 1, 28), "cifar10": (10, 3, 32), "cifar100": (100, 3, 32),
    "svhn": (10, 3, 32), "imagenet": (1000, 3, 224), "voc": (21, 3, 513),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    format: str = "table"
    depth: int | None = None
    batch_size: int | None = None
    versus: str | None = None
    pictures: Path | None = None
    picture: bool = False
    image: Path | None = None
    run: Path | None = None
    samples: int = 4


@dataclass(frozen=True)
class Subject:
    """A network to be looked at, on the meta device, and what it is given."""

    name: str
    cfg: DictConfig
    network: "nn.Module"
    num_classes: int
    input_size: tuple[int, int, int]
    data: "Data | None"


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


# -- The command -------------------------------------------------------------------------------------------------------


def run(line: "Line") -> int:
    """The verb: `inspect MODEL [VERSUS] [group=choice ...] [depth=N] [format=...] [picture=true] ...`."""
    with without_collector():
        options, overrides = read_options(line)
        configs = [composed(overrides, line, options.run)]
        if options.versus is not None:
            others = [o for o in overrides if not o.startswith("model=")]
            configs.append(composed([f"model={options.versus}", *others], line))
        with_data = options.run is not None or any(o.startswith(("data=", "data.")) for o in overrides)
        reports = [examine(describe(cfg, with_data, options.picture), options) for cfg in configs]
    if len(reports) == 2:
        print(COMPARISONS[options.format](compare(*reports)), end="")
    elif options.format == "table" and sys.stdout.isatty():
        show_on_terminal(reports[0])
    else:
        print(WRITERS[options.format](reports[0]), end="")
    if options.picture:
        from cnn_train.inspect_pictures import draw

        for report in reports:
            folder = options.pictures and (
                options.pictures / report.subject.name if len(reports) > 1 else options.pictures
            )
            page = draw(report, options, folder)
            print(f"pictures {page}", file=sys.stderr if options.format != "table" else sys.stdout)
    return 0


@contextmanager
def without_collector() -> Iterator[None]:
    """Without the collector of reference cycles, which would look through torch's objects again and again, in vain.

    Afterwards they are frozen: it would look through them once more when the process ends. This saves a second of four.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if on:
            gc.enable()


def composed(overrides: Sequence[str], line: "Line", folder: Path | None = None) -> DictConfig:
    """The config of a run's folder or of the command line; an error's advice is a command of this verb."""
    try:
        return load(folder, overrides) if folder else compose(overrides, line.config_dir)
    except ConfigError as error:
        told = ConfigError(str(error))
        for note in getattr(error, "__notes__", ()):
            told.add_note(note.replace("try: cnn-train ", "try: cnn-train inspect ", 1))
        raise told from error


def read_options(line: "Line") -> tuple[Options, list[str]]:
    """Our own settings taken out of the command line, and the rest, which is Hydra's. Raises ConfigError."""
    if "--multirun" in line.flags:
        raise ConfigError("inspect looks at one network, or at two (versus=MODEL); leave --multirun out")
    given: dict[str, str] = {}
    overrides = []
    known = {"model", *GROUPS, *(f.name for f in fields(RunConfig))}
    for override in line.overrides:
        key, _, value = override.partition("=")
        guess = nearest(key, OPTIONS, cutoff=0.75)
        if key == "input_size":
            overrides.append(f"image_size={value}")
        elif key in OPTIONS:
            given[key] = value
        elif key.isidentifier() and key not in known and guess:
            raise ConfigError(f"unknown setting {key!r}. Did you mean {guess}?")
        else:
            overrides.append(override)
    words = list(line.words)
    if words and any(o.startswith("model=") for o in overrides):
        given.setdefault("versus", words.pop(0))
    elif words:
        overrides.insert(0, f"model={words.pop(0)}")
    if words:
        given.setdefault("versus", words.pop(0))
    if words:
        raise ConfigError(f"inspect compares two networks at most, and {words[0]!r} is one more")
    for key, value in given.items():
        if not value:
            raise ConfigError(f"{key}= is empty; it is {OPTIONS[key]}")
    form = given.get("format", "table")
    if form not in FORMATS:
        raise ConfigError(f"format must be {', '.join(FORMATS)}, got {form!r}")
    picture = given.get("picture", "true" if "--picture" in line.flags or "pictures" in given else "false")
    if picture.lower() not in ("true", "false"):
        raise ConfigError(f"picture must be true or false, got {picture!r}")
    return (
        Options(
            format=form,
            depth=_number(given, "depth"),
            batch_size=_number(given, "batch_size"),
            versus=given.get("versus"),
            pictures=Path(given["pictures"]) if "pictures" in given else None,
            picture=picture.lower() == "true",
            image=_path(given, "image"),
            run=_path(given, "run"),
            samples=_number(given, "samples") or 4,
        ),
        overrides,
    )


def _number(given: Mapping[str, str], key: str) -> int | None:
    text = given.get(key)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{key} must be a whole number >= 1, got {text!r}")
    return int(text)


def _path(given: Mapping[str, str], key: str) -> Path | None:
    if key not in given:
        return None
    path = Path(given[key])
    if not path.exists():
        raise ConfigError(f"no {key} at {path.absolute()}")
    return path


# -- Building and examining --------------------------------------------------------------------------------------------


def describe(cfg: DictConfig, with_data: bool = False, with_images: bool = False) -> Subject:
    """The network of a config on the meta device.

    Classes, channels and image size are the data's if it was chosen (`with_data`), which loads it where they are not
    known or its images are wanted; else those that the network was published with, as its builder's defaults say them.
    """
    import torch

    model, chosen = cfg.choices.model, cfg.choices.data
    data = build(cfg.data) if with_data and (with_images or chosen not in PUBLIC) else None
    size: Any
    if data is not None:
        num_classes, in_channels, size = data.num_classes, data.in_channels, data.image_size
    elif with_data:
        num_classes, in_channels, size = PUBLIC[chosen]
    else:
        num_classes, in_channels = builder_defaults(cfg)
        small = in_channels == 1 or num_classes in (10, 100)
        size = PAPER_SIDES.get(model, 32 if small else 224)
    size = size if cfg.image_size is None else cfg.image_size
    height, width = (size, size) if isinstance(size, int) else size
    layers = build_layers(cfg)
    with torch.device("meta"), without_values():
        network = build(cfg.model, num_classes=num_classes, in_channels=in_channels, layers=layers)
    if cfg.image_size is None:
        least = getattr(network, "min_size", 1)
        height, width = max(height, least), max(width, least)
    return Subject(model, cfg, network, num_classes, (in_channels, height, width), data)


def builder_defaults(cfg: DictConfig) -> tuple[int, int]:
    """Classes and channels that the network's builder has as defaults; ImageNet's, if it has none."""
    from hydra.utils import get_object

    parameters = inspect.signature(get_object(cfg.model._target_)).parameters

    def default(name: str, otherwise: int) -> int:
        value = parameters[name].default if name in parameters else otherwise
        return value if isinstance(value, int) else otherwise

    return default("num_classes", 1000), default("in_channels", 3)


def without_values() -> Any:
    """A context in which in-place operations that fill a tensor do nothing: weights on the meta device have no values.

    Without it, drawing them runs PyTorch's kernels in Python, whose import alone takes 2 s.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    fills = {"normal_", "uniform_", "fill_", "zero_", "trunc_normal_", "exponential_", "bernoulli_", "copy_", "div_"}
    initializers = {name for name in vars(torch.nn.init) if name.endswith("_") and not name.startswith("_")}

    class WithoutValues(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            name = getattr(func, "__name__", "")
            if name in fills or name in initializers:
                target = args[0] if args else kwargs.get("tensor")
                if isinstance(target, torch.Tensor) and target.is_meta:
                    return target
            return func(*args, **kwargs)

    return WithoutValues()


def examine(subject: Subject, options: Options) -> Report:
    """Follow an image through the network. Raises ConfigError where that is not possible."""
    from cnn_train.analysis import trace, training_memory

    try:
        graph = trace(subject.network, subject.input_size)
        rows = graph.collapse(options.depth) if options.depth else graph.rows
    except ValueError as error:
        raise ConfigError(f"{subject.name}: {error}") from error
    try:
        memory = training_memory(
            subject.network, subject.input_size, optimizer_slots=optimizer_slots(subject.cfg.optimizer)
        )
    except ValueError:  # a network that evaluates but cannot train on images of this size
        memory = None
    device, available = device_memory()
    batch_size = options.batch_size or subject.cfg.data.get("batch_size") or 1
    return Report(subject, graph, rows, graph.findings(), memory, batch_size, device, available)


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

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")] if hasattr(os, "sysconf") else []
    try:
        text = Path("/proc/meminfo").read_text()
        free = [int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable")] or free
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdecimal():  # a container's own limit
            free.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except OSError:
        pass
    return "CPU", max(0, min(free, default=0))


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
    for span in graph.spans:
        if not span.name or span.node is None or span.shape is None or len(span.shape) != 3:
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


# -- As text -----------------------------------------------------------------------------------------------------------

HEADS = ("layer", "kind", "window", "output", "parameters", "connections", "MACs", "memory", "field", "jump", "start")


def pair(values: Sequence[float] | None) -> str:
    """`3x1`, or `3` where both are equal."""
    if values is None:
        return ""
    texts = [f"{value:g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def window(row: "LayerRow") -> str:
    """Kernel, and what of stride, padding, dilation and groups is not the default: `3x3 s2 p1 d2 g32`."""
    if row.kernel_size is None:
        return ""
    parts = ["x".join(map(str, row.kernel_size))]
    for letter, values, default in (("s", row.stride, 1), ("p", row.padding, 0), ("d", row.dilation, 1)):
        if values is not None and any(value != default for value in values):
            parts.append(letter + pair(values))
    if row.groups not in (None, 1):
        parts.append(f"g{row.groups}")
    return " ".join(parts)


def field(row: "LayerRow") -> str:
    """Receptive field; in brackets without global operations, where that differs; ~ where units differ."""
    if row.receptive_field is None:
        return "" if row.used else "unused"
    text = pair(row.receptive_field)
    if row.local_receptive_field != row.receptive_field:
        text += f" ({pair(row.local_receptive_field)})"
    return ("~" if row.varies else "") + text


def cells(row: "LayerRow") -> tuple[str, ...]:
    return (
        row.name or "(network)",
        row.kind,
        window(row),
        "x".join(map(str, row.output_shape or ())),
        f"{row.parameters:,}",
        f"{row.connections:,}",
        f"{row.multiply_adds:,}",
        bytes_text(row.activation_bytes),
        field(row),
        pair(row.jump),
        pair(row.start),
    )


def bytes_text(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def totals(report: Report) -> dict[str, str]:
    """The lines under the table."""
    graph, memory = report.graph, report.memory
    ends = stages(graph)
    unit, letter = (1e9, "G") if graph.multiply_adds >= 1e8 else (1e6, "M")
    result = {
        "input": "x".join(map(str, graph.input_size)),
        "parameters": f"{graph.parameters:,}",
        "multiply-adds": f"{graph.multiply_adds:,} ({graph.multiply_adds / unit:.2f} {letter}) per image",
        "connections": f"{graph.connections:,}",
        "activations": f"{bytes_text(graph.activation_bytes)} per image",
    }
    if ends:
        last = ends[-1]
        result["receptive field"] = f"{pair(last.receptive_field)} pixels at {last.layer}, stride {last.stride:g}"
    if memory is not None:
        largest = memory.largest_batch(report.available)
        result["training memory"] = f"about {bytes_text(memory.peak(report.batch_size))} at batch {report.batch_size}"
        result["largest batch"] = f"about {largest:,} in {bytes_text(report.available)} free ({report.device})"
    return result


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 4) -> str:
    """Columns under each other, the first `left` flush left and numbers flush right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    lines = []
    for row in (heads, *rows):
        parts = [
            f"{cell:<{width}}" if i < left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines) + "\n"


def as_table(report: Report) -> str:
    text = aligned(HEADS, [cells(row) for row in report.rows]) + "\n"
    lines = totals(report)
    width = max(map(len, lines))
    text += "".join(f"{name:<{width}}  {value}\n" for name, value in lines.items())
    return text + "".join(f"warning: {found.layer}: {found.message}\n" for found in report.findings)


def as_markdown(report: Report) -> str:
    text = markdown(HEADS, [cells(row) for row in report.rows], left=4) + "\n"
    text += "".join(f"- {name}: {value}\n" for name, value in totals(report).items())
    return text + "".join(f"- warning, `{found.layer}`: {found.message}\n" for found in report.findings)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |\n"

    rule = ["---" if i < left else "---:" for i in range(len(heads))]
    return line(heads) + line(rule) + "".join(line(row) for row in rows)


def as_json(report: Report) -> str:
    return json.dumps(facts(report), indent=1) + "\n"


def facts(report: Report) -> dict[str, Any]:
    """Everything as plain data; sizes in bytes, fields in pixels, pairs as [height, width]."""
    graph, memory = report.graph, report.memory
    return {
        "model": report.subject.name,
        "choices": dict(report.subject.cfg.choices),
        "input_size": list(graph.input_size),
        "num_classes": report.subject.num_classes,
        "parameters": graph.parameters,
        "multiply_adds": graph.multiply_adds,
        "connections": graph.connections,
        "activation_bytes": graph.activation_bytes,
        "stages": [asdict(stage) for stage in stages(graph)],
        "training_memory": None if memory is None else {**asdict(memory), "peak": memory.peak(report.batch_size)},
        "batch_size": report.batch_size,
        "largest_batch": None if memory is None else memory.largest_batch(report.available),
        "device": {"name": report.device, "free_bytes": report.available},
        "layers": [_plain(row) for row in report.rows],
        "findings": [{"kind": f.kind, "layer": f.layer, "message": f.message} for f in report.findings],
    }


def _plain(row: "LayerRow") -> dict[str, Any]:
    return {key: value for key, value in asdict(row).items() if key != "node"}


def as_csv(report: Report) -> str:
    text = io.StringIO(newline="")
    rows = [_plain(row) for row in report.rows]
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["name"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "x".join(map(str, v)) if isinstance(v, tuple) else v for k, v in row.items()})
    return text.getvalue()


def show_on_terminal(report: Report) -> None:
    """The table in colours; columns that the terminal is too narrow for are left out."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console(highlight=False)
    texts = [cells(row) for row in report.rows]
    widths = [max(len(text[i]) for text in (HEADS, *texts)) + 2 for i in range(len(HEADS))]
    shown = list(range(len(HEADS)))
    left_out = []
    for head in ("connections", "start", "memory", "jump", "kind", "window"):
        if sum(widths[i] for i in shown) > console.width:
            shown.remove(HEADS.index(head))
            left_out.append(head)
    columns = [Column(HEADS[i], justify="left" if i < 4 else "right", overflow="fold") for i in shown]
    table = Table(*columns, box=None, padding=(0, 1), header_style="bold cyan")
    for row, text in zip(report.rows, texts, strict=True):
        table.add_row(*(escape(text[i]) for i in shown), style=None if row.used else "dim")
    console.print(table)
    if left_out:
        console.print(f"[dim]no room for {', '.join(left_out)}: widen the terminal, or format=markdown[/]")
    lines = totals(report)
    width = max(map(len, lines))
    for name, value in lines.items():
        console.print(f"[bold cyan]{name:<{width}}[/]  {escape(value)}")
    for found in report.findings:
        console.print(f"[bold yellow]warning[/] {escape(found.layer)}: {escape(found.message)}")


WRITERS = {"table": as_table, "json": as_json, "csv": as_csv, "markdown": as_markdown}


# -- Two side by side --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Totals of two networks, and their receptive fields by stride."""

    reports: tuple[Report, Report]
    rows: list[tuple[str, ...]]  # what, first, second, first / second


def compare(first: Report, second: Report) -> Comparison:
    pairs = (first, second)
    rows: list[tuple[str, ...]] = [("input", *("x".join(map(str, r.graph.input_size)) for r in pairs), "")]

    def add(name: str, values: Sequence[int | None], text: Any = lambda value: f"{value:,}") -> None:
        texts = ["" if value is None else text(value) for value in values]
        ratio = f"{values[0] / values[1]:.2f}" if values[0] is not None and values[1] else ""
        rows.append((name, texts[0], texts[1], ratio))

    add("parameters", [r.graph.parameters for r in pairs])
    add("multiply-adds", [r.graph.multiply_adds for r in pairs])
    add("connections", [r.graph.connections for r in pairs])
    add("layers with weights", [sum(bool(row.multiply_adds) for row in r.graph.rows) for r in pairs])
    add("activations", [r.graph.activation_bytes for r in pairs], bytes_text)
    batches = " and ".join(dict.fromkeys(str(r.batch_size) for r in pairs))
    add(
        f"training memory, batch {batches}",
        [r.memory.peak(r.batch_size) if r.memory else None for r in pairs],
        bytes_text,
    )
    add("largest batch", [r.memory.largest_batch(r.available) if r.memory else None for r in pairs])
    by_stride = [{stage.stride: stage for stage in stages(r.graph)} for r in pairs]
    for stride in sorted(by_stride[0].keys() | by_stride[1].keys()):
        found = [stages.get(stride) for stages in by_stride]
        add(f"field at stride {stride:g}", [s.receptive_field[0] if s else None for s in found])
    return Comparison(pairs, rows)


def _heads(comparison: Comparison) -> tuple[str, ...]:
    first, second = (report.subject.name for report in comparison.reports)
    return ("", first, second, f"{first} / {second}")


def compared_table(comparison: Comparison) -> str:
    text = aligned(_heads(comparison), comparison.rows, left=1)
    for report in comparison.reports:
        text += "".join(f"warning: {report.subject.name}, {f.layer}: {f.message}\n" for f in report.findings)
    return text


def compared_json(comparison: Comparison) -> str:
    return json.dumps([facts(report) for report in comparison.reports], indent=1) + "\n"


def compared_csv(comparison: Comparison) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([_heads(comparison), *comparison.rows])
    return text.getvalue()


def compared_markdown(comparison: Comparison) -> str:
    return markdown(_heads(comparison), comparison.rows, left=1)


COMPARISONS = {
    "table": compared_table,
    "json": compared_json,
    "csv": compared_csv,
    "markdown": compared_markdown,
}
