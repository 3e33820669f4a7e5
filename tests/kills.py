"""Runs in forked processes that end by a kill, a signal or a failing file operation: torch is imported only once."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision.transforms.v2  # noqa: F401  once here, so that a kill finds a child training, not importing
from children import end
from omegaconf import OmegaConf

from cnn_train.config.compose import compose
from cnn_train.runs import checkpoint
from cnn_train.runs import folder as run_folder

# Everything that a state consists of, in an epoch of some tenths of a second.
OPTIONS = (
    "trainer.max_epochs=3", "trainer.limit_batches=5", "trainer.progress=none", "data.batch_size=16", "trainer.ema=0.9",
    "data.eval_batch_size=128", "augment=shift", "model.dropout=0.3", "optimizer=momentum", "optimizer.lr=0.01",
    "norm=none", "logger=none", "callbacks.checkpoint.every_steps=1", "callbacks.checkpoint.keep_best=2",
    "callbacks.samples=1", "trainer.log_every=2",
)  # fmt: skip


def prepare(folder: Path, *options: str) -> Path:
    """A run folder that is ready to train."""
    folder.mkdir(parents=True)
    run_folder.describe(folder, OmegaConf.to_yaml(compose([*OPTIONS, *options])), "cnn-train")
    return folder


def begin(folder: Path, resume: bool, before: Callable[[], object] = lambda: None) -> int:
    """Fork a process that trains the run in `folder`, as the worker of a sweep does; its id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        torch.set_num_threads(1)
        sink = os.open(folder / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(descriptor), "w", buffering=1) for descriptor in (1, 2))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        from cnn_train.cli.guard import guarded
        from cnn_train.config.load import load
        from cnn_train.experiment.train import train

        before()
        code = guarded(lambda: train(load(folder), folder, resume) and None, folder=folder)
    finally:
        os._exit(code)


def whole(folder: Path, resume: bool = False) -> float:
    """Train to the end; the seconds that it took."""
    start = time.monotonic()
    code = end(begin(folder, resume))
    assert code == 0, (folder / "out.txt").read_text()
    return time.monotonic() - start


def difference(folder: Path, other: Path) -> str:
    """What differs between the results of two runs, bit by bit; "" if nothing."""
    for name in ("last.ckpt", "best.ckpt"):
        found = unequal(checkpoint.load(folder / name), checkpoint.load(other / name), name)
        if found:
            return found
    for name in ("metrics.csv", "metrics.json"):
        if (folder / name).read_bytes() != (other / name).read_bytes():
            return name
    return ""


def unequal(a: object, b: object, path: str) -> str:
    if path.endswith("/Cost"):  # seconds
        return ""
    if isinstance(a, torch.Tensor):
        return "" if isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) else path
    if isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), path
        return next((found for key in a if (found := unequal(a[key], b[key], f"{path}/{key}"))), "")
    if isinstance(a, list | tuple):
        assert isinstance(b, list | tuple) and len(a) == len(b), path
        pairs = enumerate(zip(a, b, strict=True))
        return next((found for i, (x, y) in pairs if (found := unequal(x, y, f"{path}/{i}"))), "")
    return "" if a == b or (a != a and b != b) else path


def unreadable(folder: Path) -> list[str]:
    """Checkpoints under their final names that cannot be read."""
    bad = []
    for path in folder.glob("*.ckpt"):
        try:
            checkpoint.load(path)
        except ValueError as error:
            bad.append(f"{path.name}: {error}")
    return bad


def leftovers(folder: Path) -> list[str]:
    """Files that only a killed run leaves."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".") or path.name == "previous.ckpt"]


@contextmanager
def temporary_directory(path: Path | None) -> Iterator[None]:
    """Set TMPDIR to another folder inside the block."""
    before = os.environ.get("TMPDIR")
    if path is not None:
        os.environ["TMPDIR"] = str(path)
    try:
        yield
    finally:
        if path is not None:
            os.environ.pop("TMPDIR")
            if before is not None:
                os.environ["TMPDIR"] = before
