"""The figures of `cnn-train inspect picture=true`, one function each."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train import atomic
from cnn_train.analysis import LayerStatistics, effective_receptive_field, layer_statistics
from cnn_train.analysis.attribution import excitations, grad_cam, output_of
from cnn_train.analysis.modules import in_mode
from cnn_train.inspection.examine import Report, Stage
from cnn_train.inspection.images import Sample, visible
from cnn_train.inspection.tables import pair
from cnn_train.models.network import main_scores

CHANNELS = 16  # feature maps shown of a layer
EXCITED = 6  # of them brought back to pixels


def new_figure(rows: int, columns: int, size: float = 2.4) -> tuple[Any, list[Any]]:
    """A figure and its axes, row by row, without ticks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size * columns, (size + 0.3) * rows + 0.1), layout="constrained", dpi=110)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, pil_kwargs={"optimize": True})
    atomic.write_bytes(path, content.getvalue())


def draw_fields(report: Report, seen: Sequence[Stage], sample: Sample) -> Any:
    """The receptive field of each stage's middle unit, as rectangles on the image."""
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
    """One row for each kind of weights (before and after training), one column for each stage."""
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


def measure(network: nn.Module, sample: Sample) -> list[LayerStatistics]:
    """Statistics of each layer that computes something, on the sample's images in training mode.

    Where the sample has no labels they are random: the size of the gradients is what counts.
    """

    def loss(output: Any) -> Tensor:
        scores, targets = main_scores(output), sample.targets
        if targets is None:
            generator = torch.Generator().manual_seed(0)
            targets = torch.randint(scores.size(1), (len(scores), *scores.shape[2:]), generator=generator)
        return nn.functional.cross_entropy(scores, targets, ignore_index=sample.ignore_index)

    with in_mode(network, training=True):
        rows = layer_statistics(network, sample.batch, loss)
    return [row for row in rows if row.kind not in ("Identity", "Dropout", "Flatten")]


def draw_statistics(rows: Sequence[LayerStatistics]) -> Any:
    """Four plots over the layers: activations, gradients, zeros and dead channels, saturation."""
    figure, axes = new_figure(4, 1, 2.2)
    figure.set_size_inches(max(6, 0.16 * len(rows) + 2), 9)
    places = range(len(rows))

    def values(name: str) -> list[float]:
        return [float("nan") if value is None else value for value in (getattr(row, name) for row in rows)]

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
    """Up to 64 filters of the first convolution, in colour if it sees colours; None without a convolution."""
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
    """The first channels of a stage's map."""
    with torch.no_grad():
        maps, _ = output_of(network, stage.layer, sample.image)
    count = min(CHANNELS, maps.size(1))
    figure, axes = new_figure(-(-count // 8), min(8, count), 1.2)
    for axis, values in zip(axes, maps[0, :count], strict=False):
        axis.imshow(values.numpy(), cmap="gray")
    return figure


def draw_excited(network: nn.Module, sample: Sample, stage: Stage) -> Any:
    """Above, the part of the image that each unit sees; below, what excites the unit there."""
    found = excitations(network, sample.image, stage.layer, EXCITED)
    figure, axes = new_figure(2, len(found), 1.6)
    for column, (channel, picture) in enumerate(found):
        rows, columns = (picture.abs().sum((0, axis)).nonzero().flatten() for axis in (2, 1))
        if not len(rows):
            continue
        window = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        axes[column].imshow(sample.visible[window])
        axes[column].set_title(f"channel {channel}", fontsize=7)
        axes[len(found) + column].imshow(visible(picture / picture.abs().max() / 2 + 0.5)[window])
    return figure


def draw_grad_cam(network: nn.Module, sample: Sample, seen: Sequence[Stage]) -> Any:
    """The image, and on it what the coarsest map finds for the network's answer."""
    coarsest = max(seen, key=lambda stage: stage.stride)
    cam, target = grad_cam(network, sample.image, coarsest.layer)
    figure, axes = new_figure(1, 2, 3)
    axes[0].imshow(sample.visible)
    axes[1].imshow(sample.visible)
    axes[1].imshow(cam.numpy(), cmap="jet", alpha=0.45)
    axes[1].set_title(f"class {target}, at {coarsest.layer}", fontsize=8)
    return figure


def draw_mask(mask: Tensor) -> Any:
    """A mask (H, W) of positions that are read."""
    figure, (axis,) = new_figure(1, 1, 4)
    axis.imshow(mask.numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set_title("white: read, black: read by no path", fontsize=8)
    return figure
