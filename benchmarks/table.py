"""What speed promises against what it measures here, as one table: what, against what, goal, measured, pass or not.

    python benchmarks/table.py [step] [disk] [start] [scale] [sweep]

Some minutes on a quiet machine. Ratios of steps, of start-up and of memory are of runs in turns; the others of one run
after the other.
"""

import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import predict
import reading
import step_overhead
import sweep_overhead
from rich.console import Console
from rich.table import Table

ROWS: list[tuple[str, str, str, str, str]] = []


def row(what: str, against: str, goal: float, measured: float, *, most: bool) -> None:
    """A figure that should be at `most`, or else at least, the goal."""
    passes = measured <= goal if most else measured >= goal
    ROWS.append((what, against, f"{'<=' if most else '>='} {goal:g}", f"{measured:.3g}", "pass" if passes else "no"))
    print(*ROWS[-1], sep=" | ", flush=True)


def unmeasured(what: str, against: str, goal: str, why: str) -> None:
    ROWS.append((what, against, goal, "-", why))


def step() -> None:
    names = {
        "expert": "expert's loop: indexed tensors, fused AdamW", "loader": "plain loop with a DataLoader",
        "lightning": "stock Lightning, two loggers", "one a call": "expert's loop", "evaluation": "plain loop",
    }  # fmt: skip
    for model in step_overhead.EPOCHS:
        with contextlib.redirect_stdout(io.StringIO()):
            found = step_overhead.measure(model)
        for name, (_, ratio) in found.items():
            what = {"one a call": "step with a callback for each batch", "evaluation": "evaluation"}.get(name, "step")
            row(f"{model}: {what}", names[name], step_overhead.GOALS[model][name], ratio, most=True)
    for library in ("timm", "fastai", "Hugging Face"):
        unmeasured(
            "step", f"the loop of {library}", "<= 1", "its loop is in a script or a package that is not installed"
        )


def disk() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        rates = reading.measure(400, 1, 500)
        large = reading.measure(24, 1, 4000)
    for kind, name in (("centre", "brought to size"), ("crop", "random crops")):
        theirs = rates[kind, "torchvision"][1]
        row(
            f"JPEGs of 500x375, {name}, images/s",
            "torchvision's reference",
            2.0,
            rates[kind, "none"][1] / theirs,
            most=False,
        )
        theirs = large[kind, "torchvision"][1]
        row(f"of 4000x3000, data.decode=scaled, {name}", "the same", 2.0, large[kind, "scaled"][1] / theirs, most=False)
    row(
        "second epoch, data.cache=ram",
        "the first",
        5.0,
        rates["centre", "ram"][1] / rates["centre", "ram"][0],
        most=False,
    )
    row(
        "of 4000x3000, data.cache=disk",
        "the first",
        5.0,
        large["centre", "disk"][1] / large["centre", "disk"][0],
        most=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        shards = reading.measure_shards()
    row("tar shards, bytes of images", "tarfile's stream", 0.9, shards["bytes"], most=False)
    row("tar shards to batches, data=webdataset", "tarfile's stream, decoded alike", 0.9, shards["batches"], most=False)
    first, last, ours, theirs = predict.measure(2000)
    row("predict of 2,000 PNG files, s per image", "a plain script", 1.05, ours / theirs, most=True)
    row("its memory after all", "after 200 files", 1.02, last / first, most=True)
    row("epoch of 240 small images, workers spawned", "forked", 1.2, epoch("spawn") / epoch("fork"), most=True)
    row("100,000 paths ready, data.verify=false, s", "", 10, many(100_000), most=True)
    unmeasured("100,000 paths ready, every file decoded, s", "", "<= 10", "a decoding takes about 1 ms a file and core")


def many(files: int) -> float:
    """Seconds until so many JPEGs in two classes, links to a hundred files, can be trained on."""
    from cnn_train.data.folder import folder

    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "images"
        reading.write_images(root, 100, 64)
        first = [*(root / "train").rglob("*.jpg")]
        for number in range(files // len(first)):
            for path in first:
                os.link(path, path.with_name(f"{path.stem}_{number}.jpg"))
        begun = time.perf_counter()
        data = folder(str(root), 64, verify=False, cache="none", workers=2, cache_dir=place)
        next(iter(data.train_batches(0, device=reading.CPU)))
        return time.perf_counter() - begun


def epoch(method: str) -> float:
    """Seconds of the second epoch of 240 small images and its validation, in two workers started by `method`."""
    code = f"""
import sys, tempfile, time, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
import reading
from pathlib import Path
from cnn_train.data.folder import folder
if __name__ == "__main__":
    torch.multiprocessing.set_start_method({method!r})
    with tempfile.TemporaryDirectory() as place:
        reading.write_images(Path(place) / "a", 240, 64)
        data = folder(place + "/a", 64, workers=2, batch_size=4, verify=False, cache_dir=place)
        for epoch in range(4):
            start = time.perf_counter()
            list(data.train_batches(epoch, device=torch.device("cpu")))
            list(data.eval_batches("val", device=torch.device("cpu")))
            print(time.perf_counter() - start)
"""
    with tempfile.TemporaryDirectory() as place:
        script = Path(place) / "epochs.py"
        script.write_text(code)
        out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    return statistics.median(map(float, out.split()[1:]))


def cpu(*command: str, **environment: str) -> float:
    """CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], times: int = 3) -> float:
    """The ratio of the medians."""
    pairs = [(ours(), theirs()) for _ in range(times)]
    return statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)


FIRST_STEP = """
import os, sys
sys.argv = ["cnn-train", "trainer=cpu", "trainer.progress=plain", "output_dir=" + sys.argv[1]]
import cnn_train.__main__
from cnn_train.training.loop import Loop
Loop.step = lambda *_: os._exit(0)
cnn_train.__main__.main()
"""


def start() -> None:
    python = sys.executable
    with tempfile.TemporaryDirectory() as place:
        words = ["trainer=cpu", "trainer.max_epochs=1", "trainer.limit_batches=2", f"output_dir={place}"]
        cpu(python, "-m", "cnn_train", *words)
        (run,) = (path for path in Path(place).glob("lenet5/*") if path.is_dir() and not path.is_symlink())
        from PIL import Image

        Image.new("L", (8, 8)).save(f"{place}/one.png")
        both = (python, "-c", "import torch, lightning.pytorch")
        row("Enter to the first step, CPU s", "import torch, lightning.pytorch", 1.15,
            in_turns(lambda: cpu(python, "-c", FIRST_STEP, place), lambda: cpu(*both)), most=True)  # fmt: skip
        torch = (python, "-c", "import torch")
        for name, line in {
            "predict of one image": ("predict", f"run={run}", f"input={place}/one.png"),
            "eval": ("eval", f"run={run}"), "inspect": ("inspect", "lenet5"),
        }.items():  # fmt: skip
            command = (python, "-m", "cnn_train", *line)
            ratio = in_turns(partial(cpu, *command), partial(cpu, *torch))
            row(f"{name}, CPU s", "import torch", 1.3, ratio, most=True)
        row("--help, CPU s", "import torch", 0.25,
            in_turns(lambda: cpu(python, "-m", "cnn_train", "--help"), lambda: cpu(*torch)), most=True)  # fmt: skip


def seconds_per_step(*words: str, cores: str = "0,1") -> float:
    """What cost.json says of a run with one thread for each process."""
    with tempfile.TemporaryDirectory() as place:
        command = ["taskset", "-c", cores, sys.executable, "-m", "cnn_train", *words, f"output_dir={place}"]
        cpu(*command, OMP_NUM_THREADS="1")
        return json.loads(next(Path(place).glob("*/*/cost.json")).read_text())["seconds_per_step"]


PLAIN_STEP = """
import resource, sys, torch
from cnn_train.config.build import build, build_layers
from cnn_train.config.compose import compose
cfg = compose(["model=resnet18"])
network = build(cfg.model, num_classes=10, in_channels=1, layers=build_layers(cfg)).train()
optimizer = torch.optim.AdamW(network.parameters(), fused=True)
images, labels = torch.randn(64, 1, 32, 32), torch.randint(0, 10, (64,))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(6):
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
OUR_STEP = """
import resource, sys, tempfile
from cnn_train.config.compose import compose
from cnn_train.experiment.build import prepare
from cnn_train.experiment.callbacks import build_callbacks
from cnn_train.experiment.hardware import Machine
from cnn_train.training.loop import Callback
from pathlib import Path

class Peak(Callback):
    def on_train_start(self, trainer, loop):
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    def on_step(self, loop):
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

cfg = compose(["model=resnet18", "data=synthetic", "data.channels=1", "data.samples=400", "image_size=32",
               "trainer=cpu", "trainer.max_epochs=1", "trainer.progress=none", "augment=none"])
machine, peak = Machine.of(cfg.trainer), Peak()
with tempfile.TemporaryDirectory() as folder:
    experiment = prepare(cfg, machine, Path(folder), [*build_callbacks(cfg, machine), peak])
    experiment.trainer.limit_val_batches = 0
    experiment.trainer.fit(experiment.loop)
print(peak.peak - peak.before)
"""


def scale() -> None:
    def grown(code: str) -> float:
        out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
        return float(out.stdout.split()[-1])

    row(
        "resnet18: memory that steps add (RSS)",
        "plain loop",
        1.02,
        in_turns(lambda: grown(OUR_STEP), lambda: grown(PLAIN_STEP)),
        most=True,
    )
    words = [
        "model=resnet18",
        "trainer.max_epochs=1",
        "trainer.limit_batches=10",
        "trainer.progress=none",
        "logger=none",
    ]
    one = seconds_per_step(*words, "trainer=cpu", cores="0")
    several = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=128"]
    two = seconds_per_step(*words, *several)
    row("resnet18: images/s of two processes, 64 images each", "one on one core", 1.7, 2 * one / two, most=False)
    unmeasured("trainer.strategy=fsdp", "", "saves, resumes, evaluates", "not there")


def sweep() -> None:
    with tempfile.TemporaryDirectory() as place:
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            there = find_spec("hydra_plugins") and find_spec("hydra_plugins.hydra_joblib_launcher")
            theirs = ["joblib"] if there else []
            passed = [getattr(sweep_overhead, name)(Path(place)) for name in ("warm", *theirs, "sleep", "plan")]
        for line, passes in zip(
            [line for line in told.getvalue().splitlines() if "goal" in line], passed, strict=False
        ):
            what, figures = line.split("goal <=")
            goal, measured = figures.split("measured")
            ROWS.append((what.strip(), "", f"<= {goal.strip()}", measured.split()[0], "pass" if passes else "no"))
    if not theirs:
        unmeasured("wall seconds of 16 jobs", "Hydra's joblib launcher", "<= 1", "hydra-joblib-launcher is missing")


PARTS = {"step": step, "disk": disk, "start": start, "scale": scale, "sweep": sweep}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    begun = time.monotonic()
    for name in [word for word in sys.argv[1:] if word in PARTS] or PARTS:
        PARTS[name]()
    table = Table("what", "against", "goal", "measured", "", title=f"{time.monotonic() - begun:.0f} s")
    for cells in ROWS:
        table.add_row(*cells)
    Console(width=150).print(table)
