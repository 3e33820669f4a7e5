"""Detections of an image out of everything that a network says: those above a score, without their duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnn_train.boxes import clip, nms


@dataclass(frozen=True)
class NMS:
    """Scores of at least `score`, the best `candidates` of an image, greedy suppression above `iou`, the best of these.

    A box with several classes above `score` gives as many detections. With `per_class`, only detections of one class
    suppress each other. Boxes are cut at the image's border; those without extent fall away.
    """

    iou: float = 0.5
    score: float = 0.05
    max_detections: int = 100
    candidates: int = 1000
    per_class: bool = True

    def __post_init__(self) -> None:
        for name in ("iou", "score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"postprocess.{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("max_detections", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"postprocess.{name} must be at least 1, got {getattr(self, name)}")

    @torch.no_grad()
    def __call__(self, boxes: Tensor, scores: Tensor, size: Sequence[int]) -> Tensor:
        """Corners (N, P, 4) and scores (N, P, K) -> (N, max_detections, 6), the best first, for images of (H, W).

        A row is x1, y1, x2, y2, class, score; in rows without a detection the class is -1 and all else 0.
        """
        results = boxes.new_zeros(len(boxes), self.max_detections, 6)
        results[..., 4] = -1
        for number in range(len(boxes)):
            found = self.image(boxes[number], scores[number], size)
            results[number, : len(found)] = found
        return results

    def image(self, boxes: Tensor, scores: Tensor, size: Sequence[int]) -> Tensor:
        """The detections (n, 6) of one image: boxes (P, 4), scores (P, K)."""
        classes = scores.size(-1)
        flat = scores.flatten()
        chosen = (flat >= self.score).nonzero().squeeze(1)
        if len(chosen) > self.candidates:  # few are sorted: those not below the last candidate's score
            chosen = chosen[flat[chosen] >= flat[chosen].topk(self.candidates, sorted=False).values.min()]
        best = flat[chosen].argsort(descending=True, stable=True)[: self.candidates]
        chosen = chosen[best]
        labels, value = chosen % classes, flat[chosen]
        corners = clip(boxes[chosen // classes], size)
        solid = (corners[:, 2:] > corners[:, :2]).all(1)
        corners, labels, value = corners[solid], labels[solid], value[solid]
        kept = nms(corners, value, labels if self.per_class else None, self.iou)[: self.max_detections]
        return torch.cat([corners[kept], labels[kept, None].to(corners), value[kept, None]], dim=1)
