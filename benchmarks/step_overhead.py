"""A training step under cnn-train against the same network in a hand-written PyTorch loop with a DataLoader.

    python benchmarks/step_overhead.py [model ...]

Both run in one process and in alternation, an epoch of ours and an epoch of theirs, so that a machine that gets slower
slows both. Printed is the median over epochs of (our time per step) / (their time per step). Ours has all logging on:
TensorBoard, metrics.csv, learning rate, gradient norm, throughput, the progress display, checkpoints. Neither augments.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cnn_train.config.build import build, build_layers
from cnn_train.config.compose import compose
from cnn_train.experiment.build import prepare
from cnn_train.experiment.callbacks import build_callbacks
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.trainer import quiet_libraries
from cnn_train.training.loop import Callback, Loop

EPOCHS = {"lenet5": 40, "resnet18": 6}


class Alternate(Callback):
    """Times our steps of an epoch, then runs and times an epoch of the plain loop."""

    def __init__(self, cfg):
        self.cfg = cfg

    def on_train_start(self, trainer, loop):
        cfg, data = self.cfg, loop.data
        self.network = build(
            cfg.model, num_classes=data.num_classes, in_channels=data.in_channels, layers=build_layers(cfg)
        )
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=cfg.optimizer.lr)
        self.loss = nn.CrossEntropyLoss()
        batches = list(data.train_batches(0, device=torch.device("cpu")))
        dataset = TensorDataset(torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches]))
        self.loader = DataLoader(dataset, batch_size=data.batch_size, shuffle=True, drop_last=data.drop_last)
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.times: list[float] = []

    def on_step(self, loop: Loop) -> None:
        self.times.append(time.perf_counter())

    def on_epoch_end(self, loop: Loop) -> None:
        self.ours.append(per_step(self.times))
        self.times = []
        times = []
        self.network.train()
        for images, labels in self.loader:
            loss = self.loss(self.network(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            times.append(time.perf_counter())
        self.theirs.append(per_step(times))


def per_step(times: list[float]) -> float:
    """Seconds per step from the end of the first to the end of the last, so that both start warm."""
    return (times[-1] - times[0]) / (len(times) - 1)


def measure(model: str) -> tuple[float, float, float]:
    """Median milliseconds per step of ours and of the plain loop, and the median of the ratios."""
    epochs = EPOCHS.get(model, 6)
    cfg = compose(
        [f"model={model}", "data=digits", "augment=none", f"trainer.max_epochs={epochs}", "trainer.eval_every=1000"]
    )
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        machine, alternate = Machine.of(cfg.trainer), Alternate(cfg)
        experiment = prepare(cfg, machine, Path(folder), [*build_callbacks(cfg, machine), alternate])
        experiment.trainer.fit(experiment.loop)
    ours, theirs = alternate.ours[1:], alternate.theirs[1:]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return 1e3 * statistics.median(ours), 1e3 * statistics.median(theirs), statistics.median(ratios)


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in sys.argv[1:] or EPOCHS:
        mine, plain, ratio = measure(name)
        print(f"{name:12} cnn-train {mine:8.2f} ms/step   plain loop {plain:8.2f} ms/step   ratio {ratio:.3f}")
