"""Weights of classes in a loss: worked out from the data, and told in the header of a run."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

ClassWeights = Tensor | Sequence[float] | Literal["auto"] | None


def class_weights_from_counts(counts: Tensor | Sequence[float]) -> Tensor:
    """Weights (K) by inverse frequency, w_c = total / (classes * count_c), from samples or pixels per class (K).

    Their mean over the samples is 1. A class without samples gets weight 1 and is not counted among the classes. Since
    weighted means are divided by the sum of weights, median-frequency weights (Eigen & Fergus 2015) of the same counts
    give the same loss.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64)
    present = counts > 0
    if counts.ndim != 1 or not bool(present.any()):
        raise ValueError(f"class weights need the counts of each class, at least one of them positive, got {counts}")
    weights = counts.sum() / (present.sum() * counts)
    return torch.where(present, weights, torch.ones_like(weights)).float()


def positive_weights_from_counts(counts: Tensor | Sequence[float], images: int) -> Tensor:
    """Weights (K) of the images that show a class, so that they weigh as much as those that do not: (n - n_c) / n_c.

    1 where no image, or every one, shows the class.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64)
    weights = (images - counts) / counts
    return torch.where((counts > 0) & (counts < images), weights, 1.0).float()


def weights_in_words(loss: nn.Module, class_names: Sequence[str]) -> list[str]:
    """What a loss weighs each class by, for the header of a run; with many classes the least and the largest."""
    words = []
    for name in ("class_weights", "positive_weights"):
        weights = next((w for part in loss.modules() if (w := getattr(part, name, None)) is not None), None)
        if weights is None:
            continue
        pairs = list(zip(class_names, weights.tolist(), strict=True))
        if len(pairs) > 10:
            pairs = [min(pairs, key=lambda pair: pair[1]), ("...", math.nan), max(pairs, key=lambda pair: pair[1])]
        each = ", ".join(key if value != value else f"{key} {value:.3g}" for key, value in pairs)
        words.append(f"{name.replace('_', ' ')} {each}")
    return words


def weight_tensor(class_weights: ClassWeights, num_classes: int, name: str = "class_weights") -> Tensor | None:
    if class_weights is None:
        return None
    if isinstance(class_weights, str):
        raise ValueError(f"{name}={class_weights} must be worked out from the data first; give a list of numbers")
    weights = torch.as_tensor(class_weights, dtype=torch.float32).detach().clone()
    if weights.shape != (num_classes,) or not bool((weights >= 0).all()):
        raise ValueError(f"{name} must be {num_classes} numbers of at least 0, one per class, got {weights.tolist()}")
    return weights
