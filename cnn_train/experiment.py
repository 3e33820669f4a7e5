"""The parts of an experiment, each built from its config: `train` and `evaluate` put them together."""

import copy
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from cnn_train import __version__, checkpoint, run_folder
from cnn_train.callbacks import display
from cnn_train.callbacks.callback import Callback
from cnn_train.callbacks.checkpoints import Checkpoints, EarlyStopping
from cnn_train.callbacks.finite import LossWatch, NotFinite
from cnn_train.callbacks.health import Health
from cnn_train.callbacks.record import MetricsFile, TensorBoard, writer
from cnn_train.config import build, build_layers
from cnn_train.data.data import Data
from cnn_train.errors import ConfigError, DivergedError, EnvError, UserError
from cnn_train.hardware import accelerator, devices, num_processes, precision, rank
from cnn_train.layers.init import lsuv_calibrate
from cnn_train.tasks.classification import Classification
from cnn_train.tasks.pictures import Picture, confusion_picture, save_picture
from cnn_train.tasks.segmentation import Segmentation
from cnn_train.tasks.task import Recipe, Task

TASKS: dict[str, type[Task]] = {"classification": Classification, "segmentation": Segmentation}


# -- Building --------------------------------------------------------------------------------------------


def build_network_and_data(cfg: DictConfig) -> tuple[nn.Module, Data]:
    """Build both, the data's images at least as large as the network needs, and check that they fit each other."""
    data: Data = build(cfg.data)
    torch.manual_seed(cfg.seed)
    layers = build_layers(cfg)
    network = build(cfg.model, num_classes=data.num_classes, in_channels=data.in_channels, layers=layers)
    least = getattr(network, "min_size", 1)
    if min(data.image_size) < least:
        if cfg.image_size is not None:
            got = "x".join(map(str, data.image_size))
            raise ConfigError(
                f"{cfg.choices.model} needs images of at least {least}x{least}, got {got}; image_size={least} works"
            )
        data = build(cfg.data, image_size=least)
    check_fit(network, data, cfg)
    if cfg.weights is not None:
        checkpoint.load_weights(network, Path(cfg.weights))
    elif layers.needs_images:
        lsuv_calibrate(network, next(data.train_batches(0, device=torch.device("cpu"))).images)
    return network, data


def check_fit(network: nn.Module, data: Data, cfg: DictConfig) -> None:
    """Send the least that is normalized together in training through the network on the meta device.

    ConfigError if it does not fit.
    """
    processes, parts = num_processes(cfg), cfg.trainer.split_batches
    shares = (1 if cfg.choices.norm == "syncbn" else processes) * (1 if parts == "auto" else parts)
    full, last = divmod(data.size("train"), data.batch_size)
    smallest, which = data.batch_size if full else data.size("train"), "a training batch"
    if processes <= last and not data.drop_last:
        smallest, which = last, "the last training batch"
    if shares > 1:
        smallest, which = max(smallest // shares, 1), f"a part of {which}"
    model, size = cfg.choices.model, "x".join(map(str, data.image_size))
    images = torch.empty(smallest, data.in_channels, *data.image_size, device="meta")
    try:
        scores = copy.deepcopy(network).to("meta").train()(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise ConfigError(str(error).splitlines()[0]) from error
        fewer = "" if parts in (1, "auto") else "trainer.split_batches=1, "
        raise ConfigError(
            f"norm={cfg.choices.norm} needs more than one value per channel, but {which} is {smallest} image and a map "
            f"of {model} is 1x1; choose {fewer}data.drop_last=true, another data.batch_size, norm=gn or norm=frozen_bn"
        ) from error
    except RuntimeError as error:
        raise ConfigError(
            f"{model} cannot take images of {size}: {str(error).splitlines()[0]}; try a larger image_size"
        ) from error
    scores = scores[0] if isinstance(scores, tuple) else scores
    maps = scores.ndim == 4
    if maps != (data.task == "segmentation"):
        kind = "segmentation" if maps else "classification"
        raise ConfigError(
            f"{model} is a {kind} network, but data={cfg.choices.data} is for {data.task}; "
            f"choose another model or data (cnn-train list data)"
        )


def build_task(cfg: DictConfig, network: nn.Module, data: Data) -> Task:
    """The Lightning module for the data's kind of task."""
    on_gpu = accelerator(cfg) != "cpu"
    options = cfg.trainer
    if options.decoder_lr_ratio != 1 and not isinstance(getattr(network, "backbone", None), nn.Module):
        raise ConfigError(
            f"trainer.decoder_lr_ratio={options.decoder_lr_ratio:g}, but {cfg.choices.model} has no encoder apart; "
            "leave it at 1"
        )
    recipe = Recipe(
        optimizer=build(cfg.optimizer),
        schedule=build(cfg.scheduler),
        schedule_start=options.schedule_start,
        schedule_epochs=options.schedule_epochs,
        max_epochs=1 if options.fast_dev_run else options.max_epochs,
        seed=cfg.seed,
        accumulate=options.accumulate,
        gradient_clip=options.gradient_clip,
        ema=options.ema,
        ema_bias_correction=options.ema_bias_correction,
        decay_norm_and_bias=options.decay_norm_and_bias,
        decoder_lr_ratio=options.decoder_lr_ratio,
        channels_last=on_gpu if options.channels_last == "auto" else options.channels_last,
        limit_batches=1 if options.fast_dev_run else options.limit_batches,
        overfit_batches=options.overfit_batches,
        same_batches=options.overfit_batches > 0 or options.smoke,
        log_every=options.log_every,
        split_batches=None if options.split_batches == "auto" else options.split_batches,
        skip_not_finite=options.on_nan == "skip",
    )
    weights = cfg.loss.get("class_weights")
    if weights == "auto":
        weights = class_weights(data)
    loss = build(
        cfg.loss,
        num_classes=data.num_classes,
        ignore_index=data.ignore_index,
        **({} if "class_weights" not in cfg.loss else {"class_weights": weights}),
    )
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if options.compile:
        network.compile()
    return TASKS[data.task](network, loss, data, recipe, **after_the_network(cfg, data))


def after_the_network(cfg: DictConfig, data: Data) -> dict[str, Any]:
    """How scores and labels come about in evaluation: `inference` and `postprocess` of segmentation."""
    if data.task == "segmentation":
        return {"inference": build(cfg.inference, train_size=data.image_size), "postprocess": build(cfg.postprocess)}
    for group, default in (("inference", "whole"), ("postprocess", "none")):
        if cfg.choices[group] != default:
            raise ConfigError(
                f"{group}={cfg.choices[group]} is for segmentation, but data={cfg.choices.data} is for {data.task}; "
                f"choose {group}={default}"
            )
    return {}


@dataclass
class Callbacks:
    """What watches this run, with names for those that are spoken to."""

    checkpoints: Checkpoints
    metrics_file: MetricsFile
    display: display.Display
    others: list[Callback]

    def in_order(self) -> list[Callback]:
        # Rows and curves first: what a checkpoint counts is on disk. The display, last, tells which was best.
        return [self.metrics_file, *self.others, self.checkpoints, self.display]


def build_callbacks(cfg: DictConfig, task: Task, folder: Path) -> Callbacks:
    monitor = monitored(cfg, task)
    options = cfg.callbacks
    checkpoints = Checkpoints(
        folder,
        monitor,
        "min" if "loss" in monitor else "max",
        lambda: description(cfg, task.data),
        options.checkpoint.every_minutes,
        options.checkpoint.every_steps,
        options.checkpoint.keep_best,
    )
    others: list[Callback] = [NotFinite(folder, cfg.trainer.on_nan), LossWatch()]
    if cfg.logger is not None:
        others.append(TensorBoard(options.samples))
    if options.health.every is not None:
        others.append(Health(options.health.every, activations=not cfg.trainer.compile))
    progress = display.choose(cfg.trainer.progress) if rank() == 0 else "none"
    callbacks = Callbacks(
        checkpoints, MetricsFile(folder / "metrics.csv"), display.Display(progress, checkpoints), others
    )
    task.callbacks = callbacks.in_order()
    if options.early_stopping.patience is not None:
        task.callbacks.append(EarlyStopping(checkpoints, options.early_stopping.patience))
    return callbacks


def monitored(cfg: DictConfig, task: Task) -> str:
    """The metric that decides which epoch is best; ConfigError for one that no validation gives."""
    known = [f"val/{name}" for name in task.metric_names]
    if cfg.monitor is None:
        return f"val/{task.shown_metrics[0]}"
    if cfg.monitor not in known:
        raise ConfigError(f"monitor={cfg.monitor} is not a metric of this task; choose one of {', '.join(known)}")
    return cfg.monitor


def description(cfg: DictConfig, data: Data) -> dict[str, Any]:
    """What a checkpoint says of itself, as plain data."""
    return {
        "cnn_train": __version__,
        "config": OmegaConf.to_container(OmegaConf.create(run_folder.mask(OmegaConf.to_yaml(cfg))), resolve=False),
        "class_names": list(data.class_names),
        "preprocessing": data.preprocessing(),
    }


# -- Lightning -------------------------------------------------------------------------------------------


def build_trainer(cfg: DictConfig, folder: Path, saved: dict[str, Any] | None = None) -> L.Trainer:
    """Lightning's trainer; `saved` is the state that training goes on from."""
    options = cfg.trainer
    logger = None
    if cfg.logger is not None:
        # Points of steps that will be done again go from the curves.
        purge = {"purge_step": saved["progress"]["step"] + 1} if saved is not None else {}
        logger = TensorBoardLogger(str(folder), name="", version="tensorboard", default_hp_metric=False, **purge)
    max_epochs = 1 if options.fast_dev_run else options.max_epochs
    trainer = L.Trainer(
        accelerator=accelerator(cfg),
        devices=devices(cfg),
        strategy=options.strategy,
        precision=precision(cfg),
        max_epochs=max_epochs,
        check_val_every_n_epoch=min(options.eval_every, max_epochs),  # once at least
        logger=logger or False,
        deterministic=cfg.repro == "strict",
        profiler=options.profiler,
        default_root_dir=str(folder),
        # Checkpoints, progress and summary are ours; the batches are already shared out among processes.
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        # A resumed epoch has fewer calls than those after it.
        reload_dataloaders_every_n_epochs=1,
    )
    # Lightning's handlers would broadcast from within a signal; ours are set already.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within: no advice of libraries that a user of this program can do nothing about."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
    loggers += [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*deprecated.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


# -- Running ---------------------------------------------------------------------------------------------


def saved_state(folder: Path) -> dict[str, Any] | None:
    """The state to go on from, None if none was saved yet; tells of a damaged checkpoint."""
    state, told = checkpoint.load_newest(folder)
    if told and rank() == 0:
        print(told, file=sys.stderr)
    return state


def restore(state: dict[str, Any] | None, folder: Path, task: Task, callbacks: Callbacks, trainer: L.Trainer) -> str:
    """Set task, callbacks and Lightning's epoch counter to a saved state; says where training goes on."""
    if state is None:
        return "from the first step: no checkpoint had been saved"
    epoch, step = state["progress"]["epoch"], state["progress"]["step"]
    results = folder / "metrics.json"
    if epoch >= task.recipe.max_epochs and results.is_file():
        raise ConfigError(
            f"{folder} has done all its {epoch} epochs; for more: "
            f"cnn-train resume {folder} trainer.max_epochs={2 * epoch}"
        )
    if rank() == 0:
        results.unlink(missing_ok=True)
    check_same_network(state, task, folder)
    task.resume_state = state
    callbacks.checkpoints.restore(state)
    callbacks.metrics_file.keep_until(epoch)
    set_epoch(trainer, epoch)
    return f"from step {step:,}, epoch {epoch + 1}"


def set_epoch(trainer: L.Trainer, epoch: int) -> None:
    """Let Lightning count epochs from here."""
    counter: Any = trainer.fit_loop.epoch_progress.current
    counter.ready = counter.started = counter.processed = counter.completed = epoch


def check_same_network(state: dict[str, Any], task: Task, folder: Path) -> None:
    """ConfigError if a checkpoint is of another network than the config's."""
    saved = {name: tuple(value.shape) for name, value in state["network"].items()}
    built = {name: tuple(value.shape) for name, value in task.network.state_dict().items()}
    if saved == built:
        return
    name = next(name for name in [*saved, *built] if saved.get(name) != built.get(name))
    raise ConfigError(
        f"the checkpoint in {folder} is of another network: {name} is {saved.get(name, 'absent')} there and "
        f"{built.get(name, 'absent')} by config.yaml; restore that file, or start anew with weights={folder}/best.ckpt"
    )


@contextmanager
def saved_at_errors(task: Task) -> Iterator[None]:
    """Within: an error keeps the state that was reached, if it is that between two updates.

    That memory is out becomes an EnvError, which says of what batch.
    """
    try:
        yield
    except Exception as error:
        if task.between_updates:
            task.leave_evaluation()
            with suppress(UserError, RuntimeError):
                for callback in task.callbacks:
                    callback.on_error(task)
        if is_out_of_memory(error):
            raise EnvError(out_of_memory(task, error)) from error
        raise


def is_out_of_memory(error: Exception) -> bool:
    allocator = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or allocator


def out_of_memory(task: Task, error: Exception) -> str:
    """What needed how much, and how the same batch fits."""
    text = " ".join(str(error).split())
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    capacity = re.search(r"total capacity of ([\d.]+ \w+)", text)
    shape = "x".join(map(str, (task.data.in_channels, *task.data.image_size)))
    return (
        f"out of memory in step {task.progress.step + 1}: a batch of {task.data.batch_size} images of {shape} in "
        f"{task.split_batches} part(s)"
        + (f" asked for {asked[1]} more" if asked else "")
        + (f" than is free of {capacity[1]}" if capacity else "")
        + f"; trainer.split_batches={2 * task.split_batches} needs less memory, "
        "trainer.split_batches=auto finds what fits"
    )


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
        "data": "; ".join([f"{data.name}, {sizes}", f"{data.num_classes} classes, {shape}", *data.notes]),
        "choices": "  ".join(non_defaults(cfg)) or "all default",
        "device": f"{device}, {precision(cfg)}",
        **({"norm": "syncbn with one process is bn"} if alone else {}),
        "folder": str(folder),
    }
    display.header({"resume": start, **rows} if start else rows)


def non_defaults(cfg: DictConfig) -> list[str]:
    """Every choice and setting that differs from `cnn-train`'s own defaults, as it would be typed."""
    from cnn_train.choices import Choices
    from cnn_train.config import compose, leaves

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
    run_folder.write_json(folder / "metrics.json", metrics)  # last: a run that has it is complete


def describe_results(
    cfg: DictConfig, task: Task, folder: Path, pictures: Path, split: str,
    worst: dict[str, str],
) -> dict[str, Picture]:  # fmt: skip
    """Write per_class.csv to `folder`; confusion matrix, samples and `worst` samples to `pictures`.

    `worst` maps splits to names of files. Returns the pictures by `split/name`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_text(folder / "per_class.csv", class_table(task, ","))
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
    return "\n".join(separator.join(row) for row in rows) + "\n"


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


def class_weights(data: Data) -> list[float]:
    """Weights for `loss.class_weights=auto`, from the training labels."""
    from cnn_train.tasks.losses import class_weights_from_counts

    return class_weights_from_counts(data.class_counts("train")).tolist()
