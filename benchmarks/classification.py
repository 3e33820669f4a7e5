"""Classification networks on the embedded digits: what each reaches within minutes on a CPU.

    python benchmarks/classification.py [--seeds 3] [--jobs 1] [--folder DIR] [--write] [network ...]

Each is trained by one line, `cnn-train model=NAME data=digits norm=gn augment=shift` and what stands in NETWORKS, by
`--jobs` processes at a time that share the cores. The table gives the mean and standard deviation of the test accuracy
over the seeds, parameters, and the most CPU seconds of a run, start-up included. Runs in `--folder` that are there
already are taken. `--write` puts the table between the markers of docs/recipes.md, with the command.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- table: benchmarks/classification.py -->", "<!-- end of table -->"
COMMON = ["data=digits", "norm=gn", "augment=shift"]
NARROW = ["model.stem=small", "model.widths=[16,32,64,128]"]
NETWORKS: dict[str, list[str]] = {
    "lenet5": [],
    "resnet20": [],
    "preact_resnet18": NARROW,
    "densenet_bc_100_12": ["image_size=16"],
    "mobilenet_v2": ["image_size=64"],  # its last map has stride 32
    "seresnet50": NARROW,
    "nin": ["image_size=16", "model.dropout=0.1", "optimizer.lr=4e-4", "trainer.max_epochs=40"],
    "lstm": ["optimizer.lr=5e-3"],
}


def trained(name: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """What a run reached, trained if it is not there."""
    output = options.folder / f"{name}_{seed}"
    result = output / "result.json"
    if not result.exists():
        words = [f"model={name}", *COMMON, *NETWORKS[name], f"seed={seed}", f"output_dir={output}"]
        threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
        command = [sys.executable, "-m", "cnn_train", *words, "trainer.progress=none", "logger=none"]
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"exit code {os.waitstatus_to_exitcode(status)}: {' '.join(words)}")
        (folder,) = (path.parent for path in output.glob("*/*/metrics.json"))
        found = json.loads((folder / "metrics.json").read_text()), json.loads((folder / "cost.json").read_text())
        numbers = {
            "acc": found[0]["test/acc"],
            "parameters": found[1]["parameters"],
            "seconds": usage.ru_utime + usage.ru_stime,
        }
        result.write_text(json.dumps(numbers))
    numbers = json.loads(result.read_text())
    print(f"{name} seed {seed}: {numbers['acc']:.4f} in {numbers['seconds']:.0f} CPU s", file=sys.stderr, flush=True)
    return numbers


def table(names: list[str], options: argparse.Namespace) -> str:
    order = [(name, seed) for seed in range(options.seeds) for name in names]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(order, pool.map(lambda run: trained(run[0], run[1], options), order), strict=True))
    lines = ["| `cnn-train data=digits norm=gn augment=shift` | test accuracy | parameters | CPU seconds at most |"]
    lines += ["|---|---:|---:|---:|"]
    for name in names:
        runs = [found[name, seed] for seed in range(options.seeds)]
        values = [run["acc"] for run in runs]
        deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        words, seconds = " ".join([f"model={name}", *NETWORKS[name]]), max(run["seconds"] for run in runs)
        parameters = int(runs[0]["parameters"])
        lines.append(f"| `{words}` | {mean(values):.3f}{deviation} | {parameters:,} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []], help="names; none: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "classification")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = table(options.networks or list(NETWORKS), options)
    print(text)
    if options.write:
        words = ["python benchmarks/classification.py", f"--seeds {options.seeds} --jobs {options.jobs}"]
        page = PAGE.read_text(encoding="utf-8")
        start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
        command = " ".join([*words, *options.networks])
        PAGE.write_text(f"{page[:start]}\n\n`{command}`\n\n{text}\n\n{page[end:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
