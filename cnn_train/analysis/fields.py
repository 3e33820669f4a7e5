"""Which input positions a unit reads, along one axis: the arithmetic under receptive fields.

Two small objects carry everything. `Reads` says which positions of its input one position of an operation's output
reads. `Intervals` says which pixels of the image each unit of a map sees. Both describe an unbounded axis by one period
of it, so that borders and padding do not blur the figures: a convolution has period 1, a transposed convolution with
stride s, whose neighbouring units do not shift alike, has period s.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

_LONGEST_PERIOD = 4096


@dataclass(frozen=True)
class Reads:
    """Position o of the output reads `taps[o % period]`, shifted by `step` for each whole period.

    `edge` says what a tap outside the input does: "skip" (zero padding), "clamp" or "reflect". `whole` reads all of it.
    """

    taps: tuple[tuple[int, ...], ...] = ((0,),)
    step: int = 1
    edge: str = "skip"
    whole: bool = False

    def at(self, position: int) -> list[int]:
        """The input positions that output `position` reads, not yet cut at the borders."""
        turns, place = divmod(position, len(self.taps))
        return [tap + turns * self.step for tap in self.taps[place]]

    def inside(self, position: int, inputs: int) -> list[int]:
        """The input positions that output `position` reads on a map of `inputs` positions."""
        if self.whole:
            return list(range(inputs))
        taps = self.at(position)
        if self.edge == "clamp":
            return [min(max(tap, 0), inputs - 1) for tap in taps]
        if self.edge == "reflect":
            return [-tap if tap < 0 else 2 * (inputs - 1) - tap if tap >= inputs else tap for tap in taps]
        return [tap for tap in taps if 0 <= tap < inputs]

    def matrix(self, outputs: int, inputs: int) -> Tensor:
        """Booleans (outputs, inputs): does this output position read that input position?"""
        rows, columns = [], []
        for position in range(outputs):
            taps = self.inside(position, inputs)
            rows.extend([position] * len(taps))
            columns.extend(taps)
        result = torch.zeros(outputs, inputs, dtype=torch.bool)
        result[rows, columns] = True
        return result


SAME = Reads()
WHOLE = Reads(step=0, whole=True)
BROADCAST = Reads(step=0)


@lru_cache(maxsize=1024)
def window(kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Reads:
    """A convolution or pooling: output o reads o * stride - padding + t * dilation."""
    return Reads((tuple(t * dilation - padding for t in range(kernel_size)),), stride)


@lru_cache(maxsize=1024)
def transposed(kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Reads:
    """A transposed convolution or unpooling: output o reads every i with i * stride - padding + t * dilation = o."""
    taps = []
    for position in range(stride):
        shifted = [position + padding - t * dilation for t in range(kernel_size)]
        taps.append(tuple(s // stride for s in shifted if s % stride == 0))
    return Reads(tuple(taps), 1)


def pick(start: int, step: int = 1) -> Reads:
    """A slice `[start::step]`; step 0 selects one position, -1 flips."""
    return Reads(((start,),), step)


def pad(before: int, edge: str = "skip") -> Reads:
    """Padding by `before` positions in front (negative: cropping)."""
    return Reads(((-before,),), 1, edge)


def adaptive(inputs: int, outputs: int) -> Reads:
    """Adaptive pooling: output o reads floor(o n / m) to ceil((o + 1) n / m) - 1."""
    if outputs == 1:
        return WHOLE
    ratio = Fraction(inputs, outputs)
    period = ratio.denominator
    taps = tuple(tuple(range(math.floor(o * ratio), math.ceil((o + 1) * ratio))) for o in range(period))
    return Reads(taps, ratio.numerator)


def resize(mode: str, inputs: int, outputs: int, *, align_corners: bool = False, scale: float | None = None) -> Reads:
    """Interpolation of `inputs` to `outputs` positions; a neighbour whose weight is zero is not read.

    `mode` is "nearest", "nearest-exact", "bilinear" or "bicubic"; `scale` the factor, where the caller gave one.
    """
    if align_corners:
        ratio = Fraction(inputs - 1, outputs - 1) if outputs > 1 else Fraction(0)
    else:
        ratio = 1 / Fraction(scale).limit_denominator(10_000) if scale else Fraction(inputs, outputs)
    half = Fraction(1, 2)
    taps: list[tuple[int, ...]] = []
    for position in range(ratio.denominator):
        if mode == "nearest":
            taps.append((math.floor(position * ratio),))
            continue
        if mode == "nearest-exact":
            taps.append((math.floor((position + half) * ratio),))
            continue
        place = position * ratio if align_corners else (position + half) * ratio - half
        below = math.floor(place)
        if place == below:
            taps.append((below,))
        elif mode == "bilinear":
            taps.append((below, below + 1))
        else:
            taps.append((below - 1, below, below + 1, below + 2))
    return Reads(tuple(taps), ratio.numerator, "clamp")


@dataclass(frozen=True)
class Intervals:
    """First and last pixel that each unit sees: one period of units, which moves by `shift` pixels per period.

    Pixels are counted from the image's first and may lie outside it, where padding is read.
    """

    low: tuple[int, ...] = (0,)
    high: tuple[int, ...] = (0,)
    shift: int = 1

    def at(self, unit: int) -> tuple[int, int]:
        """First and last pixel that `unit` sees."""
        turns, place = divmod(unit, len(self.low))
        return self.low[place] + turns * self.shift, self.high[place] + turns * self.shift

    @property
    def size(self) -> int:
        """The receptive field: pixels from the first to the last seen, of the unit that sees most."""
        return max(high - low + 1 for low, high in zip(self.low, self.high, strict=True))

    @property
    def jump(self) -> Fraction:
        """Pixels from one unit's centre to the next one's (on average, where they are not evenly spaced)."""
        return Fraction(self.shift, len(self.low))

    @property
    def start(self) -> float:
        """Centre of the first unit, in pixels; the first pixel's centre is 0."""
        return (self.low[0] + self.high[0]) / 2

    @property
    def mean_centre(self) -> Fraction:
        """Average over one period of (centre - unit * jump): where the map lies on the image."""
        period = len(self.low)
        total = Fraction(sum(self.low) + sum(self.high), 2)
        return total / period - self.jump * Fraction(period - 1, 2)

    def through(self, reads: Reads) -> "Intervals":
        """What the units of the next map see, each reading units of this one."""
        period = len(self.low)
        if period == 1 and len(reads.taps) == 1 and reads.taps[0]:
            first, last = min(reads.taps[0]) * self.shift, max(reads.taps[0]) * self.shift
            return Intervals(
                (self.low[0] + min(first, last),), (self.high[0] + max(first, last),), self.shift * reads.step
            )
        # An output period must move the input by whole periods of its own.
        turns = 1 if reads.step == 0 else period // math.gcd(period, abs(reads.step))
        outputs = min(len(reads.taps) * turns, _LONGEST_PERIOD)
        shift = self.shift * reads.step * turns // period if reads.step else 0
        seen = [[self.at(tap) for tap in reads.at(position)] for position in range(outputs)]
        return _from_units([hull(units) for units in seen], shift)

    def union(self, other: "Intervals", units: int) -> "Intervals":
        """What units see that read both maps at the same place; `units` is the map's size.

        Maps of different jump have no common period: then the `units` of the map are listed, and only they are exact.
        """
        if self == other:
            return self
        if self.jump == other.jump:
            period = min(math.lcm(len(self.low), len(other.low)), _LONGEST_PERIOD)
            shift = self.shift * (period // len(self.low))
        else:
            period, shift = units, round(max(self.jump, other.jump) * units)
        return _from_units([hull([self.at(i), other.at(i)]) for i in range(period)], shift)


Interval = tuple[int, int] | None  # first and last pixel; None: none


@lru_cache(maxsize=4096)
def clipped_through(units: tuple[Interval, ...], reads: Reads, outputs: int) -> tuple[Interval, ...]:
    """What the units of the next map see inside the image, each reading `units` of this one."""
    if reads == SAME and len(units) == outputs:
        return units
    if reads.whole:
        return (hull(units),) * outputs
    return tuple(hull([units[tap] for tap in reads.inside(o, len(units))]) for o in range(outputs))


def hull(intervals: Iterable[Interval]) -> Interval:
    """The smallest interval that holds all of them; empty ones count for nothing."""
    full = [i for i in intervals if i is not None and i[0] <= i[1]]
    return (min(i[0] for i in full), max(i[1] for i in full)) if full else None


def _from_units(units: list[Interval], shift: int) -> Intervals:
    """A unit that reads nothing (a transposed convolution whose stride is longer than its kernel) is put where its
    neighbour is, as an empty interval of size 0."""
    seen = [unit for unit in units if unit is not None]
    fallback = (seen[0][0], seen[0][0] - 1) if seen else (0, -1)
    filled = [fallback if unit is None else unit for unit in units]
    return Intervals(tuple(u[0] for u in filled), tuple(u[1] for u in filled), shift)
