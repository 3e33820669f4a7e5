"""Boxes as tensors (..., M, 6) float32: x1, y1, x2, y2, class, ignore.

Coordinates are pixels, continuous: an image of width W reaches from 0 to W. A box with ignore = 1 is there, but counts
as neither found nor missed. Rows that hold no box have the class -1, and zeros elsewhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

UNUSED = (0.0, 0.0, 0.0, 0.0, -1.0, 0.0)


def pack_boxes(boxes: Sequence[Tensor], rows: int | None = None) -> Tensor:
    """Boxes (n, 6) of each image, padded with unused rows to the same number: (N, M, 6)."""
    most = max([len(own) for own in boxes], default=0) if rows is None else rows
    packed = torch.tensor(UNUSED).repeat(len(boxes), most, 1)
    for row, own in zip(packed, boxes, strict=True):
        row[: len(own)] = own
    return packed


def is_used(boxes: Tensor) -> Tensor:
    """Rows that hold a box (..., M) bool."""
    return boxes[..., 4] >= 0


def move_boxes(boxes: Tensor, matrix: Tensor, size: tuple[int, int], min_visible: float) -> Tensor:
    """Boxes (..., M, 6) after a move of pixels.

    `matrix` (..., 2, 3) gives the new place of a point (x, y, 1); `size` is the height and width of the new image. A
    turned box becomes the upright box around its corners. Boxes are clipped to the image; one of whose area less than
    the share `min_visible` is left is ignored, and the row of one that is wholly outside becomes unused.
    """
    x1, y1, x2, y2 = boxes[..., :4].unbind(-1)
    corners = torch.stack([torch.stack([x1, x2, x1, x2], -1), torch.stack([y1, y1, y2, y2], -1)], -1)
    matrix = matrix.to(boxes).unsqueeze(-3).unsqueeze(-3)  # for each box and corner
    moved = (matrix[..., :2] * corners.unsqueeze(-2)).sum(-1) + matrix[..., 2]
    low, high = moved.amin(-2), moved.amax(-2)
    limit = torch.tensor([size[1], size[0]], dtype=boxes.dtype, device=boxes.device)
    clipped_low, clipped_high = low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)
    area, left = (high - low).prod(-1), (clipped_high - clipped_low).prod(-1)
    hidden = left < min_visible * area
    ignore = torch.where(hidden, 1.0, boxes[..., 5])
    result = torch.cat([clipped_low, clipped_high, torch.stack([boxes[..., 4], ignore], -1)], -1)
    gone = ~is_used(boxes) | (left <= 0)
    return torch.where(gone.unsqueeze(-1), torch.tensor(UNUSED).to(boxes), result)


def covered_share(boxes: Tensor, covers: Tensor) -> Tensor:
    """The share (N, M) of each box's area (N, M, 6) under one rectangle (N, 4) of its image: x1, y1, x2, y2."""
    covers = covers.to(boxes).unsqueeze(1)
    low, high = boxes[..., :2].maximum(covers[..., :2]), boxes[..., 2:4].minimum(covers[..., 2:])
    area = (boxes[..., 2:4] - boxes[..., :2]).prod(-1)
    return (high - low).clamp(min=0).prod(-1) / area.clamp(min=1e-6)
