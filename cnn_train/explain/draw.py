"""Small pictures for pages: each is a matplotlib figure whose label is its text for those who do not see it."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnn_train.explain.check import number, plain

# Told apart by colour-blind readers, too (Okabe & Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
STYLE: Any = {
    "font.size": 10, "axes.titlesize": 10.5, "axes.spines.top": False, "axes.spines.right": False,
    "lines.linewidth": 1.8, "legend.frameon": False, "legend.fontsize": 9, "svg.hashsalt": "cnn-train",
    "axes.edgecolor": "#666", "xtick.color": "#444", "ytick.color": "#444", "figure.facecolor": "white",
}  # fmt: skip


def cells(
    values: Any, title: str, *, marked: Collection[tuple[int, int]] = (), spec: str = "", zeros: bool = True
) -> Figure:
    """A grid with its numbers (rows, columns), red above and blue below zero; cells in `marked` have a frame.

    `zeros=False` leaves zeros blank, so that the pattern of a sparse matrix shows.
    """
    grid = np.atleast_2d(plain(values)).astype(float)
    rows, columns = grid.shape
    texts = [[number(v, spec) if zeros or v else "" for v in row] for row in grid]
    side = 0.23 + 0.085 * max(2, *(len(text) for row in texts for text in row))
    with rc_context(STYLE):
        figure = Figure(figsize=(max(columns * side, 1.1, 0.085 * len(title)) + 0.15, rows * min(side, 0.42) + 0.4))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1 - 0.36 / figure.get_figheight()))
        bound = 2.2 * max(np.nanmax(np.abs(grid)), 1e-12)  # pale, so that the numbers can be read
        axes.imshow(grid, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
        for row, column in np.ndindex(rows, columns):
            axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=9.5)
        axes.set_xticks(np.arange(1, columns) - 0.5, [])
        axes.set_yticks(np.arange(1, rows) - 0.5, [])
        axes.grid(color="white", linewidth=1.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for row, column in marked:
            frame = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="#111", linewidth=1.6)
            axes.add_patch(frame)
        axes.set_title(title)
    read_out = "; ".join(" ".join(row) for row in texts)
    figure.set_label(f"{title}: {read_out}" if grid.size <= 64 else f"{title}, a grid of {rows} by {columns}")
    return figure


def curves(
    x: Any,
    lines: Mapping[str, Any],
    title: str,
    x_label: str,
    y_label: str = "",
    *,
    log: bool = False,
    dots: bool = False,
    size: tuple[float, float] = (3.55, 2.6),
) -> Figure:
    """Lines over a common `x`; `log` for a logarithmic y axis, `dots` marks the values."""
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for (name, y), colour in zip(lines.items(), COLOURS * 2, strict=False):
            axes.plot(plain(x), plain(y), color=colour, label=name, marker="o" if dots else None, markersize=4)
        if log:
            axes.set_yscale("log")
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.grid(color="#e6e6e6")
        if len(lines) > 3:
            figure.set_figheight(size[1] + 0.2 * len(lines) / 2)
            figure.legend(loc="outside lower center", ncols=2)
        elif len(lines) > 1:
            axes.legend()
    ends = "; ".join(f"{name} from {number(plain(y)[0])} to {number(plain(y)[-1])}" for name, y in lines.items())
    figure.set_label(f"{title}, over {x_label}: {ends}")
    return figure


def heat(values: Any, title: str, *, side: float = 2.2, signed: bool = False) -> Figure:
    """A map (rows, columns) as brightness, or, if `signed`, red above and blue below zero."""
    grid = plain(values).astype(float)
    with rc_context(STYLE):
        figure = Figure(figsize=(side, side * grid.shape[0] / grid.shape[1] + 0.35))
        axes = figure.add_axes((0.02, 0.02, 0.96, 0.96 - 0.33 / figure.get_figheight()))
        bound = max(np.abs(grid).max(), 1e-12)
        low = -bound if signed else min(0.0, grid.min())
        axes.imshow(grid, cmap="RdBu_r" if signed else "magma", vmin=low, vmax=bound)
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    ends = f"from {number(grid.min())} to {number(grid.max())}"
    figure.set_label(f"{title}, a map of {grid.shape[0]} by {grid.shape[1]}, {ends}")
    return figure


def paths(height: Any, walks: Mapping[str, Any], title: str, x: tuple[float, float], y: tuple[float, float]) -> Figure:
    """Walks (steps, 2) over the contour lines of `height(x, y)`, seen in the window `x`, `y` (first, last)."""
    with rc_context(STYLE):
        figure = Figure(figsize=(3.55, 3.3), layout="constrained")
        axes = figure.add_subplot()
        across, up = np.meshgrid(np.linspace(x[0], x[1], 80), np.linspace(y[0], y[1], 80))
        axes.contour(across, up, height(across, up), levels=14, colors="#bbb", linewidths=0.8)
        for (name, walk), colour in zip(walks.items(), COLOURS, strict=False):
            walk = plain(walk)
            axes.plot(walk[:, 0], walk[:, 1], color=colour, label=name, marker=".", markersize=4, linewidth=1.3)
        axes.set(title=title, xlim=x, ylim=y)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    ends = "; ".join(f"{name} ends at {number(plain(walk)[-1], '.3g')}" for name, walk in walks.items())
    figure.set_label(f"{title}, paths over contour lines: {ends}")
    return figure


def boxes(groups: Mapping[str, Any], title: str, size: int) -> Figure:
    """Boxes (x1, y1, x2, y2) in pixels, a colour for each group, on an empty square image of side `size`."""
    with rc_context(STYLE):
        figure = Figure(figsize=(2.9, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for (name, group), colour in zip(groups.items(), COLOURS, strict=False):
            for place, (x1, y1, x2, y2) in enumerate(plain(group)):
                label = name if place == 0 else None
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=1.6, label=label))
        axes.set(title=title, xlim=(-2, size + 2), ylim=(size + 2, -2), aspect="equal")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    told = "; ".join(f"{name} " + ", ".join(number(box) for box in plain(group)[:8]) for name, group in groups.items())
    figure.set_label(f"{title}, boxes: {told}")
    return figure
