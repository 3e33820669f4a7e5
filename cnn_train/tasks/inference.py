"""Scores of whole images from a network that was trained on crops: any size, sliding windows, scales, mirror images."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_train.models.network import min_size

# (images of 0..255, probabilities) -> probabilities: see cnn_train.postprocess.
Postprocess = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Inference:
    """Maps of scores for images (N, C, H, W) of any size: (N, K, H, W).

    `window` is "train" (`train_size`, the size of the training images), a side, or [height, width]: the image is seen
    through windows of that size, `stride` of it apart, the last ones moved back to the border. Where windows overlap
    they are blended, by weights that fall linearly towards a window's edges. None: the whole image at once.

    `scales` are sizes at which the image is seen, results brought back and averaged; `flip` adds the mirror image of
    each (Chen et al. 2017, section 4.1; Zhao et al. 2017). What is smaller than the network's `min_size` is continued
    by its last row and column, and its scores are cropped back.

    A single view gives the network's own scores; several give the logarithm of the mean of their probabilities.
    """

    window: Literal["train"] | int | Sequence[int] | None = None
    stride: float = 2 / 3
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    train_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.stride <= 1:
            raise ValueError(f"inference.stride is a part of the window, above 0 and up to 1, got {self.stride}")
        if not self.scales or not all(scale > 0 for scale in self.scales):
            raise ValueError(
                f"inference.scales are positive factors, at least one, got {list(self.scales)}; 1 is as is"
            )
        sides = [self.window] if isinstance(self.window, int) else self.window
        if sides is not None and sides != "train" and (len(sides) > 2 or not all(side > 0 for side in sides)):
            raise ValueError(
                f"inference.window is train, a side, [height,width] or null, got {self.window}; null is the whole image"
            )

    @property
    def sees_whole_images(self) -> bool:
        """Whether it does nothing that a plain call of the network does not."""
        return self.window is None and list(self.scales) == [1.0] and not self.flip

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of a window."""
        if self.window is None or self.window == "train":
            return None if self.window is None else self.train_size
        height, width = (self.window, self.window) if isinstance(self.window, int) else self.window
        return int(height), int(width)

    @torch.no_grad()
    def __call__(self, network: nn.Module, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        if self.size is None and not self.flip and list(self.scales) == [1.0]:
            return _padded(network, images)
        total = None
        for scale in self.scales:
            scaled = images
            if scale != 1:
                new = [max(round(side * scale), 1) for side in size]
                scaled = F.interpolate(images, new, mode="bilinear", antialias=scale < 1)
            for flipped in (False, True) if self.flip else (False,):
                found = self._through_windows(network, scaled.flip(-1) if flipped else scaled)
                found = found.flip(-1) if flipped else found
                if scale != 1:
                    found = F.interpolate(found, size, mode="bilinear")
                total = found if total is None else total + found
        assert total is not None
        count = len(self.scales) * (1 + self.flip)
        return (total / count).clamp(min=torch.finfo(total.dtype).tiny).log()

    @torch.no_grad()
    def classify(self, network: nn.Module, images: Tensor) -> Tensor:
        """Scores (N, K) of images (N, C, H, W): every view has their size, cut or continued around the middle."""
        if self.sees_whole_images:
            return network(images)
        views = [view.flip(-1) if flip else view for view in (zoomed(images, scale) for scale in self.scales)
                 for flip in ((False, True) if self.flip else (False,))]  # fmt: skip
        mean = torch.stack([network(view).float().softmax(1) for view in views]).mean(0)
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()

    def _through_windows(self, network: nn.Module, images: Tensor) -> Tensor:
        """Probabilities (N, K, H, W)."""
        height, width = images.shape[-2:]
        if self.size is None or (self.size[0] >= height and self.size[1] >= width):
            return _padded(network, images).float().softmax(1)
        window = min(self.size[0], height), min(self.size[1], width)
        down, across = (_ramps(side, self.stride, images.device) for side in window)
        weight = down[:, None] * across
        total, weights = None, images.new_zeros(height, width, dtype=torch.float32)
        starts = [_starts(whole, side, self.stride) for whole, side in zip((height, width), window, strict=True)]
        for y, x in itertools.product(*starts):
            place = (..., slice(y, y + window[0]), slice(x, x + window[1]))
            found = _padded(network, images[place].contiguous()).float().softmax(1)
            if total is None:
                total = found.new_zeros(*found.shape[:2], height, width)
            total[place] += weight * found
            weights[place] += weight
        assert total is not None
        return total.div_(weights)


def zoomed(images: Tensor, scale: float) -> Tensor:
    """Images (N, C, H, W) enlarged about their middle and cut to their size; made smaller, the border is repeated."""
    if scale == 1:
        return images
    height, width = images.shape[-2:]
    new = max(round(height * scale), 1), max(round(width * scale), 1)
    scaled = F.interpolate(images, new, mode="bilinear", antialias=scale < 1)
    top, left = max(new[0] - height, 0) // 2, max(new[1] - width, 0) // 2
    scaled = scaled[..., top : top + height, left : left + width]
    down, across = height - scaled.size(2), width - scaled.size(3)
    return F.pad(scaled, (across // 2, across - across // 2, down // 2, down - down // 2), mode="replicate")


def _padded(network: nn.Module, images: Tensor) -> Tensor:
    """The network's scores, of images that are made as large as it needs."""
    height, width = images.shape[-2:]
    least = min_size(network)
    below, right = max(least - height, 0), max(least - width, 0)
    if below or right:
        images = F.pad(images, (0, right, 0, below), mode="replicate")
    return network(images)[..., :height, :width]


def _starts(whole: int, side: int, stride: float) -> Iterator[int]:
    """Where windows begin along an axis."""
    step = _step(side, stride)
    return (min(i * step, whole - side) for i in range(-(-(whole - side) // step) + 1))


def _step(side: int, stride: float) -> int:
    return max(round(side * stride), 1)


def _ramps(side: int, stride: float, device: torch.device) -> Tensor:
    """Weights (side) that rise over the overlap, stay, and fall; those of two neighbours sum to a constant."""
    overlap = side - _step(side, stride)
    i = torch.arange(1, side + 1, device=device, dtype=torch.float32)
    return torch.minimum(i, i.flip(0)).clamp(max=overlap + 1) / (overlap + 1)


def labels_of(scores: Tensor, images: Tensor, postprocess: Postprocess | None, counted: Tensor | None = None) -> Tensor:
    """Labels (N, H, W) of scores (N, K, H, W), after post-processing by images (N, C, H, W) of 0..255.

    Rows and columns along an image's border in which no pixel is `counted` (N, H, W) are padding, which must not tell
    the image anything: post-processing does not see them.
    """
    labels = scores.argmax(1)
    if postprocess is None:
        return labels
    for i, (image, score) in enumerate(zip(images, scores, strict=True)):
        place = (slice(None), slice(None)) if counted is None else content(counted[i])
        part = postprocess(image[None, :, *place], score[None, :, *place].float().softmax(1))
        labels[i, *place] = part[0].argmax(0)
    return labels


def content(counted: Tensor) -> tuple[slice, slice]:
    """The smallest rectangle that holds all counted pixels of (H, W); everything if there are none."""
    rows, columns = (counted.any(axis).nonzero() for axis in (1, 0))
    if not len(rows):
        return slice(None), slice(None)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
