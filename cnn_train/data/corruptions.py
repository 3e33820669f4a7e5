"""What happens to photographs: noise, blur, light, contrast, compression, each at five strengths.

Kinds and strengths are those of Hendrycks & Dietterich (ICLR 2019, ImageNet-C), where brightness is added to the value
of HSV instead of to each channel; their blur is meant for 224 pixels and is scaled with the shorter side here.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cnn_train.data.data import Data

STRENGTHS = 5
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # deviation of the normal noise, of values in [0, 1]
BLUR = (1.0, 2.0, 3.0, 4.0, 6.0)  # deviation of the Gaussian in pixels of an image of 224
LIGHT = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to values in [0, 1]
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # of the distance from the image's mean
JPEG = (25, 18, 15, 10, 7)  # quality

# Images (N, C, H, W) in [0, 1], a strength of 0 to 4, and a generator -> the same.
Corruption = Callable[[Tensor, int, torch.Generator], Tensor]


def noise(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    return images + NOISE[strength] * torch.randn(images.shape, generator=generator).to(images)


def blur(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    deviation = BLUR[strength] * min(images.shape[-2:]) / 224
    reach = min(max(round(4 * deviation), 1), min(images.shape[-2:]) - 1)
    x = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-(x**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).to(images)
    channels = images.size(1)
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    across = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def brightness(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    return images + LIGHT[strength]


def contrast(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * CONTRAST[strength] + mean


def jpeg(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Compressed and read again; of other than 1 or 3 channels each by itself."""
    pixels = (images * 255).round().byte().cpu()
    channels = pixels.size(1)
    parts = pixels if channels in (1, 3) else pixels.flatten(0, 1)[:, None]
    read = [torch.from_numpy(_through_jpeg(part.permute(1, 2, 0).numpy(), JPEG[strength])) for part in parts]
    found = torch.stack(read).permute(0, 3, 1, 2).reshape(pixels.shape)
    return found.to(images) / 255


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(content, "JPEG", quality=quality)
    read = np.asarray(Image.open(content))
    return (read[..., None] if read.ndim == 2 else read).copy()


CORRUPTIONS: dict[str, Corruption] = {
    "noise": noise, "blur": blur, "brightness": brightness, "contrast": contrast, "jpeg": jpeg,
}  # fmt: skip


@contextmanager
def corrupted(data: Data, kind: str, strength: int, seed: int = 0) -> Iterator[None]:
    """Corrupt what the network gets of `data` in the block, at a strength of 1 to 5."""
    generator, normalize = torch.Generator().manual_seed(seed), data.to_input

    def to_input(images: Tensor) -> Tensor:
        spoilt = CORRUPTIONS[kind](images.float() / 255, strength - 1, generator).clamp(0, 1)
        return normalize((spoilt * 255).round().byte())

    data.to_input = to_input  # type: ignore[method-assign]
    try:
        yield
    finally:
        del data.to_input
