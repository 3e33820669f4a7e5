"""Fully connected conditional random field by mean field (Kraehenbuehl & Koltun, NIPS 2011, arXiv:1210.5644).

Potts compatibility, Gaussian kernels of position and of position and colour, any number of classes, on CPU and GPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Filter = Callable[[Tensor], Tensor]

# Groups of pixels: their width in colour, in standard deviations, starts at 1 and shrinks to this
MIN_WIDTH = 0.25
# while they have more pixels than this on average (and in an image of up to SMALL pixels, where more is affordable),
MAX_PIXELS, MAX_PIXELS_SMALL = 3.0, 1.25
SMALL = 2**14
# but never are there more distances to compute than this many for each pixel, or than this many in all.
MAX_WORK, LITTLE_WORK = 400, 2**24


@dataclass(frozen=True)
class DenseCRF:
    """Refine class probabilities by what near and similar pixels say.

    The energy has two Gaussian kernels with Potts compatibility (eq. 3): the appearance kernel, of weight `bi_w` and
    standard deviations `bi_xy` (pixels) and `bi_rgb` (grey levels of 0..255), and the smoothness kernel, of weight
    `pos_w` and standard deviation `pos_xy` (pixels). As in the authors' code, which DeepLab used, and against the
    letter of Algorithm 1, a pixel is its own neighbour and each kernel is normalized to D^-1/2 K D^-1/2 with D its row
    sums, so that published weights mean the same here. Defaults: DeepLab v2 on PASCAL VOC.

    `exact` evaluates both kernels for all pairs of pixels: O((HW)^2), for small images. Otherwise the smoothness
    kernel is separable (cut at 5 standard deviations, exact to 1e-5) and the appearance kernel is evaluated between
    the mean points of groups of similar pixels and cut at 2.7 to 3 standard deviations: see `choose_groups`, and
    `benchmarks/crf.py` for its error.

    Called with images (N, C, H, W) of values 0..255 and probabilities (N, K, H, W), it returns marginals (N, K, H, W).
    """

    bi_w: float = 4.0
    bi_xy: float = 67.0
    bi_rgb: float = 3.0
    pos_w: float = 3.0
    pos_xy: float = 1.0
    iterations: int = 10
    exact: bool = False

    def __post_init__(self) -> None:
        for name in ("bi_xy", "bi_rgb", "pos_xy"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"the CRF's {name} is a standard deviation, got {getattr(self, name)}; make it positive"
                )
        for name in ("bi_w", "pos_w", "iterations"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"the CRF's {name} must not be negative, got {getattr(self, name)}; 0 switches it off")

    @torch.no_grad()
    def __call__(self, images: Tensor, probabilities: Tensor) -> Tensor:
        if images.shape[:1] + images.shape[2:] != probabilities.shape[:1] + probabilities.shape[2:]:
            raise ValueError(
                "the CRF needs images and probabilities of the same number, height and width, "
                f"got {tuple(images.shape)} and {tuple(probabilities.shape)}; resize the probabilities to the image"
            )
        pairs = zip(images, probabilities, strict=True)
        return torch.stack([self._infer(image, prior) for image, prior in pairs]) if len(images) else probabilities

    def _infer(self, image: Tensor, prior: Tensor) -> Tensor:
        """Mean field (Algorithm 1) on one image (C, H, W); inside, a pixel is a row: (HW, K)."""
        classes, height, width = prior.shape
        dtype = prior.dtype if prior.dtype == torch.float64 else torch.float32
        image = image.to(prior.device, dtype)
        filters = self._filters(image) if not self.exact else self._exact_filters(image)
        marginals = prior.to(dtype).flatten(1).T.contiguous()
        unary = marginals.clamp(min=torch.finfo(dtype).tiny).log()
        for _ in range(self.iterations):
            score = unary
            for kernel in filters:
                score = kernel(marginals).add_(score)
            marginals = score.softmax(dim=1)
        return marginals.reshape(height, width, classes).permute(2, 0, 1).to(prior.dtype).contiguous()

    def _filters(self, image: Tensor) -> list[Filter]:
        filters: list[Filter] = []
        if self.bi_w:
            filters.append(_grouped_kernel(image, self.bi_xy, self.bi_rgb, self.bi_w))
        if self.pos_w:
            filters.append(_separable_kernel(image, self.pos_xy, self.pos_w))
        return filters

    def _exact_filters(self, image: Tensor) -> list[Filter]:
        position = pixel_positions(image)
        features = torch.cat([position / self.bi_xy, image.flatten(1).T / self.bi_rgb], dim=1)
        filters: list[Filter] = []
        if self.bi_w:
            filters.append(_exact_kernel(features, self.bi_w))
        if self.pos_w:
            filters.append(_exact_kernel(position / self.pos_xy, self.pos_w))
        return filters


def pixel_positions(image: Tensor) -> Tensor:
    """Column and row of each pixel of an image (C, H, W), row by row: (HW, 2)."""
    y = torch.arange(image.size(1), device=image.device, dtype=image.dtype)
    x = torch.arange(image.size(2), device=image.device, dtype=image.dtype)
    return torch.cartesian_prod(y, x).flip(1)


def _exact_kernel(features: Tensor, weight: float, chunk: int = 2**24, hold: int = 2**29) -> Filter:
    """The normalized kernel between all pairs of features (N, D), kept in memory up to `hold` numbers."""
    parts = features.split(max(1, chunk // len(features)))

    def rows(part: Tensor) -> Tensor:
        # Not by |a|^2 - 2ab + |b|^2, which cancels where pixels are alike, and that is where it matters.
        distance = features.new_zeros(len(part), len(features))
        for mine, all_ in zip(part.T, features.T, strict=True):
            distance += (mine[:, None] - all_).square_()
        return distance.mul_(-0.5).exp_()

    held = [rows(part) for part in parts] if len(features) ** 2 <= hold else None

    def apply(values: Tensor) -> Tensor:
        return torch.cat([kernel @ values for kernel in held or map(rows, parts)])

    scale = apply(features.new_ones(len(features), 1)).rsqrt()
    return lambda values: weight * scale * apply(scale * values)


def _separable_kernel(image: Tensor, sigma: float, weight: float, reach: float = 5.0, tile: int = 16) -> Filter:
    """The normalized Gaussian of positions: its row sums are separable too, so it is one matrix for each direction."""
    _, height, width = image.shape
    radius = math.ceil(reach * sigma)

    def bands(size: int, weight: float) -> list[tuple[slice, Tensor]]:
        x = torch.arange(size, device=image.device, dtype=torch.float64) / sigma
        gauss = (x[:, None] - x).square_().mul_(-0.5).exp_()
        scale = gauss.sum(1).rsqrt()
        gauss = (weight * scale[:, None] * gauss * scale).to(image.dtype)
        parts = []
        for start in range(0, size, tile):
            out, source = slice(start, start + tile), slice(max(0, start - radius), start + tile + radius)
            parts.append((source, gauss[out, source].contiguous()))
        return parts

    down, across = bands(height, 1.0), bands(width, weight)

    def apply(values: Tensor) -> Tensor:
        values = values.view(height, -1)
        values = torch.cat([matrix @ values[source] for source, matrix in down]).view(height, width, -1)
        values = torch.cat([matrix @ values[:, source] for source, matrix in across], dim=1)
        return values.view(height * width, -1)

    return apply


def _grouped_kernel(image: Tensor, xy: float, rgb: float, weight: float) -> Filter:
    """The normalized appearance kernel between the mean points of groups of pixels, a sparse matrix.

    A value is summed over a group, multiplied, and handed to each pixel of the group.
    """
    groups, runs, reach = choose_groups(image, xy, rgb)
    count, other, value = neighbours(groups, runs, reach)
    start = (count.cumsum(0) - count).int()
    group, order, first = groups.group, groups.order.int(), groups.start.int()

    def multiply(sums: Tensor) -> Tensor:
        return F.embedding_bag(other, sums, start, mode="sum", per_sample_weights=value)

    scale = multiply(groups.pixels[:, None].to(value.dtype)).rsqrt_()

    def apply(values: Tensor) -> Tensor:
        sums = F.embedding_bag(order, values, first, mode="sum").mul_(scale)
        return multiply(sums).mul_(weight * scale).index_select(0, group)

    return apply


class Groups(NamedTuple):
    """Pixels grouped by cells of position and colour. Groups are numbered by tile, then colour, then position."""

    group: Tensor  # (pixels) the group of each pixel
    order: Tensor  # (pixels) the pixels sorted by group
    start: Tensor  # (groups) where in `order` each group starts
    pixels: Tensor  # (groups) their number
    cell: Tensor  # (groups, 2 + C) its tile and its colour cell, from 0
    centre: Tensor  # (groups, 2 + C) mean position and colour of its pixels, in standard deviations


class Runs(NamedTuple):
    """Where the groups are that may be neighbours: ranges of group numbers, listed by tile and colour cell."""

    cell: Tensor  # (groups) the number of the group's tile and colour cell
    start: Tensor  # (runs) first group of the range
    length: Tensor  # (runs)
    first: Tensor  # (cells) where its runs start
    number: Tensor  # (cells) how many runs it has
    work: Tensor  # (groups) how many candidates for a neighbour each group has


def choose_groups(image: Tensor, xy: float, rgb: float) -> tuple[Groups, Runs, float]:
    """Group the pixels of an image (C, H, W); where each group's neighbours are; how far they reach.

    Error comes from groups of many pixels, work from many groups. So pixels that are alike (a wide kernel, a plain
    image) are given narrower cells, as long as the work allows it. Where no two pixels are alike nearly every group is
    one pixel, which is exact. Wide cells have the larger error, so they get the shorter reach.
    """
    pixels = image.size(1) * image.size(2)
    small = pixels <= SMALL
    full = MAX_PIXELS_SMALL if small else MAX_PIXELS

    def at(width: float) -> tuple[Groups, Runs, float]:
        reach = 3.3 if small else 3.3 - 0.6 * min(width, 1.0)
        groups = group_pixels(image, xy, rgb, width, reach)
        return groups, find_runs(groups, width, reach), reach

    def too_much(runs: Runs) -> bool:
        return int(runs.work.sum()) > max(MAX_WORK * pixels, LITTLE_WORK)

    width = 1.0
    groups, runs, reach = at(width)
    while too_much(runs) and int(groups.cell[:, 2:].amax()) > 0:
        width *= math.sqrt(2)
        groups, runs, reach = at(width)
    while MIN_WIDTH < width <= 1 and pixels > full * len(groups.pixels):
        width /= math.sqrt(2)
        finer = at(width)
        if too_much(finer[1]):
            break
        groups, runs, reach = finer
    return groups, runs, reach


def group_pixels(image: Tensor, xy: float, rgb: float, width: float, reach: float) -> Groups:
    """Group by cells of this width in colour and 1.4 of it, at most 0.7, in position, in standard deviations."""
    position, colour = pixel_positions(image) / xy, image.flatten(1).T / rgb
    side = min(0.7, 1.4 * width)
    block = (position / side).floor().long()
    cell = (colour / width).floor().long()
    cell -= cell.amin(0)
    # Groups two tiles apart are never neighbours. Two tiles to a side would spare nothing.
    blocks = math.ceil(reach / side) + 1
    tile = torch.where(block.amax(0) < 2 * blocks, 0, block // blocks)
    cell = torch.cat([tile, cell], dim=1)
    place = torch.cat([cell, block], dim=1)
    key, order = _number(place, place.amax(0) + 1).sort()
    _, member, count = key.unique_consecutive(return_inverse=True, return_counts=True)
    start = count.cumsum(0) - count
    centre = F.embedding_bag(order, torch.cat([position, colour], dim=1), start, mode="mean")
    return Groups(torch.empty_like(member).scatter_(0, order, member), order, start, count, cell[order[start]], centre)


def find_runs(groups: Groups, width: float, reach: float) -> Runs:
    """Find the groups whose colour may be nearer than `reach` in a group's own and the next tiles.

    Cells that differ in the last channel only have consecutive numbers, so a neighbourhood is a few ranges.
    """
    device = groups.cell.device
    steps = math.floor(reach / width) + 1
    margin = (groups.cell.amax(0) > 0).long()
    margin[2:] = steps
    span = groups.cell.amax(0) + 1 + 2 * margin
    key = _number(groups.cell + margin, span)
    cells, cell = key.unique_consecutive(return_inverse=True)

    axes = [torch.arange(-size, size + 1, device=device) for size in margin[:-1].tolist()]
    offset = torch.cartesian_prod(*axes)
    gap = (offset[:, 2:].abs() - 1).clamp(min=0) * width
    left = reach**2 - gap.square().sum(1)
    offset, left = offset[left > 0], left[left > 0]
    half = (left.sqrt() / width).long() + 1
    middle = cells[:, None] + _number(F.pad(offset, (0, 1)), span)

    size = math.prod(span.tolist())
    if size <= 2**24:
        below = torch.bincount(key + 1, minlength=size + 1).cumsum(0)  # groups of a smaller number than this
        start, stop = below[middle - half], below[middle + half + 1]
    else:
        start, stop = torch.searchsorted(key, middle - half), torch.searchsorted(key, middle + half + 1)
    length = stop - start
    some = length > 0
    number = some.sum(1)
    return Runs(cell, start[some], length[some], number.cumsum(0) - number, number, length.sum(1)[cell])


def neighbours(groups: Groups, runs: Runs, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """For each group how many groups are nearer than `reach`; then, group by group, their numbers and the kernel."""
    centre, device = groups.centre, groups.centre.device
    chunk = 2**17 if device.type == "cpu" else 2**23  # candidates at a time; on a CPU what the caches hold
    total = runs.work.cumsum(0)
    steps = torch.arange(chunk, int(total[-1]) + chunk, chunk, device=device)
    bounds = [0, *torch.searchsorted(total, steps).add_(1).clamp_(max=len(total)).tolist()]
    ones = centre.new_ones(centre.size(1))
    found = []
    for low, high in pairwise(bounds):
        cell = runs.cell[low:high]
        run = _ragged(runs.first[cell], runs.number[cell])
        other = _ragged(runs.start[run], runs.length[run])
        owner = torch.repeat_interleave(runs.work[low:high])
        difference = F.embedding(owner, centre[low:high]).sub_(F.embedding(other, centre))
        distance = difference.square_() @ ones
        near = (distance < reach**2).nonzero().squeeze(1)
        owner, other, distance = (part.index_select(0, near) for part in (owner, other, distance))
        found.append((torch.bincount(owner, minlength=high - low), other.int(), distance.mul_(-0.5).exp_()))
    count, other, value = (torch.cat(part) for part in zip(*found, strict=True))
    return count, other, value


def _number(cell: Tensor, span: Tensor) -> Tensor:
    """Number cells (..., D) of a grid of `span` (D) cells, the last dimension fastest."""
    stride = span.flip(0).cumprod(0).flip(0) // span
    return (cell * stride).sum(-1)


def _ragged(start: Tensor, length: Tensor) -> Tensor:
    """The ranges [start, start + length), one after the other."""
    shift = torch.repeat_interleave(start - (length.cumsum(0) - length), length)
    return shift.add_(torch.arange(len(shift), device=length.device))
