"""Detection networks on the embedded scenes of digits: what they reach, and what a step is made of.

    python benchmarks/detection.py table [--seeds 3] [--folder DIR] [--write] [network ...] [-- setting ...]
    python benchmarks/detection.py step [network ...]

`table` trains each network as its YAML says, one run after the other, and gives mAP, mAP50 and mAP by size on the test
scenes (mean and standard deviation over the seeds), parameters, seconds of training and of a step. Runs in `--folder`
that are there already are taken. `--write` puts the table between the markers of docs/detection.md, with the command.
`step` gives milliseconds of the network, of matching and loss, of the way back, and of an evaluation with suppression.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

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
    heads = ["network", *SHOWN.values(), "parameters", "training, s", "step, ms"]
    lines = [" | ".join(heads), "|".join(["---", *["---:"] * (len(heads) - 1)])]
    for name in names:
        runs = [measured(name, seed, folder, settings) for seed in range(seeds)]
        cells = [spread([metrics[f"test/{key}"] for metrics, _ in runs]) for key in SHOWN]
        seconds, steps = (mean(cost[key] for _, cost in runs) for key in ("seconds", "seconds_per_step"))
        cells += [f"{runs[0][1]['parameters']:,}", f"{seconds:.0f}", f"{1000 * steps:.0f}"]
        lines.append(" | ".join([f"`{name}`, `norm={NETWORKS[name]}`", *cells]))
        print(lines[-1], file=sys.stderr)
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


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
    parser.add_argument("what", choices=("table", "step"))
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
    result = table(names, options.seeds, options.folder.resolve(), words[cut + 1 :])
    print(result)
    if options.write:
        text = PAGE.read_text()
        before, rest = text.split(BEGIN)
        command = "python benchmarks/detection.py " + " ".join(words)
        PAGE.write_text(f"{before}{BEGIN}\n`{command}`\n\n{result}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
