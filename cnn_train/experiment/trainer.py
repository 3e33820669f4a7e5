"""Lightning's Trainer, set up for a run."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig

from cnn_train.experiment.hardware import accelerator, devices, precision


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
