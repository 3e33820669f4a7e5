"""The four kinds of targets, and what a data set says of its own."""

from dataclasses import dataclass
from typing import Literal

# labels: (N) int64, the class of each image. multilabels: (N, K) float32, 1 for each class that an image shows.
# maps: (N, H, W) int64, the class of each pixel. boxes: (N, M, 6) float32, see `cnn_train.data.boxes`.
Targets = Literal["labels", "multilabels", "maps", "boxes"]
EVERY_KIND: frozenset[Targets] = frozenset({"labels", "multilabels", "maps", "boxes"})
OF_WHOLE_IMAGES: frozenset[Targets] = frozenset({"labels", "multilabels"})
WITH_PLACES: frozenset[Targets] = frozenset({"maps", "boxes"})
TASKS: dict[Targets, str] = {
    "labels": "classification",
    "multilabels": "multilabel",
    "maps": "segmentation",
    "boxes": "detection",
}
KINDS: dict[str, Targets] = {task: kind for kind, task in TASKS.items()}


@dataclass(frozen=True)
class TargetSpec:
    """The kind of targets, the number of classes, and two rules for what a move of pixels does to them.

    Pixels of maps that come in from outside the image get `ignore_index`. A box of which less than the share
    `min_visible` is left is ignored.
    """

    kind: Targets
    num_classes: int
    ignore_index: int = -100
    min_visible: float = 0.25
