"""A training step under cnn-train against loops that people write: what the convenience costs.

    python benchmarks/step_overhead.py [model ...]

Three loops over the same network: an expert's (normalized images in memory, indexed batch by batch, fused AdamW,
nothing logged; the faster of both memory layouts), one with a DataLoader, and stock Lightning with two loggers. All
run in one process and in turns, an epoch each, so that a machine that gets slower slows all. Printed are medians over
epochs of (our time per step) / (theirs). Ours has all logging on: TensorBoard, metrics.csv, learning rate, gradient
norm, the test of finiteness, throughput, the progress display, checkpoints. Nothing augments. `one a call` is ours with
a callback of Lightning's that listens to single batches; `evaluation` is a pass over the training images.
"""

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cnn_train.config.build import build, build_layers
from cnn_train.config.compose import compose
from cnn_train.experiment.build import prepare
from cnn_train.experiment.callbacks import build_callbacks
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.trainer import quiet_libraries
from cnn_train.training.evaluation import Evaluation
from cnn_train.training.loop import Callback, Loop

EPOCHS = {"lenet5": 24, "resnet18": 5}
CPU = torch.device("cpu")
# Of our time to theirs, at most.
GOALS = {
    "lenet5": {"expert": 1.03, "loader": 1.0, "lightning": 1.0, "one a call": 1.10, "evaluation": 1.05},
    "resnet18": {"expert": 1.01, "loader": 1.0, "lightning": 1.0, "one a call": 1.10, "evaluation": 1.05},
}


class Listener(L.Callback):
    """A user's, which wants every batch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        pass


class Stock(L.LightningModule):
    """What a user of Lightning writes."""

    def __init__(self, network: nn.Module, lr: float):
        super().__init__()
        self.network, self.lr, self.loss, self.times = network, lr, nn.CrossEntropyLoss(), []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = self.loss(self.network(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def on_train_batch_end(self, *_) -> None:
        self.times.append(time.perf_counter())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Alternate(Callback):
    """Times our steps of an epoch, then runs and times an epoch of each other loop."""

    def __init__(self, cfg, others: bool):
        self.cfg, self.others, self.times = cfg, others, []
        self.seconds: dict[str, list[float]] = {"ours": []}

    def on_train_start(self, trainer, loop):
        batches = list(loop.data.train_batches(0, device=CPU))
        self.images, self.labels = torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches])
        data = TensorDataset(self.images, self.labels)
        self.loader = DataLoader(data, batch_size=loop.data.batch_size, shuffle=True, drop_last=loop.data.drop_last)
        self.loss = nn.CrossEntropyLoss()
        if not self.others:
            return
        self.runs: dict[str, Callable[[], list[float]]] = {
            "expert": self.expert(torch.contiguous_format), "expert, NHWC": self.expert(torch.channels_last),
            "loader": self.plain(), "lightning": self.lightning,
        }  # fmt: skip
        self.seconds |= {name: [] for name in [*self.runs, "ours evaluated", "evaluated"]}

    def network(self) -> nn.Module:
        cfg, classes = self.cfg, int(self.labels.max()) + 1
        return build(cfg.model, num_classes=classes, in_channels=self.images.size(1), layers=build_layers(cfg)).train()

    def expert(self, layout: torch.memory_format) -> Callable[[], list[float]]:
        network, images = self.network().to(memory_format=layout), self.images.contiguous(memory_format=layout)
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.cfg.optimizer.lr, fused=True)
        size = self.cfg.data.batch_size

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            return ((images[index], self.labels[index]) for index in torch.randperm(len(images)).split(size))

        return lambda: self.epoch(network, optimizer, batches())

    def plain(self) -> Callable[[], list[float]]:
        network = self.network()
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.cfg.optimizer.lr)
        return lambda: self.epoch(network, optimizer, self.loader)

    def epoch(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> list[float]:
        times = []
        for images, labels in batches:
            loss = self.loss(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times.append(time.perf_counter())
        return times

    def lightning(self) -> list[float]:
        from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

        with tempfile.TemporaryDirectory() as folder:
            module = Stock(self.network(), self.cfg.optimizer.lr)
            L.Trainer(
                accelerator="cpu", max_epochs=1, logger=[TensorBoardLogger(folder), CSVLogger(folder)],
                default_root_dir=folder, enable_model_summary=False, enable_progress_bar=False,
            ).fit(module, self.loader)  # fmt: skip
        return module.times

    def evaluate(self, loop: Loop) -> None:
        """A pass of ours, and one of a plain loop, over the images in memory."""
        loop.network.eval()
        with torch.inference_mode():
            evaluation, start = Evaluation(loop.network, loop.task, None, CPU), time.perf_counter()
            for batch in loop.data.eval_batches("train", device=CPU):
                evaluation.add(batch.images, batch)
            evaluation.finish(lambda value: value)
            ours, start = time.perf_counter() - start, time.perf_counter()
            right = torch.zeros((), dtype=torch.long)
            loss = torch.zeros(())
            size = loop.data.eval_batch_size
            for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
                scores = loop.network(images)
                right += (scores.argmax(1) == labels).sum()
                loss += self.loss(scores, labels) * len(images)
        self.seconds["ours evaluated"].append(ours)
        self.seconds["evaluated"].append(time.perf_counter() - start)
        loop.network.train()

    def on_step(self, loop: Loop) -> None:
        self.times.append(time.perf_counter())

    def on_epoch_end(self, loop: Loop) -> None:
        self.seconds["ours"].append(per_step(self.times))
        self.times = []
        if self.others:
            for name, run in self.runs.items():
                self.seconds[name].append(per_step(run()))
            self.evaluate(loop)


def per_step(times: list[float]) -> float:
    """Seconds per step from the end of the first to the end of the last, so that all start warm."""
    return (times[-1] - times[0]) / (len(times) - 1)


def train(model: str, *callbacks: L.Callback, others: bool = True) -> dict[str, list[float]]:
    """Seconds per step of each loop in each epoch but the first."""
    epochs = EPOCHS.get(model, 5)
    words = [f"model={model}", "data=digits", "augment=none", f"trainer.max_epochs={epochs}", "trainer.eval_every=1000"]
    cfg = compose(words)
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        machine, alternate = Machine.of(cfg.trainer), Alternate(cfg, others)
        experiment = prepare(cfg, machine, Path(folder), [*build_callbacks(cfg, machine), *callbacks, alternate])
        experiment.trainer.fit(experiment.loop)
    return {name: values[1:] for name, values in alternate.seconds.items()}


def measure(model: str) -> dict[str, tuple[float, float]]:
    """For each loop its milliseconds per step, and the median ratio of ours to it."""
    seconds = train(model)
    listened = train(model, Listener(), others=False)
    layout = min("expert", "expert, NHWC", key=lambda name: statistics.median(seconds[name]))
    pairs = {
        "expert": (seconds["ours"], seconds[layout]), "loader": (seconds["ours"], seconds["loader"]),
        "lightning": (seconds["ours"], seconds["lightning"]), "one a call": (listened["ours"], seconds[layout]),
        "evaluation": (seconds["ours evaluated"], seconds["evaluated"]),
    }  # fmt: skip
    found = {}
    for name, (ours, theirs) in pairs.items():
        found[name] = (
            1e3 * statistics.median(theirs),
            statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
        )
    return found


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for model in sys.argv[1:] or EPOCHS:
        for name, (milliseconds, ratio) in measure(model).items():
            goal = GOALS.get(model, {}).get(name)
            print(f"{model:12} {name:12} {milliseconds:8.2f} ms   ours / theirs {ratio:.3f}   goal {goal}")
