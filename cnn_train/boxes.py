"""Boxes (..., 4) as corners x1, y1, x2, y2 in pixels: overlap, clipping, moving, non-maximum suppression.

Coordinates are continuous: the box of a whole image of W pixels goes from 0 to W, and nothing has "+ 1". Sizes are
(height, width), as everywhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

OVERLAPS = ("iou", "giou", "diou", "ciou")


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...), 0 where a box has no extent."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def to_centres(boxes: Tensor) -> Tensor:
    """Corners -> centre x, centre y, width, height."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)


def to_corners(boxes: Tensor) -> Tensor:
    """Centre x, centre y, width, height -> corners."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def iou(boxes: Tensor, others: Tensor, crowd: Tensor | None = None) -> Tensor:
    """Intersection over union of each pair: (..., N, 4), (..., M, 4) -> (..., N, M); 0 where the union is empty.

    Where `crowd` (..., M) is true, the intersection is divided by the area of the first box alone (COCO's rule for a
    region of many objects).
    """
    common = intersection(boxes, others)
    first = area(boxes)[..., :, None]
    union = first + area(others)[..., None, :] - common
    if crowd is not None:
        union = torch.where(crowd[..., None, :], first.expand_as(union), union)
    return torch.where(union > 0, common / union.clamp(min=torch.finfo(union.dtype).tiny), torch.zeros_like(union))


def intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Common area of each pair: (..., N, 4), (..., M, 4) -> (..., N, M)."""
    # By coordinate: an axis of two corners is too short for vector instructions, eight times slower on a CPU.
    left, top, right, bottom = boxes[..., :, None, :].unbind(-1)
    other_left, other_top, other_right, other_bottom = others[..., None, :, :].unbind(-1)
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp(min=0)
    return width * height


def shape_iou(sizes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes on one centre, by width and height: (N, 2), (M, 2) -> (N, M)."""
    common = torch.minimum(sizes[:, None], others[None]).prod(-1)
    return common / (sizes.prod(-1)[:, None] + others.prod(-1)[None] - common)


def overlap(boxes: Tensor, others: Tensor, kind: str = "iou", eps: float = 1e-7) -> Tensor:
    """IoU of boxes one by one, or a form that has a gradient where they are apart: (..., 4), (..., 4) -> (...).

    `giou` subtracts the empty part of the enclosing box (Rezatofighi et al. 2019), `diou` the squared distance of the
    centres by that of the enclosing box's diagonal, `ciou` also a term for the aspect ratio (Zheng et al. 2020), whose
    weight has no gradient. IoU is between 0 and 1, the others may be negative.
    """
    if kind not in OVERLAPS:
        raise ValueError(f"overlap must be one of {', '.join(OVERLAPS)}, got {kind!r}")
    common = (torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])).clamp(
        min=0
    )
    shared = common.prod(-1)
    union = area(boxes) + area(others) - shared
    value = shared / (union + eps)
    if kind == "iou":
        return value
    hull = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    if kind == "giou":
        whole = hull.prod(-1)
        return value - (whole - union) / (whole + eps)
    apart = (boxes[..., :2] + boxes[..., 2:] - others[..., :2] - others[..., 2:]).square().sum(-1) / 4
    value = value - apart / (hull.square().sum(-1) + eps)
    if kind == "diou":
        return value
    size, other = boxes[..., 2:] - boxes[..., :2], others[..., 2:] - others[..., :2]
    angle = torch.atan(size[..., 0] / (size[..., 1] + eps)) - torch.atan(other[..., 0] / (other[..., 1] + eps))
    differs = 4 / torch.pi**2 * angle.square()
    with torch.no_grad():
        weight = differs / (1 - shared / (union + eps) + differs + eps)
    return value - weight * differs


def clip(boxes: Tensor, size: Sequence[int] | torch.Size) -> Tensor:
    """Boxes cut at the border of an image of (height, width)."""
    height, width = size
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def move(boxes: Tensor, scale: Sequence[float] = (1.0, 1.0), shift: Sequence[float] = (0.0, 0.0)) -> Tensor:
    """Boxes of an image that is scaled by (y, x), then shifted by (y, x) pixels."""
    (scale_y, scale_x), (shift_y, shift_x) = scale, shift
    factor = boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
    return boxes * factor + boxes.new_tensor([shift_x, shift_y, shift_x, shift_y])


def flip(boxes: Tensor, width: float) -> Tensor:
    """Boxes of an image of this width that is mirrored left to right."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def nms(boxes: Tensor, scores: Tensor, labels: Tensor | None = None, threshold: float = 0.5) -> Tensor:
    """Indices of what greedy non-maximum suppression keeps of (n, 4) and (n), best score first.

    A box falls if its IoU with a better one that is kept exceeds the threshold; with `labels` (n), only boxes of one
    label suppress each other. Of equal scores the first is the better. The greedy answer is the fixed point of asking
    every box at once whether any kept one suppresses it, which is reached in as many rounds as the longest chain.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    suppresses = iou(boxes, boxes) > threshold
    if labels is not None:
        suppresses &= labels[order][:, None] == labels[order][None]
    suppresses = suppresses.triu(diagonal=1)
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    while True:
        now = ~(suppresses & kept[:, None]).any(0)
        if torch.equal(now, kept):
            return order[kept]
        kept = now


def cluster_sizes(sizes: Tensor, count: int, seed: int = 0, restarts: int = 10) -> tuple[Tensor, float]:
    """Anchors (count, 2) for boxes of `sizes` (n, 2), width and height, by rising area, and their mean best IoU.

    k-medians by the distance 1 - IoU on one centre (Redmon & Farhadi 2017, section 2), the best of several starts drawn
    by `seed`. Medians, because means end at a lower IoU.
    """
    if len(sizes) < count or bool((sizes <= 0).any()):
        raise ValueError(f"{count} anchors need as many boxes, all with an extent, got {len(sizes)}")
    sizes = sizes.double()
    random = torch.Generator().manual_seed(seed)
    best, found = -1.0, sizes[:count]
    for _ in range(restarts):
        centres = sizes[torch.randperm(len(sizes), generator=random)[:count]]
        nearest = torch.full((len(sizes),), -1)
        for _ in range(100):
            now = shape_iou(sizes, centres).argmax(1)
            if torch.equal(now, nearest):
                break
            nearest = now
            for index in range(count):
                mine = sizes[nearest == index]
                if len(mine):
                    centres[index] = mine.median(0).values
        reached = float(shape_iou(sizes, centres).amax(1).mean())
        if reached > best:
            best, found = reached, centres
    return found[found.prod(1).argsort()].float(), best
