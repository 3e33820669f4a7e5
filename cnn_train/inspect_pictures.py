"""The pictures of `cnn-train inspect picture=true`: PNG files and one HTML page that shows them.

A network is looked at as it is: freshly initialized, or with the weights of a run.
"""

import csv
import html
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnn_train import atomic
from cnn_train.analysis import LayerStatistics, effective_receptive_field, layer_statistics
from cnn_train.analysis.trace import main_map
from cnn_train.config.build import build, build_layers
from cnn_train.errors import ConfigError, EnvError
from cnn_train.inspect_network import HEADS, Options, Report, Stage, Subject, cells, pair, stages, totals
from cnn_train.layers.init import lsuv_calibrate
from cnn_train.models.weights import load_weights
from cnn_train.runs import checkpoint
from cnn_train.runs import folder as run_folder

CHANNELS = 16  # feature maps shown of a layer
EXCITED = 6  # of them brought back to pixels


@dataclass(frozen=True)
class Shown:
    """A picture of the page: its file, a title and a sentence."""

    file: str
    title: str
    text: str


@dataclass(frozen=True)
class Sample:
    """The image looked at: as the network takes it (1, C, H, W), as people see it (H, W, 3), and some with labels."""

    image: Tensor
    visible: np.ndarray
    batch: Tensor
    targets: Tensor | None
    name: str
    ignore_index: int = -100


def draw(report: Report, options: Options, folder: Path | None = None) -> Path:
    """Draw everything into a folder, by default a new one; the path of the page."""
    subject = report.subject
    folder = folder or run_folder.create(Path(subject.cfg.output_dir) / "inspect" / subject.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvError(f"cannot make the folder {folder}: {error.strerror}; choose another pictures=DIR") from error
    sample = load_sample(subject, options)
    # Initialized from as many seeds as images, for an average over both.
    fresh = [initialized(subject, subject.cfg.seed + n, sample.batch) for n in range(options.samples)]
    source = options.run or subject.cfg.weights
    network = fresh[0] if source is None else trained(subject, options.run)
    seen = stages(report.graph)
    shown: list[Shown] = []

    def add(name: str, title: str, text: str, make: Callable[[], Any]) -> None:
        try:
            figure = make()
        except ValueError as error:  # such as: no gradient arrives, all units are dead
            shown.append(Shown("", title, f"left out: {error}"))
            return
        if figure is not None:
            save(figure, folder / f"{name}.png")
            shown.append(Shown(f"{name}.png", title, text))

    state = "random weights, as initialized" if source is None else f"weights of {source}"
    add("fields", "Receptive fields", "Of each stage's middle unit, on the image; larger ones leave it.",
        lambda: draw_fields(report, seen, sample))  # fmt: skip
    kinds = [("as initialized", fresh), *([] if source is None else [("after training", [network])])]
    add("effective", "Effective receptive fields",
        "Root mean square gradient of the middle unit by each pixel (Luo et al. 2016), averaged over "
        f"{options.samples} images of noise; initialized networks are as many, each from its own seed. The width is "
        "the side of a square of as many pixels as have over 4.55 % of the largest.",
        lambda: draw_effective(kinds, seen, subject.input_size, options.samples))  # fmt: skip
    add("statistics", "Activations and gradients per layer",
        f"On {len(sample.batch)} images in training mode, {state}. The numbers are in statistics.csv.",
        lambda: draw_statistics(network, sample, folder / "statistics.csv"))  # fmt: skip
    add("filters", "Filters of the first layer", f"{state.capitalize()}.", lambda: draw_filters(network))
    for number, stage in enumerate(seen):
        add(f"maps_{number}", f"Feature maps of {stage.layer}", f"Its first {CHANNELS} channels on the image.",
            partial(draw_maps, network, sample, stage))  # fmt: skip
    for number, stage in enumerate(seen):
        add(f"excited_{number}", f"What excites {stage.layer}",
            f"The strongest unit of its {EXCITED} strongest channels, brought back to pixels by unpooling, "
            "rectification and transposed filters (Zeiler & Fergus 2014).",
            partial(draw_excited, network, sample, stage))  # fmt: skip
    add("grad_cam", "Grad-CAM", "Where the network looks for its answer (Selvaraju et al. 2017), at the last map.",
        lambda: draw_grad_cam(network, sample, seen))  # fmt: skip
    for number, (found, mask) in enumerate((f, f.mask) for f in report.findings if f.mask is not None):
        add(f"gridding_{number}", f"Gridding at {found.layer}", found.message,
            partial(draw_mask, mask))  # fmt: skip
    page = folder / "index.html"
    atomic.write_text(page, as_html(report, shown, state, sample.name))
    return page


# -- What is looked at -------------------------------------------------------------------------------------------------


def initialized(subject: Subject, seed: int, images: Tensor | None = None) -> nn.Module:
    """The network on the CPU in evaluation mode, its weights fitted to `images` if its initializer needs some."""
    cfg = subject.cfg
    torch.manual_seed(seed)
    layers = build_layers(cfg)
    network = build(cfg.model, num_classes=subject.num_classes, in_channels=subject.input_size[0], layers=layers).eval()
    if layers.needs_images and images is not None:
        lsuv_calibrate(network, images)
    return network


def trained(subject: Subject, run: Path | None) -> nn.Module:
    """The network with a run's best weights, averaged ones if it has them, or with those of `weights=`."""
    network = initialized(subject, subject.cfg.seed)
    if run is None:
        load_weights(network, checkpoint.weights(Path(subject.cfg.weights)), Path(subject.cfg.weights))
    else:
        file = next((run / name for name in ("best.ckpt", "last.ckpt") if (run / name).is_file()), run / "best.ckpt")
        state = checkpoint.load(file)
        network.load_state_dict(checkpoint.evaluated_weights(state))
    return network


def load_sample(subject: Subject, options: Options) -> Sample:
    """The given image, or the data's first, or a photograph that comes with scikit-learn."""
    channels, height, width = subject.input_size
    data = subject.data
    if options.image is None and data is not None:
        batch = next(iter(data.eval_batches("val", device=torch.device("cpu"))))
        image = batch.images[:1]
        visible = _visible(data.denormalize(image)[0])
        return Sample(image, visible, batch.images[:8], batch.targets[:8], data.name, data.ignore_index)
    from PIL import Image

    if options.image is not None:
        try:
            photo, name = Image.open(options.image).convert("RGB"), str(options.image)
        except OSError as error:
            raise ConfigError(f"{options.image} cannot be read as an image: {error}") from error
    else:
        from sklearn.datasets import load_sample_image

        photo, name = Image.fromarray(load_sample_image("china.jpg")), "scikit-learn's china.jpg"
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    photo = photo.crop((left, top, left + side, top + side)).resize((width, height))
    pixels = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None].float() / 255
    pixels = pixels if channels == 3 else pixels.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    standardized = (pixels - pixels.mean()) / pixels.std()
    image = standardized if data is None else data.to_input((pixels * 255).round())
    generator = torch.Generator().manual_seed(0)
    images = torch.cat([image, torch.randn(7, *subject.input_size, generator=generator)])
    return Sample(image, _visible(pixels[0]), images, None, name)


def _visible(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] as (H, W, 3)."""
    image = image[:3] if image.size(0) >= 3 else image[:1].expand(3, -1, -1)
    return image.clamp(0, 1).permute(1, 2, 0).numpy()


def output_of(network: nn.Module, layer: str, image: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's output and the network's."""
    found: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda m, _, y: found.append(main_map(layer, m, y)))
    try:
        scores = network(image)
    finally:
        hook.remove()
    return found[-1], scores[0] if isinstance(scores, tuple) else scores


# -- Figures -----------------------------------------------------------------------------------------------------------


def new_figure(rows: int, columns: int, size: float = 2.4) -> tuple[Any, list[Any]]:
    """A figure and its axes, row by row, without ticks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size * columns, (size + 0.3) * rows + 0.1), layout="constrained", dpi=110)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def save(figure: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, pil_kwargs={"optimize": True})
    atomic.write_bytes(path, content.getvalue())


def draw_fields(report: Report, seen: Sequence[Stage], sample: Sample) -> Any:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    figure, (axis,) = new_figure(1, 1, 6)
    axis.imshow(sample.visible)
    for number, stage in enumerate(seen):
        node = report.graph.node_of(stage.layer)
        top, bottom = node.sights[0].local.at(node.units[0] // 2)
        left, right = node.sights[1].local.at(node.units[1] // 2)
        colour = colormaps["tab10"](number % 10)
        label = f"{stage.layer}: {pair(stage.receptive_field)}, stride {stage.stride:g}"
        place = (left - 0.5, top - 0.5)
        axis.add_patch(
            Rectangle(place, right - left + 1, bottom - top + 1, fill=False, lw=2, edgecolor=colour, label=label)
        )
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), fontsize=8, frameon=False)
    height, width = sample.visible.shape[:2]
    axis.set_xlim(-0.15 * width, 1.15 * width)
    axis.set_ylim(1.15 * height, -0.15 * height)
    return figure


def draw_effective(
    kinds: Sequence[tuple[str, Sequence[nn.Module]]],
    seen: Sequence[Stage],
    input_size: tuple[int, int, int],
    samples: int,
) -> Any:
    """Rows: before and after training. Columns: the stages."""
    figure, axes = new_figure(len(kinds), len(seen), 1.85)
    for row, (name, networks) in enumerate(kinds):
        for column, stage in enumerate(seen):
            axis = axes[row * len(seen) + column]
            if not column:
                axis.text(-0.05, 0.5, name, rotation=90, ha="right", va="center", fontsize=7, transform=axis.transAxes)
            try:
                field = effective_receptive_field(networks, input_size, stage.layer, samples=samples)
            except ValueError:
                axis.set_title(f"{stage.layer}\nno gradient", fontsize=7)
                continue
            axis.imshow(field.map.numpy(), cmap="inferno", vmin=0, vmax=1)
            axis.set_title(f"{stage.layer}\nwidth {field.width:.0f} of {pair(stage.receptive_field)}", fontsize=7)
    return figure


def draw_statistics(network: nn.Module, sample: Sample, file: Path) -> Any:
    """The figure; the numbers go to `file`."""

    def loss(output: Any) -> Tensor:
        scores = output[0] if isinstance(output, tuple) else output
        targets = sample.targets
        if targets is None:  # any labels: the size of the gradient is what counts
            generator = torch.Generator().manual_seed(0)
            targets = torch.randint(scores.size(1), (len(scores), *scores.shape[2:]), generator=generator)
        return nn.functional.cross_entropy(scores, targets, ignore_index=sample.ignore_index)

    network.train()
    try:
        rows = layer_statistics(network, sample.batch, loss)
    finally:
        network.eval()
    rows = [row for row in rows if row.kind not in ("Identity", "Dropout", "Flatten")]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [field.name for field in fields(LayerStatistics)], lineterminator="\n")
    table.writeheader()
    table.writerows(map(asdict, rows))
    atomic.write_text(file, text.getvalue())
    figure, axes = new_figure(4, 1, 2.2)
    figure.set_size_inches(max(6, 0.16 * len(rows) + 2), 9)
    places = range(len(rows))

    def values(name: str) -> list[float]:
        found = [getattr(row, name) for row in rows]
        return [float("nan") if value is None else value for value in found]

    axes[0].errorbar(places, values("mean"), values("deviation"), fmt="o", ms=3, lw=1)
    axes[0].set_ylabel("activation:\nmean, deviation")
    axes[1].plot(places, values("gradient_deviation"), "o-", ms=3, lw=1, label="by the output (deviation)")
    axes[1].plot(places, values("weight_gradient"), "s", ms=3, label="by the weights (norm)")
    axes[1].set_yscale("log")
    axes[1].set_ylabel("gradient")
    axes[2].plot(places, values("sparsity"), "o", ms=3, label="zeros")
    axes[2].plot(places, values("dead"), "x", ms=4, label="dead channels")
    axes[2].set_ylabel("share")
    axes[3].plot(places, values("saturated"), "o", ms=3, label="saturated (sigmoid, tanh)")
    axes[3].set_ylabel("share")
    for axis in axes:
        axis.set_axis_on()
        axis.grid(alpha=0.3)
        axis.set_xticks([])
        axis.set_xlim(-1, len(rows))
        if axis is not axes[0]:
            axis.legend(fontsize=7)
    for axis in axes[2:]:
        axis.set_ylim(-0.05, 1.05)
    every = max(1, len(rows) // 60)
    axes[3].set_xticks(list(places)[::every], [row.name for row in rows][::every], rotation=90, fontsize=6)
    return figure


def draw_filters(network: nn.Module) -> Any:
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        return None
    filters = first.weight.detach()[:64]
    colour = filters.size(1) == 3
    columns = min(8, len(filters))
    figure, axes = new_figure(-(-len(filters) // columns), columns, 0.9)
    for axis, weight in zip(axes, filters, strict=False):
        picture = weight.permute(1, 2, 0) if colour else weight[0]
        low, high = picture.min(), picture.max()
        axis.imshow(((picture - low) / (high - low).clamp(min=1e-12)).numpy(), cmap=None if colour else "gray")
    return figure


def draw_maps(network: nn.Module, sample: Sample, stage: Stage) -> Any:
    with torch.no_grad():
        maps, _ = output_of(network, stage.layer, sample.image)
    count = min(CHANNELS, maps.size(1))
    figure, axes = new_figure(-(-count // 8), min(8, count), 1.2)
    for axis, values in zip(axes, maps[0, :count], strict=False):
        axis.imshow(values.numpy(), cmap="gray")
    return figure


class _Deconvnet(torch.autograd.Function):
    """A rectifier that on the way back rectifies, too, and asks not what was negative forwards."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp(min=0)


@contextmanager
def deconvnet(network: nn.Module) -> Iterator[None]:
    """Within, gradients are what a deconvnet gives: of a convolution that by the transposed filter, of max pooling
    unpooling to where the maximum was, of ReLU rectification."""
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, nn.ReLU | nn.ReLU6):
                module.forward = _Deconvnet.apply  # type: ignore[method-assign]
                stack.callback(module.__dict__.pop, "forward")
        yield


def excitations(network: nn.Module, image: Tensor, layer: str, count: int = EXCITED) -> list[tuple[int, Tensor]]:
    """The `count` channels of a layer that an image excites most, and their strongest units brought back to pixels.

    Each is (channel, picture (C, H, W)).
    """
    image = image.clone().requires_grad_()
    with deconvnet(network), torch.enable_grad():
        maps, _ = output_of(network, layer, image)
        strongest = maps[0].flatten(1).max(1)
        channels = strongest.values.topk(min(count, maps.size(1))).indices.tolist()
        found = []
        for channel in channels:
            unit = maps[0, channel].flatten()[strongest.indices[channel]]
            (picture,) = torch.autograd.grad(unit, image, retain_graph=True)
            found.append((channel, picture[0].detach()))
    return found


def draw_excited(network: nn.Module, sample: Sample, stage: Stage) -> Any:
    """Above what of the image each unit sees, below what of it excites the unit."""
    found = excitations(network, sample.image, stage.layer)
    figure, axes = new_figure(2, len(found), 1.6)
    for column, (channel, picture) in enumerate(found):
        rows, columns = (picture.abs().sum((0, axis)).nonzero().flatten() for axis in (2, 1))
        if not len(rows):
            continue
        window = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        axes[column].imshow(sample.visible[window])
        axes[column].set_title(f"channel {channel}", fontsize=7)
        axes[len(found) + column].imshow(_visible(picture / picture.abs().max() / 2 + 0.5)[window])
    return figure


def grad_cam(network: nn.Module, image: Tensor, layer: str, target: int | None = None) -> tuple[Tensor, int]:
    """Where a layer's map (H, W) speaks for class `target` (the network's answer), in [0, 1] (Selvaraju et al. 2017).

    Channels are weighted by the mean gradient of the class's score, summed over pixels in segmentation.
    """
    with torch.enable_grad():
        maps, scores = output_of(network, layer, image.clone().requires_grad_())
        scores = scores[0].flatten(1).sum(1) if scores.dim() == 4 else scores[0]
        target = int(scores.argmax()) if target is None else target
        (gradient,) = torch.autograd.grad(scores[target], maps)
    weights = gradient.mean((2, 3), keepdim=True)
    cam = (weights * maps.detach()).sum(1, keepdim=True).clamp(min=0)
    cam = nn.functional.interpolate(cam, size=image.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    return cam / cam.max().clamp(min=1e-12), target


def draw_grad_cam(network: nn.Module, sample: Sample, seen: Sequence[Stage]) -> Any:
    coarsest = max(seen, key=lambda stage: stage.stride)
    cam, target = grad_cam(network, sample.image, coarsest.layer)
    figure, axes = new_figure(1, 2, 3)
    axes[0].imshow(sample.visible)
    axes[1].imshow(sample.visible)
    axes[1].imshow(cam.numpy(), cmap="jet", alpha=0.45)
    axes[1].set_title(f"class {target}, at {coarsest.layer}", fontsize=8)
    return figure


def draw_mask(mask: Tensor) -> Any:
    figure, (axis,) = new_figure(1, 1, 4)
    axis.imshow(mask.numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set_title("white: read, black: read by no path", fontsize=8)
    return figure


# -- The page ----------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 12px } td, th { padding: 2px 8px; text-align: right }
td:nth-child(-n+4), th:nth-child(-n+4) { text-align: left } tr:nth-child(even) { background: #f4f4f4 }
img { max-width: 100%; border: 1px solid #ddd } .warning { color: #a40 } dt { font-weight: 600 } dd { margin: 0 0 .4em }
"""


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
