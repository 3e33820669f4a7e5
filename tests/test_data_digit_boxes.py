"""Scenes of digits with boxes: deterministic, cached, boxes around what is seen, hidden digits to be ignored."""

import numpy as np
import pytest
import torch

from cnn_train.data import digit_boxes as module
from cnn_train.data.digit_boxes import MOST, cached_boxes, digit_boxes, draw_box_scenes

SIZE = (64, 64)


@pytest.fixture(scope="module")
def scenes():
    return draw_box_scenes("train", 120, SIZE, 0)


def test_a_scene_depends_on_seed_split_and_index(scenes):
    images, targets = draw_box_scenes("train", 5, SIZE, 0)
    assert np.array_equal(images, scenes[0][:5]) and np.array_equal(targets, scenes[1][:5])
    for other in (draw_box_scenes("train", 5, SIZE, 1), draw_box_scenes("val", 5, SIZE, 0)):
        assert not any(np.array_equal(a, b) for a, b in zip(images, other[0], strict=True))


def test_targets(scenes):
    images, targets = scenes
    assert images.shape == (120, 3, *SIZE) and images.dtype == np.uint8
    assert targets.shape == (120, MOST, 6) and targets.dtype == np.float32
    there = targets[..., 4] >= 0
    assert (targets[~there] == (0, 0, 0, 0, -1, 0)).all()
    assert (there[:, :-1] >= there[:, 1:]).all()  # objects first
    boxes = targets[there]
    assert set(boxes[:, 4]) == set(range(10)) and set(boxes[:, 5]) <= {0, 1}
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:4] <= 64).all() and (boxes[:, 2:4] > boxes[:, :2]).all()
    number = there.sum(1)
    assert number.max() == MOST and 3.5 < number.mean() < 5.5 and 0 < (number == 0).mean() < 0.08
    assert boxes[:, 5].mean() < 0.05
    longest = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])[boxes[:, 5] == 0]
    assert longest.max() < 0.5 * 64 and np.median(longest) < 0.3 * 64  # logarithmic: more small than large ones


def test_a_box_is_the_extent_of_the_ink(monkeypatch):
    """One digit without slant, noise or texture, in white on black."""
    monkeypatch.setattr(module, "draw_ground", lambda size, random: (np.zeros((3, *size)), np.zeros(3)))
    monkeypatch.setattr(module, "contrasting_colour", lambda ground, random: np.ones(3))
    monkeypatch.setattr(module, "MOST", 1)
    digits, labels = module.load_digits()["train"]
    for seed in range(30):
        image, targets = module.draw_box_scene(digits, labels, (128, 128), np.random.default_rng(seed))
        x1, y1, x2, y2, label, ignored = targets[0]
        if label < 0:
            continue
        seen = image.mean(0) > 255 * (module.INK * 1.6 - 0.3)
        rows, columns = np.nonzero(seen)
        # The noise of 3 % moves an edge of the ink by at most a pixel or two.
        extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(extent - (x1, y1, x2, y2)).max() <= 2 and not ignored


def test_a_hidden_digit_is_to_be_ignored(monkeypatch):
    """All digits in one place: only the last is seen whole."""
    monkeypatch.setattr(module, "_place", lambda owner, strength, random: (slice(0, len(strength)),) * 2)
    digits, labels = module.load_digits()["train"]
    ignored = []
    for seed in range(20):
        _, targets = module.draw_box_scene(digits, labels, (128, 128), np.random.default_rng(seed))
        number = int((targets[:, 4] >= 0).sum())
        if number > 1:
            ignored += targets[: number - 1, 5].tolist()
            assert targets[number - 1, 5] == 0
    assert 0.3 < np.mean(ignored) < 1


def test_cache(tmp_path, monkeypatch):
    first = cached_boxes("val", 4, SIZE, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(module, "draw_box_scenes", lambda *args: pytest.fail("drawn again"))
        again = cached_boxes("val", 4, SIZE, 0, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    mended = cached_boxes("val", 4, SIZE, 0, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, mended, strict=True))
    (tmp_path / "file").write_text("")
    assert cached_boxes("val", 2, SIZE, 0, tmp_path / "file" / "below")[0].shape == (2, 3, *SIZE)


def test_data(tmp_path):
    data = digit_boxes(48, num_train=12, num_val=3, num_test=4, batch_size=4, cache_dir=str(tmp_path))
    assert data.task == "detection" and data.num_classes == 10 and data.image_size == (48, 48)
    assert [data.size(split) for split in ("train", "val", "test")] == [12, 3, 4]
    targets = data.splits["train"].targets
    assert targets.dtype == torch.float32 and targets.shape == (12, MOST, 6)
