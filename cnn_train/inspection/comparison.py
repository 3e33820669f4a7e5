"""Two networks side by side: totals, their ratio, and receptive fields by stride."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cnn_train.inspection.examine import Report, stages
from cnn_train.inspection.tables import aligned, bytes_text, csv_text, facts, markdown


@dataclass(frozen=True)
class Comparison:
    """Totals of two networks, and their receptive fields by stride."""

    reports: tuple[Report, Report]
    rows: list[tuple[str, ...]]  # what, first, second, first / second


def compare(first: Report, second: Report) -> Comparison:
    pairs = (first, second)
    rows: list[tuple[str, ...]] = [("input", *("x".join(map(str, r.graph.input_size)) for r in pairs), "")]

    def add(name: str, values: Sequence[int | None], text: Callable[[int], str] = lambda value: f"{value:,}") -> None:
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
        both = [resolutions.get(stride) for resolutions in by_stride]
        add(f"field at stride {stride:g}", [stage.receptive_field[0] if stage else None for stage in both])
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
    return csv_text(_heads(comparison), comparison.rows)


def compared_markdown(comparison: Comparison) -> str:
    return markdown(_heads(comparison), comparison.rows, left=1)


COMPARISONS = {
    "table": compared_table,
    "json": compared_json,
    "csv": compared_csv,
    "markdown": compared_markdown,
}
