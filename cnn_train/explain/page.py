"""The page of a topic: paragraphs, formulas, tables and pictures, as text and as one HTML file that works offline.

Paragraphs have the least markup that a textbook needs: *emphasis*, `code`, [links](https://...) and $formulas$ with x_i
and x^{2}. The tick behind a number says that this run compared it with torch, or with a second way to compute it.
"""

import base64
import html
import importlib.util
import io
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from cnn_train.atomic import write_bytes, write_text
from cnn_train.explain.check import TICK, number
from cnn_train.explain.draw import STYLE as PLOTS

WIDTH = 92  # of the text, in characters
PACKAGE = Path(__file__).parents[1]
STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


class Page:
    """What a topic returns. `str()` is its text, a notebook shows it, `write` leaves it in a folder."""

    def __init__(self, title: str, lead: str):
        self.title = title
        self.lead = lead
        self.parts: list[tuple[str, str]] = []  # each as text and as HTML
        self.pictures: list[tuple[str, bytes]] = []  # alternative text and SVG
        self.references: dict[str, list[str]] = {}

    def head(self, title: str) -> None:
        """Begin a section."""
        self.parts.append((f"{title}\n{'-' * len(title)}", f"<h2>{_marked(title)}</h2>"))

    def say(self, paragraph: str) -> None:
        """Add a paragraph; its numbers are best computed where they are written, as `{agree(ours, torchs)}`."""
        paragraph = " ".join(paragraph.split())
        self.parts.append((textwrap.fill(_plain(paragraph), WIDTH), f"<p>{_marked(paragraph)}</p>"))

    def formula(self, formula: str, source: str) -> None:
        """Add a formula on a line of its own, and where it is from (with the markup of a paragraph)."""
        cite = textwrap.indent(textwrap.fill(f"[{_plain(source)}]", WIDTH - 8), " " * 8)
        shown = f"<p>{_maths(html.escape(formula))}</p><cite>{_marked(source)}</cite>"
        self.parts.append((f"    {_plain(f'${formula}$')}\n{cite}", f"<div class=formula>{shown}</div>"))

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> None:
        """Add a table; cells are words, numbers or what `agree` returned."""
        filled = [[number(cell) for cell in row] for row in rows]
        lines = [[_plain(cell) for cell in row] for row in [heads, *filled]]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in lines]
        text = "\n".join("  ".join(row).rstrip() for row in aligned)
        head = "".join(f"<th scope=col>{_marked(cell)}</th>" for cell in heads)
        body = "".join("<tr>" + "".join(f"<td>{_marked(cell)}</td>" for cell in row) + "</tr>" for row in filled)
        shown = f"<caption>{_marked(caption)}</caption>" if caption else ""
        shown += f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        # A wide table scrolls by itself on a phone, and by keyboard.
        shown = f'<div class=wide tabindex=0 role=region aria-label="table"><table>{shown}</table></div>'
        self.parts.append((f"{_plain(caption)}:\n{text}" if caption else text, shown))

    def picture(self, caption: str, *figures: Figure) -> None:
        """Add figures, side by side where there is room, and what to see in them."""
        images, titles = [], []
        caption = " ".join(caption.split())
        for figure in figures:
            alt = str(figure.get_label())
            titles.append(re.split("[:,]", alt)[0])
            self.pictures.append((alt, _svg(figure)))
            data = base64.b64encode(self.pictures[-1][1]).decode()
            images.append(f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">')
        text = textwrap.fill(f"[{' | '.join(titles)}] {_plain(caption)}", WIDTH - 4)
        shown = f"<div>{''.join(images)}</div><figcaption>{_marked(caption)}</figcaption>"
        self.parts.append((textwrap.indent(text, " " * 4), f"<figure>{shown}</figure>"))

    def see(self, *, layers: str = "", networks: str = "", claims: str = "", topics: str = "") -> None:
        """Where to go on, in words: dotted names that implement it, networks (`model=`), pages of docs that show it on
        data (a heading behind a #), other topics."""
        kinds = {"Implemented by": layers, "Used by": networks, "Shown in": claims, "See also": topics}
        self.references = {kind: names.split() for kind, names in kinds.items() if names}

    # -- The page as a whole -------------------------------------------------------------------------------------------

    @property
    def ticks(self) -> int:
        """How many numbers, or lists of numbers, were compared."""
        return sum(text.count(TICK) for text, _ in self.parts)

    @property
    def verdict(self) -> str:
        return (
            f"{TICK} marks what this run computed twice, by the page's formula and by torch {torch.__version__} or a "
            f"second formula, and found equal: {self.ticks} places."
        )

    def __str__(self) -> str:
        parts = [f"{self.title}\n{'=' * len(self.title)}", textwrap.fill(_plain(self.lead), WIDTH)]
        parts += [text for text, _ in self.parts]
        lines = [f"{kind}: {', '.join(names)}" for kind, names in self.references.items()]
        parts.append("\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines))
        parts.append(textwrap.fill(self.verdict, WIDTH))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        # A notebook has a style of its own: ours is for what is inside this element alone.
        style = STYLE.replace(":root", "&").replace("\nbody {", "\n& {")
        return f"<div class=explain><style>.explain {{ {style} }}</style><main>{self.body()}</main></div>"

    def body(self, folder: Path | None = None) -> str:
        """The page without its frame. References are links if `folder`, where the page will lie, is given."""
        entries = ""
        for kind, names in self.references.items():
            entries += f"<dt>{kind}</dt><dd>{', '.join(_reference(kind, name, folder) for name in names)}</dd>"
        parts = [f"<h1>{html.escape(self.title)}</h1>", f"<p class=lead>{_marked(self.lead)}</p>"]
        parts += [part for _, part in self.parts]
        parts += [f"<dl>{entries}</dl>", f"<p class=verdict>{_marked(self.verdict)}</p>"]
        return "\n".join(parts)

    def html(self, folder: Path | None = None) -> str:
        """One file: style and pictures are inside, and there are no scripts."""
        return (
            "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
            '<meta name=viewport content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)} – cnn-train explain</title><style>\n{STYLE}</style></head>\n"
            f"<body><main>\n{self.body(folder)}\n</main></body></html>\n"
        )

    def write(self, folder: Path) -> Path:
        """Write index.html, and the pictures as 1.svg, 2.svg, ..., into a folder that may exist; returns the page."""
        folder.mkdir(parents=True, exist_ok=True)
        for place, (_, data) in enumerate(self.pictures, 1):
            write_bytes(folder / f"{place}.svg", data)
        write_text(folder / "index.html", self.html(folder))
        return folder / "index.html"


def _svg(figure: Figure) -> bytes:
    stream = io.BytesIO()
    with rc_context(PLOTS):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _reference(kind: str, name: str, folder: Path | None) -> str:
    """A name, as a link if there is something to link to from `folder`."""
    shown = f"<code>{html.escape(name)}</code>"
    path: Path | None = None
    if kind == "Shown in":
        file, _, heading = name.partition("#")
        path = PACKAGE.parent / file
        shown = html.escape(f"{file}, {heading.replace('-', ' ')}" if heading else file)
    elif kind == "Used by":
        shipped = [conf / "model" / f"{name}.yaml" for conf in (PACKAGE / "conf", PACKAGE.parent / "conf")]
        path = next((file for file in shipped if file.is_file()), None)
    elif kind == "See also":
        path = folder.parent / name / "index.html" if folder else None
    elif name.startswith("torch."):
        return f'<a href="https://docs.pytorch.org/docs/stable/generated/{html.escape(name)}.html">{shown}</a>'
    else:
        module = importlib.util.find_spec(name.rpartition(".")[0])
        path = Path(module.origin) if module and module.origin else None
    if folder is None or path is None or not path.is_file():
        return shown
    target = os.path.relpath(path.resolve(), folder.resolve())
    return f'<a href="{html.escape(Path(target).as_posix())}">{shown}</a>'


# -- Markup ------------------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Markup as text: `x_{i+1}` becomes x_(i+1), a link its words and its address."""
    text = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r"\1 (\2)", text)
    text = re.sub(r"([_^])\{([^{}]+)\}", lambda m: m[1] + (m[2] if len(m[2]) == 1 else f"({m[2]})"), text)
    return re.sub(r"\*(\w[^*]*)\*", r"\1", re.sub(r"[$`]", "", text))


def _marked(text: str) -> str:
    """Markup as HTML; everything else is escaped."""
    text = html.escape(text)
    text = re.sub(r"\$([^$]+)\$", lambda m: f"<span class=maths>{_maths(m[1])}</span>", text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*(\w[^*]*)\*", r"<em>\1</em>", text)
    text = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r'<a href="\2">\1</a>', text)
    return text.replace(TICK, f'<span class=tick title="compared in this run">{TICK}</span>')


def _maths(formula: str) -> str:
    """Sub- and superscripts, single letters in italics; names such as max stay upright. `formula` is escaped."""
    for sign, tag in ((r"_", "sub"), (r"\^", "sup")):
        formula = re.sub(sign + r"(?:\{([^{}]+)\}|(\w))", rf"<{tag}>\1\2</{tag}>", formula)
    formula = re.sub(r"<sub>([A-Za-z]{2})</sub>", r"<sub><i>\1</i></sub>", formula)  # two indices
    return re.sub(r"(?<![A-Za-z&#<])(?<!</)([A-Za-z])(?![A-Za-z;>])", r"<i>\1</i>", formula)
