"""Segmentation networks, and the claims of their papers, on the embedded digit scenes.

    python benchmarks/segmentation.py table [--seeds 3] [--epochs 3] [--scenes 1600] [--jobs 1] [--write] [network ...]
    python benchmarks/segmentation.py claim NAME [--seeds 3] [--epochs 3] [--scenes 1600] [--jobs 1]

`--folder DIR` keeps the runs there, and takes those that are there already: a table that was broken off goes on, and a
claim need not train again what the table has trained. `--jobs` of them are trained at a time. NAME is skips, holes,
unpooling, aspp, aspp_deep, crf, checkerboard or ceiling.

Every network is made narrow enough for a CPU and is trained alike: AdamW at 2e-3 with batches of 2, cosine, group norm,
cross-entropy and Dice, shifted scenes. `table` gives test mIoU (mean and standard deviation over the seeds),
parameters, multiply-adds for one scene, time for a training step and the memory that the process grew to; `--write`
puts it between the markers of docs/segmentation.md, with the command. `claim` trains what a paper compares and shows
the same for each side; `checkerboard` and `ceiling` train nothing.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev

PAGE = Path(__file__).parents[1] / "docs" / "segmentation.md"
BEGIN, END = "<!-- table: benchmarks/segmentation.py -->", "<!-- end of table -->"

RESNET = ["model.encoder=resnet18", "model.encoder_options={widths:[16,32,64,64],stem:small}"]
VGG = ["model.width=16"]
NETWORKS = {
    "fcn32s": [*VGG, "model.pad_input=false", "model.dropout=0"],
    "fcn16s": [*VGG, "model.pad_input=false", "model.dropout=0"],
    "fcn8s": [*VGG, "model.pad_input=false", "model.dropout=0"],
    "unet": ["model.width=16"],
    "unet_encoder": [*RESNET, "model.decoder_channels=[64,32,16,16]"],
    "segnet": VGG,
    "refinenet": [*RESNET, "model.channels=16", "model.dropout=0"],
    "pspnet": [*RESNET, "model.output_stride=4", "model.aux=true"],
    "gcn": ["model.encoder=resnet18", "model.encoder_options={widths:[16,32,64,64]}", "model.kernel_size=7"],
    "deeplabv1": [*VGG, "model.channels=128", "model.rate=4", "model.dropout=0"],
    "deeplabv2": [*RESNET, "model.stride_in_1x1=false", "model.output_stride=4", "model.atrous_rates=[2,4,6,8]"],
    "deeplabv3": ["model.aux=false"],
    "deeplabv3plus": [
        *RESNET, "model.output_stride=8", "model.eval_output_stride=null", "model.atrous_rates=[1,2,3]",
        "model.channels=64", "model.low_level_channels=16", "model.separable=true",
    ],
}  # fmt: skip
RECIPE = [
    "norm=gn", "loss=ce_dice", "augment=shift", "optimizer=adamw", "optimizer.lr=2e-3", "scheduler=cosine",
    "scheduler.warmup_epochs=0.25", "data.batch_size=2", "image_size=64",
]  # fmt: skip


def network(name: str) -> list[str]:
    return [f"model={name}", *NETWORKS[name]]


NO_CONTEXT = [*network("deeplabv3"), "model.atrous_rates=[]", "model.image_pooling=false"]
COARSE, HOLES = ([*NO_CONTEXT, f"model.output_stride={stride}"] for stride in (8, 4))
# One block a stage: a unit of the last map sees 49 pixels of a scene, of ResNet-18's 109.
SHALLOW = [*network("deeplabv3"), "model.encoder_options={stem:small,depths:[1,1,1,1]}"]


def context(settings: list[str]) -> dict[str, list[str]]:
    """DeepLab v3 without context beyond the encoder, with ASPP, and with image pooling, too."""
    aspp = [*settings, "model.image_pooling=false"]
    return {"1x1 only": [*aspp, "model.atrous_rates=[]"], "ASPP": aspp, "ASPP and image pooling": settings}


CLAIMS = {
    "skips": {name: network(name) for name in ("fcn32s", "fcn16s", "fcn8s")},
    "holes": {"stride 8, the encoder's own": COARSE, "stride 4 by holes": HOLES},
    "unpooling": {
        "bilinear": [*network("segnet"), "upsample=bilinear"],
        "by position": network("segnet"),
    },
    "aspp": context(SHALLOW),
    "aspp_deep": context(network("deeplabv3")),
}


@dataclass
class Result:
    """Of the runs of one network, a seed each."""

    name: str
    miou: list[float]
    parameters: int
    macs: int
    step: float
    memory: float

    @property
    def spread(self) -> str:
        percent = [100 * value for value in self.miou]
        return f"{mean(percent):.1f}" + (f" ± {stdev(percent):.1f}" if len(percent) > 1 else "")


def one_run(settings: list[str]) -> dict[str, float]:
    """Train in this process, and what the table wants to know of it."""
    import resource

    import torch

    from cnn_train.analysis import trace
    from cnn_train.config.build import build, build_layers
    from cnn_train.config.compose import compose
    from cnn_train.experiment.build import build_task
    from cnn_train.experiment.network import build_network_and_data
    from cnn_train.experiment.train import train
    from cnn_train.training.recipe import Recipe
    from cnn_train.training.update import make_optimizer

    cfg = compose(settings)
    metrics = train(cfg)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    network, data = build_network_and_data(cfg)
    task = build_task(cfg, data, network)
    optimizer = make_optimizer(Recipe.of(cfg), network, torch.device("cpu"))
    batch = next(data.train_batches(0, device=torch.device("cpu")))
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        optimizer.zero_grad()
        task.total_loss(network(batch.images), batch.targets).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    with torch.device("meta"):
        layers = build_layers(cfg)
        empty = build(cfg.model, num_classes=data.num_classes, in_channels=data.in_channels, layers=layers)
    return {
        "miou": metrics["test/miou"],
        "parameters": sum(p.numel() for p in network.parameters()),
        "macs": trace(empty, (data.in_channels, *data.image_size)).multiply_adds,
        "step": median(seconds),
        "memory": memory,
    }


def trained(name: str, settings: Sequence[str], seed: int, options: argparse.Namespace) -> Path:
    """The folder of this run, with its result.json, trained in a process of its own if it is not there."""
    line = [*settings, *RECIPE, f"trainer.max_epochs={options.epochs}", f"data.num_train={options.scenes}"]
    line += [f"seed={seed}", "trainer=cpu", "logger=none", "trainer.progress=none"]
    folder = options.folder / hashlib.sha256(" ".join(line).encode()).hexdigest()[:12]
    result = folder / "result.json"
    if not result.exists():
        command = [sys.executable, __file__, "run", *line, f"output_dir={folder}"]
        threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
        done = subprocess.run(command, capture_output=True, text=True, env={"OMP_NUM_THREADS": threads, **os.environ})
        if done.returncode:
            raise SystemExit(f"{done.stderr.strip().splitlines()[-1]}\n{' '.join(line)}")
        result.write_text(done.stdout.splitlines()[-1])
    miou = json.loads(result.read_text())["miou"]
    print(f"{name} seed {seed}: test mIoU {100 * miou:.1f}", file=sys.stderr, flush=True)
    return folder


def measured(sides: Mapping[str, Sequence[str]], options: argparse.Namespace) -> list[Result]:
    """Train every side's settings, first all with one seed, then with the next."""
    order = [(name, seed) for seed in range(options.seeds) for name in sides]
    with ThreadPoolExecutor(options.jobs) as pool:
        folders = pool.map(lambda run: trained(run[0], sides[run[0]], run[1], options), order)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for (name, _), folder in zip(order, folders, strict=True):
            runs[name].append(json.loads((folder / "result.json").read_text()))
    return [
        Result(
            name, [r["miou"] for r in every], int(every[0]["parameters"]), int(every[0]["macs"]),
            median(r["step"] for r in every), max(r["memory"] for r in every),
        )
        for name, every in runs.items()
    ]  # fmt: skip


def as_markdown(results: Sequence[Result], head: str) -> str:
    lines = [f"| {head} | test mIoU, % | parameters | multiply-adds | training step, ms | memory, MB |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for r in results:
        cells = [r.name, r.spread, f"{r.parameters:,}", f"{r.macs / 1e6:.0f} M", f"{1000 * r.step:.0f}"]
        lines.append(f"| {' | '.join(cells)} | {r.memory:.0f} |")
    return "\n".join(lines)


def table(options: argparse.Namespace) -> None:
    names = options.what or list(NETWORKS)
    text = as_markdown(measured({f"`{name}`": network(name) for name in names}, options), "`model=`")
    print(text)
    if options.write:
        words = f"--seeds {options.seeds} --epochs {options.epochs} --scenes {options.scenes} --jobs {options.jobs}"
        command = f"python benchmarks/segmentation.py table {' '.join([words, *options.what])}"
        page = PAGE.read_text(encoding="utf-8")
        start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
        PAGE.write_text(f"{page[:start]}\n\n`{command}`\n\n{text}\n\n{page[end:]}", encoding="utf-8")


def claim(name: str, options: argparse.Namespace) -> None:
    if name == "checkerboard":
        checkerboard()
    elif name == "ceiling":
        ceiling()
    elif name == "crf":
        crf(options)
    else:
        print(as_markdown(measured(CLAIMS[name], options), name))


def crf(options: argparse.Namespace) -> None:
    """The coarse scores of stride 8 with and without a CRF, whose parameters the validation scenes choose."""
    from itertools import product

    from cnn_train.experiment.evaluate import search

    grid = {"bi_w": (2, 5), "bi_xy": (5, 15), "bi_rgb": (10, 30)}
    choices = [
        [f"postprocess.{name}={v}" for name, v in zip(grid, values, strict=True)] for values in product(*grid.values())
    ]
    plain, *every = [["postprocess=none"], *(["postprocess=crf", *choice] for choice in choices)]
    lines, before, after = [], [], []
    for seed in range(options.seeds):
        run = next(trained("stride 8", COARSE, seed, options).glob("*/*/best.ckpt")).parent
        best = search(run, [(changes, changes) for changes in every])[0][0].split()
        scores = {name: metrics["test/miou"] for name, metrics in search(run, [(plain, plain), (best, best)], "test")}
        before.append(100 * scores.pop(" ".join(plain)))
        after.append(100 * scores.popitem()[1])
        lines.append(f"| {seed} | {before[-1]:.1f} | {after[-1]:.1f} | {' '.join(best[1:])} |")
    print("| seed | test mIoU, % | with the CRF | chosen on the validation scenes |\n| --- | ---: | ---: | --- |")
    print("\n".join(lines))
    print(f"| mean | {mean(before):.1f} | {mean(after):.1f} | |")


def checkerboard() -> None:
    """How uneven upsamplings make a constant: the deviation over the mean, with random weights and with equal ones.

    Odena, Dumoulin & Olah 2016 (https://distill.pub/2016/deconv-checkerboard): a transposed convolution whose kernel
    the stride does not divide covers some pixels more often than others, whatever its weights; one that the stride
    divides can learn to be even, but does not start so; resizing and then convolving is even.
    """
    import torch
    from torch import nn

    def unevenness(layer: nn.Module) -> float:
        out = layer(torch.ones(1, 16, 12, 12)).detach()[..., 6:-6, 6:-6]
        return float((out.std((-2, -1)) / out.abs().mean((-2, -1))).mean())

    def average(make: Callable[[], nn.Module]) -> float:
        values = []
        for seed in range(20):
            torch.manual_seed(seed)
            values.append(unevenness(make()))
        return mean(values)

    def equal(layer: nn.Module) -> nn.Module:
        for parameter in layer.parameters():
            nn.init.constant_(parameter, float(parameter.ndim > 1))
        return layer

    forms = {
        "transposed 3x3, stride 2": lambda: nn.ConvTranspose2d(16, 16, 3, 2, 1),
        "transposed 4x4, stride 2": lambda: nn.ConvTranspose2d(16, 16, 4, 2, 1),
        "bilinear, then 3x3": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 16, 3)),
        "nearest, then 3x3": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(16, 16, 3)),
    }
    print("| upsampling of a constant | random weights | equal weights |\n| --- | ---: | ---: |")
    for name, make in forms.items():
        print(f"| {name} | {average(make):.3f} | {unevenness(equal(make())):.3f} |")


def ceiling() -> None:
    """What the true label maps of the test scenes become at a stride: averaged over its cells, drawn out bilinearly.

    A network whose scores come at that stride and are interpolated cannot do much better, whatever it has learned.
    """
    import torch
    from torch.nn import functional as F

    from cnn_train.data.digit_scenes import IGNORE, digit_scenes

    print("| side of the scenes | stride 4 | 8 | 16 | 32 |\n| --- | ---: | ---: | ---: | ---: |")
    for side in (64, 128):
        labels = digit_scenes(side, num_train=1, num_val=1).samples("test", range(200), device=torch.device("cpu"))[1]
        counted = labels != IGNORE
        truth = F.one_hot(torch.where(counted, labels, 0), 11).movedim(-1, 1) * counted[:, None]
        cells = []
        for stride in (4, 8, 16, 32):
            seen = F.avg_pool2d(truth.float(), stride)
            found = F.interpolate(seen, scale_factor=stride, mode="bilinear").argmax(1)
            hit = F.one_hot(found, 11).movedim(-1, 1) * counted[:, None]
            both = (truth * hit).sum((0, 2, 3)) / ((truth + hit) > 0).sum((0, 2, 3))
            cells.append(f"{100 * float(both.mean()):.1f}")
        print(f"| {side} | {' | '.join(cells)} |")


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        print(json.dumps(one_run(sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["table", "claim"])
    parser.add_argument("what", nargs="*", help="networks of the table, or one claim")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=1600, help="training scenes")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, which share the cores")
    parser.add_argument("--folder", type=Path, help="where runs are kept")
    parser.add_argument("--write", action="store_true", help="the table, into docs/segmentation.md")
    options = parser.parse_intermixed_args()
    known = list(NETWORKS) if options.kind == "table" else [*CLAIMS, "crf", "checkerboard", "ceiling"]
    if set(options.what) - set(known) or (options.kind == "claim" and len(options.what) != 1):
        parser.error(f"{options.kind} takes {'one of ' if options.kind == 'claim' else ''}{', '.join(known)}")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        if options.kind == "table":
            table(options)
        else:
            claim(options.what[0], options)


if __name__ == "__main__":
    main()
