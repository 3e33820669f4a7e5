"""Boxes move with their pixels: each move is checked against a rectangle painted into the image."""

import colorsys

import pytest
import torch

from cnn_train.data.augment import (
    HSV,
    Compose,
    CutMix,
    Erase,
    Flip,
    Jitter,
    Lighting,
    MixUp,
    Mosaic,
    PadCrop,
    RandAugment,
    RandomResizedCrop,
    Resize,
    SamplePatch,
    ScaleCrop,
    Shift,
    apply,
    flip_crop,
)  # fmt: skip
from cnn_train.data.boxes import UNUSED, covered_share, move_boxes, pack_boxes
from cnn_train.data.data import Batch, Data, DataSet
from cnn_train.data.images import bring_to_size
from cnn_train.data.source import InMemory
from cnn_train.data.targets import TargetSpec
from cnn_train.errors import DataError

SPEC = TargetSpec("boxes", 3, min_visible=0.25)
SIZE = (60, 80)
CPU = torch.device("cpu")


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


# -- Augmentations of detection papers: rectangles in colours of their own -------------------------------------------

COLOURS = torch.tensor([[250, 20, 20], [20, 250, 20], [20, 20, 250], [250, 250, 20]], dtype=torch.uint8)
GEOMETRY = {
    "patch": SamplePatch(3.0), "jitter": Jitter(0.3), "mosaic": Mosaic(), "flip_crop": flip_crop(6),
    "resized_crop": RandomResizedCrop((0.3, 1.0)), "scale_crop": ScaleCrop((0.6, 1.6)), "half": Resize((33, 41)),
    "twice": Resize((120, 160)), "mosaic and flip": Compose([Mosaic(), Flip()]),
}  # fmt: skip


def coloured_scenes(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Black scenes with up to four rectangles that do not touch, each in the colour of its class."""
    random = torch.Generator().manual_seed(1)
    images, boxes = torch.zeros(n, 3, *SIZE, dtype=torch.uint8), torch.tensor(UNUSED).repeat(n, 4, 1)
    for image, rows in zip(images, boxes, strict=True):
        for quarter in range(int(torch.randint(0, 5, (), generator=random))):
            top, left = 30 * (quarter // 2) + 3, 40 * (quarter % 2) + 3
            tall, wide = (int(torch.randint(8, most, (), generator=random)) for most in (24, 34))
            image[:, top : top + tall, left : left + wide] = COLOURS[quarter][:, None, None]
            rows[quarter] = torch.tensor([left, top, left + wide, top + tall, quarter, 0])
    return images, boxes


@pytest.mark.parametrize("kind", GEOMETRY)
def test_each_box_is_that_of_its_colour(kind):
    """112 scenes of two boxes each in the mean: with the nine kinds, 2,000 boxes."""
    images, boxes = coloured_scenes(112)
    augment, seen = GEOMETRY[kind], 0
    for first in range(0, 112, 7):
        part, own = images[first : first + 7], boxes[first : first + 7]
        if isinstance(augment, Resize):
            moved, targets = apply(augment, part, own, SPEC)
        else:
            moved, targets = augment(part, own, torch.arange(first, first + 7), 0, 0, SPEC)
        for image, rows in zip(moved.float(), targets, strict=True):
            for x1, y1, x2, y2, label, _ in rows[rows[:, 4] >= 0].tolist():
                colour = COLOURS[int(label)].float()
                assert 0 <= x1 < x2 <= image.size(2) and 0 <= y1 < y2 <= image.size(1)
                window = image[:, max(int(y1) - 2, 0) : int(y2) + 3, max(int(x1) - 2, 0) : int(x2) + 3]
                like = ((window - colour[:, None, None]).abs().amax(0) < 115).nonzero()
                near = covered_share(rows[None], torch.tensor([[x1 - 3, y1 - 3, x2 + 3, y2 + 3]]))[0] > 0
                if min(x2 - x1, y2 - y1) < 3 or (near & (rows[:, 4] == label)).sum() > 1:
                    continue  # blurred away, or beside one of its own colour in another part of a mosaic
                found = torch.stack([like.amin(0), like.amax(0) + 1]).flip(1).flatten().float()
                found += torch.tensor([max(int(x1) - 2, 0), max(int(y1) - 2, 0)] * 2)
                assert (found - torch.tensor([x1, y1, x2, y2])).abs().max() <= 1, (kind, label)
                seen += 1
            full = ((image - COLOURS[:, :, None, None].float()[:, :]).abs().amax(1) < 20).flatten(1).sum(1)
            named = {int(label) for label in rows[rows[:, 4] >= 0, 4].tolist()}
            assert all(number in named for number in range(4) if full[number] > 4)  # no object without its box
    assert seen > 60


def test_a_quarter_of_an_object_is_ignored_in_a_mosaic_and_the_last_epochs_have_none():
    images, boxes = coloured_scenes(16)
    augment = Mosaic(epochs=10, off_epochs=2)
    _, targets = augment(images, boxes, torch.arange(16), 7, 0, SPEC)
    kept = targets[targets[..., 4] >= 0]
    assert 0 < kept[:, 5].sum() < len(kept) and targets.size(1) >= 4
    for epoch in (8, 9):
        same, unmoved = augment(images, boxes, torch.arange(16), epoch, 0, SPEC)
        assert same is images and unmoved is boxes
    labels = torch.zeros(16, *SIZE, dtype=torch.long)
    labels[images[:, 0] > 0] = 1
    mixed, maps = augment(images, labels, torch.arange(16), 0, 0, TargetSpec("maps", 2))
    assert ((mixed[:, 0] > 10) == (maps == 1)).float().mean() > 0.97


def test_hsv_is_that_of_colorsys():
    image = (torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    found = HSV(0.0, 1.5, 1.0).one(image, torch.zeros(()), (12, 12), 5, 0, 0, TargetSpec("labels", 1))[0]
    factors = []
    for old, new in zip(image.flatten(1).T.tolist(), found.flatten(1).T.tolist(), strict=True):
        (h, s, v), (h2, s2, v2) = (colorsys.rgb_to_hsv(*(part / 255 for part in rgb)) for rgb in (old, new))
        assert abs(v - v2) < 0.005 and (s < 0.1 or min(abs(h - h2), 1 - abs(h - h2)) < 0.02)
        if 0.2 < s < 0.6 and v > 0.5:
            factors.append(s2 / s)
    assert (max(factors) - min(factors) < 0.1 and 1 / 1.5 <= min(factors) < 0.97) or 1.03 < max(factors) <= 1.55
    darker = HSV(0.0, 1.0, 1.5).one(image, torch.zeros(()), (12, 12), 5, 0, 0, TargetSpec("labels", 1))[0]
    values = image.amax(0).float(), darker.amax(0).float()
    inside = (values[0] > 50) & (values[1] < 250)
    ratio = values[1][inside] / values[0][inside]
    assert ratio.max() - ratio.min() < 0.05


def test_a_sampled_patch_shows_an_object_as_well_as_asked():
    box, crop = torch.tensor([[20.0, 10, 60, 50]]), SamplePatch(1.0, overlaps=(0.5,))
    whole, shown = 0, []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(300):
            top, left, height, width = crop._part(SIZE, box)
            whole += (height, width) == SIZE
            common = (min(top + height, 50) - max(top, 10)) * (min(left + width, 60) - max(left, 20))
            shown.append(common / (height * width + 1600 - common))
            assert height >= 18 and width >= 24 and 0.5 <= height / width <= 2
            assert 0 <= top <= 60 - height and 0 <= left <= 80 - width
    assert min(shown) > 0 and 80 < whole < 130  # one of three draws is the whole image, of IoU 1/3
    assert 80 < sum(value >= 0.5 for value in shown) < 170  # one is a part that shows it well, one any


def test_scales_change_every_ten_steps_and_are_multiples():
    images, boxes = coloured_scenes(48)
    split = InMemory(images, boxes)
    found = DataSet("toy", "boxes", dict.fromkeys(("train", "val", "test"), split), list("abcd"), 3, SIZE)
    data = Data(found, batch_size=2, multi_scale=[40, 90])
    data.fit_scales(8, 48)
    sizes = [tuple(batch.images.shape[2:]) for epoch in (0, 1) for batch in data.train_batches(epoch, device=CPU)]
    assert len(sizes) == 48 and all(len(set(sizes[first : first + 10])) == 1 for first in range(0, 48, 10))
    assert len(set(sizes)) > 2 and {height for height, _ in sizes} <= {48, 56, 64, 72, 80, 88}
    assert all(width % 8 == 0 and abs(width / height - 4 / 3) < 0.1 for height, width in sizes)
    later = [batch for batch in data.train_batches(1, device=CPU, start=7)]
    assert [tuple(batch.images.shape[2:]) for batch in later] == sizes[24 + 7 :]
    assert {tuple(batch.images.shape[2:]) for batch in data.eval_batches("val", device=CPU)} == {SIZE}
    with pytest.raises(DataError, match=r"multi_scale=\[40, 90\] has no multiple of 64 .* from 100 on"):
        data.fit_scales(64, 100)
    with pytest.raises(DataError, match="must be two sides in pixels"):
        Data(found, multi_scale=[90, 40])
