"""Evaluate a run again: its best weights on a split of its data, perhaps by other inference and post-processing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from cnn_train import atomic
from cnn_train.config.build import build
from cnn_train.config.load import load
from cnn_train.data.data import Batch
from cnn_train.errors import ConfigError
from cnn_train.experiment.build import Experiment, prepare
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.results import describe_results, show_results, write_csv
from cnn_train.experiment.trainer import quiet_libraries
from cnn_train.runs import checkpoint
from cnn_train.runs.find import find as find_run
from cnn_train.tasks.intervals import intervals
from cnn_train.training.batches import EvalBatches
from cnn_train.training.callbacks import display
from cnn_train.training.samples import names_of


def evaluate(
    run: str | Path,
    overrides: Sequence[str] = (),
    split: str = "test",
    *,
    config_dir: str | None = None,
    trust: Sequence[str] = (),
) -> dict[str, float]:
    """Metrics of a run (see `cnn_train.runs.find`) on `split`, by the run's own config.

    They are also written, with a table of the classes and pictures, to eval/<split>[-<inference>][-<postprocess>] in
    the run folder.
    """
    folder, file = find(run, split)
    cfg = load(folder, overrides, config_dir=config_dir, trust=trust)
    with quiet_libraries():
        experiment = trained(cfg, folder, file)
        kept = keep_scores(experiment)
        metrics = measure(experiment, split)
        if experiment.machine.rank == 0:
            how = [name for name in (cfg.choices.inference, cfg.choices.postprocess) if name not in ("whole", "none")]
            results = folder / "eval" / "-".join([split, *how])
            worst = {split: "worst"} if split in experiment.loop.worst else {}
            describe_results(cfg, experiment.loop, results, results, split, worst)
            atomic.write_json(results / "metrics.json", metrics)
            show_results(experiment, metrics, split)
            tell_intervals(experiment, split, results)
            write_probabilities(experiment, split, kept, results / "probabilities.csv")
    return metrics


def tell_intervals(experiment: Experiment, split: str, results: Path) -> None:
    """Print and write the 95 % intervals of a classifier's metrics: what another sample of images might have given."""
    loop = experiment.loop
    if loop.data.targets != "labels" or loop.measured is None:
        return
    found = {f"{split}/{name}": pair for name, pair in intervals(loop.measured.confusion).items()}
    atomic.write_json(results / "intervals.json", {name: list(pair) for name, pair in found.items()})
    told = ", ".join(f"{name} {low:.3f} to {high:.3f}" for name, (low, high) in found.items())
    print(f"95 %         {told}")


# Of each batch: indices into the split, labels, and probabilities.
Kept = list[tuple[Tensor, Tensor, Tensor]]


def keep_scores(experiment: Experiment) -> Kept:
    """Let a classifier's task also keep what it counts, in the list given back."""
    kept: Kept = []
    task = experiment.loop.task
    count = task.update

    def update(scores: Tensor, batch: Batch) -> Tensor:
        kept.append((batch.indices.cpu(), batch.targets.cpu(), scores.float().softmax(1).cpu()))
        return count(scores, batch)

    if experiment.loop.data.targets == "labels" and experiment.machine.num_processes == 1:
        task.update = update  # type: ignore[method-assign]
    return kept


def write_probabilities(experiment: Experiment, split: str, kept: Kept, path: Path) -> None:
    """Write each image's label, predicted class and probabilities; of more than 20 classes only those of these two."""
    if not kept:
        return
    data = experiment.loop.data
    names = data.class_names
    all_of_them = len(names) <= 20
    indices, labels, probabilities = (torch.cat(part).tolist() for part in zip(*kept, strict=True))
    split = "train" if experiment.loop.recipe.overfit_batches else split
    rows: list[list[object]] = [
        ["sample", "label", "prediction", "confidence", "of_label", *(names if all_of_them else [])]
    ]
    for sample, label, values in zip(names_of(data, split, indices), labels, probabilities, strict=True):
        best = max(range(len(values)), key=values.__getitem__)
        numbers = [values[best], values[label], *(values if all_of_them else [])]
        rows.append([sample, names[label], names[best], *(f"{number:.6f}" for number in numbers)])
    write_csv(path, rows)


def search(
    run: str | Path,
    combinations: Sequence[tuple[Sequence[str], Sequence[str]]],
    split: str = "val",
    *,
    config_dir: str | None = None,
    trust: Sequence[str] = (),
) -> list[tuple[str, dict[str, float]]]:
    """Metrics on `split` of each combination (its changes, all its overrides) of post-processing, the best first.

    The network's scores are computed once. Written to eval/search.csv in the run folder.
    """
    folder, file = find(run, split)
    configs = [load(folder, overrides, config_dir=config_dir, trust=trust) for _, overrides in combinations]
    with quiet_libraries():
        alternatives = [build(cfg.postprocess) for cfg in configs[1:]]
        experiment = trained(configs[0], folder, file, alternatives=alternatives)
        first = measure(experiment, split)
    measured = experiment.loop.measured
    assert measured is not None
    every = [first, *({f"{split}/{name}": value for name, value in m.items()} for m in measured.alternatives)]
    names = [" ".join(changes) for changes, _ in combinations]
    ranked = sorted(zip(names, every, strict=True), key=lambda pair: -pair[1][f"{split}/miou"])
    if experiment.machine.rank == 0:
        columns = list(every[-1])
        rows = [[name, *(metrics[column] for column in columns)] for name, metrics in ranked]
        (folder / "eval").mkdir(exist_ok=True)
        write_csv(folder / "eval" / "search.csv", [["settings", *columns], *rows])
        display.results(f"{split}/miou", {name: metrics[f"{split}/miou"] for name, metrics in ranked}, {}, "")
        print(f"all metrics  {folder / 'eval' / 'search.csv'}")
    return ranked


def find(run: str | Path, split: str) -> tuple[Path, Path]:
    """The run's folder, and the checkpoint to evaluate. Raises ConfigError."""
    if split not in ("train", "val", "test"):
        raise ConfigError(f"split must be train, val or test, got {split!r}")
    found = find_run(run)
    return found.folder, found.checkpoint


def trained(cfg: DictConfig, folder: Path, file: Path, **options: Any) -> Experiment:
    """The run's experiment with a checkpoint's weights; `options` are the task's."""
    OmegaConf.update(cfg, "weights", None)
    cfg.logger = None
    state = checkpoint.load(file)
    experiment = prepare(cfg, Machine.of(cfg.trainer), folder, saved=state, **options)
    check_same_classes(experiment.loop.data.class_names, state.get("class_names"), cfg.choices.data)
    experiment.loop.load_for_evaluation(state)
    return experiment


def check_same_classes(here: Sequence[str], trained: Sequence[str] | None, data: str) -> None:
    """ConfigError unless the data has the classes that the network was trained on, in their order."""
    if trained is None or list(here) == list(trained):
        return
    missing = [name for name in trained if name not in here]
    new = [name for name in here if name not in trained]
    lists = [f"{what} {', '.join(some[:8])}{', ...' if len(some) > 8 else ''}" for what, some in
             (("lacks", missing), ("adds", new)) if some]  # fmt: skip
    raise ConfigError(
        f"data={data} {' and '.join(lists) or 'orders them otherwise'}: the network knows {', '.join(trained[:8])}"
        f"{', ...' if len(trained) > 8 else ''}, the data {', '.join(here[:8])}{', ...' if len(here) > 8 else ''}"
    )


def measure(experiment: Experiment, split: str) -> dict[str, float]:
    """The metrics of a split."""
    trainer, loop = experiment.trainer, experiment.loop
    if split == "train":  # unaltered, as the others
        where = {"device": loop.device, "rank": experiment.machine.rank, "world_size": trainer.world_size}
        batches = EvalBatches(loop.data, "train", loop.recipe.limit_batches, **where)
        trainer.validate(loop, dataloaders=batches, verbose=False)
        loop.metrics |= {f"train/{name[4:]}": value for name, value in loop.metrics.items() if name.startswith("val/")}
        if "val" in loop.worst:
            loop.worst["train"] = loop.worst.pop("val")
    else:
        (trainer.test if split == "test" else trainer.validate)(loop, verbose=False)
    return {name: value for name, value in loop.metrics.items() if name.startswith(f"{split}/")}
