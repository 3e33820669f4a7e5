"""Is `predict` flat in memory, and as fast as a plain script? Many PNG files through a trained LeNet-5.

    python benchmarks/predict.py [images]

Prints peak memory after a tenth of the images and after all, and milliseconds per image of ours and of a plain loop.
"""

import contextlib
import io
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cnn_train import compose, load, train
from cnn_train.experiment.predict import predict
from cnn_train.experiment.trained import Trained

SIDE = 256  # of the images; the network sees 32


def plain(model: Trained, paths: list[Path], batch_size: int = 32) -> list[int]:
    """What one writes by hand: a data set, a loader with as many workers as cores, a loop."""

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            image = torch.from_numpy(np.array(Image.open(paths[index]).convert("L")))[None]
            return model.sized(image)

    found = []
    with torch.no_grad():
        for batch in torch.utils.data.DataLoader(Images(), batch_size, num_workers=2):
            found += model(model.normalized(batch)).softmax(1).argmax(1).tolist()
    return found


def memory() -> float:
    """The largest resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(count: int = 10_000) -> tuple[float, float, float, float]:
    """MB after a tenth and after all images; milliseconds per image, ours and the plain script's."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        base = Path(name)
        short = ["model=lenet5", "trainer.max_epochs=1", "trainer.progress=none", "logger=none", "trainer=cpu"]
        with contextlib.redirect_stdout(io.StringIO()):
            train(compose([*short, f"output_dir={base / 'runs'}"]))
        (run,) = (base / "runs" / "lenet5").iterdir()
        (base / "images").mkdir()
        random = np.random.default_rng(0)
        paths = [base / "images" / f"{i:06}.png" for i in range(count)]
        for path in paths:
            noise = random.integers(0, 256, (SIDE // 8, SIDE // 8), dtype=np.uint8)
            Image.fromarray(noise).resize((SIDE, SIDE)).save(path)
        model = load(run, device="cpu")
        predict(run, paths[: count // 10], base / "warm")
        first = memory()
        started = time.perf_counter()
        predict(run, base / "images", base / "ours")
        ours = (time.perf_counter() - started) / count * 1000
        last = memory()
        started = time.perf_counter()
        plain(model, paths)
        theirs = (time.perf_counter() - started) / count * 1000
    return first, last, ours, theirs


def main(count: int = 10_000) -> None:
    first, last, ours, theirs = measure(count)
    print(f"memory    {first:,.0f} MB after {count // 10:,} images, {last:,.0f} MB after {count:,}")
    print(f"speed     {ours:.2f} ms per image; a plain script {theirs:.2f}; ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
