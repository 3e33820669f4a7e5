"""Evaluate a run again: its best weights on a split of its data, perhaps by other inference and post-processing."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from cnn_train import atomic
from cnn_train.config.build import build
from cnn_train.config.load import load
from cnn_train.errors import ConfigError
from cnn_train.runs.find import find as find_run

if TYPE_CHECKING:
    import lightning as L

    from cnn_train.tasks.task import Task


def evaluate(
    run: str | Path, overrides: Sequence[str] = (), split: str = "test", config_dir: str | None = None
) -> dict[str, float]:
    """Metrics of a run (see `cnn_train.runs.find`) on `split`, by the run's own config.

    They are also written, with a table of the classes and pictures, to eval/<split>[-<inference>][-<postprocess>] in
    the run folder.
    """
    from cnn_train.experiment.results import describe_results, show_results
    from cnn_train.experiment.trainer import quiet_libraries

    folder, file = find(run, split)
    cfg = load(folder, overrides, config_dir=config_dir)
    with quiet_libraries():
        task, trainer = prepare(cfg, folder, file)
        metrics = measure(task, trainer, split)
        if trainer.is_global_zero:
            how = [name for name in (cfg.choices.inference, cfg.choices.postprocess) if name not in ("whole", "none")]
            results = folder / "eval" / "-".join([split, *how])
            worst = {split: "worst"} if split in task.worst else {}
            describe_results(cfg, task, results, results, split, worst)
            atomic.write_json(results / "metrics.json", metrics)
            show_results(task, metrics, folder, split)
    return metrics


def search(
    run: str | Path,
    combinations: Sequence[tuple[Sequence[str], Sequence[str]]],
    split: str = "val",
    config_dir: str | None = None,
) -> list[tuple[str, dict[str, float]]]:
    """Metrics on `split` of each combination (its changes, all its overrides) of post-processing, the best first.

    The network's scores are computed once. Written to eval/search.csv in the run folder.
    """
    from cnn_train.experiment.trainer import quiet_libraries
    from cnn_train.tasks.segmentation import Segmentation
    from cnn_train.training.callbacks import display

    folder, file = find(run, split)
    configs = [load(folder, overrides, config_dir=config_dir) for _, overrides in combinations]
    with quiet_libraries():
        task, trainer = prepare(configs[0], folder, file)
        assert isinstance(task, Segmentation)
        task.rivals = [build(cfg.postprocess) for cfg in configs[1:]]
        first = measure(task, trainer, split)
    every = [first, *({f"{split}/{name}": value for name, value in m.items()} for m in task.rival_metrics)]
    names = [" ".join(changes) for changes, _ in combinations]
    ranked = sorted(zip(names, every, strict=True), key=lambda pair: -pair[1][f"{split}/miou"])
    if trainer.is_global_zero:
        columns = [name for name in every[-1]]
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["settings", *columns])
        writer.writerows([name, *(metrics[column] for column in columns)] for name, metrics in ranked)
        (folder / "eval").mkdir(exist_ok=True)
        atomic.write_text(folder / "eval" / "search.csv", text.getvalue())
        display.results(f"{split}/miou", {name: metrics[f"{split}/miou"] for name, metrics in ranked}, {}, "")
        print(f"all metrics  {folder / 'eval' / 'search.csv'}")
    return ranked


def find(run: str | Path, split: str) -> tuple[Path, Path]:
    """The run's folder, and the checkpoint to evaluate. Raises ConfigError."""
    if split not in ("val", "test"):
        raise ConfigError(f"split must be val or test, got {split!r}")
    found = find_run(run)
    return found.folder, found.checkpoint


def prepare(cfg: DictConfig, folder: Path, file: Path) -> "tuple[Task, L.Trainer]":
    """The task with the checkpoint's weights, and what runs it."""
    from cnn_train.experiment.build import build_task
    from cnn_train.experiment.network import build_network_and_data
    from cnn_train.experiment.trainer import build_trainer
    from cnn_train.runs import checkpoint

    OmegaConf.update(cfg, "weights", None)
    state = checkpoint.load(file)
    network, data = build_network_and_data(cfg)
    task = build_task(cfg, network, data)
    cfg.logger = None
    task.load_for_evaluation(state)
    return task, build_trainer(cfg, folder)


def measure(task: "Task", trainer: "L.Trainer", split: str) -> dict[str, float]:
    (trainer.test if split == "test" else trainer.validate)(task, verbose=False)
    return {name: value for name, value in task.metrics.items() if name.startswith(f"{split}/")}
