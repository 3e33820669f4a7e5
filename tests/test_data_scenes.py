"""Scenes of digits: deterministic, cached, of digits that are not shared between the splits."""

import numpy as np
import pytest
import torch

from cnn_train.data.digit_scenes import IGNORE, cached_scenes, digit_scenes, draw_scenes
from cnn_train.data.digits import load_digits

SIZE = (48, 48)


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes("train", 40, SIZE, 0)


def test_a_scene_depends_on_seed_split_and_index(scenes):
    images, maps = draw_scenes("train", 10, SIZE, 0)
    assert np.array_equal(images, scenes[0][:10]) and np.array_equal(maps, scenes[1][:10])
    for other in (draw_scenes("train", 10, SIZE, 1), draw_scenes("val", 10, SIZE, 0)):
        assert not any(np.array_equal(a, b) for a, b in zip(images, other[0], strict=True))


def test_scenes_hold_ground_digits_and_rims(scenes):
    images, maps = scenes
    assert images.shape == (40, 3, *SIZE) and images.dtype == maps.dtype == np.uint8
    assert set(np.unique(maps)) == {*range(11), IGNORE}
    shares = np.bincount(maps.ravel(), minlength=256) / maps.size
    assert 0.35 < shares[0] < 0.85 and shares[1:11].min() > 0.002 and 0.02 < shares[IGNORE] < 0.3
    assert all(len(set(np.unique(m)) - {0, IGNORE}) >= 1 for m in maps)
    digit, after = (maps[:, :, :-1] > 0) & (maps[:, :, :-1] != IGNORE), maps[:, :, 1:]
    to_ground, to_rim = ((after == value) & digit for value in (0, IGNORE))
    assert to_ground.sum() < 0.2 * to_rim.sum()  # a rim lies between, but for the smallest digits


def test_digits_stand_out_from_the_ground(scenes):
    images, maps = scenes
    for image, label in zip(images.astype(float), maps, strict=True):
        ground = image[:, label == 0].mean(1)
        for digit in set(np.unique(label)) - {0, IGNORE}:
            if (label == digit).sum() > 40:
                assert np.linalg.norm(image[:, label == digit].mean(1) - ground) > 40


def test_handwritings_are_disjoint():
    seen = [{bytes(x.numpy()) for x in images} for images, _ in load_digits().values()]
    assert sum(map(len, seen)) == 1797 and len(set.union(*seen)) == 1797


def test_cache(tmp_path, monkeypatch):
    first = cached_scenes("val", 4, SIZE, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.suffix == ".npz"
    with monkeypatch.context() as patch:
        patch.setattr("cnn_train.data.digit_scenes.draw_scenes", lambda *args: pytest.fail("drawn again"))
        again = cached_scenes("val", 4, SIZE, 0, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    cached_scenes("val", 4, SIZE, 1, tmp_path)
    cached_scenes("val", 5, SIZE, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_damaged_cache_is_drawn_again(tmp_path, damage):
    first = cached_scenes("val", 3, SIZE, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes({"empty": b"", "cut": content[:2000], "flipped": bytes(content), "text": b"hello"}[damage])
    again = cached_scenes("val", 3, SIZE, 0, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    images, _ = cached_scenes("val", 2, SIZE, 0, tmp_path / "file" / "below")
    assert images.shape == (2, 3, *SIZE)


def test_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = digit_scenes(48, num_train=20, num_val=5, num_test=6, batch_size=4, seed=3)
    assert data.task == "segmentation" and data.num_classes == 11 and data.ignore_index == IGNORE
    assert [data.size(split) for split in ("train", "val", "test")] == [20, 5, 6]
    batch = next(data.train_batches(0, device=torch.device("cpu")))
    assert batch.images.shape == (4, 3, *SIZE) and batch.targets.shape == (4, *SIZE)
    assert batch.targets.dtype == torch.int64
    assert data.class_counts("train").sum() == (data.splits["train"].targets != IGNORE).sum()
    assert (tmp_path / "cnn-train").is_dir()
    other = digit_scenes(48, num_train=20, num_val=5, num_test=6, seed=4)
    assert torch.equal(other.splits["train"].images, data.splits["train"].images)
