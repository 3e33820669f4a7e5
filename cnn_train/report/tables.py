"""The comparison as a table: text, Markdown, CSV, JSON, LaTeX."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cnn_train.report.runs import COST_TITLES, COSTS
from cnn_train.report.settings import Comparison, Setting, brief, short, unknown, word

FORMATS = ("text", "md", "csv", "json", "latex")


def table(comparison: Comparison, format: str = "text", sort: str | None = None) -> str:
    """One row per setting. csv and json hold every metric, the others the ranking one and those of the test."""
    settings = sorted_by(comparison, sort) if sort else list(comparison.settings)
    if format == "csv":
        return _csv(comparison, settings)
    if format == "json":
        return _json(comparison, settings)
    extra = sort if sort in comparison.metrics else None
    names = columns(comparison, extra)
    head = [*map(short, comparison.keys), *names, "runs", *(COST_TITLES[name] for name in comparison.costs)]
    best = comparison.best_means([*names, *comparison.costs])
    rows = [cells(comparison, setting, names, best) for setting in settings]
    write = {"text": _text, "md": _markdown, "latex": _latex}[format]
    return write(head, rows)


def columns(comparison: Comparison, extra: str | None = None) -> list[str]:
    """The metrics of a table for readers."""
    wanted = (comparison.objective, comparison.shown, extra)
    return [name for name in comparison.metrics if name in wanted or name.startswith("test/")]


def cells(
    comparison: Comparison, setting: Setting, names: Sequence[str], best: Mapping[str, float]
) -> list[tuple[str, bool]]:
    """A row: the text of each cell, and whether it is the best of its column."""
    row = [(brief(setting.values[key]), False) for key in comparison.keys]
    for name in names:
        summary = setting.summary(name)
        text = str(summary) if summary.n + summary.lost else "–"
        row.append((text, summary.mean == best[name]))
    done = len(setting.done)
    row.append((str(done) if done == len(setting.runs) else f"{done} of {len(setting.runs)}", False))
    row += [(cost(name, mean := setting.mean(name)), mean == best[name]) for name in comparison.costs]
    return row


def cost(name: str, value: float) -> str:
    """A cost with its unit."""
    if not math.isfinite(value):
        return "–"
    if name == "parameters":
        return f"{value:,.0f}"
    if name == "peak_memory_bytes":
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
    if value < 1:
        return f"{value * 1000:.3g} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def sorted_by(comparison: Comparison, name: str) -> list[Setting]:
    """Settings by a metric or a cost, the best first, or by a key. Raises ConfigError for another name."""
    keys = {short(key): key for key in comparison.keys}
    if name in keys:
        rank = {word(level): i for i, level in enumerate(comparison.levels(keys[name]))}
        return sorted(comparison.settings, key=lambda setting: rank[word(setting.values[keys[name]])])
    known = [*comparison.metrics, *comparison.costs]
    if name not in known:
        raise unknown("metric, cost or key that differs", name, [*known, *keys])
    sign = -1 if comparison.better_is_higher(name) else 1

    def rank_of(setting: Setting) -> tuple[bool, float]:
        mean = setting.mean(name)
        return not math.isfinite(mean), sign * mean if math.isfinite(mean) else 0.0

    return sorted(comparison.settings, key=rank_of)


def _text(head: Sequence[str], rows: Sequence[Sequence[tuple[str, bool]]]) -> str:
    lines = [["", *head], *(["", *(text + ("*" if best else "") for text, best in row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.strip() for line in shown) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[tuple[str, bool]]]) -> str:
    def escape(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

    lines = [[escape(name) for name in head], ["---"] * len(head)]
    lines += [[f"**{escape(text)}**" if best else escape(text) for text, best in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "\n": " ",
}  # fmt: skip


def _latex(head: Sequence[str], rows: Sequence[Sequence[tuple[str, bool]]]) -> str:
    def escape(text: str) -> str:
        return "".join(LATEX.get(letter, letter) for letter in text)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    body = [line([rf"\textbf{{{escape(text)}}}" if best else escape(text) for text, best in row]) for row in rows]
    begin, end = rf"\begin{{tabular}}{{{'l' * len(head)}}}", r"\end{tabular}"
    return "\n".join([begin, r"\hline", line([escape(name) for name in head]), r"\hline", *body, r"\hline", end]) + "\n"


def _csv(comparison: Comparison, settings: Sequence[Setting]) -> str:
    names = comparison.metrics
    best = comparison.best_means(names)
    head = [*map(short, comparison.keys), "runs", "done"]
    head += [f"{name} {part}" for name in names for part in ("mean", "std", "n", "best")] + list(comparison.costs)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for setting in settings:
        row: list[Any] = [word(setting.values[key]) for key in comparison.keys]
        row += [len(setting.runs), len(setting.done)]
        for name in names:
            summary = setting.summary(name)
            row += [_blank(summary.mean), _blank(summary.std), summary.n, int(summary.mean == best[name])]
        writer.writerow(row + [_blank(setting.mean(name)) for name in comparison.costs])
    return text.getvalue()


def _blank(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def _json(comparison: Comparison, settings: Sequence[Setting]) -> str:
    """Plain JSON: a mean or deviation that does not exist is null."""
    best = comparison.best_means([*comparison.metrics, *comparison.costs])
    rows = []
    for setting in settings:
        quantities = {}
        for name in (*comparison.metrics, *comparison.costs):
            summary = setting.summary(name)
            quantities[name] = {
                "mean": _null(summary.mean),
                "std": _null(summary.std),
                "n": summary.n,
                "not_finite": summary.lost,
                "best": summary.mean == best[name],
            }
        rows.append(
            {
                "setting": {short(key): _plain(value) for key, value in setting.values.items()},
                "metrics": {name: quantities[name] for name in comparison.metrics},
                "cost": {name: quantities[name] for name in COSTS if name in quantities},
                "runs": [
                    {"folder": str(run.folder), "seed": _plain(run.seed), "state": run.state} for run in setting.runs
                ],
            }
        )
    record = {
        "keys": [short(key) for key in comparison.keys],
        "ranked_by": comparison.objective,
        "higher_is_better": comparison.higher,
        "settings": rows,
    }
    return json.dumps(record, indent=2, default=str, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    return word(value) if isinstance(value, float) and not math.isfinite(value) else value


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None
