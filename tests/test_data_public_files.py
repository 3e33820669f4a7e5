"""Public sets of photographs, with and without masks, read from miniature sets of the true format."""

import hashlib
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_train.__main__ import main
from cnn_train.data.public_masks import scenes
from cnn_train.data.public_photos import photographs
from cnn_train.errors import DataError

CPU = torch.device("cpu")
SIDE = 20
OPTIONS = {"workers": 0, "normalize": "none", "image_size": SIDE}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def photo(path, number: int) -> np.ndarray:
    """A JPEG of one colour, and the pixels that it decodes to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), (number * 7 % 256, number * 31 % 256, number * 3 % 256)).save(path, quality=95)
    return np.asarray(Image.open(path))


def seen(data, split) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Image and target by file name."""
    found = {}
    for index, path in enumerate(data.splits[split].paths()):
        image, target = data.samples(split, [index], device=CPU)
        found[path.rsplit("/", 1)[1]] = image[0].permute(1, 2, 0).numpy(), target[0].numpy()
    return found


def write_flowers(root, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    base = root / "flowers-102"
    pixels = {f"image_{n:05}.jpg": photo(base / "jpg" / f"image_{n:05}.jpg", n) for n in range(1, 307)}
    labels = np.arange(306) % 102 + 1
    savemat(base / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    ids = np.arange(1, 307)
    sets = {"trnid": ids[:102], "valid": ids[102:204], "tstid": ids[204:]}
    savemat(base / "setid.mat", {name: part[None].astype(np.uint16) for name, part in sets.items()})
    table = dict(Flowers102._file_dict)
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        table[key] = (name, hashlib.md5((base / name).read_bytes()).hexdigest())
    monkeypatch.setattr(Flowers102, "_file_dict", table)
    of = {f"image_{n:05}.jpg": int(labels[n - 1] - 1) for n in ids}
    return pixels, of, {"train": 102, "val": 102, "test": 102}, 102, base / "setid.mat"


def write_food(root, monkeypatch):
    base, pixels, of = root / "food-101", {}, {}
    (base / "meta").mkdir(parents=True)
    names = ["waffles", "apple_pie", "tacos"]
    content = {"train": {}, "test": {}}
    for k, name in enumerate(names):
        for n in range(12):
            file = f"{k}{n:03}"
            pixels[f"{file}.jpg"] = photo(base / "images" / name / f"{file}.jpg", 20 * k + n)
            content["test" if n < 2 else "train"].setdefault(name, []).append(f"{name}/{file}")
            of[f"{file}.jpg"] = sorted(names).index(name)
    for split, listed in content.items():
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))
    return pixels, of, {"train": 27, "val": 3, "test": 6}, 3, base / "meta" / "train.json"


def write_pets(root, monkeypatch):
    base, pixels, of = root / "oxford-iiit-pet", {}, {}
    (base / "annotations" / "trimaps").mkdir(parents=True)
    lines = {"trainval": [], "test": []}
    for k, name in enumerate(["Abyssinian", "american_bulldog"]):
        for n in range(24):
            file = f"{name}_{n}"
            pixels[f"{file}.jpg"] = photo(base / "images" / f"{file}.jpg", 30 * k + n)
            trimap = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 7 + n) % 3 + 1
            Image.fromarray(trimap.astype(np.uint8)).save(base / "annotations" / "trimaps" / f"{file}.png")
            lines["test" if n < 4 else "trainval"].append(f"{file} {k + 1} {k + 1} 1")
            of[f"{file}.jpg"] = k
    for split, listed in lines.items():
        (base / "annotations" / f"{split}.txt").write_text("\n".join(listed) + "\n")
    return pixels, of, {"train": 36, "val": 4, "test": 8}, 2, base / "annotations" / "test.txt"


WRITE = {"flowers102": write_flowers, "food101": write_food, "oxford_pets": write_pets}


@pytest.mark.parametrize("dataset", WRITE)
def test_photographs_and_labels_are_those_of_the_files(dataset, tmp_path, monkeypatch, capsys):
    pixels, of, sizes, classes, metadata = WRITE[dataset](tmp_path / "sets", monkeypatch)
    data = photographs(dataset, str(tmp_path / "sets"), **OPTIONS)
    assert data.num_classes == classes and {split: data.size(split) for split in data.splits} == sizes
    found = {name: sample for split in data.splits for name, sample in seen(data, split).items()}
    assert set(found) == set(pixels)
    for name, (image, label) in found.items():
        assert np.array_equal(image, pixels[name]) and label == of[name]
    if classes < 100:
        assert data.class_counts("val").tolist() == [sizes["val"] // classes] * classes
    # Wrong, damaged and missing files are told, and where they go.
    with pytest.raises(DataError, match=r"has \d+ classes, not 99 as published"):
        photographs(dataset, str(tmp_path / "sets"), published={"num_classes": 99}, **OPTIONS)
    first = next(iter((tmp_path / "sets").rglob("*.jpg")))
    first.rename(first.with_suffix(".away"))
    with pytest.raises(DataError, match=rf"lacks 1 of \d+ files, first .*{re.escape(first.name)}; unpack .* again"):
        photographs(dataset, str(tmp_path / "sets"), **OPTIONS)
    first.with_suffix(".away").rename(first)
    metadata.write_bytes(metadata.read_bytes()[:-9] + b"\0")
    with pytest.raises(DataError, match=f"{dataset} is not whole in ") as error:
        photographs(dataset, str(tmp_path / "sets"), **OPTIONS)
    assert "\n" not in str(error.value)
    metadata.unlink()
    with pytest.raises(DataError, match=f"missing .*{metadata.name}; data.download=true fetches it"):
        photographs(dataset, str(tmp_path / "sets"), **OPTIONS)
    assert main([f"data={dataset}", f"data.root={tmp_path / 'none'}", "model=resnet20"]) == 3
    shown = capsys.readouterr().err
    assert "it consists of" in shown and "Traceback" not in shown


def test_trimaps(tmp_path, monkeypatch):
    write_pets(tmp_path / "sets", monkeypatch)
    data = scenes("oxford_pets", str(tmp_path / "sets"), **OPTIONS)
    assert data.class_names == ["background", "pet", "border"]
    assert [data.size(split) for split in ("train", "val", "test")] == [36, 4, 8]
    stored = np.array([255, 1, 0, 2])  # pet is 1, background 2, border 3
    for split in data.splits:
        for name, (_, mask) in seen(data, split).items():
            file = tmp_path / "sets" / "oxford-iiit-pet" / "annotations" / "trimaps" / name.replace(".jpg", ".png")
            assert np.array_equal(mask, stored[np.asarray(Image.open(file))])
    file.unlink()
    with pytest.raises(DataError, match=r"lacks 1 of \d+ files, first .*png; unpack annotations.tar.gz"):
        scenes("oxford_pets", str(tmp_path / "sets"), **OPTIONS)


def test_cityscapes(tmp_path, capsys):
    from torchvision.datasets import Cityscapes

    random = np.random.default_rng(0)
    masks = {}
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "lindau")):
        for n in range(2):
            name = f"{city}_00000{n}_000019"
            photo(tmp_path / "c" / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", n)
            masks[name] = random.integers(0, 34, (SIDE, SIDE), dtype=np.uint8)
            file = tmp_path / "c" / "gtFine" / split / city / f"{name}_gtFine_labelIds.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(masks[name]).save(file)
    data = scenes("cityscapes", str(tmp_path / "c"), **OPTIONS)
    assert [data.size(split) for split in ("train", "val", "test")] == [4, 2, 2]
    assert data.num_classes == 19 and data.class_names[0] == "road" and data.class_names[18] == "bicycle"
    train_id = np.array([kind.train_id for kind in Cityscapes.classes if kind.id >= 0])
    for split in ("train", "val"):
        for name, (_, mask) in seen(data, split).items():
            assert np.array_equal(mask, train_id[masks[name.removesuffix("_leftImg8bit.png")]])
    file.unlink()
    with pytest.raises(DataError, match=r"lacks 1 of 2 files, first .*lindau.*; unpack gtFine_trainvaltest.zip"):
        scenes("cityscapes", str(tmp_path / "c"), **OPTIONS)
    assert main(["data=cityscapes", f"data.root={tmp_path / 'none'}", "model=fcn32s"]) == 3
    shown = capsys.readouterr().err
    assert "leftImg8bit_trainvaltest.zip" in shown and "DIR/gtFine/train/aachen" in shown


def write_ade(root):
    base = root / "ADEChallengeData2016"
    masks = {}
    for split in ("training", "validation"):
        for n in range(3):
            name = f"ADE_{split}_{n:08}"
            photo(base / "images" / split / f"{name}.jpg", n)
            masks[f"{name}.jpg"] = np.arange(SIDE * SIDE, dtype=np.int64).reshape(SIDE, SIDE) % 151
            (base / "annotations" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(masks[f"{name}.jpg"].astype(np.uint8)).save(base / "annotations" / split / f"{name}.png")
    rows = [f"{n}\t0.1\t{n}\t{n}\t1\tthing{n}, other name" for n in range(1, 151)]
    (base / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]) + "\n")
    return masks


def test_ade20k(tmp_path, monkeypatch):
    masks = write_ade(tmp_path / "a")
    data = scenes("ade20k", str(tmp_path / "a"), **OPTIONS)
    assert [data.size(split) for split in ("train", "val", "test")] == [3, 3, 3]
    assert data.num_classes == 150 and data.class_names[:2] == ["thing1", "thing2"]
    for split in ("train", "val"):
        for name, (_, mask) in seen(data, split).items():
            assert np.array_equal(mask, np.where(masks[name] == 0, 255, masks[name] - 1))
    (tmp_path / "a" / "ADEChallengeData2016" / "objectInfo150.txt").unlink()
    with pytest.raises(DataError, match=r"missing ADEChallengeData2016/objectInfo150\.txt; data\.download=true"):
        scenes("ade20k", str(tmp_path / "a"), **OPTIONS)


def test_ade20k_is_fetched_only_as_it_was_published(tmp_path, monkeypatch):
    write_ade(tmp_path / "made")
    made = tmp_path / "ade.zip"
    with zipfile.ZipFile(made, "w") as archive:
        for path in sorted((tmp_path / "made").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "made"))

    def download_url(url, root, name):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / name).write_bytes(made.read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    with pytest.raises(DataError, match="gave another file than was published"):
        scenes("ade20k", str(tmp_path / "b"), download=True, **OPTIONS)
    assert not list((tmp_path / "b").iterdir())
    digest = hashlib.sha1(made.read_bytes()).hexdigest()
    monkeypatch.setattr("cnn_train.data.public_masks.ADE20K_SHA1", digest)
    assert scenes("ade20k", str(tmp_path / "b"), download=True, **OPTIONS).num_classes == 150
