"""How to train: everything but the network, the task and the data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from cnn_train.config.build import build
from cnn_train.training.finetune import Finetune

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Recipe:
    """The optimizer, the schedule and the settings of `trainer`; conf/trainer/auto.yaml explains each."""

    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[[int, int, int], float]
    max_epochs: int
    schedule_start: int = 0
    schedule_epochs: int | None = None
    seed: int = 0
    accumulate: int = 1
    gradient_clip: float | None = None
    ema: float = 0.0
    ema_bias_correction: bool = False
    decay_norm_and_bias: bool = False
    decoder_lr_ratio: float = 1.0
    channels_last: bool = False
    limit_batches: int | None = None
    overfit_batches: int = 0
    same_batches: bool = False
    log_every: int = 50
    split_batches: int | None = 1  # None: as many parts as memory needs
    skip_not_finite: bool = False
    finetune: Finetune = field(default_factory=Finetune)

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rate is multiplied by at a step."""
        length = (self.schedule_epochs or self.max_epochs - self.schedule_start) * steps_per_epoch
        position = min(max(step - self.schedule_start * steps_per_epoch, 0), length - 1)
        return self.schedule(position, length, steps_per_epoch)

    @classmethod
    def of(cls, cfg: "DictConfig", on_gpu: bool) -> "Recipe":
        """The recipe of a config."""
        trainer = cfg.trainer
        once = trainer.fast_dev_run
        return cls(
            optimizer=build(cfg.optimizer),
            schedule=build(cfg.scheduler),
            max_epochs=1 if once else trainer.max_epochs,
            schedule_start=trainer.schedule_start,
            schedule_epochs=trainer.schedule_epochs,
            seed=cfg.seed,
            accumulate=trainer.accumulate,
            gradient_clip=trainer.gradient_clip,
            ema=trainer.ema,
            ema_bias_correction=trainer.ema_bias_correction,
            decay_norm_and_bias=trainer.decay_norm_and_bias,
            decoder_lr_ratio=trainer.decoder_lr_ratio,
            channels_last=on_gpu if trainer.channels_last == "auto" else trainer.channels_last,
            limit_batches=1 if once else trainer.limit_batches,
            overfit_batches=trainer.overfit_batches,
            same_batches=trainer.overfit_batches > 0 or trainer.smoke,
            log_every=trainer.log_every,
            split_batches=None if trainer.split_batches == "auto" else trainer.split_batches,
            skip_not_finite=trainer.on_nan == "skip",
            finetune=build(cfg.finetune),
        )
