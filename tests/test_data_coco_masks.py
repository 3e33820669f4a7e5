"""Masks drawn from COCO's JSON: to the bits of its own API, checked, trained, and every mistake told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_train.__main__ import main
from cnn_train.data.annotations.regions import region
from cnn_train.data.coco_masks import coco_masks
from cnn_train.errors import DataError

api = pytest.importorskip("pycocotools.mask", reason="compares with pycocotools")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
HEIGHT, WIDTH = 40, 56


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def polygon(random, height: int = HEIGHT, width: int = WIDTH) -> list[float]:
    corners = int(random.integers(3, 12))
    points = np.stack([random.uniform(-4, width + 4, corners), random.uniform(-4, height + 4, corners)], 1)
    return points.round(int(random.integers(0, 3))).reshape(-1).tolist()


def test_polygons_and_run_lengths_are_those_of_pycocotools():
    random = np.random.default_rng(0)
    for trial in range(400):
        height, width = (int(n) for n in random.integers(1, 60, 2))
        polygons = [polygon(random, height, width) for _ in range(1 + trial % 3)]
        polygons[0] += polygons[0][-2:]  # a point twice
        ours = region(polygons, (height, width), "here")
        theirs = api.decode(api.merge(api.frPyObjects(polygons, height, width))).astype(bool)
        assert np.array_equal(ours, theirs)
        runs = api.encode(np.asfortranarray(random.random((height, width)) < random.random(), np.uint8))
        text = {"size": [height, width], "counts": runs["counts"].decode()}
        assert np.array_equal(region(text, (height, width), "here"), api.decode(runs).astype(bool))
        flat = theirs.T.reshape(-1)
        ends = np.flatnonzero(np.diff(flat)) + 1
        numbers = np.diff([0, *([0] if flat[0] else []), *ends, len(flat)]).tolist()
        plain = {"size": [height, width], "counts": numbers}
        assert np.array_equal(region(plain, (height, width), "here"), theirs)


def write(root: Path, number: int = 10, where: str = "images") -> dict:
    """A data set of three categories with gaps in their ids, of polygons, run lengths and a crowd."""
    (root / where).mkdir(parents=True)
    random = np.random.default_rng(1)
    found = {"images": [], "annotations": [], "categories": [{"id": n, "name": f"c{n}"} for n in (7, 3, 90)]}
    for image in range(number):
        pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / where / f"{image}.png")
        found["images"].append({"id": 100 + image, "file_name": f"{image}.png", "height": HEIGHT, "width": WIDTH})
        for k in range(4):
            if k == 3:
                encoded = api.encode(np.asfortranarray(random.random((HEIGHT, WIDTH)) < 0.2, np.uint8))
                segmentation = {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
            else:
                segmentation = [polygon(random)]
            found["annotations"].append({
                "id": len(found["annotations"]), "image_id": 100 + image, "category_id": (3, 7, 90, 7)[k],
                "segmentation": segmentation, "area": float(random.integers(1, 500)), "iscrowd": int(k == 3),
            })  # fmt: skip
    (root / "annotations").mkdir()
    (root / "annotations" / "instances.json").write_text(json.dumps(found))
    return found


def painted(found: dict, image: int, crowd: int) -> np.ndarray:
    """The mask by pycocotools: larger areas first."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    own = [entry for entry in found["annotations"] if entry["image_id"] == 100 + image]
    for entry in sorted(own, key=lambda entry: -entry["area"]):
        runs = entry["segmentation"]
        if isinstance(runs, list):
            runs = api.merge(api.frPyObjects(runs, HEIGHT, WIDTH))
        number = crowd if entry["iscrowd"] else {3: 1, 7: 2, 90: 3}[entry["category_id"]]
        mask[api.decode(runs).astype(bool)] = number
    return mask


@pytest.mark.parametrize(("crowd", "number"), [("class", 2), ("ignore", 255)])
def test_masks_are_painted_larger_areas_first(crowd, number, tmp_path):
    found = write(tmp_path / "d")
    file = str(tmp_path / "d" / "annotations" / "instances.json")
    data = coco_masks(file, workers=0, crowd=crowd, normalize="none")
    assert data.class_names == ["background", "c3", "c7", "c90"] and data.image_size == (HEIGHT, WIDTH)
    assert [data.size(split) for split in ("train", "val", "test")] == [6, 2, 2]
    for split in data.splits:
        for index, path in enumerate(data.splits[split].paths()):
            image, mask = data.samples(split, [index], device=torch.device("cpu"))
            assert np.array_equal(mask[0].numpy(), painted(found, int(Path(path).stem), number))
            assert np.array_equal(image[0].permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))
    whole = coco_masks(file, workers=0, crowd=crowd, val_fraction=None)
    whole.join()
    assert whole.size("all") == whole.size("val") == 10


def test_some_categories_files_for_splits_and_masks_drawn_once(tmp_path, monkeypatch):
    write(tmp_path / "train", 5, "")
    write(tmp_path / "val", 4, "")
    files = [str(tmp_path / split / "annotations" / "instances.json") for split in ("train", "val")]
    (tmp_path / "val2").mkdir()
    with pytest.raises(DataError, match=r"lists 0\.png, but there is no file .*data\.root"):
        coco_masks(files[0], str(tmp_path / "val2"), workers=0)
    root = tmp_path / "both"
    (root / "images").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / split).rename(root / "images" / split)
        (root / "images" / split / "annotations" / "instances.json").rename(root / f"instances_{split}.json")
    data = coco_masks(
        str(root / "instances_train.json"), val_file=str(root / "instances_val.json"), classes=["c90"], workers=0
    )
    assert data.class_names == ["background", "c90"] and [data.size(s) for s in ("train", "val", "test")] == [5, 4, 4]
    monkeypatch.setattr("cnn_train.data.coco_masks._Drawing.mask", lambda *args: pytest.fail("drawn again"))
    coco_masks(
        str(root / "instances_train.json"), val_file=str(root / "instances_val.json"), classes=["c90"], workers=0
    )


def test_checked_cleaned_and_trained(tmp_path, capsys):
    write(tmp_path / "d", 12)
    words = ["data=coco_masks", f"data.file={tmp_path / 'd' / 'annotations' / 'instances.json'}", "data.workers=0"]
    assert main(["check", *words, "fix=cleaned", "model=fcn32s"]) == 0
    shown = capsys.readouterr().out
    assert "background" in shown and "c90" in shown and "pixels of the masks" in shown
    drawn = np.asarray(Image.open(next((tmp_path / "cache").rglob("3.*.png"))))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "cleaned" / "masks" / "images" / "3.png")), drawn)
    settings = ["model=unet", "image_size=32", "trainer=smoke", "data.batch_size=2", "output_dir=run"]
    assert main([*words, *settings]) == 0
    assert len(next((tmp_path / "run").rglob("splits.csv")).read_text().splitlines()) == 13


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found["annotations"][0].update(segmentation=[[1, 2, 3]]), r"annotation 0: a polygon has 3"),
        (lambda found: found["annotations"][0].update(segmentation="?"), "annotation 0: segmentation must be polygons"),
        (lambda found: found["annotations"][0].update(segmentation={"size": [1, 2], "counts": [2]}), r"\[1, 2\], but"),
        (
            lambda found: found["annotations"][0].update(segmentation={"size": [HEIGHT, WIDTH], "counts": [3]}),
            f"add up to 3, not to {HEIGHT}x{WIDTH}",
        ),
        (
            lambda found: found["annotations"][0].update(segmentation={"size": [HEIGHT, WIDTH], "counts": " "}),
            "annotation 0: counts are no compressed run lengths",
        ),
        (lambda found: found["annotations"][2].pop("segmentation"), "annotation 2: has no segmentation"),
        (lambda found: found["annotations"][2].update(category_id=5), "annotation 2: has category 5"),
        (lambda found: found["images"][0].update(file_name="../x.png"), "leaves the folder"),
        (lambda found: found["images"][0].pop("height"), "image 100: has no height and width"),
        (lambda found: found["images"][0].update(height=41, segmentation=1), "run lengths for|must be of one size"),
        (lambda found: found["images"][0].update(height=10**6, width=10**6), r"data\.max_pixels"),
        (lambda found: found.pop("categories"), "has no categories"),
    ],
)
def test_mistakes_are_told_in_a_line(change, words, tmp_path):
    found = write(tmp_path / "d", 4)
    change(found)
    file = tmp_path / "d" / "annotations" / "instances.json"
    file.write_text(json.dumps(found))
    with pytest.raises(DataError, match=words) as error:
        coco_masks(str(file), workers=0)
    assert "\n" not in str(error.value)


def test_settings_that_cannot_be(tmp_path):
    write(tmp_path / "d", 4)
    file = str(tmp_path / "d" / "annotations" / "instances.json")
    for options, words in (
        ({"classes": ["c4"]}, r"data\.classes names 'c4', .*c3, c7, c90"),
        ({"crowd": "no"}, r"data\.crowd must be class or ignore"),
        ({"val_file": "none.json"}, "cannot read .*none.json: No such file"),
    ):
        with pytest.raises(DataError, match=words):
            coco_masks(file, workers=0, **options)
    with pytest.raises(DataError, match=r"data\.file is not set"):
        coco_masks()
