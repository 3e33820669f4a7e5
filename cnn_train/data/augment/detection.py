"""The augmentations that detection papers train with; boxes, maps and labels go with the pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnn_train.boxes import iou
from cnn_train.data.augment.compose import Compose
from cnn_train.data.augment.draws import draws
from cnn_train.data.augment.geometry import Flip
from cnn_train.data.augment.moves import Resample, apply
from cnn_train.data.augment.sample import PerSample
from cnn_train.data.boxes import UNUSED, is_used
from cnn_train.data.targets import WITH_PLACES, TargetSpec

GREY = 127  # around an image that was made smaller; darknet's is 0.5, SSD's ImageNet's mean


def part_of_canvas(
    top: int, left: int, height: int, width: int, own: tuple[int, int], size: tuple[int, int]
) -> Resample:
    """The rectangle brought to `size`, of a canvas that goes on in grey on all sides of an image of size `own`."""
    edges, border, scaled = [], [], []
    for start, length, have, want in ((top, height, own[0], size[0]), (left, width, own[1], size[1])):
        first, last = min(max(start, 0), have - 1), max(min(start + length, have), 1)
        last = max(last, first + 1)
        before = min(round((first - start) * want / length), want - 1)
        inside = min(max(round((last - first) * want / length), 1), want - before)
        edges.append((first, last - first))
        border.append((before, want - before - inside))
        scaled.append(inside)
    (y, tall), (x, wide) = edges
    (above, below), (before, after) = border
    return Resample((y, x, tall, wide), (scaled[0], scaled[1]), (before, after, above, below), fill=GREY)


class SamplePatch(PerSample):
    """Expand by up to `expand` times on a grey canvas, with probability 1/2, then a part that shows objects well.

    The part has 0.3 to 1 of the canvas's sides, at most twice as long one way as the other, and an IoU with some object
    of at least one drawn from `overlaps`, 0 or none asked, in which case all is taken (Liu et al. 2016, section 2.2).
    """

    brings_to_size = True

    def __init__(self, expand: float = 4.0, overlaps: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9), tries: int = 50):
        self.expand, self.overlaps, self.tries = expand, tuple(overlaps), tries

    def change(self, image: Tensor, target: Tensor, size: tuple[int, int], spec: TargetSpec) -> tuple[Tensor, Tensor]:
        own = (image.size(-2), image.size(-1))
        canvas, origin = list(own), [0, 0]
        if _draw() < 0.5 and self.expand > 1:
            factor = 1 + _draw() * (self.expand - 1)
            canvas = [round(side * factor) for side in own]
            origin = [int(_draw() * (large - side + 1)) for large, side in zip(canvas, own, strict=True)]
        boxes = target[is_used(target), :4] if spec.kind == "boxes" else image.new_zeros(0, 4, dtype=torch.float32)
        top, left, height, width = self._part(canvas, boxes + torch.tensor([origin[1], origin[0]] * 2))
        move = part_of_canvas(top - origin[0], left - origin[1], height, width, own, size)
        return apply(move, image, target, spec)

    def _part(self, canvas: Sequence[int], boxes: Tensor) -> tuple[int, int, int, int]:
        """Top, left, height and width in the canvas."""
        choices = [None, *self.overlaps, 0.0]
        least = choices[int(_draw() * len(choices))]
        if least is not None:
            for _ in range(self.tries):
                height, width = (max(round(side * (0.3 + 0.7 * _draw())), 1) for side in canvas)
                if not 0.5 <= height / width <= 2:
                    continue
                top, left = (
                    int(_draw() * (large - side + 1)) for large, side in zip(canvas, (height, width), strict=True)
                )
                part = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
                if not len(boxes) or iou(part, boxes).max() >= max(least, 1e-6):
                    return top, left, height, width
        return 0, 0, canvas[0], canvas[1]


class Jitter(PerSample):
    """A part whose edges lie up to `jitter` of the sides inside or outside the image, brought to size (YOLOv2)."""

    brings_to_size = True

    def __init__(self, jitter: float = 0.3):
        self.jitter = jitter

    def change(self, image: Tensor, target: Tensor, size: tuple[int, int], spec: TargetSpec) -> tuple[Tensor, Tensor]:
        own = (image.size(-2), image.size(-1))
        edges = []
        for side in own:
            first, last = (round((2 * _draw() - 1) * self.jitter * side) for _ in range(2))
            edges.append((first, max(side - first - last, 1)))
        (top, height), (left, width) = edges
        return apply(part_of_canvas(top, left, height, width, own, size), image, target, spec)


class HSV(PerSample):
    """Turn the hue by up to `hue`; multiply or divide saturation and value by up to the given factors (darknet)."""

    def __init__(self, hue: float = 0.1, saturation: float = 1.5, exposure: float = 1.5):
        self.hue, self.saturation, self.exposure = hue, saturation, exposure

    def change(self, image: Tensor, target: Tensor, size: tuple[int, int], spec: TargetSpec) -> tuple[Tensor, Tensor]:
        from torchvision.transforms.v2.functional import adjust_hue

        turn, saturation, exposure = (2 * _draw() - 1) * self.hue, _factor(self.saturation), _factor(self.exposure)
        values = image.float() / 255
        value = (values.amax(0) * exposure).clamp(max=1)
        if len(values) == 3:
            values = adjust_hue(values, turn)
            high, low = values.amax(0), values.amin(0)
            spread = (high - low).clamp(min=1e-6)
            colour = torch.where(high > low, (high - values) / spread, 0.0)  # 0 in the strongest channel
            strength = (spread / high.clamp(min=1e-6) * saturation).clamp(max=1)
            values = value * (1 - strength * colour)
        else:
            values = (values * exposure).clamp(max=1)
        return (values * 255).round().to(torch.uint8), target


class Photometric(PerSample):
    """Brightness, contrast, saturation, hue and the order of the channels, each with probability 1/2 (SSD)."""

    def __init__(self) -> None:
        from torchvision.transforms import v2

        self.transform = v2.RandomPhotometricDistort()

    def change(self, image: Tensor, target: Tensor, size: tuple[int, int], spec: TargetSpec) -> tuple[Tensor, Tensor]:
        return (self.transform(image) if len(image) == 3 else image), target


@dataclass(frozen=True)
class Mosaic:
    """Four images of the batch around a point, each cut to its corner (Bochkovskiy et al. 2020, "YOLOv4", Fig. 3).

    Image i of a batch meets the three before it. The point lies within `centre` of the sides; an image is scaled by at
    least `scale` drawn from these bounds, and enlarged where its corner would not be filled. In the last `off_epochs`
    of `epochs` images stay as they are; without `epochs` there are no last ones.
    """

    centre: Sequence[float] = (0.3, 0.7)
    scale: Sequence[float] = (0.5, 1.0)
    probability: float = 1.0
    off_epochs: int = 2
    epochs: int | None = None
    supports = WITH_PLACES
    mixes = True

    def __call__(
        self, images: Tensor, targets: Tensor, indices: Tensor, epoch: int, seed: int, spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        if self.epochs is not None and epoch >= self.epochs - self.off_epochs:
            return images, targets
        numbers = draws(self, seed, epoch, indices, 15).tolist()
        made = [self._one(images, targets, number, row, spec) for number, row in enumerate(numbers)]
        scenes = torch.stack([image for image, _ in made])
        if spec.kind == "maps":
            return scenes, torch.stack([target for _, target in made])
        most = max(int(is_used(boxes).sum()) for _, boxes in made)
        order = [boxes[is_used(boxes).logical_not().sort(stable=True).indices[:most]] for _, boxes in made]
        unused = torch.tensor(UNUSED).to(targets).expand(len(images), max(targets.size(1) - most, 0), -1)
        return scenes, torch.cat([torch.stack(order), unused], 1)

    def _one(
        self, images: Tensor, targets: Tensor, number: int, draw: list[float], spec: TargetSpec
    ) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        if draw[0] >= self.probability:
            return images[number], targets[number]
        low, high = self.centre
        y, x = (
            round((low + part * (high - low)) * side) for part, side in zip(draw[1:3], (height, width), strict=True)
        )
        scene, label, boxes = torch.empty_like(images[0]), targets[number], []
        if spec.kind == "maps":
            label = torch.empty_like(label)
        corners = ((0, 0, y, x), (0, x, y, width - x), (y, 0, height - y, x), (y, x, height - y, width - x))
        for other, (top, left, tall, wide) in enumerate(corners):
            factor = self.scale[0] + draw[3 + 3 * other] * (self.scale[1] - self.scale[0])
            factor = max(factor, tall / height, wide / width)
            part = min(round(tall / factor), height), min(round(wide / factor), width)
            place = [int(draw[4 + 3 * other + a] * (side - part[a] + 1)) for a, side in enumerate((height, width))]
            move = Resample((place[0], place[1], *part), (tall, wide))
            image, target = apply(move, images[number - other], targets[number - other], spec)
            scene[:, top : top + tall, left : left + wide] = image
            if spec.kind == "maps":
                label[top : top + tall, left : left + wide] = target
            else:
                shift = torch.tensor([left, top, left, top, 0, 0]).to(target)
                boxes.append(torch.where(is_used(target)[:, None], target + shift, target))
        return scene, label if spec.kind == "maps" else torch.cat(boxes)


def ssd(
    expand: float = 4.0,
    overlaps: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    photometric: bool = True,
    flip: float = 0.5,
) -> Compose:
    """SSD's: colours, expansion, a part that shows an object well, and mirror image (Liu et al. 2016)."""
    colours = [Photometric()] if photometric else []
    return Compose([*colours, SamplePatch(expand, overlaps), Flip(flip)])


def yolo(
    jitter: float = 0.3, hue: float = 0.1, saturation: float = 1.5, exposure: float = 1.5, flip: float = 0.5
) -> Compose:
    """YOLOv2's and v3's: jittered edges, hue, saturation and value, mirror image (darknet)."""
    return Compose([Jitter(jitter), HSV(hue, saturation, exposure), Flip(flip)])


def mosaic(
    off_epochs: int = 2,
    epochs: int | None = None,
    centre: Sequence[float] = (0.3, 0.7),
    scale: Sequence[float] = (0.5, 1.0),
    probability: float = 1.0,
    hue: float = 0.1,
    saturation: float = 1.5,
    exposure: float = 1.5,
    flip: float = 0.5,
) -> Compose:
    """Colours as YOLO's, then four images in one, and mirror image (Bochkovskiy et al. 2020)."""
    return Compose([HSV(hue, saturation, exposure), Mosaic(centre, scale, probability, off_epochs, epochs), Flip(flip)])


def _draw() -> float:
    """A uniform number in [0, 1) of the sample's own generator."""
    return float(torch.rand(()))


def _factor(most: float) -> float:
    """From 1 / most to most: uniform above 1 or its inverse, each half of the time."""
    factor = 1 + _draw() * (most - 1)
    return factor if _draw() < 0.5 else 1 / factor
