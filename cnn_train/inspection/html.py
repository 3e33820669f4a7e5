"""Pages of one HTML file without scripts or requests; all text is escaped."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; overflow-wrap: normal }
.scroll { overflow-x: auto } .wrong { color: #b00020; font-weight: 600 } .remark { color: #8a5a00 }
ul { margin: .2rem 0 1rem; overflow-wrap: anywhere } img { max-width: 100%; image-rendering: pixelated }
code { overflow-wrap: anywhere }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: str) -> str:
    """A whole page."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table, which scrolls by itself where it is too wide."""

    def row(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="scroll"><table>{row(head, "th")}{"".join(row(cells, "td") for cells in rows)}</table></div>'


def image(picture: Any, words: str) -> str:
    """A picture (H, W, 3) uint8 inside of the page; `words` say what is to be seen."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{data}">'
