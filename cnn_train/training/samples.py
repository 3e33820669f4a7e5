"""Samples by name, and pictures of predictions for them."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from cnn_train.analysis.modules import in_mode
from cnn_train.data.data import Data
from cnn_train.tasks.pictures import Picture
from cnn_train.training.loop import Loop


def names_of(data: Data, split: str, samples: Sequence[int]) -> list[Any]:
    """The files of samples, or their indices where the data has no files."""
    paths = data.splits[split].paths()
    return [paths[index] for index in samples] if paths else list(samples)


@torch.no_grad()
def sample_panel(loop: Loop, split: str, count: int, chosen: Sequence[int] | None = None) -> Picture:
    """Predictions for the first images of a split, or for the first of those that are `chosen`."""
    data, network = loop.data, loop.network
    chosen = range(data.size(split))[:count] if chosen is None else chosen[:count]
    raw, targets = data.samples(split, chosen, device=loop.device)
    images = loop.to_network(data.to_input(raw))
    with in_mode(network, training=False), loop.ema.swap() if loop.ema is not None else nullcontext():
        scores = loop.task.infer(network, images)
    return loop.task.panel(data.denormalize(images), targets, scores)
