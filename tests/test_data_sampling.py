"""Balanced sampling: exact shares, every sample before one comes twice, a function of seed and epoch; bad files."""

import csv
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_train.data.folder import folder
from cnn_train.data.sampling import balanced_order, uniform_order
from cnn_train.data.segmentation_folder import segmentation_folder
from cnn_train.errors import DataError

CPU = torch.device("cpu")


def test_each_class_is_drawn_alike_and_no_sample_again_before_the_others():
    labels = torch.tensor([0] * 90 + [1] * 7 + [2] * 4)
    order = balanced_order(labels, 3, 5)
    counts = Counter(labels[order].tolist())
    assert len(order) == 101 and sorted(counts.values()) == [33, 34, 34]
    for label in range(3):
        drawn = Counter(i for i in order.tolist() if labels[i] == label)
        missed = [0] if len(drawn) < int((labels == label).sum()) else []
        assert max(drawn.values()) - min([*drawn.values(), *missed]) <= 1
    assert torch.equal(order, balanced_order(labels, 3, 5))
    assert not torch.equal(order, balanced_order(labels, 3, 6)) and not torch.equal(order, balanced_order(labels, 4, 5))
    assert not torch.equal(order, order.sort().values)
    assert torch.equal(uniform_order(101, 3, 5).sort().values, torch.arange(101))


def test_several_labels_are_balanced_by_what_images_show():
    labels = torch.zeros(60, 2)
    labels[:40, 0] = 1
    labels[35:45, 1] = 1
    order = balanced_order(labels, 0, 0)
    assert len(order) == 60 and int((labels[order].sum(1) == 0).sum()) == 20  # those that show none: a class of three
    assert int(labels[order][:, 1].sum()) >= 20


def images(root, counts, side=8):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((side, side, 3), i % 200, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:04}.png")


def test_training_is_balanced_and_goes_on_in_the_middle_of_an_epoch(tmp_path):
    images(tmp_path, {"many": 40, "few": 5})
    data = folder(
        str(tmp_path), workers=0, batch_size=9, sampler="balanced", cache_dir=str(tmp_path / "c"), in_memory=True
    )
    epoch = list(data.train_batches(2, device=CPU))
    shown = Counter(torch.cat([batch.targets for batch in epoch]).tolist())
    assert abs(shown[0] - shown[1]) <= 1 and sum(shown.values()) == data.size("train")
    rest = list(data.train_batches(2, device=CPU, start=1))
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(epoch[1:], rest, strict=True))


def test_maps_are_not_balanced(tmp_path):
    images(tmp_path, {"images": 6})
    (tmp_path / "masks").mkdir()
    for i in range(6):
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "masks" / f"{i:04}.png")
    with pytest.raises(DataError, match=r"data\.sampler=balanced is for labels of whole images"):
        segmentation_folder(
            str(tmp_path), classes=2, sampler="balanced", workers=0, cache_dir=str(tmp_path / "c"), augment=None
        )


def test_bad_files_are_left_out_and_told_up_to_one_in_a_hundred(tmp_path):
    images(tmp_path / "d", {"a": 150, "b": 150}, side=4)
    bad = [tmp_path / "d" / "a" / "bad.jpg", tmp_path / "d" / "b" / "deep.png", tmp_path / "d" / "b" / "empty.png"]
    bad[0].write_bytes(b"\xff\xd8\xff")
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(bad[1])
    bad[2].touch()
    options = {"workers": 2, "cache_dir": str(tmp_path / "c")}
    with pytest.raises(DataError, match=r"bad\.jpg.*\(and 1 more\)"):
        folder(str(tmp_path / "d"), **options)
    data = folder(str(tmp_path / "d"), on_error="skip", **options)
    assert sum(data.size(split) for split in data.splits) == 300 and data.image_size == (4, 4)
    rows = list(csv.DictReader(data.skipped_table().splitlines()))
    assert {row["path"] for row in rows} == set(map(str, bad))
    assert "data.range=[low,high]" in next(row["reason"] for row in rows if row["path"] == str(bad[1]))
    assert "3 bad left out (data.on_error)" in data.notes
    with pytest.raises(DataError, match=r"needs data\.verify=true"):
        folder(str(tmp_path / "d"), on_error="skip", verify=False, **options)
    (tmp_path / "d" / "a" / "another.gif").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"4 of 304 files are bad, more than the 1 %"):
        folder(str(tmp_path / "d"), on_error="skip", **options)
