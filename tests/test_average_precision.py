"""Detection metrics: COCO's against pycocotools, VOC's against a plain loop, and what a reader can count by hand."""

import contextlib
import io
import math
import time

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cnn_train.tasks.average_precision import PARTS, BoxMetrics, evaluate

SIDE = 200.0  # of the drawn images


def draw(seed: int, images: int, classes: int, most: int, per_object: float = 2.0):
    """Detections around objects and elsewhere, with crowds, ties and empty images; coordinates are exact in binary."""
    random = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corner, size = random.uniform(0, 150, (count, 2)), np.exp(random.uniform(np.log(8), np.log(150), (count, 2)))
        return np.round(np.c_[corner, corner + size] * 4) / 4

    objects, detections = [], []
    for image in range(images):
        count = 0 if random.uniform() < 0.2 else int(random.integers(0, most + 1))
        mine = np.c_[
            np.full(count, image), random.integers(0, classes, count), random.uniform(size=count) < 0.15, boxes(count)
        ]
        objects.append(mine)
        number = 0 if random.uniform() < 0.1 else int(per_object * count + random.integers(0, 4))
        found = np.c_[np.full(number, image), random.integers(0, classes, number), np.zeros(number), boxes(number)]
        for row in found[: int(0.8 * number)]:
            if count:
                target = mine[random.integers(count)]
                row[3:] = target[3:] + np.round(random.normal(0, 3, 4) * 4) / 4 * (random.uniform() < 0.8)
                row[1] = target[1] if random.uniform() < 0.8 else row[1]
        found[:, 5:] = np.maximum(found[:, 5:], found[:, 3:5] + 1)
        found[:, 2] = np.round(random.uniform(size=number), random.integers(1, 4))
        detections.append(found)
    return np.concatenate(detections), np.concatenate(objects)


def reference(detections, objects, classes: int, images: int) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()

        def rows(table, score: bool) -> list[dict]:
            result = []
            for number, row in enumerate(table, start=1):
                x1, y1, x2, y2 = row[3:].tolist()
                entry = {"id": number, "image_id": int(row[0]) + 1, "category_id": int(row[1]) + 1}
                entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                result.append(entry | ({"score": float(row[2])} if score else {"iscrowd": int(row[2])}))
            return result

        shared = {
            "images": [{"id": i + 1} for i in range(images)],
            "categories": [{"id": c + 1} for c in range(classes)],
        }
        truth.dataset = {**shared, "annotations": rows(objects, False)}
        truth.createIndex()
        found.dataset = {**shared, "annotations": [row | {"iscrowd": 0} for row in rows(detections, True)]}
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.imgIds = list(range(1, images + 1))
        ranges = evaluation.params.areaRng + [[a * SIDE**2, min(b * SIDE**2, 1e10)] for a, b in PARTS.values()]
        evaluation.params.areaRng = ranges
        evaluation.params.areaRngLbl = ["all", "small", "medium", "large", *PARTS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def mean(values: np.ndarray) -> float:
    there = values[values > -1]
    return float(there.mean()) if there.size else math.nan


def assert_is_coco(seed: int, images: int, classes: int, most: int, per_object: float = 2.0) -> None:
    detections, objects = draw(seed, images, classes, most, per_object)
    ours = evaluate(detections, objects, classes, SIDE**2)
    theirs = reference(detections, objects, classes, images)
    precision, recall = theirs.eval["precision"][..., -1], theirs.eval["recall"][..., -1]  # (T, R, K, A), (T, K, A)
    expected = {
        "map": mean(precision[..., 0]),
        "map50": mean(precision[0, ..., 0]),
        "map75": mean(precision[5, ..., 0]),
    }
    names = theirs.params.areaRngLbl
    expected |= {f"map_{name}": mean(precision[..., i]) for i, name in enumerate(names) if i}
    expected["mar100"] = mean(recall[..., 0])
    for name, value in expected.items():
        assert ours.values[name] == pytest.approx(value, abs=1e-9, nan_ok=True), (seed, name)
    each = [mean(precision[:, :, k, 0]) for k in range(classes)]
    assert ours.table["AP"] == pytest.approx(each, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("block", range(5))
def test_coco_metrics_are_pycocotools_on_500_drawn_cases(block):
    for seed in range(100 * block, 100 * block + 100):
        assert_is_coco(seed, images=1 + seed % 6, classes=1 + seed % 3, most=1 + seed % 5)


def test_more_than_100_detections_of_one_image_and_class():
    assert_is_coco(1, images=2, classes=1, most=90, per_object=3.0)
    assert_is_coco(7, images=3, classes=2, most=150, per_object=3.0)


def plain_voc(detections, objects, label: int) -> tuple[float, float]:
    """The development kit's loop, without its + 1."""
    wanted = [row for row in objects if row[1] == label]
    number = sum(row[2] == 0 for row in wanted)
    if not number:
        return math.nan, math.nan
    taken, true, false = set(), [], []
    mine = [row for row in detections if row[1] == label]
    for row in sorted(mine, key=lambda row: -row[2]):
        best, which = -math.inf, -1
        for index, other in enumerate(wanted):
            if other[0] != row[0]:
                continue
            width = min(row[5], other[5]) - max(row[3], other[3])
            height = min(row[6], other[6]) - max(row[4], other[4])
            if width <= 0 or height <= 0:
                continue
            union = (row[5] - row[3]) * (row[6] - row[4]) + (other[5] - other[3]) * (other[6] - other[4])
            value = width * height / (union - width * height)
            if value > best:
                best, which = value, index
        if best >= 0.5:
            if wanted[which][2]:
                continue
            true.append(which not in taken)
            taken.add(which)
        else:
            true.append(False)
        false.append(not true[-1])
    recall, precision = [], []
    for end in range(1, len(true) + 1):
        recall.append(sum(true[:end]) / number)
        precision.append(sum(true[:end]) / end)
    points = [
        max([p for r, p in zip(recall, precision, strict=True) if r >= t], default=0.0) for t in np.arange(11) / 10
    ]
    whole, before = 0.0, 0.0
    for index, value in enumerate(recall):
        whole += (value - before) * max(precision[index:])
        before = value
    return sum(points) / 11, whole


def test_both_voc_rules_are_a_plain_loops():
    for seed in range(60):
        detections, objects = draw(seed, 1 + seed % 5, 2, 6)
        ours = evaluate(detections, objects, 2, SIDE**2)
        for position, rule in enumerate(("voc07", "voc10")):
            each = np.array([plain_voc(detections, objects, label)[position] for label in range(2)])
            value = float(each[~np.isnan(each)].mean()) if (~np.isnan(each)).any() else math.nan
            assert ours.values[rule] == pytest.approx(value, abs=1e-9, nan_ok=True), seed


BOX = (10.0, 10, 50, 50)
ELSEWHERE = (100.0, 100, 140, 140)


def test_best_f1_and_confusion_by_hand():
    objects = np.array([(0, 0, 0, *BOX), (1, 0, 0, *BOX), (1, 1, 0, *ELSEWHERE), (2, 1, 1, *BOX), (3, 0, 0, *BOX)])
    detections = np.array(
        [
            (0, 0, 0.9, *BOX),  # right
            (0, 0, 0.8, *BOX),  # twice
            (1, 0, 0.7, *BOX),  # right
            (1, 0, 0.6, *ELSEWHERE),  # class 1 taken for 0
            (2, 1, 0.9, *BOX),  # on an object to be ignored
            (3, 0, 0.2, *ELSEWHERE),  # invented
        ]
    )
    result = evaluate(detections, objects, 2, SIDE**2)
    # Of class 0 with threshold 0.7: 2 true and 1 false of 3 objects; F1 = 4 / 6.
    assert result.table["f1"] == [pytest.approx(2 / 3), 0.0]
    assert result.table["threshold"] == [0.7, 1.0]
    assert result.table["precision"][0] == pytest.approx(2 / 3) and result.table["recall"][0] == pytest.approx(2 / 3)
    assert result.table["objects"] == [3, 1]
    assert result.values["f1"] == pytest.approx(1 / 3)
    assert result.confusion.tolist() == [[2, 0, 1], [0, 0, 1], [1, 0, 0]]


def test_nothing_at_all():
    empty = np.zeros((0, 7))
    result = evaluate(empty, empty, 3, SIDE**2)
    assert all(math.isnan(value) for value in result.values.values()) and not result.confusion.any()
    some = np.array([(0, 1, 0, *BOX)])
    assert evaluate(empty, some, 3, SIDE**2).values["map"] == 0
    assert math.isnan(evaluate(np.array([(0, 1, 0.5, *BOX)]), empty, 3, SIDE**2).values["map"])


def as_batches(detections, objects, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one image after the other, filled up with class -1."""

    def filled(rows: np.ndarray, last: int) -> torch.Tensor:
        result = torch.zeros(images, max(np.bincount(rows[:, 0].astype(int), minlength=1)), 6, dtype=torch.float64)
        result[..., 4] = -1
        for image in range(images):
            mine = torch.from_numpy(rows[rows[:, 0] == image])
            result[image, : len(mine)] = torch.cat([mine[:, 3:], mine[:, 1:2], mine[:, 2:3]], dim=1)
        return result

    return filled(detections, 5), filled(objects, 5)


def test_batches_and_processes_give_the_same_bits():
    detections, objects = draw(3, 12, 3, 6)
    found, targets = as_batches(detections, objects, 12)
    whole = evaluate(detections, objects, 3, SIDE**2)
    one, parts = BoxMetrics(3, SIDE**2), [BoxMetrics(3, SIDE**2) for _ in range(2)]
    one.update(found, targets, torch.arange(12))
    for rank, part in enumerate(parts):
        for index in torch.arange(rank, 12, 2).split(2):
            part.update(found[index], targets[index], index)
    gathered = BoxMetrics(3, SIDE**2)
    for part in parts:
        gathered.detections += part.detections
        gathered.objects += part.objects
        gathered.images += part.images
    gathered._update_count = 1  # as after the states of two processes were gathered
    for result in (one.compute(), gathered.compute()):
        assert repr(result.values) == repr(whole.values) and repr(result.table) == repr(whole.table)
        assert torch.equal(result.confusion, whole.confusion)
        assert {i: f1 for i, f1 in result.images.items() if i in whole.images} == whole.images
        assert list(result.images) == list(range(12))
    nothing = BoxMetrics(3, SIDE**2)
    nothing.update(torch.zeros(2, 0, 6), torch.full((2, 4, 6), -1.0), torch.arange(2))
    assert math.isnan(nothing.compute().values["map"])


def test_500_images_take_less_than_pycocotools():
    detections, objects = draw(0, 500, 10, 12, per_object=9.5)
    assert len(detections) > 20_000
    before = time.process_time()
    evaluate(detections, objects, 10, SIDE**2)
    ours = time.process_time() - before
    before = time.process_time()
    reference(detections, objects, 10, 500)
    assert ours < time.process_time() - before
