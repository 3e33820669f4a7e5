"""Boxes move with their pixels: each move is checked against a rectangle painted into the image."""

import pytest
import torch

from cnn_train.data.augment import (
    Compose,
    CutMix,
    Erase,
    Flip,
    Lighting,
    MixUp,
    PadCrop,
    RandAugment,
    RandomResizedCrop,
    ScaleCrop,
    Shift,
    flip_crop,
)  # fmt: skip
from cnn_train.data.boxes import UNUSED, covered_share, move_boxes, pack_boxes
from cnn_train.data.data import Batch, Data, DataSet, InMemory
from cnn_train.data.images import bring_to_size
from cnn_train.data.targets import TargetSpec
from cnn_train.errors import DataError

SPEC = TargetSpec("boxes", 3, min_visible=0.25)
SIZE = (60, 80)


def scene(n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Black images with one white rectangle each, and its box and an unused row."""
    generator = torch.Generator().manual_seed(0)
    images, boxes = torch.zeros(n, 1, *SIZE, dtype=torch.uint8), torch.tensor(UNUSED).repeat(n, 2, 1)
    for image, rows in zip(images, boxes, strict=True):
        x, y = (int(torch.randint(0, limit, (), generator=generator)) for limit in (50, 40))
        image[:, y : y + 18, x : x + 26] = 255
        rows[0] = torch.tensor([x, y, x + 26, y + 18, 2, 0])
    return images, boxes


@pytest.mark.parametrize(
    "augment, slack",
    [
        (Flip(), 0), (PadCrop(7), 0), (flip_crop(5), 0), (Shift(0, 0.2, 0.3, 0), 1.0), (Shift(), 7.0),
        (RandomResizedCrop((0.3, 1.0)), 1.5), (ScaleCrop((0.6, 1.6)), 1.5), (Compose([ScaleCrop(), Flip()]), 2.0),
        (Lighting(), None),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, float | int | None) else "",
)  # fmt: skip
def test_a_box_goes_where_its_pixels_go(augment, slack):
    images, boxes = scene()
    if slack is None:  # colours move no box
        images = images.repeat(1, 3, 1, 1)
    moved, targets = augment(images, boxes, torch.arange(len(images)), 0, 0, SPEC)
    assert targets.shape == boxes.shape and targets.dtype == torch.float32
    assert (targets[:, 1] == torch.tensor(UNUSED)).all()
    if slack is None:
        assert torch.equal(targets, boxes)
        return
    seen = 0
    for image, box in zip(moved[:, 0] > 127, targets[:, 0], strict=True):
        if not image.any() or box[4] < 0:
            assert image.sum() < 40  # a sliver may be lost either way
            continue
        rows, columns = image.any(1).nonzero()[:, 0], image.any(0).nonzero()[:, 0]
        wanted = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
        assert (box[:4] - wanted).abs().max() <= slack
        seen += 1
    assert seen > 10


def test_a_turned_box_is_the_upright_box_around_its_corners():
    box = torch.tensor([[[10.0, 20.0, 30.0, 24.0, 1, 0]]])
    quarter = torch.tensor([[[0.0, -1.0, 60.0], [1.0, 0.0, 0.0]]])  # (x, y) -> (60 - y, x)
    assert move_boxes(box, quarter, (80, 80), 0.25)[0, 0].tolist() == [36, 10, 40, 30, 1, 0]


def test_little_left_is_ignored_and_nothing_left_is_unused():
    boxes = torch.tensor([[[0.0, 0, 10, 10, 1, 0], [20, 0, 30, 10, 0, 0], [40, 0, 50, 10, 2, 1], UNUSED]])
    by_8 = torch.tensor([[[1.0, 0, -8], [0, 1, 0]]])
    moved = move_boxes(boxes, by_8, (10, 100), 0.25)[0]
    assert moved[0].tolist() == [0, 0, 2, 10, 1, 1]  # 20 % are left
    assert moved[1].tolist() == [12, 0, 22, 10, 0, 0] and moved[2].tolist() == [32, 0, 42, 10, 2, 1]
    assert moved[3].tolist() == list(UNUSED)
    assert move_boxes(boxes, by_8, (10, 100), 0.2)[0, 0, 5] == 0
    by_10 = torch.tensor([[[1.0, 0, -10], [0, 1, 0]]])
    assert move_boxes(boxes, by_10, (10, 100), 0.2)[0, 0].tolist() == list(UNUSED)


def test_erasing_most_of_a_box_makes_it_ignored():
    images, boxes = scene()
    erased, targets = Erase(1.0, (0.1, 0.5), fill="zero")(images, boxes, torch.arange(len(images)), 0, 0, SPEC)
    left = (erased > 0).flatten(1).sum(1) / (26 * 18)
    assert torch.equal(targets[:, 0, 5] == 1, left < 0.25) and (left < 0.25).any() and (left > 0.25).any()
    assert torch.equal(targets[..., :5], boxes[..., :5]) and (targets[:, 1, 5] == 0).all()
    assert covered_share(boxes[:1], torch.tensor([[0.0, 0.0, 80.0, 60.0]]))[0, 0] == 1


@pytest.mark.parametrize("how", ["pad", "stretch", "crop"])
def test_bringing_to_size_moves_boxes(how):
    image = torch.zeros(1, *SIZE, dtype=torch.uint8)
    image[:, 20:40, 30:50] = 255
    move = bring_to_size(SIZE, (45, 45), how)
    box = move_boxes(torch.tensor([[30.0, 20, 50, 40, 0, 0]]), move.matrix(SIZE), (45, 45), 0.25)[0]
    there = move.images(image)[0] > 127
    rows, columns = there.any(1).nonzero()[:, 0], there.any(0).nonzero()[:, 0]
    wanted = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    assert (box[:4] - wanted).abs().max() <= 1


def test_data_of_boxes_is_batched_and_refuses_what_cannot_move_them():
    images, boxes = scene(9)
    split = InMemory(images, boxes)
    found = DataSet("toy", "boxes", dict.fromkeys(("train", "val", "test"), split), list("abc"), 1, SIZE)
    data = Data(found, batch_size=4, augment=Flip(1.0))
    assert data.task == "detection" and data.targets == "boxes" and data.class_counts("train").tolist() == [0, 0, 9]
    batch: Batch = next(data.train_batches(0, device=torch.device("cpu")))
    before = boxes[batch.indices][:, 0]
    assert torch.equal(batch.targets[:, 0, [0, 2]], 80 - before[:, [2, 0]])
    for augment in (MixUp(), CutMix(), RandAugment(), Compose([Flip(), CutMix()])):
        with pytest.raises(DataError, match=r"(MixUp|CutMix|RandAugment) of the chosen augment cannot change boxes"):
            Data(found, augment=augment)


def test_boxes_are_packed():
    packed = pack_boxes([torch.ones(2, 6), torch.zeros(0, 6)])
    assert packed.shape == (2, 2, 6) and packed[1].tolist() == [list(UNUSED)] * 2


def test_boxes_of_files_are_read_in_workers_as_alone(tmp_path):
    from PIL import Image

    from cnn_train.data.disk import OnDisk
    from cnn_train.data.images import Reader

    images, boxes = scene(5)
    samples = []
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
        samples.append((str(tmp_path / f"{i}.png"), boxes[i, : i % 2 + 1][boxes[i, : i % 2 + 1, 4] >= 0]))
    common = {"size": (30, 40), "how": "stretch", "reader": Reader(1), "spec": SPEC}
    alone = OnDisk(samples, **common)
    image, target = alone.load(3, None, 0)
    assert image.shape == (1, 30, 40) and target.shape == (1, 6) and alone.class_counts(3).tolist() == [0, 0, 5]
    assert torch.allclose(target[0, :4], boxes[3, 0, :4] / 2) and target[0, 4] == 2
    cpu, order = torch.device("cpu"), [torch.tensor([4, 1]), torch.tensor([0])]
    shared = OnDisk(samples, **common, workers=1).batches(order, None, 0, cpu)
    for (a, b), (c, d) in zip(alone.batches(order, None, 0, cpu), shared, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)
