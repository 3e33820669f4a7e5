"""Whether probabilities are what they say: expected calibration error and Brier score."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 15


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
        place = (best * self.bins).long().clamp(max=self.bins - 1)
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
