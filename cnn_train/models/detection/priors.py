"""Priors: the boxes or points at each place of a network's maps, and how codes relative to them become boxes.

Anchors: Ren et al., "Faster R-CNN", NIPS 2015, https://arxiv.org/abs/1506.01497; default boxes: Liu et al., "SSD",
ECCV 2016, https://arxiv.org/abs/1512.02325; cells: Redmon & Farhadi, "YOLO9000", CVPR 2017,
https://arxiv.org/abs/1612.08242, section 2; distances: Tian et al., "FCOS", ICCV 2019,
https://arxiv.org/abs/1904.01355.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cnn_train.boxes import to_centres, to_corners

MOST_GROWTH = math.log(1000 / 16)  # of a prior's side: e to a larger code would overflow


class Outputs(NamedTuple):
    """What a detection network says of P priors.

    codes (N, P, 4), which `Priors.coding` makes boxes of; classes (N, P, K) before softmax or sigmoid; quality (N, P)
    before the sigmoid, the objectness or centerness of networks that have one.
    """

    codes: Tensor
    classes: Tensor
    quality: Tensor | None = None


class Coding(Protocol):
    """Boxes as corners <-> numbers (..., 4) relative to priors, whose shapes broadcast."""

    def encode(self, boxes: Tensor, priors: "Priors") -> Tensor: ...

    def decode(self, codes: Tensor, priors: "Priors") -> Tensor: ...

    def squash(self, codes: Tensor) -> Tensor:
        """Codes as what `encode` gives: after the sigmoid of those that have one."""
        ...


@dataclass(frozen=True)
class Priors:
    """P priors of images of `size` (height, width): those of a level together, row by row, place by place.

    boxes (P, 4) as centre x, centre y, width, height in pixels; strides (P) in pixels and levels (P), counted from 0.
    """

    boxes: Tensor
    strides: Tensor
    levels: Tensor
    size: tuple[int, int]
    coding: Coding

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor) -> "Priors":
        return replace(self, boxes=self.boxes[index], strides=self.strides[index], levels=self.levels[index])

    def to(self, device: torch.device) -> "Priors":
        return replace(
            self, boxes=self.boxes.to(device), strides=self.strides.to(device), levels=self.levels.to(device)
        )

    @property
    def corners(self) -> Tensor:
        return to_corners(self.boxes)

    def encode(self, boxes: Tensor) -> Tensor:
        return self.coding.encode(boxes, self)

    def decode(self, codes: Tensor) -> Tensor:
        return self.coding.decode(codes, self)


@dataclass(frozen=True)
class Offsets:
    """(dx / w, dy / h, log w'/w, log h'/h), each divided by its part of `variances` (SSD; ones elsewhere)."""

    variances: tuple[float, float] = (1.0, 1.0)

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        wanted, prior = to_centres(boxes), priors.boxes
        centre = (wanted[..., :2] - prior[..., :2]) / prior[..., 2:] / self.variances[0]
        return torch.cat([centre, (wanted[..., 2:] / prior[..., 2:]).log() / self.variances[1]], dim=-1)

    def decode(self, codes: Tensor, priors: Priors) -> Tensor:
        prior = priors.boxes
        centre = codes[..., :2] * self.variances[0] * prior[..., 2:] + prior[..., :2]
        size = (codes[..., 2:] * self.variances[1]).clamp(max=MOST_GROWTH).exp() * prior[..., 2:]
        return to_corners(torch.cat([centre, size], dim=-1))

    def squash(self, codes: Tensor) -> Tensor:
        return codes


@dataclass(frozen=True)
class Cells:
    """Centre as the sigmoid of a code, in the prior's cell; log of the size as parts of the prior (YOLOv2, v3)."""

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        wanted, prior, stride = to_centres(boxes), priors.boxes, priors.strides[..., None]
        corner = prior[..., :2] - stride / 2
        return torch.cat([(wanted[..., :2] - corner) / stride, (wanted[..., 2:] / prior[..., 2:]).log()], dim=-1)

    def decode(self, codes: Tensor, priors: Priors) -> Tensor:
        prior, stride = priors.boxes, priors.strides[..., None]
        centre = prior[..., :2] + (codes[..., :2].sigmoid() - 0.5) * stride
        size = codes[..., 2:].clamp(max=MOST_GROWTH).exp() * prior[..., 2:]
        return to_corners(torch.cat([centre, size], dim=-1))

    def squash(self, codes: Tensor) -> Tensor:
        return torch.cat([codes[..., :2].sigmoid(), codes[..., 2:]], dim=-1)


@dataclass(frozen=True)
class Distances:
    """Distances from a point to the left, top, right and bottom side, in units of the prior's size (FCOS)."""

    def encode(self, boxes: Tensor, priors: Priors) -> Tensor:
        point = priors.boxes[..., :2]
        unit = priors.boxes[..., 2:]
        return torch.cat([(point - boxes[..., :2]) / unit, (boxes[..., 2:] - point) / unit], dim=-1)

    def decode(self, codes: Tensor, priors: Priors) -> Tensor:
        point = priors.boxes[..., :2]
        unit = priors.boxes[..., 2:]
        return torch.cat([point - codes[..., :2] * unit, point + codes[..., 2:] * unit], dim=-1)

    def squash(self, codes: Tensor) -> Tensor:
        return codes


class MapSizes:
    """Sizes of the maps that a network makes of images, by a copy of it without weights that no hook sees.

    Called with (height, width): [(height, width) of each map]. Every answer is computed once.
    """

    def __init__(self, network: nn.Module, in_channels: int):
        empty: dict[int, object] = {
            id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in network.parameters()
        }
        empty |= {id(buffer): buffer.to("meta") for buffer in network.buffers()}
        self.twin = copy.deepcopy(network, empty).eval()
        self.in_channels = in_channels
        self.known: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def __call__(self, size: Sequence[int]) -> list[tuple[int, int]]:
        height, width = size
        if (height, width) not in self.known:
            dtype = next((p.dtype for p in self.twin.parameters()), torch.float32)
            images = torch.empty(1, self.in_channels, height, width, device="meta", dtype=dtype)
            with torch.no_grad():
                maps = self.twin(images)
            self.known[height, width] = [(m.size(-2), m.size(-1)) for m in maps]
        return self.known[height, width]


class PriorGrid:
    """Priors of `shapes[i]` (A_i, 2), width and height, at every place of map i of a network.

    Called with (height, width) of the images. Centres are at (index + `offset`) strides: 0.5 is the middle of a cell, 0
    its corner. `strides` None are as many whole pixels as the image has for each place of a map. With `relative`,
    shapes are parts of the image, at most all of it.
    """

    def __init__(
        self,
        maps_of: nn.Module,
        shapes: Sequence[Sequence[Sequence[float]]],
        *,
        in_channels: int,
        coding: Coding,
        strides: Sequence[float] | None = None,
        offset: float = 0.5,
        relative: bool = False,
    ):
        self.map_sizes = MapSizes(maps_of, in_channels)
        self.shapes = [[(float(width), float(height)) for width, height in level] for level in shapes]
        self.coding = coding
        self.strides = strides
        self.offset = offset
        self.relative = relative
        self.known: dict[tuple[int, int, torch.device | None], Priors] = {}

    def __call__(self, size: Sequence[int], device: torch.device | None = None) -> Priors:
        key = (int(size[0]), int(size[1]), device)
        if key not in self.known:
            with torch.device("cpu"):
                made = self._make(key[:2])
            self.known[key] = made.to(device) if device is not None else made
        return self.known[key]

    def _make(self, size: tuple[int, int]) -> Priors:
        maps = self.map_sizes(size)
        assert len(maps) == len(self.shapes), f"{len(maps)} maps, priors for {len(self.shapes)}"
        boxes, units, levels = [], [], []
        for level, (rows, columns) in enumerate(maps):
            if self.strides is None:
                stride_y, stride_x = float(size[0] // rows), float(size[1] // columns)
            else:
                stride_y = stride_x = float(self.strides[level])
            y = (torch.arange(rows, dtype=torch.float32) + self.offset) * stride_y
            x = (torch.arange(columns, dtype=torch.float32) + self.offset) * stride_x
            centres = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1)
            shapes = torch.tensor(self.shapes[level])
            if self.relative:
                shapes = shapes.clamp(max=1.0) * torch.tensor([float(size[1]), float(size[0])])
            each = (rows, columns, len(shapes), 2)
            boxes.append(torch.cat([centres[:, :, None].expand(each), shapes.expand(each)], dim=-1).reshape(-1, 4))
            units.append(torch.full((len(boxes[-1]),), stride_x))
            levels.append(torch.full((len(boxes[-1]),), level))
        return Priors(torch.cat(boxes), torch.cat(units), torch.cat(levels), size, self.coding)


def flatten_levels(maps: Sequence[Tensor], columns: int) -> Tensor:
    """Maps (N, A * columns, H_i, W_i) -> (N, P, columns), in the order of `PriorGrid`."""
    flat = []
    for m in maps:
        number, _, height, width = m.shape
        values = m.view(number, -1, columns, height, width).permute(0, 3, 4, 1, 2)
        flat.append(values.reshape(number, -1, columns))
    return torch.cat(flat, dim=1)
