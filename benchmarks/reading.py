"""Images a second from files to batches, first and second epoch, against torchvision's DataLoader.

    python benchmarks/reading.py [images] [workers] [width]
    python benchmarks/reading.py shards [images]

JPEGs of 500x375, or of another width (coarse noise enlarged, quality 90), become 224x224: brought to size (`centre`),
or cropped at random and flipped (`crop`). Each `data.cache`, and `data.decode=scaled`. torchvision's
are the transforms of its reference training, in a DataLoader with as many workers.
An epoch is timed from the first request to the last batch, uint8 to normalized float included; the new data set of
each line has no files in its cache.

`shards` reads JPEGs of 224x224 from tar files by `data=webdataset`, shuffled, against a plain loop that streams the
tar files, by turns: the bytes alone, and to normalized batches by the same decoder.
"""

import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

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


def write_shards(root: Path, images: int, shards: int = 4) -> list[Path]:
    random = np.random.default_rng(0)
    paths = [root / f"shard-{number}.tar" for number in range(shards)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for i in range(number, images, shards):
                picture, content = Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)), io.BytesIO()
                picture.resize((224, 224), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
                for suffix, data in (("jpg", content.getvalue()), ("cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(f"{i:06}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return paths


def streamed(paths: Iterable[Path]) -> Iterator[bytes]:
    """The images' bytes, as the tar files have them one after another."""
    for path in paths:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                data = content.read()
                if member.name.endswith(".jpg"):
                    yield data


def plain_batches(paths: Iterable[Path]) -> Iterator[torch.Tensor]:
    from simplejpeg import decode_jpeg

    mean, std = (torch.tensor([value] * 3).view(3, 1, 1) for value in (0.5, 0.25))
    pixels: list[torch.Tensor] = []
    for data in streamed(paths):
        pixels.append(torch.from_numpy(decode_jpeg(data)).permute(2, 0, 1))
        if len(pixels) == BATCH:
            yield (torch.stack(pixels).float() / 255 - mean) / std
            pixels = []
    if pixels:
        yield (torch.stack(pixels).float() / 255 - mean) / std


def measure_shards(images: int = 4000, turns: int = 5) -> dict[str, float]:
    """Images a second from shards, ours over the plain loop's; printed."""
    from cnn_train.data.shards import index
    from cnn_train.data.webdataset import webdataset

    with tempfile.TemporaryDirectory() as place:
        paths = write_shards(Path(place), images)
        names = [str(path) for path in paths]
        entries, _ = index(names, 1, place)
        data = webdataset(
            names, None, names[:1], 224, val_fraction=0.01, workers=0, batch_size=BATCH, mean=[0.5] * 3,
            std=[0.25] * 3, cache_dir=place,
        )  # fmt: skip
        share = images / data.size("train")  # what is cut off for validation is not read in an epoch
        times: dict[str, list[float]] = {"bytes": [], "plain bytes": [], "batches": [], "plain batches": []}
        for turn in range(turns):
            order = np.random.default_rng(turn).permutation(len(entries))
            times["plain bytes"].append(seconds(streamed(paths)))
            times["bytes"].append(seconds(entries[i].image.read() for i in order))
            times["plain batches"].append(seconds(plain_batches(paths)))
            times["batches"].append(seconds(data.train_batches(turn, device=CPU)) * share)
    rates = {name: images / median(values) for name, values in times.items()}
    for name in ("bytes", "batches"):
        ratio = rates[name] / rates[f"plain {name}"]
        print(f"{name:8} {rates[name]:8.0f} images/s, plain {rates[f'plain {name}']:8.0f}: {ratio:.2f}")
    return {name: rates[name] / rates[f"plain {name}"] for name in ("bytes", "batches")}


if __name__ == "__main__":
    if sys.argv[1:2] == ["shards"]:
        measure_shards(*map(int, sys.argv[2:]))
    else:
        measure(*map(int, sys.argv[1:]))
