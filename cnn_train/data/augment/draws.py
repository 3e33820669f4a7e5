"""Random numbers of an augmentation, for each sample by (seed, epoch, index) and the augmentation's kind."""

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

from cnn_train.data.random import key, uniform
from cnn_train.errors import DataError


def draws(augment: object, seed: int, epoch: int, indices: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each sample (N, count); different ones for each class of augmentation."""
    return uniform(seed, _name_key(type(augment).__name__), epoch, indices=indices, count=count)


@contextmanager
def seeded(augment: object, seed: int, epoch: int, index: int) -> Iterator[None]:
    """Seed torch's CPU generator for one sample inside the block, and restore it afterwards."""
    state = key(seed, _name_key(type(augment).__name__), epoch, index)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPU's generator, which nothing would restore.
        torch.default_generator.manual_seed(state & (2**63 - 1))
        yield


@cache
def _name_key(name: str) -> int:
    return zlib.crc32(name.encode())


def between(draw: Tensor, bounds: Sequence[float]) -> Tensor:
    """Uniform numbers in [0, 1) stretched to the bounds."""
    return bounds[0] + draw * (bounds[1] - bounds[0])


def normal(draw: Tensor) -> Tensor:
    """Normal numbers (N, n) from uniform ones (N, 2n), by Box & Muller (1958)."""
    half = draw.size(1) // 2
    return (-2 * (1 - draw[:, :half]).log()).sqrt() * (2 * math.pi * draw[:, half:]).cos()


def beta(draw: Tensor, alpha: float) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at uniform numbers."""
    table = _beta_table(alpha, draw.device)
    position = draw * (len(table) - 1)
    index = position.long()
    return torch.lerp(table[index], table[index + 1], position - index)


@cache
def _beta_table(alpha: float, device: torch.device) -> Tensor:
    return torch.tensor(_beta_quantiles(alpha), device=device)


@cache
def _beta_quantiles(alpha: float, steps: int = 2048) -> tuple[float, ...]:
    """Quantiles at 2 * steps + 1 evenly spaced probabilities from 0 to 1."""
    if alpha <= 0:
        raise DataError(f"augment.alpha must be > 0, got {alpha:g}")
    # x = w ** (1 / alpha) removes the density's pole at 0; the upper half mirrors the lower one.
    w = np.linspace(0, 0.5**alpha, 16 * steps + 1)
    density = (1 - w ** (1 / alpha)) ** (alpha - 1)
    cumulated = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    lower = np.interp(np.linspace(0, 1, steps + 1), cumulated / cumulated[-1], w) ** (1 / alpha)
    return tuple(np.concatenate([lower, 1 - lower[-2::-1]]).astype(np.float32).tolist())
