"""What a run tells and leaves: header, tables, pictures, the smoke test."""

import sys
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig

from cnn_train import atomic
from cnn_train.errors import ConfigError, DivergedError
from cnn_train.experiment.hardware import accelerator, precision, rank
from cnn_train.runs import checkpoint
from cnn_train.tasks.pictures import Picture, confusion_picture, save_picture
from cnn_train.tasks.task import Task
from cnn_train.text import csv_text, plain
from cnn_train.training.callbacks import display
from cnn_train.training.callbacks.record import writer


def show_header(cfg: DictConfig, task: Task, trainer: L.Trainer, folder: Path, start: str = "") -> None:
    """Tell what runs, on what, and where it is kept."""
    if rank() != 0 or cfg.trainer.progress == "none":
        return
    data = task.data
    count = sum(p.numel() for p in task.network.parameters())
    shape = "x".join(map(str, (data.in_channels, *data.image_size)))
    sizes = ", ".join(f"{data.size(split):,} {split}" for split in ("train", "val", "test"))
    if accelerator(cfg) == "gpu":
        device = f"{trainer.num_devices} x {torch.cuda.get_device_name()}"
    elif accelerator(cfg) == "cpu":
        device = f"CPU, {torch.get_num_threads()} threads"
        device += f", {trainer.num_devices} processes" if trainer.num_devices > 1 else ""
    else:
        device = accelerator(cfg)
    alone = cfg.choices.norm == "syncbn" and trainer.world_size == 1
    rows = {
        "model": f"{cfg.choices.model}, {count:,} parameters",
        "data": f"{data.name}, {sizes}; {data.num_classes} classes, {shape}",
        "choices": "  ".join(non_defaults(cfg)) or "all default",
        "device": f"{device}, {precision(cfg)}",
        **({"norm": "syncbn with one process is bn"} if alone else {}),
        "folder": str(folder),
    }
    display.header({"resume": start, **rows} if start else rows)


def non_defaults(cfg: DictConfig) -> list[str]:
    """Every choice and setting that differs from `cnn-train`'s own defaults, as it would be typed."""
    from cnn_train.config.choices import Choices
    from cnn_train.config.compose import compose
    from cnn_train.config.overrides import leaves

    default = Choices.find().defaults()
    choices = [f"{group}={name or 'null'}" for group, name in cfg.choices.items() if name != default.get(group)]
    try:
        before = dict(leaves(compose(choices)))
    except ConfigError:  # a choice from the user's own folder: what it holds is its own default
        return choices
    settings = [
        f"{key}={'null' if value is None else value}"
        for key, value in leaves(cfg)
        if not key.startswith(("choices.", "sweep.")) and (key not in before or before[key] != value)
    ]
    return choices + settings


def evaluate_best(task: Task, trainer: L.Trainer, folder: Path) -> dict[str, float]:
    """Test the weights of the best epoch; its validation metrics and the test's."""
    best = folder / "best.ckpt"
    if not best.is_file():  # No validation happened, or the monitor was never a number.
        best = folder / "last.ckpt"
    trainer.strategy.barrier()
    task.load_for_evaluation(checkpoint.load(best))
    trainer.test(task, verbose=False)
    return dict(task.metrics)


def record_results(cfg: DictConfig, task: Task, metrics: dict[str, float], folder: Path) -> None:
    """Write metrics.json, per_class.csv and pictures, the worst validation samples among them; and to TensorBoard."""
    worst = {"val": "worst"} if "val" in task.worst else {}
    pictures = describe_results(cfg, task, folder, folder / "pictures", "test", worst)
    if task.logger is not None:
        board = writer(task)
        for name, picture in pictures.items():
            board.add_image(name, picture, task.progress.step, dataformats="HWC")
        board.add_text("test/per_class", class_table(task, " | "), task.progress.step)
        settings = {"choices": " ".join(non_defaults(cfg)), "seed": cfg.seed, **dict(cfg.choices)}
        settings |= {"optimizer.lr": cfg.optimizer.lr, "data.batch_size": task.data.batch_size}
        task.logger.log_hyperparams(
            {k: "none" if v is None else v for k, v in settings.items()},
            {f"final/{name}": value for name, value in metrics.items()},
        )
        task.logger.finalize("success")
    atomic.write_json(folder / "metrics.json", metrics)  # last: a run that has it is complete


def describe_results(
    cfg: DictConfig, task: Task, folder: Path, pictures: Path, split: str,
    worst: dict[str, str],
) -> dict[str, Picture]:  # fmt: skip
    """Write per_class.csv to `folder`; confusion matrix, samples and `worst` samples to `pictures`.

    `worst` maps splits to names of files. Returns the pictures by `split/name`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "per_class.csv", class_table(task, ","))
    count = max(cfg.callbacks.samples, 1)
    made = {
        f"{split}/confusion": confusion_picture(task.confusion_matrix, task.data.class_names, f"{cfg.name}, {split}"),
        f"{split}/samples": task.sample_panel(split, count),
        **{f"{of}/{name}": task.sample_panel(of, count, worst=True) for of, name in worst.items()},
    }
    for name, picture in made.items():
        save_picture(picture, pictures / f"{name.partition('/')[2]}.png")
    return made


def class_table(task: Task, separator: str) -> str:
    """What was measured of each class, a line each: CSV with a comma, Markdown with a bar."""
    columns = task.class_table or {task.per_class_metric: list(task.per_class.values())}
    rows = [["class", *columns]]
    if separator != ",":
        rows.append(["---"] * len(rows[0]))
    rows += [[name, *map(str, row)] for name, *row in zip(task.data.class_names, *columns.values(), strict=True)]
    return csv_text(rows) if separator == "," else "\n".join(separator.join(map(plain, row)) for row in rows) + "\n"


def show_results(task: Task, metrics: dict[str, float], folder: Path, split: str = "test") -> None:
    shown = {name: value for name, value in metrics.items() if name.startswith(f"{split}/")}
    display.results(split, shown, task.per_class, task.per_class_metric)
    print(f"run folder   {folder}")
    print(f"again        cnn-train eval run={folder}")
    print(f"longer       cnn-train resume {folder} trainer.max_epochs={2 * task.recipe.max_epochs}")
    if task.logger is not None:
        print(f"curves       tensorboard --logdir {folder}")


def check_smoke(task: Task, folder: Path, metrics: dict[str, float]) -> None:
    """The promises of trainer=smoke: all stages ran, the checkpoint reloads to the same weights, and the loss fell.

    Every epoch has the same batches, so its mean loss compares with the first epoch's; and with the first step's, which
    a first update that explodes does not raise. A fall of less than 0.1 % could be dropout's noise.
    """
    for needed in ("train/loss", "val/loss", "test/loss"):
        assert metrics[needed] == metrics[needed], f"{needed} is not a number"
    state = checkpoint.load(folder / "last.ckpt")
    assert state["progress"]["step"] == task.progress.total_steps, "last.ckpt is not of the last step"
    for name in ("best.ckpt", "metrics.csv"):
        assert (folder / name).is_file(), f"no {name}"
    first, last = smoke_losses(task)
    if not last < 0.999 * first:
        raise DivergedError(
            f"smoke: the loss did not fall, from {first:.4f} to {last:.4f} in {len(task.step_losses)} steps; "
            "try a smaller optimizer.lr"
        )
    print(f"smoke passed  train, val, test, checkpoint and reload ran; loss {first:.4f} -> {last:.4f}", file=sys.stderr)


def smoke_losses(task: Task) -> tuple[float, float]:
    """The loss before and after: of the first step or epoch, whichever is less, and the mean of the last epoch."""
    losses, steps = task.step_losses, max(len(task.step_losses) // task.recipe.max_epochs, 1)
    return min(losses[0], sum(losses[:steps]) / steps), sum(losses[-steps:]) / steps
