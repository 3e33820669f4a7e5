"""What a data set of files consists of, before any file is read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnn_train.data.masks import MaskReader
from cnn_train.data.targets import Targets


@dataclass
class Listing:
    """Each split's files with their targets, and the names of the classes.

    A target is a class number, numbers for multi-labels, or a mask's path that `masks` reads. `notes` are remarks for
    the header of a run. `faults` are files that cannot be used, as images without a mask, with the reason.
    `groups` are those of files that belong together, `weights` say how often files are drawn in training.
    """

    name: str
    root: Path
    targets: Targets
    splits: dict[str, list[tuple[str, Any]]]
    class_names: Sequence[str]
    notes: list[str]
    masks: MaskReader | None = None
    faults: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def images(self) -> list[str]:
        """Every image once, sorted."""
        return sorted({path for samples in self.splits.values() for path, _ in samples})

    def pairs(self) -> list[tuple[str, str]]:
        """Every image with its mask once, sorted."""
        return sorted({(path, mask) for samples in self.splits.values() for path, mask in samples})
