"""The warm server: a process that has imported all that training needs, and forks a child for each job.

It is multiprocessing's fork server, which imports this module once before it forks. It has one thread and touches no
device, so that a child is like a process of its own that has just finished importing: it trains to the same bits.
"""

import gc
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cnn_train.atomic import open_to_append
from cnn_train.sweep import lifeline, system

MARK = "CNN_TRAIN_WARM_SERVER"
# What training imports: by name, since this wing is below it.
IMPORTS = (
    "torch", "torch._dynamo", "torchvision.transforms.v2", "torchmetrics.classification", "lightning",
    "lightning.pytorch.loggers", "torch.utils.tensorboard", "sklearn.datasets", "sklearn.model_selection",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "rich.live", "rich.table",
    "cnn_train.commands._worker", "cnn_train.experiment.fit", "cnn_train.experiment.train",
    "cnn_train.experiment.build",
    "cnn_train.experiment.network", "cnn_train.experiment.results", "cnn_train.experiment.state",
    "cnn_train.experiment.trainer", "cnn_train.experiment.failures", "cnn_train.data.digits",
)  # fmt: skip


@contextmanager
def told_by(path: Path) -> Iterator[None]:
    """Let a server that starts inside the block know what it is, and which file to make when it is ready."""
    os.environ[MARK] = str(path)
    try:
        yield
    finally:
        del os.environ[MARK]


def warm_up(ready: Path) -> None:
    """Import everything; what a machine lacks, the job that needs it will tell."""
    parent = os.getppid()
    system.leave_group()  # a Ctrl-C or a closed terminal is the sweep's, which tells the jobs
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # counting GPUs must not initialize CUDA before the fork
    for name in IMPORTS:
        with suppress(ImportError):
            importlib.import_module(name)
        if os.getppid() != parent:
            sys.exit()
    gc.collect()
    gc.freeze()  # a child's collector leaves these objects alone, and so their memory shared
    with suppress(OSError):
        ready.touch()


def train(arguments: Sequence[str], place: Mapping[str, str]) -> None:
    """Run one job in the child: the worker command with the log as its output. Exits with the job's code."""
    system.leave_group()
    system.default_signals()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        log = open_to_append(Path(arguments[0], "log.txt"))
    except OSError:  # a link: the worker refuses the folder
        log = os.dup(null)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115  for the process's life
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    os.environ.update(place)
    os.environ[lifeline.MARK] = "1"
    sys.argv = ["cnn-train", "worker", *arguments]
    if threads := place.get("OMP_NUM_THREADS"):
        importlib.import_module("torch").set_num_threads(int(threads))
    code = importlib.import_module("cnn_train.__main__").main(["worker", *arguments])
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


if MARK in os.environ:
    warm_up(Path(os.environ.pop(MARK)))
