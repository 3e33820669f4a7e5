"""Clean label maps by shape: opening, closing, small regions, small holes, class by class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Morphology:
    """Up to four steps in this order, each off at 0; a step takes the classes in the order given.

    1. `opening`: takes from a class what a disc of this radius (pixels) does not fit into. Pixels taken get the label
       that most of their labelled 8-neighbours have (the lowest of equals), from the edge inwards.
    2. `closing`: gives a class what no disc of this radius fits into outside it.
    3. `min_region`: 4-connected regions of fewer pixels get the label that most pixels along their border have.
    4. `fill_holes`: 4-connected parts of the rest that a class encloses, of up to this many pixels, get its label.

    Padding is chosen per step so that regions at the border are not eroded. Pixels of `ignore_index` keep their label,
    give it to no other pixel and count as no class. `classes=None` means all.
    """

    opening: int = 0
    closing: int = 0
    min_region: int = 0
    fill_holes: int = 0
    classes: Sequence[int] | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        for name in ("opening", "closing", "min_region", "fill_holes"):
            if getattr(self, name) < 0:
                raise ValueError(f"morphology's {name} must not be negative, got {getattr(self, name)}; 0 is off")

    @torch.no_grad()
    def __call__(self, images: Tensor, probabilities: Tensor) -> Tensor:
        """(N, K, H, W) -> the same, but one-hot where the label changed; the images are not used."""
        before = probabilities.argmax(1)
        after = self.labels(before)
        one_hot = torch.zeros_like(probabilities).scatter_(1, after[:, None], 1)
        return torch.where((after != before)[:, None], one_hot, probabilities)

    def labels(self, labels: Tensor) -> Tensor:
        """Label maps (N, H, W) of integers -> the same, cleaned."""
        if labels.dim() != 3 or labels.is_floating_point():
            raise ValueError(
                f"morphology needs label maps (N, H, W) of integers, got {tuple(labels.shape)} {labels.dtype}; "
                "take probabilities.argmax(1)"
            )
        maps = [torch.from_numpy(self._clean(label)) for label in labels.cpu().numpy()]
        return torch.stack(maps).to(labels) if maps else labels

    def _clean(self, label: np.ndarray) -> np.ndarray:
        label = label.copy()
        present = [c for c in np.unique(label).tolist() if c != self.ignore_index]
        wanted = present if self.classes is None else [c for c in self.classes if c in present]
        if self.opening:
            _open(label, wanted, self.opening, self.ignore_index)
        if self.closing:
            _close(label, wanted, self.closing, self.ignore_index)
        if self.min_region:
            _drop_regions(label, wanted, self.min_region, self.ignore_index)
        if self.fill_holes:
            _fill_holes(label, wanted, self.fill_holes, self.ignore_index)
        return label


def disc(radius: int) -> np.ndarray:
    """(2r + 1, 2r + 1): the pixels whose centres are within the radius."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius


def _ignored(label: np.ndarray, ignore_index: int | None) -> np.ndarray:
    return np.zeros(label.shape, bool) if ignore_index is None else label == ignore_index


def _open(label: np.ndarray, classes: list[int], radius: int, ignore_index: int | None) -> None:
    from scipy import ndimage

    taken = np.zeros(label.shape, bool)
    for c in classes:
        region = label == c
        core = ndimage.binary_erosion(region, disc(radius), border_value=1)
        taken |= region & ~ndimage.binary_dilation(core, disc(radius))
    _grow(label, taken, _ignored(label, ignore_index))


def _grow(label: np.ndarray, missing: np.ndarray, ignored: np.ndarray) -> None:
    """Label the missing pixels by majority of their 8 neighbours, ring by ring; what nothing reaches stays."""
    while missing.any():
        known = np.pad(~(missing | ignored), 1)
        values = np.pad(label, 1)
        y, x = missing.nonzero()
        votes: dict[int, np.ndarray] = {}
        for dy, dx in ((a, b) for a in (0, 1, 2) for b in (0, 1, 2) if (a, b) != (1, 1)):
            near, counts = values[y + dy, x + dx], known[y + dy, x + dx]
            for c in np.unique(near[counts]).tolist():
                votes[c] = votes.get(c, np.zeros(len(y), int)) + (counts & (near == c))
        if not votes:
            return
        names = np.array(sorted(votes))
        table = np.stack([votes[c] for c in names.tolist()])
        reached = table.max(0) > 0
        label[y[reached], x[reached]] = names[table.argmax(0)][reached]
        missing[y[reached], x[reached]] = False


def _close(label: np.ndarray, classes: list[int], radius: int, ignore_index: int | None) -> None:
    from scipy import ndimage

    ignored = _ignored(label, ignore_index)
    for c in classes:
        grown = ndimage.binary_dilation(label == c, disc(radius))
        label[ndimage.binary_erosion(grown, disc(radius), border_value=1) & ~ignored] = c


def _drop_regions(label: np.ndarray, classes: list[int], size: int, ignore_index: int | None) -> None:
    """Regions that touch only small ones wait until one of those has its new label."""
    from scipy import ndimage

    ignored = _ignored(label, ignore_index)
    while True:
        regions: list[np.ndarray] = []  # flat positions of each small region's pixels
        small = np.zeros(label.shape, bool)
        for c in classes:
            numbers, _ = ndimage.label(label == c)
            counts = np.bincount(numbers.ravel())
            few = counts < size
            few[0] = False
            mask = few[numbers]
            small |= mask
            positions = mask.ravel().nonzero()[0]
            order = numbers.ravel()[positions].argsort(kind="stable")
            regions += np.split(positions[order], counts[few].cumsum()[:-1]) if len(positions) else []
        settled = np.pad(~(small | ignored), 1)
        values = np.pad(label, 1)
        changed = False
        for region in regions:
            y, x = np.unravel_index(region, label.shape)
            border = np.unique(np.concatenate([(y + dy) * values.shape[1] + x + dx for dy, dx in _CROSS]))
            border = border[settled.ravel()[border]]
            if len(border):
                names, votes = np.unique(values.ravel()[border], return_counts=True)
                label[y, x] = names[votes.argmax()]
                changed = True
        if not changed:
            return


# The four neighbours of a pixel, in an image padded by one.
_CROSS = ((0, 1), (2, 1), (1, 0), (1, 2))


def _fill_holes(label: np.ndarray, classes: list[int], size: int, ignore_index: int | None) -> None:
    from scipy import ndimage

    ignored = _ignored(label, ignore_index)
    for c in classes:
        numbers, _ = ndimage.label(label != c)
        fill = np.bincount(numbers.ravel()) <= size
        for edge in (numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]):
            fill[edge] = False
        fill[0] = False
        label[fill[numbers] & ~ignored] = c
