"""Watches validation for `scheduler=plateau`, whose learning rate falls where it no longer improves."""

from typing import Any

import lightning as L

from cnn_train.training.loop import Callback, Loop
from cnn_train.training.schedule import Plateau


class PlateauWatch(Callback):
    """Counts validations without a better monitored value, and the reductions that follow from them.

    As torch's ReduceLROnPlateau with a relative threshold. What it counts is part of a checkpoint, so a resumed run has
    the same rates.
    """

    def __init__(self, schedule: Plateau):
        self.schedule = schedule
        self.best: float | None = None
        self.bad = self.cooling = self.reductions = 0

    def on_train_start(self, trainer: L.Trainer, loop: Any) -> None:
        loop.recipe.schedule.reductions = self.reductions

    def on_epoch_end(self, loop: Loop) -> None:
        value = loop.metrics.get(loop.best.monitor)
        if loop.validated and value is not None:
            self.observe(value, loop.best.lower_is_better)
            loop.recipe.schedule.reductions = self.reductions  # type: ignore[attr-defined]

    def observe(self, value: float, lower_is_better: bool) -> None:
        """Take in the value of a validation."""
        better = self.best is None
        if self.best is not None:
            margin = self.schedule.threshold * (-1 if lower_is_better else 1)
            limit = self.best * (1 + margin)
            better = value < limit if lower_is_better else value > limit
        if better:
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.cooling:
            self.cooling, self.bad = self.cooling - 1, 0
        if self.bad > self.schedule.patience:
            self.reductions, self.bad, self.cooling = self.reductions + 1, 0, self.schedule.cooldown

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "bad": self.bad, "cooling": self.cooling, "reductions": self.reductions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.bad, self.cooling, self.reductions = (
            state[name] for name in ("best", "bad", "cooling", "reductions")
        )
