"""Files decoded: what an image's file holds, upright, whatever its suffix says.

JPEG, PNG, BMP, GIF, TIFF, WebP, PNM, .npy and .npz are recognized by their first bytes. Whatever is wrong with a file
is a DataError of one line that names it.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn_train.errors import DataError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # those that Pillow may decode
MAX_PIXELS = 50_000_000
ORIENTATION = 0x0112  # EXIF's tag, and TIFF's
SIGNATURES = (
    (rb"\xff\xd8\xff", "JPEG"), (rb"\x89PNG\r\n\x1a\n", "PNG"), (rb"GIF8", "GIF"), (rb"BM", "BMP"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"), (rb"RIFF....WEBP", "WEBP"), (rb"P[1-6]\s", "PPM"), (rb"\x93NUMPY", "NPY"),
    (rb"PK\x03\x04", "NPZ"), (rb"....ftyp(heic|heix|mif1|msf1|heim|heis)", "HEIC"), (rb"....ftypavi[fs]", "AVIF"),
    (rb"\s*<(!doctype|html)", "HTML"),
)  # fmt: skip
ADVICE = {
    "HEIC": "HEIC is not read; convert it to JPEG or PNG (the package pillow-heif reads it)",
    "AVIF": "AVIF is not read; convert it to JPEG or PNG",
    "HTML": "it is a web page, not an image; fetch it again, or remove it",
    "empty": "the file is empty; replace or remove it",
}


@dataclass(frozen=True)
class Header:
    """Height, width and number of channels of an upright image, and the numpy type of its values."""

    height: int
    width: int
    channels: int
    dtype: str


@dataclass(frozen=True)
class OpenFile:
    """A file whose header is read; `decode` gives its values (H, W, C), upright. `turned`: it is stored otherwise.

    `reduced` gives a JPEG smaller, with at least so many rows and columns.
    """

    header: Header
    decode: Callable[[], NDArray]
    turned: bool = False
    reduced: Callable[[tuple[int, int]], NDArray] | None = None


def kind_of(path: str | Path) -> str:
    """The format by a file's first bytes: a name in `SIGNATURES`, "empty", or "" if none fits."""
    with open(path, "rb") as file:
        start = file.read(32)
    if not start:
        return "empty"
    return next((kind for pattern, kind in SIGNATURES if re.match(pattern, start, re.S | re.I)), "")


def read_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of a file, without decoding it."""
    with opened(path, max_pixels) as file:
        return file.header


def read_values(
    path: str | Path,
    max_pixels: int = MAX_PIXELS,
    stored: bool = False,
    clear: bool = False,
    least: tuple[int, int] | None = None,
) -> NDArray:
    """The values of a file (H, W, C), upright; alpha is left out.

    A JPEG may be decoded at a half, a quarter or an eighth of its size, if that has `least` rows and columns. `stored`
    leaves a palette's indices, and the 0 and 1 of two-level images, as they are; otherwise they become colours
    and 0 and 255. `clear` makes transparent pixels 0.
    """
    with opened(path, max_pixels, stored, clear) as file:
        return file.decode() if least is None or file.reduced is None else file.reduced(least)


def decode_bytes(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> NDArray:
    """The values (H, W, C) of an image held in memory, upright; alpha is left out. Its formats are Pillow's alone."""
    from io import BytesIO

    from PIL import Image

    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            _limit(name, *image.size, max_pixels)
            if image.format == "PNG" and image.tile and str(image.tile[0].args) in _DEEP:
                raise DataError(f"cannot read {name}: a PNG of 16 bits with several channels; keep it as a file")
            return _decoded(image, False, False)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        reason = ADVICE["empty"] if not content else " ".join(str(error).split()) or type(error).__name__
        reason = "not an image" if type(error).__name__ == "UnidentifiedImageError" and content else reason
        raise DataError(f"cannot read {name}: {reason}") from error


@contextmanager
def opened(path: str | Path, max_pixels: int, stored: bool = False, clear: bool = False) -> Iterator[OpenFile]:
    """Open a file that is small enough; errors inside the block name it."""
    try:
        kind = kind_of(path)
        if kind in ADVICE:
            raise DataError(f"cannot read {path}: {ADVICE[kind]}")
        how = {"NPY": _numpy, "NPZ": _numpy, "TIFF": _tiff}.get(kind, _pillow)
        with how(path, stored, clear, max_pixels) as file:
            yield file
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"no file {path}") from error
    except Exception as error:
        name = type(error).__name__
        if name.startswith("DecompressionBomb"):
            raise DataError(f"{path} is far larger than data.max_pixels={max_pixels}; remove it") from error
        reason = "not an image" if name == "UnidentifiedImageError" else " ".join(str(error).split()) or name
        raise DataError(f"cannot read {path}: {reason}; replace or remove the file") from error


def _limit(path: str | Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(
            f"{path} has {width}x{height} pixels, more than data.max_pixels={max_pixels}; "
            "remove it, make it smaller or raise the limit"
        )


# -- Pillow ------------------------------------------------------------------------------------------------------------


@contextmanager
def _pillow(path: str | Path, stored: bool, clear: bool, max_pixels: int) -> Iterator[OpenFile]:
    from PIL import Image

    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        _limit(path, width, height, max_pixels)
        reduced = None
        layout = str(image.tile[0].args) if image.format == "PNG" and image.tile else ""
        orientation = _orientation(path, image)
        if image.format != "TIFF" and orientation in (5, 6, 7, 8):
            width, height = height, width
        if layout in _DEEP:
            channels, dtype = _DEEP[layout], "uint16"
            decode = partial(_deep_png, path, image, layout, channels)
        else:
            channels, dtype = _plain_mode(image, stored)
            fast = image.format == "JPEG" and image.mode in ("RGB", "L")
            decode = partial(_jpeg, path, image, orientation) if fast else partial(_decoded, image, stored, clear)
            reduced = decode if fast else None
        yield OpenFile(Header(height, width, channels, dtype), decode, 2 <= orientation <= 8, reduced)


def _orientation(path: str | Path, image: Any) -> int:
    """EXIF's orientation of an image, without decoding a PNG that has none."""
    if image.format == "PNG" and not _EXIF_KEYS & image.info.keys() and not _has_chunk(path, b"eXIf"):
        return 1
    return image.getexif().get(ORIENTATION, 1)


_EXIF_KEYS = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}


def _has_chunk(path: str | Path, kind: bytes) -> bool:
    """Whether a PNG has a chunk of this kind."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] == kind:
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


# How PNGs of 16 bits are stored of which Pillow would drop the lower 8, and their channels without alpha.
_DEEP = {"RGB;16B": 3, "RGBA;16B": 3, "LA;16B": 1}


def _plain_mode(image: Any, stored: bool) -> tuple[int, str]:
    if image.mode.startswith("I"):
        return 1, "int32" if image.mode == "I" else "uint16"
    if image.mode == "F":
        return 1, "float32"
    grey = image.mode in ("1", "L", "LA", "La") or (stored and image.mode in ("P", "PA"))
    return 1 if grey else 3, "uint8"


def _decoded(image: Any, stored: bool, clear: bool) -> NDArray:
    from PIL import ImageOps

    image.load()
    image = ImageOps.exif_transpose(image)  # a TIFF is upright already
    if clear and image.mode in ("RGBA", "LA"):
        array = np.asarray(image)
        array = array[..., :-1] * (array[..., -1:] > 0)
    elif image.mode == "1":
        image = image.convert("L")
        array = np.asarray(image) // 255 if stored else np.asarray(image)
    elif image.mode in ("L", "F") or image.mode.startswith("I") or (stored and image.mode == "P"):
        array = np.asarray(image)
        array = array.astype(np.uint16) if array.dtype.kind == "u" and array.itemsize == 2 else array
    elif image.mode in ("LA", "La"):
        array = np.asarray(image.convert("LA"))[..., 0]
    elif image.mode == "PA" and stored:
        array = np.asarray(image)[..., 0]
    elif image.mode == "P" and "transparency" in image.info:
        array = np.asarray(image.convert("RGBA"))[..., :3]
    else:
        array = np.asarray(image.convert("RGB"))
    return array.reshape(*array.shape[:2], -1)


def _jpeg(path: str | Path, image: Any, orientation: int, least: tuple[int, int] | None = None) -> NDArray:
    """A JPEG by libjpeg-turbo at once: the bits of Pillow, which says what is wrong with the others, in less time."""
    import simplejpeg

    factor, (width, height) = 1, image.size
    if least is not None:
        rows, columns = least if orientation < 5 else least[::-1]
        factor = next((f for f in (8, 4, 2) if -(-height // f) >= rows and -(-width // f) >= columns), 1)
    size = {"min_height": -(-height // factor), "min_width": -(-width // factor), "min_factor": factor}
    colours = "GRAY" if image.mode == "L" else "RGB"
    try:
        values = simplejpeg.decode_jpeg(Path(path).read_bytes(), colours, **(size if factor > 1 else {}))
    except ValueError:
        return _decoded(image, False, False)
    return upright(values, orientation)


def _deep_png(path: str | Path, image: Any, layout: str, channels: int) -> NDArray:
    """A PNG of 16 bits with several channels, without alpha.

    Pillow has no mode for it and takes the upper byte of each value. Told that the bytes are in the other order, it
    takes the lower one.
    """
    from PIL import Image

    if layout == "LA;16B":
        raise DataError(f"cannot read {path}: grey of 16 bits with alpha; save it without alpha")
    orientation = _orientation(path, image)
    with Image.open(path, formats=("PNG",)) as lower:
        lower.tile = [tile._replace(args=f"{layout[:-1]}L") for tile in lower.tile]
        values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(lower)
    return upright(values[..., :channels], orientation)


def read_orientation(path: str | Path) -> int:
    """EXIF's orientation from 1 to 8 of a file; 1 for one that has none, and for a TIFF, which is upright."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            orientation = 1 if image.format == "TIFF" else _orientation(path, image)
    except (OSError, ValueError, SyntaxError):
        return 1  # another reader's file; one that nobody can read is reported elsewhere
    return orientation if 1 <= orientation <= 8 else 1


def upright(array: NDArray, orientation: int) -> NDArray:
    """Undo an EXIF orientation from 1 to 8 of values (H, W, C)."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


# -- TIFF and numpy ----------------------------------------------------------------------------------------------------


@contextmanager
def _tiff(path: str | Path, stored: bool, clear: bool, max_pixels: int) -> Iterator[OpenFile]:
    """By Pillow what it reads rightly, the rest by tifffile: several pages, many channels, and more than 8 bits."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("TIFF",)) as image:
            by_pillow = _fits_pillow(image)
    except (UnidentifiedImageError, OSError, KeyError, ValueError):
        by_pillow = False
    if by_pillow:
        with _pillow(path, stored, clear, max_pixels) as file:
            yield file
        return
    import tifffile

    with tifffile.TiffFile(path) as content:
        if not content.pages:
            raise DataError(f"cannot read {path}: it has no page; replace or remove the file")
        series, page = content.series[0], content.pages.first
        shape, axes = series.shape, series.axes
        if not {"Y", "X"} <= set(axes) or sum(n > 1 for n in shape) - 2 > 1:
            raise DataError(f"{path} is a stack of {'x'.join(map(str, shape))}; save height, width and channels alone")
        width, height = shape[axes.index("X")], shape[axes.index("Y")]
        _limit(path, width, height, max_pixels)
        tag = page.tags.get(ORIENTATION)
        orientation = int(tag.value) if tag is not None else 1
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        # Only alpha is left out: a channel without a meaning of its own is one of the image.
        alpha = sum(int(kind) in (1, 2) for kind in page.extrasamples)
        channels = int(np.prod(shape)) // (width * height) - alpha
        header = Header(height, width, channels, series.dtype.name)

        def decode() -> NDArray:
            array = np.moveaxis(series.asarray(), (axes.index("Y"), axes.index("X")), (0, 1))
            return upright(array.reshape(*array.shape[:2], -1)[..., :channels], orientation)

        yield OpenFile(header, decode, 2 <= orientation <= 8)


def _fits_pillow(image: Any) -> bool:
    samples, photometric = image.tag_v2.get(277, 1), image.tag_v2.get(262)
    alpha = image.tag_v2.get(338, (0,))
    extra = samples - {2: 3, 5: 4, 6: 3}.get(photometric, 1)
    bits = image.tag_v2.get(258, (1,))
    deep = max(bits) > 8 and samples > 1
    return image.n_frames == 1 and not deep and (extra == 0 or (extra == 1 and alpha[0] in (1, 2)))


@contextmanager
def _numpy(path: str | Path, stored: bool, clear: bool, max_pixels: int) -> Iterator[OpenFile]:
    """An array (H, W), (H, W, C) or (C, H, W): of the first and the last side the smaller one counts the channels."""
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(loaded, np.ndarray):
        if len(loaded.files) != 1:
            raise DataError(
                f"{path} holds {len(loaded.files)} arrays ({', '.join(loaded.files[:4])}); it must hold one"
            )
        loaded = loaded[loaded.files[0]]
    if loaded.ndim not in (2, 3) or 0 in loaded.shape or loaded.dtype.kind not in "buif":
        shape = "x".join(map(str, loaded.shape))
        raise DataError(
            f"{path} is an array of {shape} {loaded.dtype}; an image is (H, W), (H, W, C) or (C, H, W) numbers"
        )
    array = loaded.reshape(*loaded.shape, 1) if loaded.ndim == 2 else loaded
    if array.shape[0] < array.shape[2]:
        array = np.moveaxis(array, 0, -1)
    height, width, channels = array.shape
    _limit(path, width, height, max_pixels)
    as_bytes = array.dtype.kind == "b"
    dtype = "uint8" if as_bytes else array.dtype.name

    def decode() -> NDArray:
        values = np.ascontiguousarray(array)
        return values.astype(np.uint8) * (1 if stored else 255) if as_bytes else values

    yield OpenFile(Header(height, width, channels, dtype), decode)
