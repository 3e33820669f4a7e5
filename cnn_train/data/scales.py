"""Multi-scale training: another size of the images every ten steps (Redmon & Farhadi 2017, section 2)."""

import zlib
from collections.abc import Sequence

import torch

from cnn_train.data.augment import Resize
from cnn_train.data.random import generator
from cnn_train.errors import DataError

STEPS = 10  # of one size
KEY = zlib.crc32(b"multi_scale")


class Scales:
    """The size of the images of each step, a function of (seed, step); the aspect is kept to a multiple."""

    def __init__(self, bounds: Sequence[int], size: tuple[int, int], seed: int):
        if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
            raise DataError(f"data.multi_scale must be two sides in pixels, as [96,160], got {list(bounds)}")
        self.bounds, self.size, self.seed = (int(bounds[0]), int(bounds[1])), size, seed
        self.fit(1, 1)

    def fit(self, multiple: int, least: int) -> None:
        """Take multiples of this number that are at least `least`; DataError if there is none within the bounds."""
        low, high = self.bounds
        self.sides = [side for side in range(-(-low // multiple) * multiple, high + 1, multiple) if side >= least]
        self.multiple = multiple
        if not self.sides:
            raise DataError(
                f"data.multi_scale={list(self.bounds)} has no multiple of {multiple} (the network's largest stride) "
                f"from {least} on; give wider bounds"
            )

    def at(self, step: int) -> Resize:
        """The resizing of a step of training, counted from 0."""
        draw = torch.randint(len(self.sides), (), generator=generator(self.seed, KEY, step // STEPS))
        factor = self.sides[int(draw)] / min(self.size)
        height, width = (max(round(side * factor / self.multiple), 1) * self.multiple for side in self.size)
        return Resize((height, width))
