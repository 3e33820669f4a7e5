"""Trains every network of conf/model for a moment (trainer=smoke) and shows a table; exits with 1 if one fails.

    python benchmarks/smoke_all.py [--jobs 2] [--limit 600] [--set trainer.max_epochs=4] [model ...]

Classification is on data=digits, segmentation on data=digit_scenes, in small batches on the CPU. Each run is in a
forked child of a process that has imported everything, so that a run costs its training and not its imports, and one
that hangs or dies takes nothing with it.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_train.config.choices import Choices

if TYPE_CHECKING:
    from cnn_train.training.loop import Loop

LIBRARIES = {"timm": "model.name=resnet18", "torchvision": "model.name=resnet18"}


@dataclass
class Result:
    """How one run ended."""

    model: str
    parameters: int | None = None
    seconds: float = 0.0
    first: float | None = None
    last: float | None = None
    error: str = ""


def smoke(model: str, settings: list[str], folder: Path, sender: Connection) -> None:
    """One run, in the child; tells parameters and losses, or the error's last line."""
    from cnn_train.config.compose import compose
    from cnn_train.experiment import build
    from cnn_train.experiment.results import smoke_losses
    from cnn_train.experiment.train import train

    result = Result(model)
    loops: list[Loop] = []
    build_loop = build.build_loop

    def watched(*arguments: Any, **options: Any) -> "Loop":
        """The loop holds the losses, whether or not the run then fails."""
        loops.append(build_loop(*arguments, **options))
        return loops[0]

    build.build_loop = watched
    log = (folder / f"{model}.log").open("w", encoding="utf-8")
    start = time.monotonic()
    try:
        with redirect_stdout(log), redirect_stderr(log):
            target = (Choices.find().body("model", model).get("model") or {}).get("_target_", "")
            brings = {".segmentation.": "digit_scenes", ".detection.": "digit_boxes"}
            data = next((name for wing, name in brings.items() if wing in target), "digits")
            lines = [f"model={model}", f"data={data}", "trainer=smoke"]
            lines += ["trainer.accelerator=cpu", "trainer.progress=none", "logger=none", "data.batch_size=8"]
            lines += ["data.eval_batch_size=8", "callbacks.samples=1", f"output_dir={folder / model}", *settings]
            lines += [LIBRARIES[model]] if model in LIBRARIES else []
            train(compose(lines))
    except BaseException as error:
        traceback.print_exc(file=log)
        result.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        log.close()
    result.seconds = time.monotonic() - start
    if loops:
        result.parameters = sum(p.numel() for p in loops[0].network.parameters())
        if loops[0].curve.losses:
            result.first, result.last = smoke_losses(loops[0])
    sender.send(result)
    sender.close()


def run_all(models: list[str], settings: list[str], folder: Path, limit: float, jobs: int) -> Iterator[Result]:
    """Results in the order in which the runs end."""
    context = multiprocessing.get_context("fork")
    waiting = list(models)
    running: dict[Connection, tuple[str, ForkProcess, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            model = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=smoke, args=(model, settings, folder, sender))
            child.start()
            sender.close()
            running[receiver] = (model, child, time.monotonic())
        ready = wait(list(running), timeout=1.0)
        for receiver in [end for end in running if end in ready]:
            model, child, start = running.pop(receiver)
            try:
                yield receiver.recv()
            except EOFError:
                child.join()
                seconds = time.monotonic() - start
                yield Result(model, seconds=seconds, error=f"the process ended with code {child.exitcode}")
            child.join()
        for receiver, (model, child, start) in list(running.items()):
            if time.monotonic() - start > limit:
                del running[receiver]
                child.kill()
                child.join()
                yield Result(model, seconds=limit, error=f"not done in {limit:g} s")


def line(result: Result) -> str:
    """One row of the table."""
    parameters = "-" if result.parameters is None else f"{result.parameters:,}"
    losses = "-" if result.first is None else f"{result.first:.3f} -> {result.last:.3f}"
    state = "ok" if not result.error else f"failed: {result.error}"
    return f"{result.model:30} {parameters:>13} {result.seconds:8.1f}  {losses:20} {state}"


def main() -> int:
    known = Choices.find().options("model")
    parser = argparse.ArgumentParser(description="Train every network for a moment and show a table.")
    parser.add_argument("models", nargs="*", help="names of conf/model; none: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one thread each if several")
    parser.add_argument("--limit", type=float, default=900, help="seconds that one run may take")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for every run")
    parser.add_argument("--folder", type=Path, help="keep what the runs print here, a file each")
    options = parser.parse_args()
    unknown = sorted(set(options.models) - set(known))
    if unknown:
        parser.error(f"no model {', '.join(unknown)}; cnn-train list model shows them")
    if options.jobs > 1:
        os.environ["OMP_NUM_THREADS"] = "1"

    import torch

    import cnn_train.experiment  # noqa: F401  imported once, before the children are forked

    if options.jobs > 1:
        torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'model':30} {'parameters':>13} {'seconds':>8}  {'loss':20} state")
        for result in run_all(options.models or known, options.set, folder, options.limit, options.jobs):
            results.append(result)
            shutil.rmtree(folder / result.model, ignore_errors=True)  # hundreds of megabytes of checkpoints
            print(line(result), flush=True)
    failed = [result.model for result in results if result.error]
    print(f"{len(results) - len(failed)} of {len(results)} passed" + (f"; not {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
