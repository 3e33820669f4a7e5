"""Detection networks on the embedded scenes of digits: what they reach, and what a step is made of.

    python benchmarks/detection.py table [--seeds 3] [--folder DIR] [--write] [network ...] [-- setting ...]
    python benchmarks/detection.py step [network ...]
    python benchmarks/detection.py metric
    python benchmarks/detection.py loop [network ...]

`table` trains each network as its YAML says, one run after the other, and gives mAP, mAP50 and mAP by size on the test
scenes (mean and standard deviation over the seeds), parameters, seconds of training and of a step. Runs in `--folder`
that are there already are taken. `--write` puts the table between the markers of docs/detection.md, with the command.
`step` gives milliseconds of the network, of matching and loss, of the way back, and of an evaluation with suppression.
`metric` times COCO's mAP of 500 images with 24,000 detections against pycocotools on one core. `loop` times a training
step of `cnn-train` against a plain loop over the same network and loss, and that of `retinanet_resnet50_fpn` against
torchvision's own on the same batch, in turns.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "detection.md"
BEGIN, END = "<!-- table: benchmarks/detection.py -->", "<!-- end of table -->"
NETWORKS = {"fcos": "gn", "retinanet": "gn", "ssd": "gn", "yolov2": "bn", "yolov3": "bn"}  # with their norm
SHOWN = {
    "map": "mAP", "map50": "mAP50", "map_part_small": "small", "map_part_medium": "medium", "map_part_large": "large",
}  # fmt: skip


def measured(name: str, seed: int, folder: Path, settings: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics and cost of a run, trained if it is not there."""
    output = folder / f"{name}_{seed}"
    if not list(output.glob("*/*/metrics.json")):
        words = [f"model={name}", f"norm={NETWORKS[name]}", f"seed={seed}", f"output_dir={output}", *settings]
        command = [sys.executable, "-m", "cnn_train", *words, "trainer.progress=none", "logger=none"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    (run,) = output.glob("*/*")
    return tuple(json.loads((run / file).read_text()) for file in ("metrics.json", "cost.json"))  # type: ignore[return-value]


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def table(names: list[str], seeds: int, folder: Path, settings: list[str]) -> str:
    heads = ["network", *SHOWN.values(), "parameters", "multiply-adds", "training, s", "step, ms", "memory, MB"]
    lines = [" | ".join(heads), "|".join(["---", *["---:"] * (len(heads) - 1)])]
    for name in names:
        runs = [measured(name, seed, folder, settings) for seed in range(seeds)]
        cells = [spread([metrics[f"test/{key}"] for metrics, _ in runs]) for key in SHOWN]
        seconds, steps = (mean(cost[key] for _, cost in runs) for key in ("seconds", "seconds_per_step"))
        memory = mean(cost["peak_memory_bytes"] for _, cost in runs) / 1e6
        cells += [f"{runs[0][1]['parameters']:,}", f"{multiply_adds(name) / 1e6:.0f} M"]
        cells += [f"{seconds:.0f}", f"{1000 * steps:.0f}", f"{memory:.0f}"]
        lines.append(" | ".join([f"`{name}`, `norm={NETWORKS[name]}`", *cells]))
        print(lines[-1], file=sys.stderr)
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def multiply_adds(name: str) -> int:
    """Of one scene."""
    from cnn_train.analysis import trace
    from cnn_train.config.compose import compose
    from cnn_train.inspection.subject import describe

    subject = describe(compose([f"model={name}"]), with_data=True)
    return trace(subject.network, subject.input_size).multiply_adds


def metric(images: int = 500, per_image: int = 48, classes: int = 10, rounds: int = 3) -> str:
    """Seconds of both metrics in turns, the least of the rounds."""
    import contextlib
    import io

    import numpy as np
    import torch
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from cnn_train.tasks.average_precision import BoxMetrics

    torch.set_num_threads(1)
    random = np.random.default_rng(0)

    def boxes(count: int) -> "np.ndarray":
        corner, side = random.uniform(0, 400, (count, 2)), random.uniform(8, 200, (count, 2))
        return np.concatenate([corner, corner + side], 1)

    truth, found = [], []
    for _ in range(images):
        own = np.concatenate([boxes(6), random.integers(0, classes, (6, 1)), np.zeros((6, 1))], 1)
        near = own[random.integers(0, 6, per_image), :4] + random.normal(0, 12, (per_image, 4))
        labels = random.integers(0, classes, (per_image, 1))
        truth.append(own)
        found.append(np.concatenate([near, labels, random.uniform(size=(per_image, 1))], 1))
    truths, founds = torch.tensor(np.stack(truth)).float(), torch.tensor(np.stack(found)).float()
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": c} for c in range(classes)],
        "annotations": [
            {"id": 6 * i + j + 1, "image_id": i, "category_id": int(r[4]), "iscrowd": 0,
             "bbox": [*map(float, r[:2]), float(r[2] - r[0]), float(r[3] - r[1])],
             "area": float((r[2] - r[0]) * (r[3] - r[1]))}
            for i, rows in enumerate(truths.double().numpy()) for j, r in enumerate(rows)
        ],
    }  # fmt: skip
    rows = [
        [i, r[0], r[1], r[2] - r[0], r[3] - r[1], r[5], r[4]]
        for i, part in enumerate(founds.double().numpy()) for r in part
    ]  # fmt: skip
    times: tuple[list[float], list[float]] = ([], [])
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        for _ in range(rounds):
            begun = time.process_time()
            ours = BoxMetrics(classes, 600.0 * 600.0)
            ours.update(founds, truths, torch.arange(images))
            value = ours.compute().values["map"]
            times[0].append(time.process_time() - begun)
            begun = time.process_time()
            theirs = COCOeval(coco, coco.loadRes(np.array(rows)), "bbox")
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
            times[1].append(time.process_time() - begun)
    return (
        f"{images} images, {images * per_image:,} detections: {min(times[0]):.2f} s, "
        f"pycocotools {min(times[1]):.2f} s; "
        f"mAP {float(value):.6f} and {theirs.stats[0]:.6f}"
    )


def loop(name: str, rounds: int = 3, steps: int = 190) -> str:
    """Seconds of a step of `cnn-train` against those of a plain loop over the same network, loss and data, in turns."""
    import tempfile

    import torch

    from cnn_train.config.compose import compose
    from cnn_train.experiment.build import build_task
    from cnn_train.experiment.network import build_network_and_data

    words = [f"model={name}", f"norm={NETWORKS[name]}"]
    network, data = build_network_and_data(compose(words))
    task = build_task(compose(words), data, network)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    source = data.splits["train"]
    mean, std = torch.tensor(data.mean).view(3, 1, 1), torch.tensor(data.std).view(3, 1, 1)

    def plain() -> float:
        network.train()
        begun = time.perf_counter()
        for index in torch.randperm(len(source))[: steps * data.batch_size].split(data.batch_size):
            images, targets = source.images[index], source.targets[index]  # type: ignore[attr-defined]
            outputs = network((images / 255 - mean) / std)
            loss = task.learn(outputs, targets, images.shape[-2:]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - begun) / steps

    plain()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            options = [
                f"trainer.limit_batches={steps}",
                "trainer.max_epochs=3",
                "trainer.eval_every=3",
                "data.num_val=8",
            ]
            options += ["data.num_test=8", f"output_dir={folder}", "trainer.progress=none"]
            command = [sys.executable, "-m", "cnn_train", *words, *options]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            (cost,) = Path(folder).glob("*/*/cost.json")
            times[0].append(json.loads(cost.read_text())["seconds_per_step"])
        times[1].append(plain())
    ours, theirs = (median(values) for values in times)
    return f"{name}: {1000 * ours:.1f} ms a step, a plain loop {1000 * theirs:.1f} ms: {ours / theirs:.3f}"


def against_torchvision(size: int = 320, batch: int = 2, rounds: int = 5) -> str:
    """Seconds of a step of `retinanet_resnet50_fpn`, forward, loss and back, against torchvision's, in turns."""
    import torch
    from torchvision.models.detection import retinanet_resnet50_fpn

    from cnn_train.models.detection.retinanet import retinanet_resnet50_fpn as ours_builder
    from cnn_train.tasks.box_losses import RetinaNet

    theirs = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=size, max_size=size, trainable_backbone_layers=5
    ).train()
    ours, loss = ours_builder(91).train(), RetinaNet(box="l1")
    random = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=random)
    corner = torch.rand(batch, 6, 2, generator=random) * size * 0.5
    boxes = torch.cat([corner, corner + 20 + torch.rand(batch, 6, 2, generator=random) * size * 0.4], -1)
    labels = torch.randint(1, 91, (batch, 6), generator=random)
    targets = torch.cat([boxes, labels[..., None].float(), torch.zeros(batch, 6, 1)], -1)
    listed = [{"boxes": b, "labels": own} for b, own in zip(boxes, labels, strict=True)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        sum(loss(ours(images), targets, ours.priors((size, size))).values()).backward()  # type: ignore[union-attr]
        times[0].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        sum(theirs(list(images), listed).values()).backward()
        times[1].append(time.perf_counter() - begun)
    a, b = (median(values[1:]) for values in times)
    times_text = f"{1000 * a:.0f} ms, torchvision's {1000 * b:.0f} ms: {a / b:.3f}"
    return f"retinanet_resnet50_fpn, {batch} images of {size}: {times_text}"


def step(name: str, steps: int = 12, warm: int = 4) -> str:
    """Mean milliseconds of a training step's parts and of the validation."""
    import torch

    from cnn_train.config.compose import compose
    from cnn_train.experiment.build import build_task
    from cnn_train.experiment.network import build_network_and_data

    cfg = compose([f"model={name}", f"norm={NETWORKS[name]}"])
    network, data = build_network_and_data(cfg)
    task, device = build_task(cfg, data, network), torch.device("cpu")
    batches = [batch for batch, _ in zip(data.train_batches(0, device=device), range(steps + warm), strict=False)]
    spent = [0.0, 0.0, 0.0]
    for number, batch in enumerate(batches):
        times = [time.perf_counter()]
        outputs = network.train()(batch.images)
        times.append(time.perf_counter())
        learned = task.learn(outputs, batch.targets, batch.images.shape[-2:])
        times.append(time.perf_counter())
        learned.loss.backward()
        times.append(time.perf_counter())
        if number >= warm:
            spent = [total + b - a for total, a, b in zip(spent, times, times[1:], strict=False)]
    forward, loss, back = (1000 * total / steps for total in spent)
    begun = time.perf_counter()
    with torch.no_grad():
        for batch in data.eval_batches("val", device=device):
            task.update(task.infer(network.eval(), batch.images), batch)
    task.compute()
    validation, epoch = time.perf_counter() - begun, data.train_steps() * (forward + loss + back) / 1000
    return (
        f"{name}: network {forward:.1f} ms, matching and loss {loss:.1f} ms ({loss / (forward + loss + back):.1%}), "
        f"back {back:.1f} ms; validation {validation:.1f} s of an epoch's {epoch:.1f} s ({validation / epoch:.1%})"
    )


def main() -> None:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "step", "metric", "loop"))
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("outputs/detection"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(words[:cut])
    names = options.networks or list(NETWORKS)
    if options.what == "step":
        for name in names:
            print(step(name))
        return
    if options.what == "metric":
        print(metric())
        return
    if options.what == "loop":
        for name in names:
            print(loop(name))
        print(against_torchvision())
        return
    result = table(names, options.seeds, options.folder.resolve(), words[cut + 1 :])
    print(result)
    if options.write:
        text = PAGE.read_text()
        before, rest = text.split(BEGIN)
        command = "python benchmarks/detection.py " + " ".join(words)
        PAGE.write_text(f"{before}{BEGIN}\n`{command}`\n\n{result}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
