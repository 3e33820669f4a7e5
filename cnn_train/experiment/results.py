"""What a run tells and leaves: header, tables, pictures, the smoke test."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig

from cnn_train import atomic
from cnn_train.config.choices import Choices
from cnn_train.errors import DivergedError
from cnn_train.experiment.build import Experiment
from cnn_train.experiment.hparams import hparams
from cnn_train.experiment.network import name_of
from cnn_train.layers.norm import synchronizes
from cnn_train.runs import checkpoint
from cnn_train.tasks.class_weights import weights_in_words
from cnn_train.tasks.pictures import Picture, confusion_picture, save_picture
from cnn_train.text import csv_text, plain
from cnn_train.training.batches import listens_to_batches
from cnn_train.training.callbacks import display
from cnn_train.training.callbacks.record import show_picture
from cnn_train.training.loop import Loop
from cnn_train.training.samples import names_of, sample_panel
from cnn_train.training.update import default_of


def show_header(experiment: Experiment, start: str = "") -> None:
    """Tell what runs, on what, and where it is kept."""
    cfg, machine, trainer, loop = experiment.cfg, experiment.machine, experiment.trainer, experiment.loop
    if machine.rank != 0 or cfg.trainer.progress == "none":
        return
    data = loop.data
    count = sum(p.numel() for p in loop.network.parameters())
    shape = "x".join(map(str, (data.in_channels, *data.image_size)))
    sizes = ", ".join(f"{data.size(split):,} {split}" for split in ("train", "val", "test"))
    if machine.accelerator == "gpu":
        device = f"{machine.num_processes} x {torch.cuda.get_device_name()}"
    elif machine.accelerator == "cpu":
        threads = torch.get_num_threads()
        device = f"CPU, {threads} {'thread' if threads == 1 else 'threads'}"
        device += f", {machine.num_processes} processes" if machine.num_processes > 1 else ""
    else:
        device = machine.accelerator
    rows = {
        "model": f"{name_of(cfg)}, {count:,} parameters",
        "data": "; ".join([f"{data.name}, {sizes}", f"{data.num_classes} classes, {shape}", *data.notes]),
        "choices": "  ".join(non_defaults(cfg)) or "all default",
        "device": f"{device}, {machine.precision}",
    }
    if (scaling := loop.recipe.scaling) is not None:
        rows["batch"] = scaling.describe()
    if weights := weights_in_words(loop.task.loss, data.class_names):
        rows["weights"] = "; ".join(weights)
    if rates := loop.recipe.finetune.describe(loop.network, default_of(loop.recipe.optimizer, "lr")):
        rows["rates"] = rates
    if synchronizes(loop.network) and machine.num_processes == 1:
        rows["norm"] = f"{cfg.choices.norm} with one process is batch norm"
    listeners = [type(c).__name__ for c in trainer.callbacks if listens_to_batches(c)]  # type: ignore[attr-defined]
    if listeners:
        rows["steps"] = f"one a call, since {', '.join(listeners)} listens to single batches"
    display.header({**({"resume": start} if start else {}), **rows, "folder": str(experiment.folder)})


def non_defaults(cfg: DictConfig) -> list[str]:
    """Every choice that differs from `cnn-train`'s own, and every setting that was given, as it would be typed."""
    default = Choices.find().defaults()
    choices = [f"{group}={name or 'null'}" for group, name in cfg.choices.items() if name != default.get(group)]
    return [*choices, *cfg.settings]


def evaluate_best(experiment: Experiment) -> dict[str, float]:
    """Test the weights of the best epoch; its validation metrics and the test's."""
    loop, trainer = experiment.loop, experiment.trainer
    trainer.strategy.barrier()
    loop.load_for_evaluation(checkpoint.load(checkpoint.best_in(experiment.folder)))
    trainer.test(loop, verbose=False)
    return dict(loop.metrics)


def record_results(experiment: Experiment, metrics: dict[str, float]) -> None:
    """Write metrics.json, per_class.csv and pictures, the worst validation samples among them; and to the loggers."""
    cfg, loop, folder = experiment.cfg, experiment.loop, experiment.folder
    worst = {"val": "worst"} if "val" in loop.worst else {}
    pictures = describe_results(cfg, loop, folder, folder / "pictures", "test", worst)
    for name, picture in pictures.items():
        show_picture(loop, name, picture)
    settings = {**hparams(cfg), "model": name_of(cfg)}
    for logger in loop.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("test/per_class", markdown(class_table(loop)), loop.progress.step)
            # TensorBoard sorts charts by name: the curves of train and val come first.
            logger.log_hyperparams(settings, {f"with best weights/{name}": value for name, value in metrics.items()})
        else:
            logger.log_hyperparams(settings)
            logger.log_metrics({f"final/{name}": value for name, value in metrics.items()}, loop.progress.step)
        logger.finalize("success")
        if callable(finish := getattr(getattr(logger, "experiment", None), "finish", None)):
            finish()  # Weights & Biases would add the next training of this process to the same run.
    atomic.write_json(folder / "metrics.json", metrics)  # last: a run that has it is complete


def describe_results(
    cfg: DictConfig, loop: Loop, folder: Path, pictures: Path, split: str, worst: dict[str, str]
) -> dict[str, Picture]:
    """Write per_class.csv and predictions.csv to `folder`; confusion matrix, samples and `worst` samples to `pictures`.

    `worst` maps splits to names of files. Returns the pictures by `split/name`.
    """
    assert loop.measured is not None
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "per_class.csv", class_table(loop))
    write_csv(folder / "predictions.csv", sample_table(loop, split))
    count = max(cfg.callbacks.samples, 1)
    title = f"{cfg.name}, {split}"
    made = {
        f"{split}/confusion": confusion_picture(loop.measured.confusion, loop.task.confusion_names, title),
        f"{split}/samples": sample_panel(loop, split, count),
        **{f"{of}/{name}": sample_panel(loop, of, count, loop.worst[of]) for of, name in worst.items()},
    }
    for name, picture in made.items():
        save_picture(picture, pictures / f"{name.partition('/')[2]}.png")
    return made


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as a CSV file, without cells that a spreadsheet would calculate."""
    atomic.write_text(path, csv_text(rows))


def sample_table(loop: Loop, split: str) -> list[list[object]]:
    """What the last evaluation found of each sample: its label, the prediction, and the share that is right."""
    assert loop.measured is not None
    names = loop.data.class_names
    samples = loop.measured.samples
    rows: list[list[object]] = [["sample", "label", "prediction", "correct"]]
    for sample, row in zip(names_of(loop.data, split, list(samples)), samples.values(), strict=True):
        label, prediction = ("" if value != value else names[int(value)] for value in row[:2])
        rows.append([sample, label, prediction, f"{row[2]:.6g}"])
    return rows


def class_table(loop: Loop) -> list[list[str]]:
    """What was measured of each class, a row each."""
    assert loop.measured is not None
    columns = loop.measured.per_class
    rows = zip(loop.data.class_names, *columns.values(), strict=True)
    return [["class", *columns], *([name, *map(str, row)] for name, *row in rows)]


def markdown(rows: list[list[str]]) -> str:
    """Rows as a table of Markdown, the first as its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *([plain(cell).replace("|", "\\|") for cell in row] for row in rows[1:])]
    return "\n".join(" | ".join(line) for line in lines) + "\n"


def class_column(experiment: Experiment) -> tuple[dict[str, float], str]:
    """The first column of the table of classes, by class, and its name."""
    assert experiment.loop.measured is not None
    name, values = next(iter(experiment.loop.measured.per_class.items()))
    return dict(zip(experiment.loop.data.class_names, values, strict=True)), name


def show_results(experiment: Experiment, metrics: dict[str, float], split: str = "test") -> None:
    """Print the metrics of a split, the first column of the table of classes, and the commands that follow."""
    loop, folder = experiment.loop, experiment.folder
    shown = {name: value for name, value in metrics.items() if name.startswith(f"{split}/")}
    display.results(split, shown, *class_column(experiment))
    print(f"run folder   {folder}")
    place = quote(str(folder))
    print(f"again        cnn-train eval run={place}")
    if not experiment.cfg.trainer.fast_dev_run:  # which stops after a batch and keeps no state to resume from
        print(f"longer       cnn-train resume {place} trainer.max_epochs={2 * loop.recipe.max_epochs}")
    if any(isinstance(logger, TensorBoardLogger) for logger in loop.loggers):
        print(f"curves       tensorboard --logdir {place}")


def check_smoke(experiment: Experiment, metrics: dict[str, float]) -> None:
    """The promises of trainer=smoke: all stages ran, the checkpoint reloads to the same weights, and the loss fell.

    Every epoch has the same batches, so its mean loss compares with the first epoch's; and with the first step's, which
    a first update that explodes does not raise. A fall of less than 0.1 % could be dropout's noise.
    """
    loop, folder = experiment.loop, experiment.folder
    for needed in ("train/loss", "val/loss", "test/loss"):
        assert metrics[needed] == metrics[needed], f"{needed} is not a number"
    state = checkpoint.load(folder / checkpoint.LAST)
    assert state["progress"]["step"] == loop.progress.total_steps, "last.ckpt is not of the last step"
    for name in (checkpoint.BEST, "metrics.csv"):
        assert (folder / name).is_file(), f"no {name}"
    first, last = smoke_losses(loop)
    if not last < 0.999 * first:
        raise DivergedError(
            f"smoke: the loss did not fall, from {first:.4f} to {last:.4f} in {len(loop.curve.losses)} steps; "
            "try a smaller optimizer.lr"
        )
    print(f"smoke passed  train, val, test, checkpoint and reload ran; loss {first:.4f} -> {last:.4f}", file=sys.stderr)


def smoke_losses(loop: Loop) -> tuple[float, float]:
    """The loss before and after: of the first step or epoch, whichever is less, and the mean of the last epoch."""
    losses, steps = loop.curve.losses, max(len(loop.curve.losses) // loop.recipe.max_epochs, 1)
    return min(losses[0], sum(losses[:steps]) / steps), sum(losses[-steps:]) / steps
