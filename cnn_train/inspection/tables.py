"""A report as text: a table, Markdown, CSV or JSON, and colours on a terminal."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cnn_train.inspection import levels
from cnn_train.inspection.examine import Report, stages

if TYPE_CHECKING:
    from cnn_train.analysis import LayerRow

HEADS = ("layer", "kind", "window", "output", "parameters", "connections", "MACs", "memory", "field", "jump", "start")


def pair(values: Sequence[float] | None) -> str:
    """`3x1`, or `3` where both are equal."""
    if values is None:
        return ""
    texts = [f"{value:g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def window(row: "LayerRow") -> str:
    """The kernel, then stride, padding, dilation and groups where they are not the default: `3x3 s2 p1 d2 g32`."""
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
    """The receptive field; in brackets the one without global operations, if it differs; ~ where units differ."""
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
    resolutions = stages(graph)
    unit, letter = (1e9, "G") if graph.multiply_adds >= 1e8 else (1e6, "M")
    result = {
        "input": "x".join(map(str, graph.input_size)),
        "parameters": f"{graph.parameters:,}",
        "multiply-adds": f"{graph.multiply_adds:,} ({graph.multiply_adds / unit:.2f} {letter}) per image",
        "connections": f"{graph.connections:,}",
        "activations": f"{bytes_text(graph.activation_bytes)} per image",
    }
    if resolutions:
        last = resolutions[-1]
        result["receptive field"] = f"{pair(last.receptive_field)} pixels at {last.layer}, stride {last.stride:g}"
    if memory is not None:
        largest = memory.largest_batch(report.available)
        result["training memory"] = f"about {bytes_text(memory.peak(report.batch_size))} at batch {report.batch_size}"
        result["largest batch"] = f"about {largest:,} in {bytes_text(report.available)} free ({report.device})"
    return result | (levels.reach_lines(report.reach) if report.reach is not None else {})


def level_cells(report: Report) -> list[tuple[str, ...]]:
    return [levels.cells(number, level) for number, level in enumerate(report.levels)]


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 4) -> str:
    """Rows of text in columns, the first `left` flush left, the others flush right."""
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
    if report.levels:
        text += aligned(levels.HEADS, level_cells(report), left=2) + "\n"
    lines = totals(report)
    width = max(map(len, lines))
    text += "".join(f"{name:<{width}}  {value}\n" for name, value in lines.items())
    return text + "".join(f"warning: {found.layer}: {found.message}\n" for found in report.findings)


def as_markdown(report: Report) -> str:
    text = markdown(HEADS, [cells(row) for row in report.rows], left=4) + "\n"
    if report.levels:
        text += markdown(levels.HEADS, level_cells(report), left=2) + "\n"
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
        "levels": [asdict(level) for level in report.levels],
        "reach": None if report.reach is None else asdict(report.reach),
        "layers": [_plain(row) for row in report.rows],
        "findings": [{"kind": f.kind, "layer": f.layer, "message": f.message} for f in report.findings],
    }


def _plain(row: "LayerRow") -> dict[str, Any]:
    return {key: value for key, value in asdict(row).items() if key != "node"}


def as_csv(report: Report) -> str:
    rows = [_plain(row) for row in report.rows]
    values = [["x".join(map(str, v)) if isinstance(v, tuple) else v for v in row.values()] for row in rows]
    return csv_text(list(rows[0]) if rows else ["name"], values)


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Comma-separated values, one row a line."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([heads, *rows])
    return text.getvalue()


def show_on_terminal(report: Report) -> None:
    """Print the table in colours, without the columns that the terminal is too narrow for."""
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
    if report.levels:
        table = Table(*levels.HEADS, box=None, padding=(0, 1), header_style="bold cyan")
        for texts_of_level in level_cells(report):
            table.add_row(*map(escape, texts_of_level))
        console.print(table)
    lines = totals(report)
    width = max(map(len, lines))
    for name, value in lines.items():
        console.print(f"[bold cyan]{name:<{width}}[/]  {escape(value)}")
    for found in report.findings:
        console.print(f"[bold yellow]warning[/] {escape(found.layer)}: {escape(found.message)}")


WRITERS = {"table": as_table, "json": as_json, "csv": as_csv, "markdown": as_markdown}
