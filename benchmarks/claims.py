"""What papers claim, tried on embedded data: a sweep of each claim, its figure, its table, a verdict.

    python benchmarks/claims.py [--folder DIR] [--write] [claim ...]

A claim is an experiment, conf/experiment/claim/NAME.yaml, that holds its axes and seeds: `cnn-train
experiment=claim/NAME`. What is claimed is a contrast of settings on the test metric, paired by seed; its 95 % interval
(Student's t over the seeds) gives the verdict. Sweeps in `--folder` that are done already are read. `--write` writes
these sections of docs/claims.md, and docs/pictures/claims/NAME.png, from the folders.
"""

import argparse
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t as student

from cnn_train.config.choices import Choices
from cnn_train.report.runs import Run, read

ROOT = Path(__file__).parents[1]
PAGE, PICTURES = ROOT / "docs" / "claims.md", ROOT / "docs" / "pictures" / "claims"
METRIC, CHOSEN_BY, CHANCE = "test/acc", "val/acc", 0.1
BEGIN, END = "<!-- claims: benchmarks/claims.py --write -->", "<!-- end of claims -->"

Select = Mapping[str, str]
Values = dict[str, float]  # by seed


@dataclass(frozen=True)
class Claim:
    """The contrast is the sum of the metric in `plus` less that in `minus`; with `spread` of the ranges over that key.

    Of settings that a selection leaves open the best on validation is taken. "As well as" allows a `margin` of
    accuracy. `beside` names a number that stands beside a setting's accuracy, and how its first run gives it. `why` is
    said where the claim is not shown, `note` always.
    """

    plus: Sequence[Select]
    minus: Sequence[Select]
    spread: str | None = None
    margin: float = 0.0
    beside: tuple[str, Callable[[Run], str]] | None = None
    why: str = ""
    note: str = ""


def parameters(run: Run) -> str:
    return f"{int(run.cost['parameters']):,}"


def zeros(run: Run) -> str:
    """The share of zeros behind the activations of a trained network, over the test images."""
    import torch
    from torch.nn.modules import activation

    from cnn_train import load
    from cnn_train.config.load import load as load_config
    from cnn_train.experiment.network import build_network_and_data

    model, counts = load(run.folder, device="cpu"), [0, 0]

    def count(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        counts[0] += int((output == 0).sum())
        counts[1] += output.numel()

    for module in model.modules():
        if type(module).__module__ == activation.__name__:
            module.register_forward_hook(count)
    _, data = build_network_and_data(load_config(run.folder))
    for batch in data.eval_batches("test", device=torch.device("cpu")):
        model(batch.images)
    return f"{counts[0] / counts[1]:.2f}"


BEST_RATE = "Each at the rate that is best on validation."
CLAIMS = {
    "bn_rate": Claim(
        [{"norm": "bn", "optimizer.lr": "0.3"}],
        [{"norm": "none", "optimizer.lr": "0.3"}],
        note="At 1.0 neither learns.",
    ),
    "bn_speed": Claim([{"norm": "bn"}], [{"norm": "none"}], note=BEST_RATE),
    "bn_small_batch": Claim(
        [{"norm": "bn", "data.batch_size": "64"}, {"norm": "gn", "data.batch_size": "2"}],
        [{"norm": "bn", "data.batch_size": "2"}, {"norm": "gn", "data.batch_size": "64"}],
        why="On digits small batches help both, by more updates; group norm gains more, within the noise.",
    ),
    "norm_init": Claim(
        [{"norm": "none"}],
        [{"norm": "bn"}],
        spread="init",
    ),
    "he_xavier": Claim([{"init": "he_normal"}], [{"init": "xavier_normal"}]),
    "sigmoid_depth": Claim(
        [{"model": "plain20", "act": "relu"}, {"model": "lenet5", "act": "sigmoid"}],
        [{"model": "plain20", "act": "sigmoid"}, {"model": "lenet5", "act": "relu"}],
        note=BEST_RATE,
    ),
    "dying_relu": Claim(
        [{"act": "leaky_relu"}],
        [{"act": "relu"}],
        why="No unit needed to die at this rate; what fails are the parametric and the exponential one, whose runs "
        "diverge.",
    ),
    "residual": Claim([{"model": "resnet56"}, {"model": "plain20"}], [{"model": "plain56"}, {"model": "resnet20"}]),
    "preact": Claim(
        [{"model": "preact_resnet110"}],
        [{"model": "resnet110"}],
        why="Digits do not need 110 layers: both learn them in five epochs; the paper's difference is at 1,001.",
    ),
    "label_smoothing": Claim(
        [{"loss.label_smoothing": "0.1"}],
        [{"loss.label_smoothing": "0.0"}],
        why="In its direction, within the noise of five seeds.",
    ),
    "dropout_bn": Claim(
        [{"norm": "none", "model.dropout": "0.5"}, {"norm": "bn", "model.dropout": "0.0"}],
        [{"norm": "none", "model.dropout": "0.0"}, {"norm": "bn", "model.dropout": "0.5"}],
        why="LeNet-5 with shifted digits does not overfit, so dropout has nothing to help against.",
    ),
    "optimizers": Claim([{"optimizer": "adam"}], [{"optimizer": "sgd"}], note=BEST_RATE),
    "relu_sparsity": Claim(
        [{"act": "relu"}], [{"act": "softplus"}], margin=0.01, beside=("zeros behind activations", zeros)
    ),
    "squeeze_excitation": Claim([{"model": "seresnet50"}], [{"model": "resnet50"}], beside=("parameters", parameters)),
    "dense_parameters": Claim(
        [{"model": "densenet_bc_100_12"}], [{"model": "resnet110"}], margin=0.01, beside=("parameters", parameters)
    ),
    "width_depth": Claim(
        [{"model": "wrn_16_8"}], [{"model": "wrn_40_4"}], margin=0.01, beside=("parameters", parameters)
    ),
    "two_3x3": Claim(
        [{"model.pairs_as_5x5": "False"}],
        [{"model.pairs_as_5x5": "True"}],
        beside=("parameters", parameters),
        why="Ten or five convolutions are enough for digits of 32 pixels; the paper's gain was on ImageNet.",
    ),
    "separable": Claim(
        [{"model.separable": "True"}],
        [{"model.separable": "False"}],
        beside=("parameters", parameters),
        why="Both know nearly all training images (0.99 and more), of the others the separable network knows fewer: "
        "it overfits 1,078 digits. The paper compared on ImageNet.",
    ),
    "global_pooling": Claim([{"global_pool": "avg"}], [{"global_pool": "flatten"}], beside=("parameters", parameters)),
    "lstm_length": Claim(
        [{"model.cell": "torch", "image_size": "[64, 28]"}, {"model.cell": "plain", "image_size": "[16, 28]"}],
        [{"model.cell": "plain", "image_size": "[64, 28]"}, {"model.cell": "torch", "image_size": "[16, 28]"}],
    ),
    "stochastic_pooling": Claim(
        [{"pool": "stochastic"}], [{"pool": "max"}], why="All three are within the noise of five seeds."
    ),
    "hinge": Claim(
        [{"loss": "hinge"}], [{"loss": "cross_entropy"}], why="All three are within the noise of five seeds."
    ),
}


def runs_of(name: str, folder: Path) -> list[Run]:
    """The runs of the claim's sweep, which is trained or continued where it is not done."""
    output = folder / name
    done = sorted(output.glob("sweeps/*/sweep.csv"))
    if not done or any(run.state not in ("done", "failed") for run in read([done[-1].parent]).runs):
        words = [f"experiment=claim/{name}", f"output_dir={output}", "resume=auto"]
        subprocess.run([sys.executable, "-m", "cnn_train", *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        done = sorted(output.glob("sweeps/*/sweep.csv"))
    return list(read([done[-1].parent]).runs)


def axes_of(name: str) -> list[str]:
    return [key for key in Choices.find().body("experiment", f"claim/{name}")["sweep"]["axes"] if key != "seed"]


def setting(run: Run, key: str) -> str:
    return str(run.config.get(f"choices.{key}", run.config.get(key)))


def by_setting(runs: Sequence[Run], axes: Sequence[str]) -> dict[tuple[str, ...], list[Run]]:
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(setting(run, key) for key in axes), []).append(run)
    return groups


def value(run: Run, metric: str) -> float:
    """The metric of a run; of one that failed or gave none that of guessing among ten classes."""
    found = run.metrics.get(metric, math.nan)
    return found if math.isfinite(found) else CHANCE


def chosen(runs: Sequence[Run], axes: Sequence[str], select: Select) -> Values:
    """The test metric by seed, at the settings of the open axes that are best on validation."""
    fitting = [run for run in runs if all(setting(run, key) == wanted for key, wanted in select.items())]
    groups = by_setting(fitting, axes).values()
    best = max(groups, key=lambda group: mean(value(run, CHOSEN_BY) for run in group))
    return {str(run.seed): value(run, METRIC) for run in best}


def spread(runs: Sequence[Run], axes: Sequence[str], select: Select, key: str) -> Values:
    """By seed, the largest less the smallest metric over the values of a key."""
    names = {setting(run, key) for run in runs}
    columns = [chosen(runs, axes, {**select, key: name}) for name in names]
    return {
        seed: max(column[seed] for column in columns) - min(column[seed] for column in columns) for seed in columns[0]
    }


def contrast(claim: Claim, runs: Sequence[Run], axes: Sequence[str]) -> tuple[float, float, float]:
    """The mean over the seeds, with the margin, and its 95 % interval."""

    def values(select: Select) -> Values:
        if claim.spread is None:
            return chosen(runs, axes, select)
        return spread(runs, axes, select, claim.spread)

    plus, minus = (list(map(values, selects)) for selects in (claim.plus, claim.minus))
    seeds = sorted(set.intersection(*(set(column) for column in (*plus, *minus))))
    each = [sum(column[seed] for column in plus) - sum(column[seed] for column in minus) for seed in seeds]
    middle = mean(each) + claim.margin
    half = float(student.ppf(0.975, len(each) - 1)) * stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.inf
    return middle, middle - half, middle + half


def verdict(low: float, high: float) -> str:
    return "shown" if low > 0 else "the opposite" if high < 0 else "not shown"


def words(claim: Claim) -> str:
    """The contrast as a formula."""

    def term(select: Select) -> str:
        name = " ".join(f"{key}={wanted}" for key, wanted in select.items())
        return f"`{name}`" if claim.spread is None else f"range over `{claim.spread}` at `{name}`"

    margin = f" + {claim.margin:g}" if claim.margin else ""
    return " + ".join(map(term, claim.plus)) + "".join(f" - {term(select)}" for select in claim.minus) + margin


def draw(name: str, groups: Mapping[tuple[str, ...], Sequence[Run]], path: Path) -> None:
    """A dot for each run, a line at the mean, one row a setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.6 + 0.28 * len(groups)), layout="tight")
    axes = figure.subplots()
    for row, group in enumerate(groups.values()):
        values = [value(run, METRIC) for run in group]
        axes.plot(values, [row] * len(values), "o", color="#1f4e79", alpha=0.5, markersize=5, markeredgewidth=0)
        axes.plot([mean(values)] * 2, [row - 0.35, row + 0.35], color="#c0392b", linewidth=2)
    axes.set_yticks(range(len(groups)), [" ".join(key) for key in groups], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def section(name: str, claim: Claim, runs: Sequence[Run]) -> tuple[str, str]:
    """The claim's part of the page, and its row of the table of verdicts."""
    axes = axes_of(name)
    groups = by_setting(runs, axes)
    middle, low, high = contrast(claim, runs, axes)
    text, said = Choices.find().describe("experiment", f"claim/{name}"), verdict(low, high)
    draw(name, groups, PICTURES / f"{name}.png")
    lines = [f"## {name}", "", f"{text}.", "", f"    cnn-train experiment=claim/{name}", ""]
    lines += [f"![Test accuracy by setting](pictures/claims/{name}.png)", ""]
    beside, of = claim.beside or ("", str)
    lines += [f"| {' | '.join(f'`{key}`' for key in axes)} | test accuracy |{beside and f' {beside} |'} runs |"]
    lines += ["|" + "---|" * len(axes) + "---:|" * (3 if beside else 2)]
    for key, group in groups.items():
        values = [value(run, METRIC) for run in group]
        deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        number = beside and f" {of(group[0])} |"
        lines.append(f"| {' | '.join(key)} | {mean(values):.3f}{deviation} |{number} {len(values)} |")
    seconds = sum(run.cost.get("seconds", 0.0) for run in runs)
    lines += ["", f"**{said.capitalize()}**: {words(claim)} = {middle:+.3f}, 95 % from {low:+.3f} to {high:+.3f}."]
    lines[-1] += "".join(f" {text}" for text in (claim.why if said != "shown" else "", claim.note) if text)
    lines += [f"{len(runs)} runs, {seconds:.0f} s of training on one core.", ""]
    return "\n".join(lines), f"| [{text}](#{name}) | {middle:+.3f} ({low:+.3f} to {high:+.3f}) | {said} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", choices=[*CLAIMS, []], help="names; none: all")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "claims")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    names = options.claims or list(CLAIMS)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    there, after = rest.split(END)
    rows = dict((name, row) for row, name in re.findall(r"^(\|.*\(#(\w+)\).*)$", there, re.MULTILINE))
    parts = {part.split("\n")[0].removeprefix("## "): part for part in re.split(r"^(?=## )", there, flags=re.MULTILINE)}
    for name in names:
        parts[name], rows[name] = section(name, CLAIMS[name], runs_of(name, options.folder))
    shown = [name for name in CLAIMS if name in rows] if options.write else names
    table = "\n".join(
        ["| claim | difference in accuracy (95 %) | verdict |", "|---|---:|---|", *(rows[n] for n in shown)]
    )
    text = "\n\n".join([table, *(parts[name].strip() for name in shown)])
    if options.write:
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
