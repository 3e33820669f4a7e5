"""What `callbacks=health` costs: training with it against training without, at its default rate.

    python benchmarks/health_overhead.py [model ...]

One run, in which blocks of as many steps as the rate says alternate: off, on, on, off. So each block that is on holds
one step that is looked at, and a machine that gets slower slows both. Printed is the median over pairs of neighbouring
blocks of (time on) / (time off), all logging on, ends of epochs included.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from cnn_train.config.compose import compose
from cnn_train.experiment.build import prepare
from cnn_train.experiment.callbacks import build_callbacks
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.network import build_network_and_data
from cnn_train.experiment.trainer import quiet_libraries
from cnn_train.training.callbacks.checkpoints import Checkpoints
from cnn_train.training.callbacks.health import Health
from cnn_train.training.loop import Callback, Loop

PAIRS = {"lenet5": 30, "resnet20": 3}


class Alternate(Callback):
    """Hands the steps of every other block to the health callback, and takes the time of each block."""

    def __init__(self, health: Health):
        self.health = health
        self.times: list[float] = []
        self.begin = time.perf_counter()

    def on_step(self, loop: Loop) -> None:
        block, place = divmod(loop.progress.step - 1, self.health.every)
        if is_on(block):
            self.health.on_step(loop)
        if place == self.health.every - 1:
            now = time.perf_counter()
            self.times.append(now - self.begin)
            self.begin = now

    def on_epoch_end(self, loop: Loop) -> None:
        self.health.on_epoch_end(loop)  # does nothing if no step of the epoch was looked at


def is_on(block: int) -> bool:
    return block % 4 in (1, 2)


def measure(model: str) -> tuple[float, float]:
    """Median milliseconds per step without, and the median of the ratios."""
    blocks = 2 * PAIRS.get(model, 3) + 2  # the first two warm up
    quiet = ["trainer.eval_every=100000", "trainer.progress=none"]
    cfg = compose([f"model={model}", "data=digits", "callbacks=health", *quiet])
    every = cfg.callbacks.health.every
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        _, data = build_network_and_data(cfg)
        cfg.trainer.max_epochs = -(-blocks * every // (data.size("train") // data.batch_size))
        machine = Machine.of(cfg.trainer)
        callbacks = build_callbacks(cfg, machine)
        alternate = Alternate(next(callback for callback in callbacks if isinstance(callback, Health)))
        # Writing checkpoints takes as long as the disk likes.
        others = [c for c in callbacks if not isinstance(c, Checkpoints | Health)]
        experiment = prepare(cfg, machine, Path(folder), [*others, alternate])
        experiment.trainer.fit(experiment.loop)
    times = alternate.times[2:blocks]
    pairs = [
        (a, b) if is_on(first) else (b, a)
        for first, a, b in zip(range(2, blocks, 2), times[::2], times[1::2], strict=True)
    ]
    without = statistics.median(off for _, off in pairs) / every
    return 1e3 * without, statistics.median(on / off for on, off in pairs)


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in sys.argv[1:] or PAIRS:
        without, ratio = measure(name)
        print(f"{name:12} without {without:8.2f} ms/step   with health / without {ratio:.3f}")
