"""Images a second from files to batches, first and second epoch, against torchvision's DataLoader.

    python benchmarks/reading.py [images] [workers] [width]

JPEGs of 500x375, or of another width (coarse noise enlarged, quality 90), become 224x224: brought to size (`centre`),
or cropped at random and flipped (`crop`). Each `data.cache`, and `data.decode=scaled`. torchvision's
are the transforms of its reference training, in a DataLoader with as many workers.
An epoch is timed from the first request to the last batch, uint8 to normalized float included; the new data set of
each line has no files in its cache.
"""

import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cnn_train.data.augment import Compose, Flip, RandomResizedCrop
from cnn_train.data.folder import folder

BATCH, CPU = 32, torch.device("cpu")


def write_images(root: Path, images: int, width: int) -> None:
    """Two classes of JPEGs in train, and two images each in val."""
    random = np.random.default_rng(0)
    for split, count in (("train", images // 2), ("val", 2)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                coarse = Image.fromarray(random.integers(0, 256, (38, 50, 3), dtype=np.uint8))
                coarse.resize((width, width * 3 // 4), Image.Resampling.BICUBIC).save(
                    root / split / name / f"{i}.jpg", quality=90
                )


def torchvision_loader(root: Path, crop: bool, workers: int) -> Iterable[object]:
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    first = [T.RandomResizedCrop(224), T.RandomHorizontalFlip()] if crop else [T.Resize(256), T.CenterCrop(224)]
    last = [T.PILToTensor(), T.ConvertImageDtype(torch.float), T.Normalize([0.5] * 3, [0.25] * 3)]
    return torch.utils.data.DataLoader(
        ImageFolder(str(root / "train"), T.Compose(first + last)), BATCH, shuffle=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip


def seconds(batches: Iterable[object]) -> float:
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def measure(images: int = 400, workers: int = 1, width: int = 500) -> dict[tuple[str, str], tuple[float, float]]:
    """Images a second of the first and the second epoch, by kind of crop and cache; printed as they come."""
    print(f"{images} images, {workers} worker(s), {torch.get_num_threads()} thread(s); images a second")
    print(f"{'augment':8} {'cache':12} {'first':>8} {'second':>8} {'second / torchvision':>21}")
    rates: dict[tuple[str, str], tuple[float, float]] = {}

    def told(kind: str, cache: str, first: float, second: float) -> None:
        rates[kind, cache] = images / first, images / second
        ratio = rates[kind, cache][1] / rates[kind, "torchvision"][1]
        print(f"{kind:8} {cache:12} {images / first:8.0f} {images / second:8.0f} {ratio:21.2f}")

    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "images"
        write_images(root, images, width)
        for kind in ("centre", "crop"):
            loader = torchvision_loader(root, kind == "crop", workers)
            told(kind, "torchvision", seconds(loader), seconds(loader))
            for cache in ("none", "scaled", "disk") if kind == "crop" else ("none", "scaled", "ram", "disk"):
                scaled = cache == "scaled"
                data = folder(
                    str(root), 224, cache="none" if scaled else cache, decode="scaled" if scaled else "exact",
                    workers=workers, batch_size=BATCH, verify=False, mean=[0.5] * 3, std=[0.25] * 3,
                    augment=Compose([RandomResizedCrop(), Flip()]) if kind == "crop" else None,
                    cache_dir=str(Path(place) / f"{cache}_{kind}"),
                )  # fmt: skip
                told(kind, cache, *(seconds(data.train_batches(epoch, device=CPU)) for epoch in range(2)))
    return rates


if __name__ == "__main__":
    measure(*map(int, sys.argv[1:]))
