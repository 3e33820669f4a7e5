"""The learning-rate range test: loss against a rate that grows at each step, and a rate to begin with.

Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3, https://arxiv.org/abs/1506.01186;
with an exponential instead of a linear growth.
"""

import io
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from cnn_train import atomic
from cnn_train.training.loop import Callback, Loop

SMOOTHING = 0.9  # of the loss, by an exponential mean
EXPLODED = 4.0  # times the lowest loss


class LRRange(Callback):
    """Writes lr_range.csv and pictures/lr_range.png, and prints the proposed rate.

    Once the loss is four times its lowest, or the steps are over, the weights are those of the start and the rate is 0.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.before = (0.0, 0.0)
        self.start: dict[str, Tensor] = {}
        self.over = False

    def on_train_start(self, trainer: L.Trainer, loop: Any) -> None:
        self.start = {name: value.detach().clone() for name, value in loop.network.state_dict().items()}

    def on_step(self, loop: Loop) -> None:
        if self.over:
            return
        total, weight = (float(loop.over_processes(value).sum()) for value in (loop.sums.loss, loop.sums.weight))
        first = loop.progress.step_in_epoch == 1
        before = (0.0, 0.0) if first else self.before
        self.before = total, weight
        self.rates.append(loop.optimizer.param_groups[0]["lr"])
        self.losses.append((total - before[0]) / max(weight - before[1], 1e-12))
        smooth = smoothed(self.losses)
        last = loop.progress.step == loop.progress.total_steps
        if last or not math.isfinite(smooth[-1]) or smooth[-1] > EXPLODED * min(smooth):
            self._end(loop)

    def _end(self, loop: Loop) -> None:
        self.over = True
        loop.recipe.schedule.over = True  # type: ignore[attr-defined]
        loop.optimizer.state.clear()
        with torch.no_grad():
            for name, value in loop.network.state_dict().items():
                value.copy_(self.start[name])

    def on_train_end(self, trainer: L.Trainer, loop: Any) -> None:
        if not trainer.is_global_zero:
            return
        folder, smooth = Path(trainer.default_root_dir), smoothed(self.losses)
        rows = zip(self.rates, self.losses, smooth, strict=True)
        atomic.write_text(
            folder / "lr_range.csv",
            "".join(["rate,loss,smoothed\n", *(f"{a:.6g},{b:.6g},{c:.6g}\n" for a, b, c in rows)]),
        )
        rate = proposed(self.rates, smooth)
        (folder / "pictures").mkdir(exist_ok=True)
        atomic.write_bytes(folder / "pictures" / "lr_range.png", picture(self.rates, self.losses, smooth, rate))
        if rate is None:
            print("learning rate  no rate makes the loss fall; look at pictures/lr_range.png")
        else:
            lowest = self.rates[min(range(len(smooth)), key=smooth.__getitem__)]
            print(f"learning rate  optimizer.lr={rate:.2g} (the loss falls fastest there; lowest at {lowest:.2g})")


def smoothed(losses: list[float]) -> list[float]:
    """Exponential means, corrected for their start."""
    mean, result = 0.0, []
    for number, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        result.append(mean / (1 - SMOOTHING**number))
    return result


def proposed(rates: list[float], smooth: list[float]) -> float | None:
    """The rate at which the smoothed loss falls fastest over the logarithm of the rate, before its lowest point.

    None where it never falls.
    """
    lowest = min(range(len(smooth)), key=lambda i: smooth[i] if math.isfinite(smooth[i]) else math.inf)
    slopes = [
        (smooth[i + 1] - smooth[i - 1]) / math.log(rates[i + 1] / rates[i - 1]) if i + 1 <= lowest else 0.0
        for i in range(1, len(smooth) - 1)
    ]
    if not slopes or min(slopes) >= 0:
        return None
    return rates[1 + slopes.index(min(slopes))]


def picture(rates: list[float], losses: list[float], smooth: list[float], rate: float | None) -> bytes:
    """A PNG file of the loss against the rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="tight")
    axes = figure.subplots()
    axes.plot(rates, losses, color="#bbbbbb", label="loss of a batch")
    axes.plot(rates, smooth, color="#1f4e79", label="smoothed")
    if rate is not None:
        axes.axvline(rate, color="#c0392b", linestyle="--", label=f"falls fastest: {rate:.2g}")
    finite = [value for value in smooth if math.isfinite(value)]
    axes.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="loss",
        ylim=(min(finite) * 0.9, min(finite) * 0.1 + max(smooth[0] * 1.3, min(finite) * 2)),
    )
    axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, dpi=110)
    return content.getvalue()
