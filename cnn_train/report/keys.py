"""The charts about keys: shares of variance, importance, main effects, interactions. Each has a table beside it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cnn_train.report.drawing import COLOURS, GOOD_TO_BAD, GREY, INK, WIDTH, Figure, amount, kind, layer, layered
from cnn_train.report.effects import Effects
from cnn_train.report.settings import Comparison, Summary, is_number, number, short, word

MANY = 12  # values of a key that are drawn side by side; more numbers are drawn by size
TOLD = 6  # values of a key whose means are given in words
WRITTEN = 6  # columns of a heat map with room for their numbers


def shares(effects: Effects) -> Figure | None:
    """The share of the variance that each key, each pair and the seeds explain."""
    if not effects.total:
        return None
    terms = [(" × ".join(map(short, effect.keys)), effect.share, effect.chance) for effect in effects.effects]
    if effects.seeds is None or effects.rest is None:
        terms.append(("three or more keys, and seeds", effects.left, math.nan))
    else:
        if len({key for effect in effects.effects for key in effect.keys}) > 2:
            terms.append(("three or more keys", effects.rest, math.nan))
        terms.append(("seeds", effects.seeds, math.nan))
    rows = [[name, f"{share:.1%}", "–" if math.isnan(chance) else f"{chance:.1%}"] for name, share, chance in terms]
    bars = [{"t": name, "x": share, "label": f"{name}: {share:.1%} of the variance"} for name, share, _ in terms]
    description = "; ".join(f"{name} {share}" for name, share, _ in rows) + "."
    title = f"Share of the variance of {effects.metric}"
    return Figure(title, description, _bars(bars, ".0%"), ["source", "share", "by chance"], rows)


def importances(found: Mapping[str, float], metric: str) -> Figure:
    """Optuna's importance of each key."""
    bars: list[dict[str, Any]] = [
        {"t": short(key), "x": value, "label": f"{short(key)}: {value:.1%}"} for key, value in found.items()
    ]
    rows = [[bar["t"], f"{bar['x']:.1%}"] for bar in bars]
    description = "; ".join(f"{name} {share}" for name, share in rows) + "."
    return Figure(f"Importance for {metric} (PED-ANOVA)", description, _bars(bars, ".0%"), ["key", "importance"], rows)


def _bars(bars: Sequence[dict[str, Any]], form: str) -> dict[str, Any]:
    names = [bar["t"] for bar in bars]
    y = kind("t", names, axis=None)
    top = max(bar["x"] for bar in bars)
    x = amount("x", axis={"format": form, "title": None}, scale={"domain": [0, max(top, 0.01)]})
    text = {"type": "text", "align": "left", "dy": -12, "fontSize": 11, "color": INK, "x": 0, "limit": WIDTH - 10}
    named = [{"t": bar["t"], "words": f"{bar['t']}  {bar['x']:.1%}"} for bar in bars]
    return layered(
        layer(bars, {"type": "bar", "height": 10, "color": COLOURS[0], "cornerRadiusEnd": 3}, y=y, x=x),
        layer(named, text, y=y, text={"field": "words"}),
        width=WIDTH + 40,
        height={"step": 38},
    )


def main_effect(comparison: Comparison, key: str, metric: str) -> Figure | None:
    """A metric at each value of one key: every run that is done, and the mean."""
    if len(comparison.levels(key)) > MANY and all(map(is_number, comparison.levels(key))):
        return _scatter(comparison, key, metric)
    names = [word(level) for level in comparison.levels(key)]
    runs = [(word(run.config.get(key)), run.metrics.get(metric, math.nan)) for run in comparison.runs if run.done]
    points = [{"x": level, "y": value, "label": f"{short(key)}={level}: {metric} {number(value)}"}
              for level, value in runs if math.isfinite(value)]  # fmt: skip
    found = {name: Summary.of(value for level, value in runs if level == name) for name in names}
    means: list[dict[str, Any]] = [
        {"x": name, "y": summary.mean, "label": f"{short(key)}={name}: mean {metric} {summary}"}
        for name, summary in found.items()
        if summary.n
    ]
    if not means:
        return None
    x = {**kind("x", names, short(key)), "axis": _slanted(names)}
    y = amount("y", metric, scale={"padding": 5})
    joined = all(is_number(level) for level in comparison.levels(key))
    line = {"type": "line", "strokeWidth": 1.5, "color": COLOURS[0], "opacity": 0.6}
    spec = layered(
        layer(points, {"type": "point", "filled": True, "size": 26, "color": GREY, "opacity": 0.7}, x=x, y=y),
        *([layer([{k: v for k, v in row.items() if k != "label"} for row in means], line, x=x, y=y)] if joined else []),
        layer(means, {"type": "point", "filled": True, "size": 90, "color": COLOURS[0], "opacity": 1}, x=x, y=y),
    )
    rows = [[name, str(found[name])] for name in names]
    description = "; ".join(f"{name}: {summary}" for name, summary in rows) + "."
    if len(rows) > TOLD:
        pick = max if comparison.better_is_higher(metric) else min
        best = pick(means, key=lambda row: row["y"])["x"]
        description = f"{len(rows)} values of {short(key)}; the best is {best}: {found[best]}."
    return Figure(f"{metric} by {short(key)}", description, spec, [short(key), metric], rows)


def _slanted(names: Sequence[str]) -> dict[str, Any]:
    """An axis whose words stand aslant where they are too long to stand side by side."""
    return (
        {"labelAngle": 0}
        if sum(map(len, names)) < 36
        else {"labelAngle": -40, "labelLimit": 100, "labelOverlap": False}
    )


def _scatter(comparison: Comparison, key: str, metric: str) -> Figure | None:
    """As `main_effect` for a key with many numbers: the runs alone, over the key's size."""
    runs = [run for run in comparison.runs if math.isfinite(run.metrics.get(metric, math.nan))]
    known = sorted((run.config[key], run.metrics[metric]) for run in runs if is_number(run.config.get(key)))
    if not known:
        return None
    low, high = known[0][0], known[-1][0]
    scale = {"type": "log", "nice": False} if low > 0 and high / low >= 100 else {}
    points = [{"x": x, "y": y, "label": f"{short(key)}={x:.4g}: {metric} {number(y)}"} for x, y in known]
    mark = {"type": "point", "filled": True, "size": 40, "color": COLOURS[0], "opacity": 0.7}
    axis = {"grid": False, "labelFlush": True, "tickCount": 5}
    spec = layered(
        layer(
            points, mark, x=amount("x", short(key), scale=scale, axis=axis), y=amount("y", metric, scale={"padding": 5})
        )
    )
    description = f"{len(known)} runs with {short(key)} from {low:.4g} to {high:.4g}."
    rows = [[f"{x:.4g}", number(y)] for x, y in known]
    return Figure(f"{metric} by {short(key)}", description, spec, [short(key), metric], rows)


def interaction(comparison: Comparison, first: str, second: str, metric: str) -> Figure:
    """A heat map: the mean at each pair of values of two keys; a pair without a run stays empty."""
    columns, lines = ([word(level) for level in comparison.levels(key)] for key in (first, second))
    cells: dict[tuple[str, str], list[float]] = {}
    for run in comparison.runs:
        if run.done and metric in run.metrics:
            pair = word(run.config.get(first)), word(run.config.get(second))
            cells.setdefault(pair, []).append(run.metrics[metric])
    found = {pair: summary for pair, values in cells.items() if (summary := Summary.of(values)).n}
    low = min((summary.mean for summary in found.values()), default=0.0)
    span = max((summary.mean for summary in found.values()), default=0.0) - low or 1.0
    good, bad = GOOD_TO_BAD
    inks = (INK, "#ffffff")  # on light and on dark tiles
    higher = comparison.better_is_higher(metric)
    rows, tiles = [], []
    for a in columns:
        for b in lines:
            mean = found.get((a, b))
            name = f"{short(first)}={a} {short(second)}={b}"
            rows.append([a, b, str(mean) if mean else "–"])
            if mean is not None:
                place = (mean.mean - low) / span
                ink = inks[1] if (place if higher else 1 - place) > 0.45 else inks[0]
                tiles.append({"x": a, "y": b, "v": mean.mean, "t": number(mean.mean), "ink": ink,
                              "label": f"{name}: {metric} {mean}"})  # fmt: skip
    x = {**kind("x", columns, short(first)), "axis": _slanted(columns)}
    y = kind("y", lines, short(second), axis={"labelLimit": 90})
    paint = amount("v", scale={"range": [bad, good] if higher else [good, bad], "nice": False}, legend=None)
    texts = inks if len(columns) <= WRITTEN else ()
    spec = layered(
        layer(tiles, {"type": "rect", "stroke": "#ffffff", "strokeWidth": 2}, x=x, y=y, color=paint),
        *(
            layer([t for t in tiles if t["ink"] == ink], {"type": "text", "color": ink}, x=x, y=y, text={"field": "t"})
            for ink in texts
        ),
        height={"step": 38 if texts else 22},
    )
    filled = f"{len(found)} of {len(columns) * len(lines)} pairs of values have runs; darker is better."
    head = [short(first), short(second), metric]
    return Figure(f"{metric} by {short(first)} and {short(second)}", filled, spec, head, rows)
