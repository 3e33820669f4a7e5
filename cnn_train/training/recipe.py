"""How to train: everything but the network, the task and the data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from cnn_train.config.build import build
from cnn_train.config.choices import Choices
from cnn_train.config.schema import OURS
from cnn_train.training.finetune import Finetune

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Scaling:
    """How the learning rate was scaled to the images of an update (Goyal et al. 2017, section 2.1).

    `how` is none, linear or sqrt: times `batch` / `base`, or its square root (Krizhevsky 2014).
    """

    how: str
    rate: float
    batch: int  # images of an update
    base: int  # images of an update that the rate is for
    accumulate: int = 1

    @classmethod
    def of(cls, cfg: "DictConfig") -> "Scaling":
        """What the config says; without a base the batch size of the experiment's, the model's or the data's YAML."""
        node, batch = cfg.optimizer, cfg.data.get("batch_size") or 1
        batch *= cfg.trainer.accumulate
        base = node.get("base_batch_size") or _stated_batch(cfg) or batch
        return cls(node.get("scale_lr", "none"), node.get("lr", 0.0), batch, base, cfg.trainer.accumulate)

    @property
    def factor(self) -> float:
        return {"none": 1.0, "linear": self.batch / self.base, "sqrt": (self.batch / self.base) ** 0.5}[self.how]

    def optimizer(self, cfg: "DictConfig") -> Callable[..., torch.optim.Optimizer]:
        """The config's optimizer at the scaled rate."""
        node = {name: value for name, value in cfg.optimizer.items() if name not in OURS["optimizer"]}
        made = build(type(cfg)(node))
        return made if self.how == "none" else partial(made, lr=self.rate * self.factor)

    def describe(self) -> str:
        """The images of an update, and what became of the rate."""
        parts = f" ({self.batch // self.accumulate} x {self.accumulate} accumulated)" if self.accumulate > 1 else ""
        text = f"{self.batch} images an update{parts}"
        if self.how == "none":
            return text
        root = "root of " if self.how == "sqrt" else ""
        return f"{text}; rate {self.rate * self.factor:.4g} = {self.rate:g} x {root}{self.batch} / {self.base}"


def _stated_batch(cfg: "DictConfig") -> int | None:
    """The batch size that the YAML of the experiment, the model or the data states, the first of them."""
    choices = Choices.find(cfg.get("config_dir"))
    for group in ("experiment", "model", "data"):
        body = choices.body(group, cfg.choices[group]) if cfg.choices.get(group) else {}
        stated = body.get("batch_size") if group == "data" else (body.get("data") or {}).get("batch_size")
        if isinstance(stated, int):
            return stated
    return None


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
    same_batches: bool = False
    log_every: int = 50
    split_batches: int | None = 1  # None: as many parts as memory needs
    skip_not_finite: bool = False
    cuda_graphs: bool = False
    finetune: Finetune = field(default_factory=Finetune)
    scaling: "Scaling | None" = None

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rate is multiplied by at a step."""
        length = (self.schedule_epochs or self.max_epochs - self.schedule_start) * steps_per_epoch
        position = min(max(step - self.schedule_start * steps_per_epoch, 0), length - 1)
        return self.schedule(position, length, steps_per_epoch)

    @classmethod
    def of(cls, cfg: "DictConfig", channels_last: bool = False) -> "Recipe":
        """The recipe of a config; `channels_last` is what `trainer.channels_last=auto` stands for."""
        trainer, scaling = cfg.trainer, Scaling.of(cfg)
        once = trainer.fast_dev_run
        return cls(
            optimizer=scaling.optimizer(cfg),
            scaling=scaling,
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
            channels_last=channels_last if trainer.channels_last == "auto" else trainer.channels_last,
            limit_batches=1 if once else trainer.limit_batches,
            same_batches=trainer.overfit_batches > 0 or trainer.smoke,
            log_every=trainer.log_every,
            split_batches=None if trainer.split_batches == "auto" else trainer.split_batches,
            skip_not_finite=trainer.on_nan == "skip",
            cuda_graphs=trainer.get("cuda_graphs", False),
            finetune=build(cfg.finetune),
        )
