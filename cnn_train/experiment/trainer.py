"""Lightning's Trainer, set up for a run."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from omegaconf import DictConfig, OmegaConf

from cnn_train.config.build import build
from cnn_train.config.choices import nearest
from cnn_train.config.signatures import signature
from cnn_train.errors import ConfigError
from cnn_train.experiment.hardware import Machine

# Arguments of Lightning's Trainer that are settings of ours, and their names here.
OURS = {
    "accelerator": "trainer.accelerator", "devices": "trainer.devices", "strategy": "trainer.strategy",
    "num_nodes": "trainer.num_nodes", "precision": "trainer.precision", "logger": "logger=", "callbacks": "callbacks=",
    "fast_dev_run": "trainer.fast_dev_run", "max_epochs": "trainer.max_epochs", "max_steps": "trainer.max_epochs",
    "limit_train_batches": "trainer.limit_batches", "overfit_batches": "trainer.overfit_batches",
    "val_check_interval": "trainer.eval_every", "check_val_every_n_epoch": "trainer.eval_every",
    "log_every_n_steps": "trainer.log_every", "enable_checkpointing": "callbacks.checkpoint",
    "enable_progress_bar": "trainer.progress", "enable_model_summary": "cnn-train inspect run=DIR",
    "accumulate_grad_batches": "trainer.accumulate", "gradient_clip_val": "trainer.gradient_clip",
    "gradient_clip_algorithm": "trainer.gradient_clip", "deterministic": "repro=strict",
    "use_distributed_sampler": "data", "profiler": "trainer.profiler", "sync_batchnorm": "norm=syncbn",
    "num_sanity_val_steps": "trainer=smoke", "reload_dataloaders_every_n_epochs": "data",
    "default_root_dir": "output_dir", "barebones": "trainer.progress=none logger=none", "model_registry": "logger=",
}  # fmt: skip


def build_trainer(
    cfg: DictConfig,
    machine: Machine,
    folder: Path,
    callbacks: Sequence[L.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> L.Trainer:
    """The trainer of a run, whose `default_root_dir` is the run folder."""
    options = cfg.trainer
    max_epochs = 1 if options.fast_dev_run else options.max_epochs
    trainer = L.Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        strategy=strategy(cfg, machine),
        precision=machine.precision,
        max_epochs=max_epochs,
        check_val_every_n_epoch=min(options.eval_every, max_epochs),  # once at least
        log_every_n_steps=options.log_every,
        callbacks=list(callbacks),
        logger=list(loggers) or False,
        deterministic=cfg.repro == "strict",
        profiler=options.profiler,
        default_root_dir=str(folder),
        # Checkpoints, progress and summary are ours; the batches are already shared out among processes.
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        # A resumed epoch has fewer calls than those after it.
        reload_dataloaders_every_n_epochs=1,
        **{"benchmark": measures_algorithms(cfg, machine), **further_arguments(options.lightning)},
    )
    # Lightning's handlers would broadcast from within a signal; ours are set already.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def strategy(cfg: DictConfig, machine: Machine) -> Strategy | str:
    """Lightning's strategy; of several processes one whose gradients lie where they are exchanged, not in copies."""
    chosen = cfg.trainer.strategy
    if chosen == "ddp" or (chosen == "auto" and machine.num_processes > 1):
        return DDPStrategy(gradient_as_bucket_view=True)
    return chosen


def measures_algorithms(cfg: DictConfig, machine: Machine) -> bool:
    """Whether cuDNN measures which algorithm is fastest for each shape, which pays where shapes stay."""
    moves = cfg.data.get("multi_scale") is not None or cfg.data.get("resize") == "own"
    return machine.accelerator == "gpu" and cfg.repro == "fast" and not moves


def further_arguments(given: DictConfig | None) -> dict[str, Any]:
    """`trainer.lightning`: arguments of Lightning's Trainer that are not ours, nodes in them built."""
    takes = signature("lightning.pytorch.Trainer").parameters
    for name in map(str, given or {}):
        if name in OURS:
            raise ConfigError(f"trainer.lightning.{name} is set by us: use {OURS[name]}")
        if name not in takes:
            guess = nearest(name, takes.keys() - OURS.keys())
            meant = f". Did you mean {guess}?" if guess else ""
            raise ConfigError(f"trainer.lightning.{name}: Lightning's Trainer has no such argument{meant}")
    return {str(name): built(value) for name, value in (given or {}).items()}


def built(value: Any) -> Any:
    """A setting as plain data, with every node in it built."""
    if OmegaConf.is_dict(value):
        return build(value) if "_target_" in value else {str(k): built(v) for k, v in value.items()}
    return [built(entry) for entry in value] if OmegaConf.is_list(value) else value


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence advice of libraries that a user of this program can do nothing about."""
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
