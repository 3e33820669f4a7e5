"""Whether probabilities are what they say: expected calibration error and Brier score."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from cnn_train.tasks.pictures import Picture
from cnn_train.tasks.probabilities import BINS


class Calibration(Metric):
    """Counts scores (N, K) and labels (N) by the probability of the predicted class, in `bins` bins of one width."""

    full_state_update = False
    confidence: Tensor
    correct: Tensor
    count: Tensor
    squares: Tensor

    def __init__(self, bins: int = BINS, **options: Any):
        super().__init__(**options)
        self.bins = bins
        for name in ("confidence", "correct", "count"):
            self.add_state(name, torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch."""
        probabilities = scores.float().softmax(1)
        best, predicted = probabilities.max(1)
        # Scores that are not finite have no confidence: they make the error NaN, in the first bin.
        place = (best.nan_to_num(0.0) * self.bins).long().clamp(max=self.bins - 1)
        for state, values in (
            (self.confidence, best),
            (self.correct, (predicted == labels)),
            (self.count, torch.ones_like(best)),
        ):
            state += torch.zeros_like(state).index_add_(0, place, values.to(state.dtype))
        own = probabilities.gather(1, labels[:, None]).squeeze(1)
        self.squares += (probabilities.square().sum(1) - 2 * own + 1).sum()

    def compute(self) -> dict[str, float]:
        """`ece`: the mean distance of confidence and accuracy over bins, weighted by their images (Naeini et al. 2015,
        Guo et al. 2017); `brier`: the mean squared distance of probabilities from the truth (Brier 1950), 0 to 2."""
        total = self.count.sum()
        return {
            "ece": float((self.confidence - self.correct).abs().sum() / total),
            "brier": float(self.squares / total),
        }


def reliability_picture(confidence: Tensor, correct: Tensor, title: str) -> Picture:
    """How often answers (N) are correct, by the confidence (N) that they were given with: bars, and their number."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    place = (confidence * BINS).long().clamp(max=BINS - 1)
    count = torch.bincount(place, minlength=BINS)
    share = torch.bincount(place, weights=correct.double(), minlength=BINS) / count
    middles = ((torch.arange(BINS) + 0.5) / BINS).tolist()
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(4.5, 5.5), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.bar(middles, share.nan_to_num().tolist(), 1 / BINS, edgecolor="white", label="correct")
        above.plot([0, 1], [0, 1], color="black", lw=1, ls="--", label="as confident as correct")
        above.set(title=title, ylabel="share that is correct", xlim=(0, 1), ylim=(0, 1))
        above.legend(loc="upper left", frameon=False)
        below.bar(middles, count.tolist(), 1 / BINS, edgecolor="white", color="gray")
        below.set(xlabel="confidence of the answer", ylabel="images")
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
