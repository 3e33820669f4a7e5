"""Image files: found, decoded, checked before training, and read by workers batch after batch.

Whatever is wrong with a file is a DataError of one line that names it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnn_train.data.augment import PerSample, split_stages
from cnn_train.data.data import Augment, InMemory, Source, check_augment, histogram_statistics
from cnn_train.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
MAX_PIXELS = 50_000_000

log = logging.getLogger(__name__)


# -- Looking ---------------------------------------------------------------------------------------------


def existing_folder(root: str | Path | None, layout: str) -> Path:
    """The folder of a data set; DataError that says what is there instead and which layout is expected."""
    if root is None:
        raise DataError(f"data.root is not set; data.root=DIR, a folder with {layout}")
    path = Path(os.path.expanduser(root)).resolve()
    if path.is_dir():
        return path
    nearest = next(parent for parent in path.parents if parent.is_dir())
    inside = sorted(child.name for child in nearest.iterdir() if child.is_dir() and not child.name.startswith("."))
    holds = ", ".join(inside[:6]) + (", ..." if len(inside) > 6 else "") if inside else "no folders"
    raise DataError(f"no folder {path}: {nearest} exists and holds {holds}; data.root=DIR wants {layout}")


def images_in(folder: Path, recursive: bool = True) -> list[Path]:
    """Image files, by name."""
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())


def subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def what_is_in(folder: Path) -> str:
    """A folder's content in some words: "3 .csv, 1 .txt"."""
    counts: dict[str, int] = {}
    for path in folder.iterdir():
        kind = "folders" if path.is_dir() else path.suffix.lower() or "files without suffix"
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())[:4]) or "nothing"


def cut_by_name(names: Sequence[str], fractions: Sequence[float]) -> list[list[int]]:
    """Indices of the first, second, ... and the remaining part, in an order that depends on each name alone.

    So a split stays what it is wherever the folder lies, and nearly so when files are added.
    """
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    parts = []
    for fraction in fractions:
        count = min(max(round(fraction * len(names)), 1), len(order)) if fraction > 0 else 0
        parts.append(sorted(order[:count]))
        order = order[count:]
    return [*parts, sorted(order)]


# -- Decoding --------------------------------------------------------------------------------------------


def read_image(path: str | Path, channels: int, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode a file to (channels, H, W) uint8, in grey or RGB."""
    array = _decode(path, {1: "L", 3: "RGB"}[channels], max_pixels)
    return torch.from_numpy(array).unsqueeze(0) if channels == 1 else torch.from_numpy(array).permute(2, 0, 1)


def image_size_of(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width), from the file's header."""
    with _opened(path, max_pixels) as image:
        return image.height, image.width


def read_values(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A mask as it is stored: (H, W) integers, indices of a palette included, or (H, W, 3) colours."""
    return _decode(path, None, max_pixels)


class _opened:
    """An image whose size is known and small enough; errors inside name the file."""

    def __init__(self, path: str | Path, max_pixels: int):
        self.path, self.max_pixels = path, max_pixels

    def __enter__(self) -> Any:
        from PIL import Image

        try:
            self.image = Image.open(self.path)
        except Exception as error:
            self._fail(error)
        width, height = self.image.size
        if width * height > self.max_pixels:
            self.image.close()
            raise DataError(
                f"{self.path} has {width}x{height} pixels, more than data.max_pixels={self.max_pixels}; "
                "remove it, make it smaller or raise the limit"
            )
        return self.image

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.image.close()
        if isinstance(error, Exception) and not isinstance(error, DataError):
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, MemoryError):
            raise error
        if isinstance(error, FileNotFoundError):
            raise DataError(f"no file {self.path}") from error
        kind = type(error).__name__
        if kind.startswith("DecompressionBomb"):
            raise DataError(f"{self.path} is far larger than data.max_pixels={self.max_pixels}; remove it") from error
        reason = "not an image" if kind == "UnidentifiedImageError" else " ".join(str(error).split())
        raise DataError(f"cannot read {self.path}: {reason}; replace or remove the file") from error


def _decode(path: str | Path, mode: str | None, max_pixels: int) -> np.ndarray:
    with _opened(path, max_pixels) as image:
        if mode is None:
            if image.mode in ("RGBA", "CMYK", "YCbCr", "LA"):
                image = image.convert("L" if image.mode == "LA" else "RGB")
            return np.array(image)
        if image.mode.startswith("I"):  # 16 bits: Pillow would clip them
            array = np.asarray(image).astype(np.int64)
            array = (array >> 8 if array.max(initial=0) > 255 else array).clip(0, 255).astype(np.uint8)
            return array if mode == "L" else np.stack([array] * 3, -1)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return np.array(image.convert(mode))


# -- Bringing to size ------------------------------------------------------------------------------------


def bring_to_size(
    image: Tensor, label_map: Tensor | None, size: tuple[int, int], how: str, ignore_index: int = 255
) -> tuple[Tensor, Tensor | None]:
    """Image (C, H, W) uint8 and label map (H, W) at `size`, without chance.

    "crop": scaled until 7/8 of it cover the size, and the middle cut out (Krizhevsky et al. 2012: 256 and 224). "pad":
    made smaller if it does not fit, then padded below and at the right with 0 and `ignore_index`. "stretch": scaled.
    "own": left as it is, as is an image of the size already.
    """
    if how == "own" or (image.size(1), image.size(2)) == size:
        return image, label_map
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as V

    scaled = scaled_size((image.size(1), image.size(2)), size, how)
    border = [0, 0, size[1] - scaled[1], size[0] - scaled[0]] if how == "pad" else [0, 0, 0, 0]
    image = V.pad(V.resize(image, list(scaled), antialias=True), border, fill=0)
    if label_map is not None:
        exact = InterpolationMode.NEAREST_EXACT
        label_map = V.pad(V.resize(label_map.unsqueeze(0), list(scaled), exact), border, fill=ignore_index)
    if how == "crop":
        image = V.center_crop(image, list(size))
        label_map = None if label_map is None else V.center_crop(label_map, list(size))
    return image, None if label_map is None else label_map.squeeze(0)


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


# -- A split on disk -------------------------------------------------------------------------------------


class ReadMask(Protocol):
    def __call__(self, path: str) -> Tensor:
        """Label map (H, W) uint8 of a mask's file."""
        ...


@dataclass
class OnDisk:
    """A split in files: `samples` are an image's path and its label, or its mask's path that `read_mask` reads.

    Workers decode and bring to size, in training by `augments`, otherwise as `how` says (see `bring_to_size`).
    """

    samples: list[tuple[str, Any]]
    size: tuple[int, int]
    channels: int
    how: str
    read_mask: ReadMask | None = None
    augments: list[PerSample] = field(default_factory=list)
    ignore_index: int = -100
    max_pixels: int = MAX_PIXELS
    workers: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int, epoch: int | None, seed: int) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) uint8 and target of one sample, as in an epoch, or unaltered."""
        path, target = self.samples[index]
        image = read_image(path, self.channels, self.max_pixels)
        label_map = self.read_mask(target) if self.read_mask is not None else None
        if label_map is not None and label_map.shape != image.shape[1:]:
            raise DataError(sizes_differ(path, target, tuple(image.shape[1:]), tuple(label_map.shape)))
        augments = [] if epoch is None else self.augments
        if not any(augment.brings_to_size for augment in augments):
            image, label_map = bring_to_size(image, label_map, self.size, self.how, self.ignore_index)
        for augment in augments:
            image, label_map = augment.one(image, label_map, self.size, index, epoch or 0, seed, self.ignore_index)
        return image.contiguous(), torch.tensor(target) if label_map is None else label_map.contiguous()

    def batches(
        self, indices: Sequence[Tensor], epoch: int | None, seed: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self.workers:
            import torchvision.transforms.v2  # noqa: F401  here once, not for seconds in each new worker
        loader: Any = DataLoader(
            _Samples(self, epoch, seed),
            batch_sampler=[index.tolist() for index in indices],
            num_workers=min(self.workers, len(indices)),
            collate_fn=_collate,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator(),  # the global one is not to be touched
        )
        batches = iter(loader)
        try:
            for made in batches:
                if isinstance(made, DataError):
                    raise made
                images, targets = made
                yield images.to(device, non_blocking=True), targets.to(device, non_blocking=True).long()
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a data worker was killed, usually for memory; try data.workers={self.workers // 2} or a smaller "
                "data.batch_size"
            ) from error
        finally:
            # The workers end now, not when the garbage is collected, perhaps in a child that inherited it.
            del batches

    def in_memory(self) -> InMemory:
        """The split decoded at once, unaltered."""
        every = torch.arange(len(self)).split(256)
        images, targets = zip(*self.batches(every, None, 0, torch.device("cpu")), strict=True)
        joined = torch.cat(targets)
        return InMemory(torch.cat(images), joined if self.read_mask is None else joined.to(torch.uint8))

    def statistics(self, most: int = 1000) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel (C), of values in [0, 1]; from `most` images evenly spread."""
        chosen = torch.linspace(0, len(self) - 1, min(most, len(self))).round().long()
        counts = torch.zeros(self.channels, 256, dtype=torch.int64)
        for images, _ in self.batches(chosen.split(64), None, 0, torch.device("cpu")):
            counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
        return histogram_statistics(counts)

    def class_counts(self, num_classes: int) -> Tensor:
        """Samples, or pixels of the masks as they are stored, of each class (K)."""
        if self.read_mask is None:
            return torch.bincount(torch.tensor([label for _, label in self.samples]), minlength=num_classes)
        counts = torch.zeros(256, dtype=torch.int64)
        for _, path in self.samples:
            counts += torch.bincount(self.read_mask(path).flatten().long(), minlength=256)
        return counts[:num_classes]


class _Samples(Dataset):
    def __init__(self, source: OnDisk, epoch: int | None, seed: int):
        self.source, self.epoch, self.seed = source, epoch, seed

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | DataError:
        try:
            return self.source.load(index, self.epoch, self.seed)
        except DataError as error:
            # Given back, not raised: a worker would bury the message in its traceback.
            return DataError(str(error))


def _collate(samples: list[tuple[Tensor, Tensor] | DataError]) -> tuple[Tensor, Tensor] | DataError:
    loaded = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        loaded.append(sample)
    images, targets = zip(*loaded, strict=True)
    return torch.stack(images), torch.stack(targets)


def num_workers(workers: int | None) -> int:
    """What a config says, or as many as there are cores, 8 at most."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def as_sources(
    name: str, splits: Mapping[str, list[tuple[str, Any]]], common: OnDisk, augment: Augment | None, in_memory: bool
) -> tuple[dict[str, Source], Augment | None]:
    """The splits as sources like `common`, and the part of the augmentation that they leave to whole batches."""
    check_augment(name, "classification" if common.read_mask is None else "segmentation", augment)
    if in_memory:
        return {split: replace(common, samples=samples).in_memory() for split, samples in splits.items()}, augment
    first, rest = split_stages(augment)
    return {
        split: replace(common, samples=samples, augments=first if split == "train" else [])
        for split, samples in splits.items()
    }, rest


def sizes_differ(image: str, mask: str, image_size: tuple[int, ...], mask_size: tuple[int, ...]) -> str:
    sizes = ["x".join(map(str, size)) for size in (image_size, mask_size)]
    return f"{image} is {sizes[0]} (height x width) but its mask {mask} is {sizes[1]}; they must be of one size"


# -- Checking and remembering ----------------------------------------------------------------------------


def check_files(check: Callable[[Any], Any], items: Sequence[Any], workers: int) -> list[Any]:
    """`check` of every item, in threads; DataError of the first that fails, and how many more do."""

    def safe(item: Any) -> Any:
        try:
            return check(item)
        except DataError as error:
            return error

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        results = list(pool.map(safe, items))
    errors = [result for result in results if isinstance(result, DataError)]
    if errors:
        more = f" (and {len(errors) - 1} more like it)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}{more}")
    return results


def remember(
    cache_dir: str | None, purpose: str, files: Sequence[str], settings: str, compute: Callable[[], Any]
) -> Any:
    """The JSON value that `compute` gave for these files as they are now, or computed and kept for the next time.

    Files count as the same by path, size and time of change. A cache that cannot be read or written is done without.
    """
    digest = hashlib.sha256(f"{purpose} {settings}".encode())
    for name in files:
        state = os.stat(name)
        digest.update(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode())
    path = cache_folder(cache_dir) / f"{purpose}_{digest.hexdigest()[:16]}.json"
    try:
        return json.loads(path.read_text())["value"]
    except (OSError, ValueError, KeyError, TypeError):
        value = compute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"value": value}))
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
    return value


def cache_folder(cache_dir: str | None) -> Path:
    """`cache_dir`, or cnn-train in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.path.expanduser(cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "cnn-train"))


def common_size(paths: Sequence[str], max_pixels: int = MAX_PIXELS) -> tuple[int, int] | None:
    """(height, width) that the images have in common, judged by at most 1,000 of them; None if they differ."""
    step = max(len(paths) // 1000, 1)
    sizes = {image_size_of(path, max_pixels) for path in paths[::step]}
    return sizes.pop() if len(sizes) == 1 else None


def warn_of_absent(counts: Mapping[str, Sequence[int]], class_names: Sequence[str], unit: str) -> None:
    """Log the classes of which a split holds nothing: their score would be empty."""
    for split, numbers in counts.items():
        absent = [name for name, number in zip(class_names, numbers, strict=True) if not number]
        if absent:
            few = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
            log.warning("the %s split has no %s of %d class(es): %s", split, unit, len(absent), few)
