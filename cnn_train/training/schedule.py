"""Learning-rate schedules: pure functions of the step, `schedule(step, total_steps, steps_per_epoch)` -> factor.

`step` counts from 0, the factor multiplies the optimizer's learning rate. The same three numbers always give the same
factor, so a run that is continued needs no state; Plateau depends on validations too, which a callback keeps. Every
schedule can start with a warmup: over `warmup_epochs` the factor grows linearly from `warmup_start` to 1 (Goyal et al.
2017, section 2.2). Schedules that span the whole training (Cosine, Poly, OneCycle) begin after it; those that count
epochs or steps (Step, Exponential, Inverse) count from the start of training. A training shorter than its warmup is all
warmup.
"""

import math
from collections.abc import Sequence


class Constant:
    """1 throughout."""

    def __init__(self, *, warmup_epochs: float = 0.0, warmup_start: float = 0.0):
        if warmup_epochs < 0 or not 0 <= warmup_start <= 1:
            raise ValueError(
                f"warmup_epochs must be at least 0 and warmup_start in [0, 1], got {warmup_epochs} and {warmup_start}"
            )
        self.warmup_epochs = warmup_epochs
        self.warmup_start = warmup_start

    def __call__(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        warmup = round(self.warmup_epochs * steps_per_epoch)
        ramp = 1.0
        if step < warmup:
            ramp = self.warmup_start + (1 - self.warmup_start) * step / warmup
        return ramp * self._factor(step, total_steps, steps_per_epoch, warmup)

    def _factor(self, step: int, total_steps: int, steps_per_epoch: int, warmup: int) -> float:
        return 1.0


def _progress(step: int, total_steps: int, warmup: int) -> float:
    """Share of the training after the warmup, in [0, 1]."""
    return min(max((step - warmup) / max(total_steps - warmup, 1), 0.0), 1.0)


class Step(Constant):
    """gamma to the number of milestones passed, or of periods of `every` epochs.

    Milestones are epochs, or shares of the training where they are below 1.
    """

    def __init__(
        self,
        *,
        milestones: Sequence[float] | None = None,
        every: float | None = None,
        gamma: float = 0.1,
        warmup_epochs: float = 0.0,
        warmup_start: float = 0.0,
    ):
        super().__init__(warmup_epochs=warmup_epochs, warmup_start=warmup_start)
        if milestones is None and every is None:
            raise ValueError("scheduler=step needs milestones=[30, 60] or every=30, in epochs")
        if any(milestone <= 0 for milestone in milestones or ()) or (every is not None and every <= 0):
            raise ValueError(f"milestones and every must be positive, got {milestones} and {every}")
        self.milestones = None if milestones is None else list(milestones)
        self.every = every
        self.gamma = gamma

    def _factor(self, step: int, total_steps: int, steps_per_epoch: int, warmup: int) -> float:
        if self.milestones is None:
            assert self.every is not None
            return self.gamma ** _periods(step, self.every, steps_per_epoch)
        starts = [round(m * (total_steps if m < 1 else steps_per_epoch)) for m in self.milestones]
        return self.gamma ** sum(step >= start for start in starts)


def _periods(step: int, every: float, steps_per_epoch: int) -> int:
    """Whole periods of `every` epochs before `step`; rounding errors of a period's end do not delay it."""
    return math.floor(step / (every * steps_per_epoch) + 1e-9)


class Exponential(Constant):
    """gamma^(epoch / every); with `staircase` the exponent is rounded down, so that the rate falls in steps."""

    def __init__(
        self,
        *,
        gamma: float = 0.94,
        every: float = 2.0,
        staircase: bool = True,
        warmup_epochs: float = 0.0,
        warmup_start: float = 0.0,
    ):
        super().__init__(warmup_epochs=warmup_epochs, warmup_start=warmup_start)
        if gamma <= 0 or every <= 0:
            raise ValueError(f"gamma and every (epochs) must be positive, got {gamma} and {every}")
        self.gamma = gamma
        self.every = every
        self.staircase = staircase

    def _factor(self, step: int, total_steps: int, steps_per_epoch: int, warmup: int) -> float:
        if self.staircase:
            return self.gamma ** _periods(step, self.every, steps_per_epoch)
        return self.gamma ** (step / (self.every * steps_per_epoch))


class Inverse(Constant):
    """(1 + gamma step)^-power: Caffe's `inv` policy, with its LeNet's numbers."""

    def __init__(
        self,
        *,
        gamma: float = 1e-4,
        power: float = 0.75,
        warmup_epochs: float = 0.0,
        warmup_start: float = 0.0,
    ):
        super().__init__(warmup_epochs=warmup_epochs, warmup_start=warmup_start)
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}")
        self.gamma = gamma
        self.power = power

    def _factor(self, step: int, total_steps: int, steps_per_epoch: int, warmup: int) -> float:
        return (1 + self.gamma * step) ** -self.power


class Cosine(Constant):
    """Half a cosine from 1 to `final` (Loshchilov & Hutter 2017, eq. 5, without restarts)."""

    def __init__(self, *, final: float = 0.0, warmup_epochs: float = 0.0, warmup_start: float = 0.0):
        super().__init__(warmup_epochs=warmup_epochs, warmup_start=warmup_start)
        self.final = final

    def _factor(self, step: int, total_steps: int, steps_per_epoch: int, warmup: int) -> float:
        done = _progress(step, total_steps, warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


class Poly(Constant):
    """(1 - t/T)^power, as in DeepLab (Chen et al. 2018) and Caffe's `poly` policy."""

    def __init__(self, *, power: float = 0.9, warmup_epochs: float = 0.0, warmup_start: float = 0.0):
        super().__init__(warmup_epochs=warmup_epochs, warmup_start=warmup_start)
        self.power = power

    def _factor(self, step: int, total_steps: int, steps_per_epoch: int, warmup: int) -> float:
        return (1 - _progress(step, total_steps, warmup)) ** self.power


class OneCycle(Constant):
    """Up to 1 within `start_fraction` of the training and down again, each half a cosine (Smith & Topin 2018).

    From 1 / div to 1 / (div final_div), as torch.optim.lr_scheduler.OneCycleLR; the momentum stays as it is.
    """

    def __init__(
        self,
        *,
        start_fraction: float = 0.3,
        div: float = 25.0,
        final_div: float = 1e4,
        warmup_epochs: float = 0.0,
        warmup_start: float = 0.0,
    ):
        super().__init__(warmup_epochs=warmup_epochs, warmup_start=warmup_start)
        if not 0 < start_fraction < 1:
            raise ValueError(f"start_fraction must be in (0, 1), got {start_fraction}")
        if div <= 0 or final_div <= 0:
            raise ValueError(f"div and final_div must be positive, got {div} and {final_div}")
        self.start_fraction = start_fraction
        self.start = 1 / div
        self.final = 1 / (div * final_div)

    def _factor(self, step: int, total_steps: int, steps_per_epoch: int, warmup: int) -> float:
        step, total = max(step - warmup, 0), total_steps - warmup
        if total < 1:  # nothing but warmup
            return self.start
        peak, last = self.start_fraction * total - 1, total - 1
        if step <= peak:
            return _half_cosine(self.start, 1.0, step / peak if peak > 0 else 1.0)
        return _half_cosine(1.0, self.final, min((step - peak) / max(last - peak, 1e-9), 1.0))


class Plateau(Constant):
    """Times `gamma` after each `patience` validations without a better monitored value (`callbacks.plateau` counts).

    Better is by a share of `threshold`; for `cooldown` validations after a reduction none counts. Never below
    `min_factor`.
    """

    def __init__(
        self,
        *,
        gamma: float = 0.1,
        patience: int = 5,
        threshold: float = 1e-4,
        cooldown: int = 0,
        min_factor: float = 0.0,
        warmup_epochs: float = 0.0,
        warmup_start: float = 0.0,
    ):
        super().__init__(warmup_epochs=warmup_epochs, warmup_start=warmup_start)
        if not 0 < gamma < 1 or patience < 0 or cooldown < 0:
            raise ValueError(
                f"gamma must be in (0, 1), patience and cooldown at least 0, got {gamma}, {patience} and {cooldown}"
            )
        self.gamma = gamma
        self.patience = patience
        self.threshold = threshold
        self.cooldown = cooldown
        self.min_factor = min_factor
        self.reductions = 0  # so far, set by the callback that watches validation

    def _factor(self, step: int, total_steps: int, steps_per_epoch: int, warmup: int) -> float:
        return max(self.gamma**self.reductions, self.min_factor)


class Range(Constant):
    """From `low` to `high`, by the same factor at each step: the range test of rates (Smith 2017, section 3.3)."""

    def __init__(self, *, low: float = 1e-4, high: float = 1e3):
        super().__init__()
        if not 0 < low < high:
            raise ValueError(f"low and high must be positive and rise, got {low} and {high}")
        self.low = low
        self.high = high
        self.over = False  # the test has seen enough: the rate is 0

    def _factor(self, step: int, total_steps: int, steps_per_epoch: int, warmup: int) -> float:
        return 0.0 if self.over else self.low * (self.high / self.low) ** (step / max(total_steps - 1, 1))


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
