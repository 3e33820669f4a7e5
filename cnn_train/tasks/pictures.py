"""Pictures of predictions, as arrays (height, width, 3) of uint8."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from cnn_train.boxes import iou
from cnn_train.tasks.captions import LINE, legend, write

Picture = NDArray[np.uint8]
Lines = list[tuple[str, tuple[int, int, int]]]  # of a caption, each in its colour
IGNORED = (224, 224, 224)
GREEN, RED, BLACK = (0, 130, 60), (200, 30, 30), (0, 0, 0)
# What a box of a detection panel is; `right` to `invented` are detections, `missed` an object.
JUDGED = {
    "right": (0, 190, 80), "wrong class": (255, 150, 0), "badly placed": (60, 130, 255), "invented": (235, 40, 40),
    "missed": (230, 60, 230),
}  # fmt: skip
TRUTH = (255, 255, 255)


def palette(num_classes: int) -> Picture:
    """Colours (num_classes, 3) that do not depend on the data: PASCAL VOC's, whose class 0 is black.

    Bit k of the three lowest bits of a class goes to red, green and blue, from the highest bit of the colour down.
    """
    colours = np.zeros((num_classes, 3), np.uint8)
    for index in range(num_classes):
        rest = index
        for bit in range(7, -1, -1):
            for channel in range(3):
                colours[index, channel] |= ((rest >> channel) & 1) << bit
            rest >>= 3
    return colours


def to_rgb(images: Tensor, side: int = 96) -> Picture:
    """Images (N, C, H, W) in [0, 1] as (N, height, width, 3), enlarged by a whole factor to at least `side` rows."""
    images = images.float().cpu()
    images = images[:, :3] if images.size(1) >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    factor = max(1, -(-side // images.size(-2)))
    images = F.interpolate(images, scale_factor=factor, mode="nearest")
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def colour_labels(labels: Tensor, num_classes: int, side: int = 96) -> Picture:
    """Label maps (N, H, W) as colours (N, height, width, 3), sized like `to_rgb`; other labels are light grey."""
    factor = max(1, -(-side // labels.size(-2)))
    flat = labels.cpu().repeat_interleave(factor, -2).repeat_interleave(factor, -1).numpy()
    colours = np.vstack([palette(num_classes), np.array([IGNORED], np.uint8)])
    return colours[np.where((flat >= 0) & (flat < num_classes), flat, num_classes)]


def classification_panel(images: Tensor, labels: Tensor, predictions: Tensor, names: Sequence[str]) -> Picture:
    """Each image above its label; a wrong prediction stands below it in red."""
    lines: list[Lines] = []
    for label, prediction in zip(labels.tolist(), predictions.tolist(), strict=True):
        right = label == prediction
        lines.append([(names[label], GREEN)] if right else [(names[label], BLACK), (f"not {names[prediction]}", RED)])
    return captioned(to_rgb(images), lines)


def multilabel_panel(images: Tensor, targets: Tensor, predicted: Tensor, names: Sequence[str]) -> Picture:
    """Each image above what it shows: (N, K) of bool. Found is green; missed, with -, and wrong, with +, are red."""
    lines: list[Lines] = []
    for shown, found in zip(targets.bool().tolist(), predicted.tolist(), strict=True):
        judged = list(zip(names, shown, found, strict=True))
        right = ", ".join(name for name, true, told in judged if true and told)
        wrong = " ".join(f"{'-' if true else '+'}{name}" for name, true, told in judged if true != told)
        lines.append([(text, colour) for text, colour in ((right, GREEN), (wrong, RED)) if text])
    return captioned(to_rgb(images), lines)


def captioned(tiles: Picture, captions: Sequence[Lines], columns: int = 8) -> Picture:
    """Tiles (N, height, width, 3), each above lines of text that are cut to its width."""
    height, width = tiles.shape[1:3]
    caption, gap = LINE * max(map(len, captions), default=0) + 2, 4
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    cell = (width + gap, height + caption + gap)
    panel = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw = ImageDraw.Draw(panel)
    for i, (tile, lines) in enumerate(zip(tiles, captions, strict=True)):
        x, y = i % columns * cell[0], i // columns * cell[1]
        panel.paste(Image.fromarray(tile), (x, y))
        for row, (text, colour) in enumerate(lines):
            write(draw, (x + 1, y + height + 1 + row * LINE), text, width - 1, colour)
    return np.asarray(panel)


def segmentation_panel(images: Tensor, labels: Tensor, predictions: Tensor, names: Sequence[str]) -> Picture:
    """One row per image: image, label, prediction, prediction over the image, and the errors in red; then a legend."""
    num_classes = len(names)
    rgb = to_rgb(images)
    true = colour_labels(labels, num_classes)
    predicted = colour_labels(predictions, num_classes)
    factor = rgb.shape[1] // labels.size(-2)
    counted = (labels >= 0) & (labels < num_classes)
    wrong = ((labels != predictions) & counted).cpu()
    wrong = wrong.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    errors = np.where(wrong.numpy()[..., None], np.array(RED, np.uint8), (rgb // 2).astype(np.uint8))
    columns = {
        "image": rgb,
        "label": true,
        "prediction": predicted,
        "overlay": shining(rgb, predicted),
        "errors": errors,
    }
    gap = 4
    height, width = rgb.shape[1:3]
    total = len(columns) * (width + gap)
    entries = of_classes({*labels[counted].unique().tolist(), *predictions.unique().tolist()}, names)
    below = legend([*entries, *([] if bool(counted.all()) else [("ignored", IGNORED)])], total)
    panel = Image.new("RGB", (total, LINE + len(rgb) * (height + gap) + below.height), "white")
    draw = ImageDraw.Draw(panel)
    for column, (title, tiles) in enumerate(columns.items()):
        x = column * (width + gap)
        write(draw, (x + 1, 0), title, width, BLACK)
        for row, tile in enumerate(tiles):
            panel.paste(Image.fromarray(tile), (x, LINE + row * (height + gap)))
    panel.paste(below, (0, panel.height - below.height))
    return np.asarray(panel)


def judge(found: Tensor, objects: Tensor) -> tuple[list[str], list[bool]]:
    """What each detection (n, 6), the best first, is (a key of `JUDGED`), and which objects (m, 6) were missed.

    A detection is right if it takes a free object of its class at IoU 0.5; it has the wrong class where it has such an
    IoU with another one, and is badly placed with an IoU of at least 0.1 with one of its class. Those on objects to be
    ignored are "".
    """
    overlap = iou(found[:, :4], objects[:, :4])
    same, ignored = found[:, 4, None] == objects[None, :, 4], objects[:, 5] != 0
    taken, explained = torch.zeros(len(objects), dtype=torch.bool), torch.zeros(len(objects), dtype=torch.bool)
    kinds = []
    for row in range(len(found)):
        value = overlap[row]
        free = torch.where(same[row] & ~taken & ~ignored, value, -1.0)
        if len(objects) and float(free.max()) >= 0.5:
            taken[free.argmax()] = True
            kinds.append("right")
        elif bool(((value >= 0.5) & ignored).any()):
            kinds.append("")
        else:
            other, near = (value >= 0.5) & ~same[row] & ~ignored, (value >= 0.1) & (value < 0.5) & same[row] & ~ignored
            explained |= other | near
            kinds.append("wrong class" if bool(other.any()) else "badly placed" if bool(near.any()) else "invented")
    return kinds, (~taken & ~explained & ~ignored).tolist()


def detection_panel(images: Tensor, targets: Tensor, detections: Tensor, names: list[str]) -> Picture:
    """Each image twice: with its objects, and with its detections and what was missed, in the colours of `JUDGED`.

    Targets (N, M, 6) and detections (N, D, 6); rows of class -1 are none.
    """
    tiles = to_rgb(images, side=224)
    factor = tiles.shape[1] // images.size(-2)
    height, width = tiles.shape[1:3]
    caption, gap, across = 16, 4, min(2, len(tiles))
    rows = -(-len(tiles) // across)
    size = (across * 2 * (width + gap), caption + rows * (height + gap))
    panel = Image.new("RGB", size, "white")
    draw, x = ImageDraw.Draw(panel), 2
    for word, colour in {"objects, then detections:": BLACK, **JUDGED}.items():
        draw.text((x, 2), word, fill=colour)
        x += round(draw.textlength(word)) + 10
    for index, tile in enumerate(tiles):
        true = targets[index][targets[index, :, 4] >= 0].cpu().float()
        found = detections[index][detections[index, :, 4] >= 0].cpu().float()
        kinds, missed = judge(found, true)
        objects = [(row, names[int(row[4])], IGNORED if row[5] else TRUTH) for row in true]
        said = [
            (row, f"{names[int(row[4])]} {float(row[5]):.2f}", JUDGED.get(kind, IGNORED))
            for row, kind in zip(found, kinds, strict=True)
        ]
        said += [(row, names[int(row[4])], JUDGED["missed"]) for row, gone in zip(true, missed, strict=True) if gone]
        left, top = index % across * 2 * (width + gap), caption + index // across * (height + gap)
        for column, boxes in enumerate((objects, said)):
            picture = draw_boxes(tile, boxes, factor)
            panel.paste(Image.fromarray(picture), (left + column * (width + gap), top))
    return np.asarray(panel)


def draw_boxes(image: Picture, boxes: Sequence[tuple[Tensor, str, tuple[int, int, int]]], factor: float = 1) -> Picture:
    """An image with boxes (x1, y1, x2, y2, ...) times `factor`, their words and colours."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    thick = max(1, min(picture.size) // 200)
    for box, word, colour in boxes:
        x1, y1, x2, y2 = (factor * float(value) for value in box[:4])
        draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=thick)
        at = (x1 + 1, y1 - 11 if y1 >= 11 else y1 + 1)
        draw.rectangle(draw.textbbox(at, word), fill=BLACK)
        draw.text(at, word, fill=colour)
    return np.asarray(picture)


def shining(rgb: Picture, colours: Picture) -> Picture:
    """Labels' colours over an image, half and half; black, class 0, leaves the image as it is."""
    return np.where(colours.any(-1, keepdims=True), (rgb * 0.5 + colours * 0.5).astype(np.uint8), rgb)


def of_classes(labels: Iterable[int], names: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Name and colour of each label, for a legend."""
    colours = palette(len(names)).tolist()
    return [(names[label], tuple(colours[label])) for label in sorted(labels)]


def overlay(image: Tensor, labels: Tensor, names: Sequence[str]) -> Picture:
    """An image (C, H, W) uint8 with its labels (H, W) shining through, and a legend of them below."""
    rgb = to_rgb(image[None].float() / 255, side=1)[0]
    shown = shining(rgb, colour_labels(labels[None], len(names), side=1)[0])
    below = np.asarray(legend(of_classes(labels.unique().tolist(), names), shown.shape[1]))
    return np.concatenate([shown, below])


def save_labels(labels: Tensor, path: Path) -> None:
    """Write a label map (H, W) as a PNG of class numbers that is shown in the palette's colours."""
    image = Image.fromarray(labels.to(torch.uint8).numpy(), mode="L")
    image.putpalette(palette(256).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def confusion_picture(confusion: Tensor, names: list[str], title: str) -> Picture:
    """A confusion matrix (K, K), rows true and columns predicted, coloured by the share of each row.

    Names are text: a `$` in them begins no formula.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):
        return _confusion_picture(confusion, names, title)


def _confusion_picture(confusion: Tensor, names: list[str], title: str) -> Picture:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = confusion.double().cpu()
    share = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    classes = len(names)
    side = float(np.clip(0.5 * classes + 1.5, 4, 16))
    figure = Figure(figsize=(side, side), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if classes <= 50:
        axes.set_xticks(range(classes), names, rotation=90)
        axes.set_yticks(range(classes), names)
    if classes <= 20:
        for i in range(classes):
            for j in range(classes):
                text = f"{int(counts[i, j])}" if counts.max() < 10_000 else f"{share[i, j]:.2f}"
                axes.text(
                    j, i, text, ha="center", va="center", fontsize=7, color="white" if share[i, j] > 0.5 else "black"
                )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_picture(picture: Picture, path: Path) -> None:
    """Write a PNG whose folder is made where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image: Any = Image.fromarray(picture)
    image.save(path)
