"""The pictures of a network on one HTML page without scripts, in a folder with their PNG files."""

import html
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from cnn_train import atomic
from cnn_train.analysis import LayerStatistics
from cnn_train.errors import EnvError
from cnn_train.inspection import pictures
from cnn_train.inspection.examine import Report, stages
from cnn_train.inspection.images import Sample, initialized, load_sample, trained
from cnn_train.inspection.pictures import CHANNELS, EXCITED
from cnn_train.inspection.tables import HEADS, cells, csv_text, totals
from cnn_train.runs import folder as run_folder

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 12px } td, th { padding: 2px 8px; text-align: right }
td:nth-child(-n+4), th:nth-child(-n+4) { text-align: left } tr:nth-child(even) { background: #f4f4f4 }
img { max-width: 100%; border: 1px solid #ddd } .warning { color: #a40 } dt { font-weight: 600 } dd { margin: 0 0 .4em }
"""


@dataclass(frozen=True)
class Shown:
    """A picture of the page: its file, a title and a sentence."""

    file: str
    title: str
    text: str


class Album:
    """The pictures that a folder holds so far."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.shown: list[Shown] = []

    def add(self, name: str, title: str, text: str, make: Callable[[], Any]) -> None:
        """Draw a figure into the folder; where that is impossible (ValueError), say why in its place."""
        try:
            figure = make()
        except ValueError as error:  # such as: no gradient arrives, all units are dead
            self.shown.append(Shown("", title, f"left out: {error}"))
            return
        if figure is not None:
            pictures.save(figure, self.folder / f"{name}.png")
            self.shown.append(Shown(f"{name}.png", title, text))


def draw(
    report: Report, folder: Path | None = None, *, image: Path | None = None, run: Path | None = None, samples: int = 4
) -> Path:
    """Draw everything into a folder, by default a new one under `output_dir`; returns the path of the page.

    `image` is a file to look at, `run` the folder of a run whose weights are looked at, `samples` the number of images
    that the effective receptive field is averaged over. Raises EnvError if the folder cannot be made.
    """
    subject = report.subject
    folder = folder or run_folder.create(Path(subject.cfg.output_dir) / "inspect" / subject.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvError(f"cannot make the folder {folder}: {error.strerror}; choose another pictures=DIR") from error
    sample = load_sample(subject, image)
    # One network for each image, each from a seed of its own, for an average over both.
    fresh = [initialized(subject, subject.cfg.seed + n, sample.batch) for n in range(samples)]
    source = run or subject.cfg.weights
    network = fresh[0] if source is None else trained(subject, run)
    state = "random weights, as initialized" if source is None else f"weights of {source}"
    kinds = [("as initialized", fresh), *([] if source is None else [("after training", [network])])]
    album = Album(folder)
    add_fields(album, report, sample, kinds, samples)
    add_layers(album, report, sample, network, state)
    page = folder / "index.html"
    atomic.write_text(page, as_html(report, album.shown, state, sample.name))
    return page


def add_fields(
    album: Album, report: Report, sample: Sample, kinds: Sequence[tuple[str, Sequence[nn.Module]]], samples: int
) -> None:
    """Receptive fields as computed and as gradients measure them."""
    seen = stages(report.graph)
    album.add(
        "fields",
        "Receptive fields",
        "Of each stage's middle unit, on the image; larger ones leave it.",
        partial(pictures.draw_fields, report, seen, sample),
    )
    album.add(
        "effective",
        "Effective receptive fields",
        "Root mean square gradient of the middle unit by each pixel (Luo et al. 2016), averaged over "
        f"{samples} images of noise; initialized networks are as many, each from its own seed. The width is "
        "the side of a square of as many pixels as have over 4.55 % of the largest.",
        partial(pictures.draw_effective, kinds, seen, report.subject.input_size, samples),
    )


def add_layers(album: Album, report: Report, sample: Sample, network: nn.Module, state: str) -> None:
    """Statistics, filters, feature maps, what excites them, Grad-CAM, and the masks of findings."""
    seen = stages(report.graph)

    def statistics() -> Any:
        rows = pictures.measure(network, sample)
        heads = [field.name for field in fields(LayerStatistics)]
        table = csv_text(heads, [list(asdict(row).values()) for row in rows])
        atomic.write_text(album.folder / "statistics.csv", table)
        return pictures.draw_statistics(rows)

    album.add(
        "statistics",
        "Activations and gradients per layer",
        f"On {len(sample.batch)} images in training mode, {state}. The numbers are in statistics.csv.",
        statistics,
    )
    album.add(
        "filters", "Filters of the first layer", f"{state.capitalize()}.", partial(pictures.draw_filters, network)
    )
    for number, stage in enumerate(seen):
        album.add(
            f"maps_{number}",
            f"Feature maps of {stage.layer}",
            f"Its first {CHANNELS} channels on the image.",
            partial(pictures.draw_maps, network, sample, stage),
        )
    for number, stage in enumerate(seen):
        album.add(
            f"excited_{number}",
            f"What excites {stage.layer}",
            f"The strongest unit of its {EXCITED} strongest channels, brought back to pixels by unpooling, "
            "rectification and transposed filters (Zeiler & Fergus 2014).",
            partial(pictures.draw_excited, network, sample, stage),
        )
    album.add(
        "grad_cam",
        "Grad-CAM",
        "Where the network looks for its answer (Selvaraju et al. 2017), at the last map.",
        partial(pictures.draw_grad_cam, network, sample, seen),
    )
    masks = [(finding, finding.mask) for finding in report.findings if finding.mask is not None]
    for number, (finding, mask) in enumerate(masks):
        title = f"Gridding at {finding.layer}"
        album.add(f"gridding_{number}", title, finding.message, partial(pictures.draw_mask, mask))


def as_html(report: Report, shown: Sequence[Shown], state: str, image: str) -> str:
    """One page without scripts; every name is escaped."""
    escape = html.escape
    title = escape(f"{report.subject.name}: what each layer sees, weighs and costs")
    lines = [
        "<!doctype html>",
        f"<meta charset=utf-8><title>{title}</title><style>{STYLE}</style>",
        f"<h1>{title}</h1>",
    ]
    lines += [f"<p>{escape(state.capitalize())}; the image is {escape(image)}.</p>", "<dl>"]
    lines += [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in totals(report).items()]
    lines.append("</dl>")
    lines += [f"<p class=warning>{escape(f.layer)}: {escape(f.message)}</p>" for f in report.findings]
    for picture in shown:
        lines.append(f"<h2>{escape(picture.title)}</h2><p>{escape(picture.text)}</p>")
        if picture.file:
            lines.append(f'<img src="{escape(picture.file)}" alt="{escape(picture.title)}">')
    lines.append("<h2>Layers</h2><table><tr>" + "".join(f"<th>{escape(head)}</th>" for head in HEADS) + "</tr>")
    for row in report.rows:
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "</tr>")
    lines.append("</table>")
    return "\n".join(lines) + "\n"
