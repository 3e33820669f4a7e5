"""Metrics of detections: COCO's mean average precision, PASCAL VOC's, best F1, confusion with the background.

COCO: Lin et al., "Microsoft COCO", ECCV 2014, https://arxiv.org/abs/1405.0312, as evaluated by pycocotools; VOC:
Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010. Everything is computed in float64 from the
detections and objects of a whole split, in the order of its images: the same bits however many processes found them.

Detections are rows (image, class, score, x1, y1, x2, y2), objects rows (image, class, ignore, x1, y1, x2, y2), both
float64 arrays; `image_area` is in square pixels, for sizes as parts of the image.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

Array = NDArray[np.float64]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # detections of one image and class that count
PIXELS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
# Sides of a square of the object's area, as parts of that of the image: small is below 1/8, large above 1/4.
PARTS = {"part_small": (0, 1 / 64), "part_medium": (1 / 64, 1 / 16), "part_large": (1 / 16, 1e10)}
SCALARS = ("map", "map50", "map75", *(f"map_{name}" for name in (*PIXELS, *PARTS)), "mar100", "voc07", "voc10", "f1")


class Result(NamedTuple):
    """values by name (`SCALARS`; NaN where no object could tell), a table with a number for each class, the confusion.

    The confusion (K + 1, K + 1) has true classes in rows and predicted ones in columns, the background last. `images`
    is the F1 of each image, by its number: of detections with at least the threshold of best F1 of their class.
    """

    values: dict[str, float]
    table: dict[str, list[float]]
    confusion: Tensor
    images: dict[int, float]


class BoxMetrics(Metric):
    """Collects detections and objects of a split, over batches and processes, and computes everything at the end."""

    full_state_update = False
    detections: list[Tensor]
    objects: list[Tensor]
    images: list[Tensor]

    def __init__(self, num_classes: int, image_area: float):
        super().__init__()
        self.num_classes = num_classes
        self.image_area = image_area
        self.add_state("detections", [], "cat")
        self.add_state("objects", [], "cat")
        self.add_state("images", [], "cat")
        self.reset()

    def reset(self) -> None:
        super().reset()
        # A row of image -1, which is none: what processes gather is never empty.
        for state, columns in ((self.detections, 7), (self.objects, 7), (self.images, 1)):
            state.append(torch.full((1, columns), -1.0, dtype=torch.float64, device=self.device))

    def update(self, detections: Tensor, targets: Tensor, indices: Tensor) -> None:
        """Take detections (N, D, 6), rows x1, y1, x2, y2, class, score, targets (N, M, 6) and the images' numbers (N).

        Rows of class -1 are none.
        """
        self.images.append(indices.double()[:, None])
        for state, rows, last in ((self.detections, detections, 5), (self.objects, targets, 5)):
            image, row = (rows[..., 4] >= 0).nonzero(as_tuple=True)
            found = rows[image, row].double()
            number = indices.to(image.device)[image].double()
            state.append(torch.cat([number[:, None], found[:, 4:5], found[:, last:], found[:, :4]], dim=1))

    def compute(self) -> Result:
        detections, objects, images = (_joined(state) for state in (self.detections, self.objects, self.images))
        return evaluate(detections, objects, self.num_classes, self.image_area, images[:, 0])


def _joined(state: list[Tensor] | Tensor) -> Array:
    """Rows in the order of the images; those of one image come from one process and keep their order."""
    rows = (state if isinstance(state, Tensor) else torch.cat(state)).cpu().numpy()
    rows = rows[rows[:, 0] >= 0]
    return rows[np.argsort(rows[:, 0], kind="stable")]


def evaluate(
    detections: Array, objects: Array, num_classes: int, image_area: float, images: Array | None = None
) -> Result:
    """All metrics of rows in the order of their images; `images` are the numbers of all, also of the empty ones."""
    ranges = {"all": (0, 1e10), **PIXELS} | {k: (a * image_area, b * image_area) for k, (a, b) in PARTS.items()}
    limits = np.array(list(ranges.values()), np.float64)  # (A, 2)
    kept = _best_of_each_image(detections)
    matched, skipped = _match(kept, objects, limits)
    precision, recall = _curves(kept, objects, matched, skipped, limits, num_classes)  # (K, A, T, R), (K, A, T)
    by_threshold = _mean(precision, 3)  # (K, A, T)
    whole = by_threshold[:, 0]
    values = {"map": _mean(whole), "map50": _mean(whole[:, 0]), "map75": _mean(whole[:, 5])}
    values |= {f"map_{name}": _mean(by_threshold[:, i]) for i, name in enumerate(ranges) if i}
    values["mar100"] = _mean(recall[:, 0])
    values |= {
        rule: _mean(ap) for rule, ap in zip(("voc07", "voc10"), voc(detections, objects, num_classes), strict=True)
    }
    best = best_f1(kept, objects, matched[:, 0, 0], skipped[:, 0, 0], num_classes)
    values["f1"] = _mean(best["f1"])
    table = {"AP": _mean(whole, 1), "AP50": whole[:, 0], **{name: best[name] for name in best}}
    counts = confusion(detections, objects, best["threshold"], num_classes)
    return Result(
        {name: float(values[name]) for name in SCALARS},
        {name: np.asarray(column).tolist() for name, column in table.items()},
        torch.from_numpy(counts),
        image_f1(kept, objects, matched[:, 0, 0], skipped[:, 0, 0], best["threshold"], images),
    )


def _mean(values: Array, axis: int | None = None) -> Array:
    """The mean of what is not NaN; NaN where nothing is."""
    there = ~np.isnan(values)
    number = there.sum(axis)
    total = np.where(there, values, 0.0).sum(axis)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _best_of_each_image(detections: Array) -> Array:
    """The best 100 of each image and class, ordered by image, class and falling score."""
    ordered = detections[np.lexsort((-detections[:, 2], detections[:, 1], detections[:, 0]))]
    return ordered[_rank(_groups(ordered)) < MOST]


def _groups(rows: Array) -> NDArray[np.int64]:
    """A number for each image and class: equal where both are."""
    return rows[:, 0].astype(np.int64) * 100_000 + rows[:, 1].astype(np.int64)


def _rank(sorted_groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position of each row in its group."""
    start = np.r_[True, sorted_groups[1:] != sorted_groups[:-1]] if len(sorted_groups) else np.zeros(0, bool)
    first = np.flatnonzero(start)
    return np.arange(len(sorted_groups)) - np.repeat(first, np.diff(np.r_[first, len(sorted_groups)]))


def _areas(boxes: Array) -> Array:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


@dataclass
class Pairs:
    """Detections and objects of one group with a minimal IoU: rows of both and their IoU, detection by detection."""

    detection: NDArray[np.int64]
    object: NDArray[np.int64]
    iou: Array


def pairs(
    detections: Array,
    objects: Array,
    keys: tuple[NDArray[np.int64], NDArray[np.int64]],
    at_least: float,
    crowds: bool,
) -> Pairs:
    """All pairs with equal keys and an IoU of `at_least`; with `crowds`, ignored objects count the detection's area."""
    mine, theirs = keys
    order = np.argsort(theirs, kind="stable")
    first = np.searchsorted(theirs[order], mine, "left")
    number = np.searchsorted(theirs[order], mine, "right") - first
    detection = np.repeat(np.arange(len(mine)), number)
    within = np.arange(len(detection)) - np.repeat(np.cumsum(number) - number, number)
    index = order[np.repeat(first, number) + within]
    a, b = detections[detection, 3:], objects[index, 3:]
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    size = _areas(a)
    union = size + _areas(b) - common
    if crowds:
        union = np.where(objects[index, 2] > 0, size, union)
    value = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    enough = value >= at_least
    return Pairs(detection[enough], index[enough], value[enough])


def _match(detections: Array, objects: Array, limits: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections hit an object, and which count nowhere: (D, A, T) each, of rows as `_best_of_each_image` gives.

    Greedy by score: each takes the free object of the highest IoU above the threshold, the last of equals; only where
    there is none, one that counts nowhere, a crowd as often as it likes. All groups, areas and thresholds at once.
    """
    shape = (len(detections), len(limits), len(THRESHOLDS))
    size = _areas(detections[:, 3:])
    outside = (size[:, None] < limits[:, 0]) | (size[:, None] > limits[:, 1])  # (D, A)
    hit, skipped = np.zeros(shape, bool), np.repeat(outside[:, :, None], shape[2], axis=2)
    keys = _groups(detections), _groups(objects)
    near = pairs(detections, objects, keys, THRESHOLDS[0], crowds=True)
    if not len(near.iou):
        return hit, skipped
    # An object's area is what it is, and one outside the range is as one to be ignored.
    object_size = _areas(objects[:, 3:])
    ignored = (object_size[:, None] < limits[:, 0]) | (object_size[:, None] > limits[:, 1]) | (objects[:, 2:3] > 0)
    crowd = objects[:, 2] > 0
    active, position = np.unique(near.detection, return_inverse=True)
    column = _rank(position)
    width = int(column.max()) + 1
    which = np.zeros((len(active), width), np.int64)
    overlap = np.full((len(active), width), -1.0)
    which[position, column] = near.object
    overlap[position, column] = near.iou
    taken = np.zeros((len(objects), *shape[1:]), bool)
    turn = _rank(keys[0][active])
    by_turn = np.argsort(turn, kind="stable")
    for now in np.split(by_turn, np.cumsum(np.bincount(turn))[:-1]):
        mine, value = which[now], overlap[now]
        free = ~taken[mine] | crowd[mine][:, :, None, None]
        allowed = free & (value[:, :, None] >= THRESHOLDS)[:, :, None]  # (n, width, A, T)
        lesser = ignored[mine][..., None]  # (n, width, A, 1)
        rank = np.where(allowed, value[:, :, None, None] + np.where(lesser, 0.0, 2.0), -1.0)
        chosen = width - 1 - rank[:, ::-1].argmax(1)  # (n, A, T)
        found = np.take_along_axis(rank, chosen[:, None], 1)[:, 0] > 0
        target = np.take_along_axis(mine[:, :, None, None], chosen[:, None], 1)[:, 0]
        free_of_count = ignored[target, np.arange(shape[1])[:, None]]
        row = active[now]
        hit[row] = found & ~free_of_count
        skipped[row] = np.where(found, free_of_count, skipped[row])
        image, a, t = np.nonzero(found)
        taken[target[image, a, t], a, t] = True
    return hit, skipped


def _curves(
    detections: Array,
    objects: Array,
    hit: NDArray[np.bool_],
    skipped: NDArray[np.bool_],
    limits: Array,
    num_classes: int,
) -> tuple[Array, Array]:
    """Precision at 101 recalls (K, A, T, 101) and the recall reached (K, A, T); NaN without objects."""
    areas, thresholds = hit.shape[1:]
    precision = np.full((num_classes, areas, thresholds, len(RECALLS)), np.nan)
    recall = np.full((num_classes, areas, thresholds), np.nan)
    size = _areas(objects[:, 3:])
    counted = (objects[:, 2:3] == 0) & (size[:, None] >= limits[:, 0]) & (size[:, None] <= limits[:, 1])  # (G, A)
    for label in range(num_classes):
        number = counted[objects[:, 1] == label].sum(0)  # (A)
        rows = np.flatnonzero(detections[:, 1] == label)
        rows = rows[np.argsort(-detections[rows, 2], kind="stable")]
        true = np.cumsum(hit[rows] & ~skipped[rows], axis=0, dtype=np.float64)  # (d, A, T)
        false = np.cumsum(~hit[rows] & ~skipped[rows], axis=0, dtype=np.float64)
        exact = true / (true + false + np.spacing(1))
        envelope = np.maximum.accumulate(exact[::-1], axis=0)[::-1]
        for area in np.flatnonzero(number):
            precision[label, area], recall[label, area] = 0.0, 0.0
            if not len(rows):
                continue
            reached = true[:, area] / number[area]  # (d, T)
            recall[label, area] = reached[-1]
            for t in range(thresholds):
                at = np.searchsorted(reached[:, t], RECALLS, "left")
                there = at < len(rows)
                precision[label, area, t, there] = envelope[at[there], area, t]
    return precision, recall


def voc(detections: Array, objects: Array, num_classes: int) -> tuple[Array, Array]:
    """AP of each class (K) at IoU 0.5 by PASCAL VOC's rules of 2007 (11 points) and 2010 (area); NaN without objects.

    A detection belongs to the object of highest IoU, taken or not; on one to be ignored it counts nowhere.
    """
    keys = _groups(detections), _groups(objects)
    near = pairs(detections, objects, keys, 0.5, crowds=False)
    best = np.full(len(detections), -1)
    order = np.lexsort((-near.object, near.iou, near.detection))  # the last of a detection is its best, first of equals
    best[near.detection[order]] = near.object[order]
    results = np.full((2, num_classes), np.nan)
    for label in range(num_classes):
        number = ((objects[:, 1] == label) & (objects[:, 2] == 0)).sum()
        if not number:
            continue
        rows = np.flatnonzero(detections[:, 1] == label)
        rows = rows[np.argsort(-detections[rows, 2], kind="stable")]
        target = best[rows]
        rows_counted = (target < 0) | (objects[target, 2] == 0) if len(objects) else np.ones(len(rows), bool)
        target = target[rows_counted]
        _, first = np.unique(target, return_index=True)
        true = np.zeros(len(target))
        true[first] = 1.0
        true[target < 0] = 0.0
        hits = np.cumsum(true)
        recall, precision = hits / number, hits / np.arange(1, len(hits) + 1)
        envelope = np.maximum.accumulate(np.r_[precision, 0.0][::-1])[::-1]
        at = np.searchsorted(recall, np.arange(11) / 10, "left")
        results[0, label] = envelope[at].mean()
        results[1, label] = (np.diff(np.r_[0.0, recall]) * envelope[:-1]).sum()
    return results[0], results[1]


def best_f1(
    detections: Array, objects: Array, hit: NDArray[np.bool_], skipped: NDArray[np.bool_], num_classes: int
) -> dict[str, Array]:
    """Objects, best F1 at IoU 0.5, and its precision, recall and score threshold, of each class (K).

    Detections with at least the threshold as score are kept; of equal F1 the highest threshold. Without a true
    detection the threshold is 1, without an object F1 and recall are NaN.
    """
    columns = {name: np.full(num_classes, np.nan) for name in ("objects", "f1", "precision", "recall", "threshold")}
    columns["threshold"][:] = 1.0
    for label in range(num_classes):
        number = ((objects[:, 1] == label) & (objects[:, 2] == 0)).sum()
        columns["objects"][label] = number
        rows = np.flatnonzero((detections[:, 1] == label) & ~skipped)
        rows = rows[np.argsort(-detections[rows, 2], kind="stable")]
        true = np.cumsum(hit[rows])
        if not number:
            continue
        if not len(rows) or not true[-1]:
            columns["f1"][label] = columns["recall"][label] = 0.0
            continue
        score = detections[rows, 2]
        ends = np.flatnonzero(np.r_[score[1:] != score[:-1], True])  # a threshold keeps all of one score
        f1 = 2 * true[ends] / (ends + 1 + number)
        best = int(f1.argmax())
        columns["f1"][label] = f1[best]
        columns["precision"][label] = true[ends[best]] / (ends[best] + 1)
        columns["recall"][label] = true[ends[best]] / number
        columns["threshold"][label] = score[ends[best]]
    return columns


def image_f1(
    detections: Array,
    objects: Array,
    hit: NDArray[np.bool_],
    skipped: NDArray[np.bool_],
    thresholds: Array,
    images: Array | None,
) -> dict[int, float]:
    """F1 at IoU 0.5 of each image, of detections with at least their class's threshold; 1 where nothing is to find."""
    enough = detections[:, 2] >= thresholds[detections[:, 1].astype(np.int64)]
    true, found = detections[hit & enough, 0], detections[enough & ~skipped, 0]
    wanted = objects[objects[:, 2] == 0, 0]
    numbers = np.unique(np.concatenate([true, found, wanted, *([] if images is None else [images])]))
    hits, both = (
        sum(np.bincount(np.searchsorted(numbers, rows), minlength=len(numbers)) for rows in parts)
        for parts in ((true,), (found, wanted))
    )
    values = np.where(both > 0, 2 * hits / np.maximum(both, 1), 1.0)
    return dict(zip(numbers.astype(int).tolist(), values.tolist(), strict=True))


def confusion(detections: Array, objects: Array, thresholds: Array, num_classes: int) -> NDArray[np.int64]:
    """Counts (K + 1, K + 1) of objects by true (rows) and predicted class at IoU 0.5, the background last.

    Detections with at least their class's threshold as score take, the best first, the free object of highest IoU, of
    whatever class. Objects to be ignored and what lies on them count nowhere.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    kept = detections[detections[:, 2] >= thresholds[detections[:, 1].astype(np.int64)]]
    kept = kept[np.lexsort((-kept[:, 2], kept[:, 0]))]
    near = pairs(kept, objects, (kept[:, 0].astype(np.int64), objects[:, 0].astype(np.int64)), 0.5, crowds=True)
    start = np.searchsorted(near.detection, np.arange(len(kept) + 1))
    ignored, taken = objects[:, 2] > 0, np.zeros(len(objects), bool)
    labels, true = kept[:, 1].astype(np.int64), objects[:, 1].astype(np.int64)
    for row in range(len(kept)):
        index, value = near.object[start[row] : start[row + 1]], near.iou[start[row] : start[row + 1]]
        free = ~taken[index] & ~ignored[index]
        if free.any():
            chosen = index[free][value[free].argmax()]
            taken[chosen] = True
            counts[true[chosen], labels[row]] += 1
        elif not ignored[index].any():
            counts[num_classes, labels[row]] += 1
    missed = ~taken & ~ignored
    counts[:num_classes, num_classes] += np.bincount(true[missed], minlength=num_classes)
    return counts
