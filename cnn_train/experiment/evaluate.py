"""Evaluate a run again: its best weights on a split of its data, perhaps by other inference and post-processing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from cnn_train import atomic
from cnn_train.config.build import build
from cnn_train.config.load import load
from cnn_train.errors import ConfigError
from cnn_train.experiment import calibration
from cnn_train.experiment.build import Experiment, prepare
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.judgement import Judgement, Keeper, judge, write_page
from cnn_train.experiment.judgement import robustness as corrupted_images
from cnn_train.experiment.results import class_column, describe_results, write_csv
from cnn_train.experiment.trainer import quiet_libraries
from cnn_train.runs import checkpoint
from cnn_train.runs.find import find as find_run
from cnn_train.training.batches import EvalBatches
from cnn_train.training.callbacks import display


def evaluate(
    run: str | Path,
    overrides: Sequence[str] = (),
    split: str | None = None,
    *,
    calibrate: bool = False,
    tta: Literal["flip", "multiscale"] | None = None,
    robustness: bool = False,
    config_dir: str | None = None,
    trust: Sequence[str] = (),
) -> dict[str, float]:
    """Metrics of a run (see `cnn_train.runs.find`) on `split` (train, val, test, all; None: test), by its own config.

    `overrides` may name other data with the same classes (`data.root=`, `data.file=`, `data=`); without a `split` all
    its images count then.

    They are also written, with a table of the classes, pictures and a page, to eval/ in the run folder, in a folder
    named by the split and by what else was chosen. `calibrate` fits a temperature to the validation scores of a
    classifier, by which probabilities are then made here, in `load`, in predictions and in exports. `tta` sees each
    image in several views. `robustness` also measures corrupted images.
    """
    elsewhere = is_elsewhere(overrides)
    split = split or ("all" if elsewhere else "test")
    folder, file = find(run, split)
    state = checkpoint.load(file)
    cfg = load(folder, [*overrides, *views(tta, state)], config_dir=config_dir, trust=trust, other_data=True)
    if elsewhere:
        read_alike(cfg, overrides, state, whole=split == "all")
    with quiet_libraries():
        experiment = trained(cfg, folder, file, state)
        keeper = Keeper(experiment)
        temperature = fit_temperature(experiment, keeper, state) if calibrate else 1.0
        found = Judgement(measure(experiment, split))
        if experiment.machine.rank == 0:
            how = [name for name in (cfg.choices.inference, cfg.choices.postprocess) if name not in ("whole", "none")]
            results = folder / "eval" / "-".join([split, *([experiment.loop.data.name] if elsewhere else []), *how])
            worst = {split: "worst"} if split in experiment.loop.worst else {}
            made = describe_results(cfg, experiment.loop, results, results, split, worst)
            judge(found, experiment, split, keeper.take(), temperature, results)
            display.results(split, found.metrics, *class_column(experiment), found.intervals)
        if robustness:
            title = f"{split}/{experiment.loop.task.shown_metrics[0]} of corrupted images"
            found.tables[title] = corrupted_images(experiment, split)
        if experiment.machine.rank == 0:
            if robustness:
                display.rows(title, found.tables[title])
                write_csv(results / "robustness.csv", found.tables[title])
            atomic.write_json(results / "metrics.json", found.metrics)
            page = write_page(found, experiment, split, results, made)
            print(f"results      {results}\npage         {page}")
    return found.metrics


def is_elsewhere(overrides: Sequence[str]) -> bool:
    """Whether settings name other data than the run's own."""
    return any(word.startswith(("data=", "data.root=", "data.file=")) for word in overrides)


def read_alike(cfg: DictConfig, overrides: Sequence[str], state: Mapping[str, Any], whole: bool) -> None:
    """Let other data be read as the run's own was, where the overrides do not say how.

    Where the `whole` is measured, no splits are cut, so that a single image of a class is enough.
    """
    cfg.trainer.overfit_batches = 0  # the few batches that the run learned are of its own data
    typed = {word.partition("=")[0] for word in overrides}
    if whole and {"val_fraction", "test_fraction"} <= cfg.data.keys():
        for key in ("val_fraction", "splits", "folds"):
            if key in cfg.data and f"data.{key}" not in typed:
                cfg.data[key] = None
    for key in ("channels", "range", "resize"):
        if key in cfg.data and state["preprocessing"].get(key) is not None and f"data.{key}" not in typed:
            cfg.data[key] = state["preprocessing"][key]


def show_together(names: Sequence[str], found: Sequence[Mapping[str, float]]) -> None:
    """Print the metrics of several runs as one table, a column each."""
    lines: list[list[object]] = [["metric", *range(1, len(names) + 1)]]
    for metric in dict.fromkeys(name for metrics in found for name in metrics):
        lines.append([metric, *(display.number(m[metric]) if metric in m else "" for m in found)])
    display.rows("all runs", lines)
    for number, name in enumerate(names, 1):
        print(f"{number:<11}  {name}")


def views(tta: str | None, state: Mapping[str, Any]) -> list[str]:
    """The choice of `inference` that stands for a test-time augmentation."""
    if tta is None:
        return []
    by_task = {
        "flip": "flip",
        "multiscale": "zoom" if state["preprocessing"]["task"] == "classification" else "multiscale",
    }
    return [f"inference={by_task[tta]}"]


def fit_temperature(experiment: Experiment, keeper: Keeper, state: Mapping[str, Any]) -> float:
    """Fit the temperature of a classifier's probabilities on the validation split; it is kept in the run folder."""
    loop = experiment.loop
    if loop.data.targets != "labels" or experiment.machine.num_processes > 1:
        raise ConfigError(
            "calibrate=true fits the probabilities of a classifier, of one label an image, in one process"
        )
    measure(experiment, "val")
    kept = keeper.take()
    assert kept is not None
    found = calibration.write(experiment.folder, kept, state["progress"]["step"], experiment.cfg.choices.inference)
    print(
        f"temperature  {found:.4f}, from {len(kept.labels):,} validation images, {experiment.folder / calibration.FILE}"
    )
    return found


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
    if split not in ("train", "val", "test", "all"):
        raise ConfigError(f"split must be train, val, test or all, got {split!r}")
    found = find_run(run)
    return found.folder, found.checkpoint


def trained(
    cfg: DictConfig, folder: Path, file: Path, state: dict[str, Any] | None = None, **options: Any
) -> Experiment:
    """The run's experiment with the weights of a checkpoint, or of its `state`; `options` are the task's."""
    OmegaConf.update(cfg, "weights", None)
    cfg.logger = None
    state = checkpoint.load(file) if state is None else state
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
    if split in ("train", "all"):  # unaltered, as the others
        loop.data.join()
        where = {"device": loop.device, "rank": experiment.machine.rank, "world_size": trainer.world_size}
        batches = EvalBatches(loop.data, split, loop.recipe.limit_batches, **where)
        trainer.validate(loop, dataloaders=batches, verbose=False)
        loop.metrics |= {f"{split}/{name[4:]}": value for name, value in loop.metrics.items() if name[:4] == "val/"}
        if "val" in loop.worst:
            loop.worst[split] = loop.worst.pop("val")
    else:
        (trainer.test if split == "test" else trainer.validate)(loop, verbose=False)
    return {name: value for name, value in loop.metrics.items() if name.startswith(f"{split}/")}
