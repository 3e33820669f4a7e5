"""The charts about settings: ranking, curves, parallel coordinates, cost, differences. Each has a table beside it."""

import itertools
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from cnn_train.report.drawing import (
    COLOURS,
    GREY,
    GRID,
    INK,
    SOFT,
    WIDTH,
    Figure,
    amount,
    kind,
    layer,
    layered,
)
from cnn_train.report.duels import Difference, Duel
from cnn_train.report.runs import COST_TITLES, Run
from cnn_train.report.settings import Comparison, Setting, Summary, is_number, number, short, word
from cnn_train.report.tables import cost

SHOWN = len(COLOURS)  # settings with a colour of their own, the best ones
LISTED = 20  # settings in the ranking chart
POINTS = 40  # points of a curve that answer to hovering


def colours(comparison: Comparison) -> dict[str, str]:
    """The best settings' names with a colour each."""
    return {setting.name: colour for setting, colour in zip(comparison.settings, COLOURS, strict=False)}


def ranking(comparison: Comparison, metric: str) -> Figure | None:
    """Settings from the best down: each run as a tick, the mean as a dot, one standard deviation as a line."""
    known = [setting for setting in comparison.settings if setting.summary(metric).n][:LISTED]
    if not known:
        return None
    means: list[dict[str, Any]] = []
    ticks: list[dict[str, Any]] = []
    for setting in known:
        summary = setting.summary(metric)
        label = f"{setting.name}: {metric} {summary}"
        spread = summary.std if summary.n > 1 else 0.0
        low, high = summary.mean - spread, summary.mean + spread
        means.append({"s": setting.name, "x": summary.mean, "low": low, "high": high, "label": label})
        for run in setting.done:
            if math.isfinite(value := run.metrics.get(metric, math.nan)):
                label = f"{setting.name}, seed {word(run.seed)}: {metric} {number(value)}"
                ticks.append({"s": setting.name, "x": value, "label": label})
    names = [setting.name for setting in known]
    y = kind("s", names, axis=None)
    inside = {"align": "left", "dx": 0, "dy": -13, "fontSize": 11, "color": INK, "limit": WIDTH - 10}
    spec = layered(
        layer([{"s": name} for name in names], {"type": "text", **inside, "x": 0}, y=y, text={"field": "s"}),
        layer(means, {"type": "rule", "strokeWidth": 2, "color": COLOURS[0], "opacity": 0.45},
              y=y, x=amount("low", metric), x2={"field": "high"}),
        layer(ticks, {"type": "tick", "thickness": 1.5, "size": 12, "color": SOFT}, y=y, x=amount("x", metric)),
        layer(means, {"type": "point", "filled": True, "size": 70, "color": COLOURS[0], "opacity": 1},
              y=y, x=amount("x", metric)),
        width=WIDTH + 40, height={"step": 38},
    )  # fmt: skip
    rows = [[setting.name, str(setting.summary(metric)), _seeds(setting, metric)] for setting in known]
    description = f"{len(known)} settings, the best by {comparison.objective} first. {rows[0][0]}: {rows[0][1]}."
    return Figure(f"{metric} of each setting", description, spec, ["setting", metric, "runs by seed"], rows)


def _seeds(setting: Setting, metric: str) -> str:
    return ", ".join(f"{word(run.seed)}: {number(run.metrics.get(metric))}" for run in setting.done)


# -- curves -----------------------------------------------------------------------------------------------------------


def curves(comparison: Comparison, metric: str) -> Figure | None:
    """A metric over epochs: the mean over seeds with one standard deviation; runs that are not done as dashed lines."""
    colour = colours(comparison)
    lines: list[dict[str, Any]] = []
    loose: list[dict[str, Any]] = []
    for setting in comparison.settings:
        for epoch, summary in mean_curve(setting.done, metric).items():
            spread = summary.std if summary.n > 1 else 0.0
            label = f"{setting.name}, epoch {epoch}: {metric} {summary}"
            band = {"low": summary.mean - spread, "high": summary.mean + spread}
            lines.append({"s": setting.name, "e": epoch, "y": summary.mean, **band, "label": label})
        for run in setting.runs:
            if not run.done:
                name = f"{setting.name}, seed {word(run.seed)} ({run.state})"
                loose += [{"s": setting.name, "r": name, "e": int(row["epoch"]), "y": row[metric],
                           "label": f"{name}, epoch {int(row['epoch'])}: {metric} {number(row[metric])}"}
                          for row in run.curve if math.isfinite(row.get(metric, math.nan))]  # fmt: skip
    if not lines and not loose:
        return None
    named = [name for name in colour if any(row["s"] == name for row in lines + loose)]
    grey = [row for row in lines if row["s"] not in colour]
    shown = [row for row in lines if row["s"] in colour]
    paint = kind("s", named, scale={"range": [colour[name] for name in named]})
    ticks = _ticks(max(row["e"] for row in lines + loose))
    x = amount("e", "epoch", axis={"values": ticks, "format": "d", "grid": False, "labelOverlap": False})
    y = amount("y", metric)
    dashed = {"type": "line", "strokeDash": [3, 3], "strokeWidth": 1.2, "opacity": 0.8}
    dots = _thinned(shown) + [row for _, run in groupby(loose, lambda row: row["r"]) for row in _thinned(list(run))]
    spec = layered(
        layer(grey, {"type": "line", "color": GREY, "strokeWidth": 1, "opacity": 0.6}, x=x, y=y, detail={"field": "s"}),
        layer(
            shown, {"type": "area", "opacity": 0.15}, x=x, y=amount("low", metric), y2={"field": "high"}, color=paint
        ),
        layer(shown, {"type": "line", "strokeWidth": 2}, x=x, y=y, color=paint),
        layer(loose, dashed, x=x, y=y, color=paint, detail={"field": "r"}),
        layer(dots, {"type": "point", "filled": True, "size": 36, "opacity": 0.55}, x=x, y=y, color=paint),
    )
    rows = [_last_row(setting, metric) for setting in comparison.settings]
    shared = f"{len(named)} settings in colour" + (
        f", {len(comparison.settings) - len(named)} more in grey" if grey else ""
    )
    description = (
        f"{shared}. Lines are means over seeds, bands one standard deviation; dashed lines are runs that are not done."
    )
    head = ["setting", "epochs", f"{metric} at the last epoch"]
    return Figure(f"{metric} over epochs", description, spec, head, rows)


def mean_curve(runs: Sequence[Run], metric: str) -> dict[int, Summary]:
    """Of each epoch that every run has, the mean over the runs."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for epoch, value in {int(row["epoch"]): row[metric] for row in run.curve if metric in row}.items():
            values.setdefault(epoch, []).append(value)
    found = {epoch: Summary.of(v) for epoch, v in sorted(values.items()) if len(v) == len(runs)}
    return {epoch: summary for epoch, summary in found.items() if summary.n}


def _last_row(setting: Setting, metric: str) -> list[str]:
    curve = mean_curve(setting.done, metric)
    epoch = max(curve, default=0)
    return [setting.name, str(epoch), str(curve[epoch]) if epoch else "–"]


def _ticks(last: int) -> list[int]:
    """At most seven epochs to write below a curve, of a round distance."""
    step = next(size * 10**power for power in itertools.count() for size in (1, 2, 5) if last <= 7 * size * 10**power)
    return list(range(step, last + 1, step))


def _thinned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose epochs are spread evenly, at most POINTS of them, the last among them."""
    last = max((row["e"] for row in rows), default=0)
    every = math.ceil(last / POINTS) or 1
    return [row for row in rows if (last - row["e"]) % every == 0]


# -- all keys, cost, duels --------------------------------------------------------------------------------------------


def parallel(comparison: Comparison, metric: str) -> Figure | None:
    """Parallel coordinates, from top to bottom: one line per setting through its values, down to the metric."""
    known = [setting for setting in comparison.settings if math.isfinite(setting.mean(metric))]
    if len(known) < 2 or not comparison.keys:
        return None
    values = [setting.mean(metric) for setting in known]
    low, span = min(values), max(values) - min(values)
    rows = [*map(short, comparison.keys), metric]
    lines: list[dict[str, Any]] = []
    marks: dict[tuple[str, str], dict[str, Any]] = {}
    for setting, value in zip(reversed(known), reversed(values), strict=True):  # the best on top
        label = f"{setting.name}: {metric} {setting.summary(metric)}"
        for i, key in enumerate(comparison.keys):
            place, text = position(setting.values[key], comparison.levels(key)), word(setting.values[key])
            lines.append({"s": setting.name, "x": place, "y": short(key), "i": i, "v": value, "label": label})
            if text:
                marks[short(key), text] = {"x": place, "y": short(key), "t": text}
        place = (value - low) / span if span else 0.5
        lines.append({"s": setting.name, "x": place, "y": metric, "i": len(rows), "v": value, "label": label})
    few = {short(key) for key in comparison.keys if len(comparison.levels(key)) <= 8}
    texts = [mark for (key, _), mark in marks.items() if key in few]
    ends: list[dict[str, Any]] = (
        [{"x": 0, "y": metric, "t": number(low)}, {"x": 1, "y": metric, "t": number(low + span)}] if span else []
    )
    y = kind("y", rows, axis=None, scale={"type": "point", "padding": 0.15})
    x = amount("x", axis=None, scale={"domain": [-0.02, 1.02], "nice": False})
    good, bad = COLOURS[0], "#cfd4dc"
    higher = comparison.better_is_higher(metric)
    paint = amount("v", legend=None, scale={"range": [bad, good] if higher else [good, bad], "nice": False})
    title = {"type": "text", "align": "left", "dy": -30, "fontSize": 11, "fontWeight": 600, "color": INK, "x": 0}
    spec = layered(
        layer([{"y": name} for name in rows], {"type": "rule", "color": GRID, "x": 0, "x2": WIDTH + 40}, y=y),
        layer(lines, {"type": "line", "strokeWidth": 1.6, "opacity": 0.65}, x=x, y=y, order={"field": "i"},
              detail={"field": "s"}, color=paint),
        layer([{"y": name} for name in rows], title, y=y, text={"field": "y"}),
        layer([*texts, *ends], {"type": "text", "dy": -12, "fontSize": 10, "color": SOFT, "limit": 90},
              x=x, y=y, text={"field": "t"}),
        width=WIDTH + 40, height={"step": 74},
    )  # fmt: skip
    table = [[s.name, str(s.summary(metric))] for s in known]
    description = (
        f"{len(known)} settings as lines through {', '.join(rows[:-1])} down to {metric}; the bluer, the better."
    )
    return Figure("All keys at once", description, spec, ["setting", metric], table)


def position(value: Any, levels: Sequence[Any]) -> float:
    """Where a value stands between 0 and 1: few values evenly, many numbers by size, over 100-fold by logarithm."""
    if len(levels) > 8 and all(is_number(level) for level in levels):
        low, high = min(levels), max(levels)
        if low > 0 and high / low >= 100:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)
    return levels.index(value) / (len(levels) - 1) if len(levels) > 1 else 0.5


def cost_and_quality(comparison: Comparison, name: str, metric: str) -> Figure | None:
    """A metric over a cost, one point per setting; None where all settings cost the same."""
    known = [s for s in comparison.settings if math.isfinite(s.mean(name)) and math.isfinite(s.mean(metric))]
    if len({setting.mean(name) for setting in known}) < 2:
        return None
    colour = colours(comparison)
    unit, divisor = {"peak_memory_bytes": ("MB", 1e6), "parameters": ("", 1.0)}.get(name, ("s", 1.0))
    title = COST_TITLES[name] + (f" ({unit})" if unit else "")
    points: list[dict[str, Any]] = []
    rows = []
    for setting in known:
        quality, price = setting.summary(metric), setting.mean(name)
        spread = quality.std if quality.n > 1 else 0.0
        points.append({"s": setting.name, "x": price / divisor, "y": quality.mean, "low": quality.mean - spread,
                       "high": quality.mean + spread, "c": colour.get(setting.name, GREY),
                       "label": f"{setting.name}: {cost(name, price)}, {metric} {quality}"})  # fmt: skip
        rows.append([setting.name, cost(name, price), str(quality)])
    costs = [float(point["x"]) for point in points]
    scale = {"type": "log"} if min(costs) > 0 and max(costs) / min(costs) >= 20 else {}
    x = amount("x", title, scale=scale, axis={"grid": False, "format": "~s" if name == "parameters" else "~r"})
    paint = {"field": "c", "type": "nominal", "scale": None}
    spec = layered(
        layer(points, {"type": "rule", "opacity": 0.5, "strokeWidth": 1.5}, x=x, y=amount("low", metric),
              y2={"field": "high"}, color=paint),
        layer(points, {"type": "point", "filled": True, "size": 80, "opacity": 1}, x=x, color=paint,
              y=amount("y", metric, scale={"padding": 5})),
    )  # fmt: skip
    cheapest = rows[costs.index(min(costs))]
    description = f"{len(points)} settings; the cheapest is {cheapest[0]} with {cheapest[1]} and {cheapest[2]}."
    return Figure(
        f"{metric} against {COST_TITLES[name]}", description, spec, ["setting", COST_TITLES[name], metric], rows
    )


def differences(duel: Duel) -> Figure:
    """A minus B with its interval: all test samples, then each pair of runs."""
    rows: list[tuple[str, Difference]] = [("mean over runs", duel.difference)]
    for pair in duel.pairs:
        seed = word(pair.seed_a) if duel.same_seeds else f"{word(pair.seed_a)} and {word(pair.seed_b)}"
        rows.append((f"seed {seed}", pair.difference))
    return _intervals(f"{duel.a.name} minus {duel.b.name}", rows)


def rivals(duels: Sequence[Duel]) -> Figure:
    """The best setting minus each of the others."""
    return _intervals(f"{duels[0].a.name} minus each other", [(duel.b.name, duel.difference) for duel in duels])


def _intervals(title: str, found: Sequence[tuple[str, Difference]]) -> Figure:
    marks = [{"t": name, "x": d.mean, "low": d.low, "high": d.high, "c": COLOURS[0] if d.clear else GREY,
              "label": f"{name}: {d.mean:+.4f} ({d.low:+.4f} to {d.high:+.4f})"} for name, d in found]  # fmt: skip
    names = [name for name, _ in found]
    y = kind("t", names, axis=None)
    x = amount("low", "difference in the share of right test samples", zero=True)
    paint = {"field": "c", "type": "nominal", "scale": None}
    text = {"type": "text", "align": "left", "dy": -13, "fontSize": 11, "color": INK, "x": 0, "limit": WIDTH - 10}
    spec = layered(
        layer([{"x": 0}], {"type": "rule", "color": SOFT, "strokeDash": [4, 3]}, x=amount("x", zero=True)),
        layer(marks, {"type": "rule", "strokeWidth": 3, "opacity": 0.5}, y=y, x=x, x2={"field": "high"}, color=paint),
        layer(marks, {"type": "point", "filled": True, "size": 70, "opacity": 1}, y=y, x=amount("x", zero=True),
              color=paint),
        layer([{"t": name} for name in names], text, y=y, text={"field": "t"}),
        width=WIDTH + 40, height={"step": 38},
    )  # fmt: skip
    rows = [[name, f"{d.mean:+.4f}", f"{d.low:+.4f} to {d.high:+.4f}", str(d.samples)] for name, d in found]
    description = f"{rows[0][0]}: {rows[0][1]}, 95% interval {rows[0][2]}. Grey intervals contain 0."
    return Figure(title, description, spec, ["", "difference", "95% interval", "samples"], rows)
