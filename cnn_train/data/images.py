"""Images as networks take them: read from files with one range of values and one choice of channels, and sized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnn_train.data.augment.moves import Resample, whole
from cnn_train.data.decode import MAX_PIXELS, read_header, read_values
from cnn_train.errors import DataError

Resize = Literal["crop", "pad", "stretch", "own"]
# What `data.channels` may say: found by the files, a number, or which bands in which order, counted from 1.
Channels = int | Sequence[int] | Literal["auto"]
# What `data.range` may say: found by the files, or the values that become black and white.
Range = Sequence[float] | Literal["auto"]
LARGEST = 512  # images of one size are trained at it up to here


@dataclass(frozen=True)
class Reader:
    """Reads a file as an image (C, H, W) uint8: the same way in training, evaluation, prediction and checks.

    `channels` is their number, or a choice of bands counted from 1. Values from `low` to `high` of `range` become 0 to
    255; without it files must hold 8 bits.
    """

    channels: int | tuple[int, ...] = 3
    range: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def num_channels(self) -> int:
        return self.channels if isinstance(self.channels, int) else len(self.channels)

    def __call__(self, path: str | Path) -> Tensor:
        return self.image(self.values(path), path)

    def reduced(self, path: str | Path, least: tuple[int, int]) -> Tensor:
        """The image, of a JPEG perhaps a half, a quarter or an eighth, with at least so many rows and columns."""
        return self.image(read_values(path, self.max_pixels, least=least), path)

    def image(self, values: NDArray, path: str | Path) -> Tensor:
        """An image (C, H, W) uint8 of the values (H, W, C) of a file."""
        values = self._choose(values, path)
        pixels = self._to_8_bits(values, path)
        # A view: resizing reads values in the order of files twice as fast.
        return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)

    def values(self, path: Any) -> NDArray:
        """The values (H, W, C) of a file."""
        return read_values(path, self.max_pixels)

    def _choose(self, values: NDArray, path: str | Path) -> NDArray:
        have = values.shape[2]
        if not isinstance(self.channels, int):
            if max(self.channels) > have:
                raise DataError(
                    f"{path} has {have} channel(s), so data.channels={list(self.channels)} is not to be read"
                )
            return values[..., [band - 1 for band in self.channels]]
        if have == self.channels:
            return values
        if have == 1 and self.channels == 3:
            return values.repeat(3, 2)
        if have == 3 and self.channels == 1:
            return _luma(values)
        raise DataError(
            f"{path} has {have} channel(s), not {self.channels}; data.channels=[...] chooses bands by number, from 1"
        )

    def _to_8_bits(self, values: NDArray, path: str | Path) -> NDArray[np.uint8]:
        if self.range is None:
            if values.dtype == np.uint8:
                return values
            raise DataError(
                f"{path} holds {values.dtype} values, but images of 8 bits are expected; "
                "data.range=[low,high] says which values are black and white"
            )
        low, high = self.range
        if not np.isfinite(values).all():
            raise DataError(f"{path} holds values that are not finite; replace them or remove the file")
        scaled = (values.astype(np.float64) - low) * (255 / (high - low))
        return scaled.round().clip(0, 255).astype(np.uint8)

    def reading(self) -> dict[str, Any]:
        """The reader as plain data, for `Data.preprocessing`."""
        channels = self.channels if isinstance(self.channels, int) else list(self.channels)
        return {"channels": channels, "range": None if self.range is None else list(self.range)}

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any], max_pixels: int = MAX_PIXELS) -> "Reader":
        """The reader that a checkpoint's `preprocessing` describes."""
        channels = preprocessing.get("channels", preprocessing["in_channels"])
        limits = preprocessing.get("range")
        return cls(
            channels if isinstance(channels, int) else tuple(channels),
            None if limits is None else (limits[0], limits[1]),
            max_pixels,
        )


def _luma(values: NDArray) -> NDArray:
    """Grey of RGB (ITU-R BT.601), for 8 bits rounded as Pillow does it."""
    red, green, blue = (values[..., band : band + 1] for band in range(3))
    if values.dtype == np.uint8:
        weighted = red.astype(np.uint32) * 19595 + green.astype(np.uint32) * 38470 + blue.astype(np.uint32) * 7471
        return ((weighted + 0x8000) >> 16).astype(np.uint8)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def read_image(path: str | Path, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode a file of 8 bits to (channels, H, W) uint8."""
    return Reader(channels, None, max_pixels)(path)


def fault_of(path: str | Path, max_pixels: int = MAX_PIXELS) -> str | None:
    """What is wrong with an image's file, in one line; None if it can be decoded."""
    try:
        read_values(path, max_pixels)
    except DataError as error:
        return str(error)
    return None


def common_size(paths: Sequence[str], max_pixels: int = MAX_PIXELS) -> tuple[int, int] | None:
    """(height, width) that the images have in common, judged by at most 1,000 of them; None if they differ."""
    step = max(len(paths) // 1000, 1)
    headers = [read_header(path, max_pixels) for path in paths[::step]]
    sizes = {(header.height, header.width) for header in headers}
    return sizes.pop() if len(sizes) == 1 else None


def visible(images: Tensor) -> Tensor:
    """What a picture can show of images (..., C, H, W): the first three channels, or the first."""
    return images[..., : 3 if images.size(-3) >= 3 else 1, :, :]


# -- Bringing to size --------------------------------------------------------------------------------------------------


def training_size(own: tuple[int, int], side: int) -> tuple[int, int]:
    """The size that images of one size are trained at unasked: their own, or a smaller one where that is over 512.

    Then the shorter side becomes `side`, and the longer one keeps the shape, to a multiple of 32.
    """
    if max(own) <= LARGEST:
        return own
    short = min(own)
    height, width = (side if n == short else max(round(n * side / short / 32) * 32, side) for n in own)
    return height, width


def bring_to_size(own: tuple[int, int], size: tuple[int, int], how: str) -> Resample:
    """The move that brings an image of its own height and width to `size`, without chance.

    "crop": scaled until 7/8 of it cover the size, and the middle cut out (Krizhevsky et al. 2012: 256 and 224). "pad":
    made smaller if it does not fit, then padded below and at the right with 0 and the ignored label. "stretch": scaled.
    "own": left as it is, as is an image of the size already.
    """
    scaled = scaled_size(own, size, how)
    border = (0, 0, 0, 0)
    if how == "pad":
        border = (0, size[1] - scaled[1], 0, size[0] - scaled[0])
    elif how == "crop" and own != size:
        top, left = (round((have - want) / 2) for have, want in zip(scaled, size, strict=True))
        border = (-left, size[1] - scaled[1] + left, -top, size[0] - scaled[0] + top)
    return Resample(whole(own), scaled, border)


def scaled_size(own: tuple[int, int], size: tuple[int, int], how: str) -> tuple[int, int]:
    """Height and width that `bring_to_size` scales an image of this own size to, before it pads or crops."""
    height, width = own
    if how == "own" or own == size:
        return own
    if how == "crop":
        factor = max(size[0] / height, size[1] / width) * 8 / 7
        return max(round(height * factor), size[0]), max(round(width * factor), size[1])
    if how == "pad":
        factor = min(1.0, size[0] / height, size[1] / width)
        return max(round(height * factor), 1), max(round(width * factor), 1)
    return size
