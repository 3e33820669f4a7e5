"""Vega-Lite specs drawn to SVG by vl-convert, with what a screen reader and a page of many charts need."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnn_train.errors import EnvError

WIDTH = 280  # of the plotting area: with its axis a chart fits a phone
INK, SOFT, GRID = "#1f2937", "#5b6472", "#e4e7ec"
COLOURS = ("#0b6bcb", "#d9480f", "#2b8a3e", "#9c36b5", "#b08900", "#0c8599")  # told apart by colour-blind readers, too
GREY = "#a3aab5"
GOOD_TO_BAD = ("#0b3d91", "#dbe7fb")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 11, "labelColor": SOFT, "titleFontSize": 11, "titleColor": SOFT, "titleFontWeight": "normal",
        "gridColor": GRID, "domain": False, "ticks": False, "labelPadding": 6, "labelLimit": 190, "titleLimit": 280,
    },
    "axisY": {"titlePadding": 14},
    "axisX": {"labelFlush": False, "labelOverlap": True, "tickCount": 5},
    "legend": {
        "orient": "bottom", "direction": "vertical", "title": None, "labelFontSize": 11, "labelColor": INK,
        "labelLimit": 215, "symbolType": "stroke", "symbolSize": 180, "symbolStrokeWidth": 3, "columns": 1,
        "symbolOpacity": 1,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A chart, and the table that says the same."""

    title: str
    description: str  # what is seen, for who does not see it
    spec: Mapping[str, Any]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def svg(figure: Figure, name: str) -> str:
    """The chart as an SVG element with title and description; `name` makes its ids unique in the page."""
    converter = vl_convert()
    text = converter.vegalite_to_svg({**figure.spec, "config": CONFIG}, vl_version="6.4", allowed_base_urls=[])
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", tag[0]), text)
    labels = f'role="img" aria-labelledby="{name}-title {name}-desc"'
    words = (
        f'<title id="{name}-title">{html.escape(figure.title)}</title>'
        f'<desc id="{name}-desc">{html.escape(figure.description)}</desc>'
    )
    return re.sub(r"<svg ([^>]*)>", lambda match: f"<svg {labels} {match[1]}>{words}", text, count=1)


def vl_convert() -> Any:
    """The library that draws. Raises EnvError with the line that installs it."""
    try:
        import vl_convert
    except ImportError as error:
        raise missing("vl-convert-python") from error
    return vl_convert


def missing(package: str) -> EnvError:
    error = EnvError(f"the report needs the package {package}, which is not installed")
    error.add_note("try: pip install 'cnn-train[report]'")
    return error


def layered(*layers: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A spec of layers with the usual size."""
    return {"width": WIDTH, "height": 190, "layer": list(layers), **more}


def layer(rows: Sequence[Mapping[str, Any]], mark: Mapping[str, Any], **encoding: Any) -> dict[str, Any]:
    """One layer: its rows, its mark, its channels. Rows hold a `label`, which hovering shows."""
    if rows and "label" in rows[0]:
        encoding["description"] = {"field": "label"}
    return {"data": {"values": list(rows)}, "mark": dict(mark), "encoding": encoding}


def amount(field: str, title: str | None = None, zero: bool = False, **more: Any) -> dict[str, Any]:
    """A channel of numbers."""
    scale = {"zero": zero, "nice": True, **more.pop("scale", {})}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, **more}


def kind(field: str, order: Sequence[str], title: str | None = None, **more: Any) -> dict[str, Any]:
    """A channel of words, in the order given."""
    scale = {"domain": list(order), **more.pop("scale", {})}
    return {"field": field, "type": "nominal", "title": title, "scale": scale, "sort": None, **more}
