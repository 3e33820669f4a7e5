"""Boxes as people have them: four formats give the same targets, what is wrong is told, predictions are read again."""

import csv
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_train.boxes import clip
from cnn_train.config.build import build
from cnn_train.config.compose import compose
from cnn_train.data.detection_folder import detection_folder
from cnn_train.data.voc_detection import voc_detection
from cnn_train.errors import DataError
from cnn_train.experiment.detect import Finder, Found, detect, write_coco, write_csv, write_voc, write_yolo
from cnn_train.models.detection.priors import Outputs
from cnn_train.postprocess.nms import NMS

NAMES = ["cat", "dog", "owl"]
HEIGHT, WIDTH = 48, 64
WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo, "csv": write_csv}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def scenes(count: int, seed: int = 0) -> list[Found]:
    """Images with up to three objects, some with none; the first three have one of each class."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        rows = []
        for number in range(1 if index < 3 else int(random.integers(0, 4))):
            x1, y1 = random.uniform(0, 40), random.uniform(0, 28)
            label = index if index < 3 else random.integers(3)
            rows.append([x1, y1, x1 + random.uniform(3, 24), y1 + random.uniform(3, 20), label, 0.9 - 0.1 * number])
        found.append(Found(f"{index:02}.png", (HEIGHT, WIDTH), torch.tensor(rows, dtype=torch.float32).view(-1, 6)))
    return found


def images(folder: Path, found: list[Found]) -> Path:
    folder.mkdir(parents=True)
    for index, (name, (height, width), _) in enumerate(found):
        Image.new("RGB", (width, height), (index * 7 % 256, 60, 90)).save(folder / name)
    return folder


def write(root: Path, form: str, found: list[Found]) -> Path:
    """The scenes as a folder of one format."""
    places = {"voc": "JPEGImages", "yolo": "images", "coco": "images", "csv": "images"}
    images(root / places[form], found)
    WRITERS[form](found, NAMES, root)
    return root


def targets_of(data) -> dict[str, torch.Tensor]:
    """By file name: the sorted objects of all splits."""
    result = {}
    for split, source in data.splits.items():
        for (path, boxes), index in zip(source.samples, range(len(source)), strict=True):
            _, target = source.load(index, None, 0)
            assert torch.equal(target[target[:, 4] >= 0], boxes), split
            result[Path(path).name] = boxes[boxes[:, :5].sum(1).argsort()]
    return result


def test_four_formats_give_the_same_targets(tmp_path):
    found = scenes(20)
    read = {}
    for form in WRITERS:
        data = detection_folder(str(write(tmp_path / form, form, found)), workers=0)
        assert data.class_names == NAMES and data.targets == "boxes" and data.image_size == (HEIGHT, WIDTH)
        assert data.notes[0] == f"format {form}"
        assert [data.size(split) for split in ("train", "val", "test")] == [12, 4, 4]
        read[form] = targets_of(data)
    whole = detection_folder(str(tmp_path / form), workers=0, val_fraction=None)
    whole.join()
    assert whole.size("all") == whole.size("val") == 20
    for name, _, rows in found:
        wanted = torch.cat([rows[:, :5], torch.zeros(len(rows), 1)], 1)
        wanted = wanted[wanted[:, :5].sum(1).argsort()]
        for form in WRITERS:
            torch.testing.assert_close(read[form][name], wanted, rtol=0, atol=0), form


def test_splits_ignored_objects_and_gaps_of_ids_in_coco(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        found = scenes(count)
        images(tmp_path / f"{split}2017", found)
        write_coco(found, NAMES, tmp_path)
        content = json.loads((tmp_path / "detections.json").read_text())
        for entry in content["categories"]:
            entry["id"] = entry["id"] * 10
        for entry in content["annotations"]:
            entry["category_id"] *= 10
        content["annotations"][0]["iscrowd"] = 1
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        (tmp_path / "detections.json").unlink()
    data = detection_folder(str(tmp_path), workers=0)
    assert [data.size(split) for split in ("train", "val", "test")] == [3, 2, 2]
    (_, first), (_, second), _ = data.splits["train"].samples
    assert first[0, 4:].tolist() == [0, 1] and second[0, 4:].tolist() == [1, 0]


def test_voc_lists_parts_and_difficult_ones(tmp_path):
    found = scenes(6)
    root = write(tmp_path / "voc", "voc", found)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, stems in {"train": ["00", "01", "02"], "val": ["03", "04"], "test": ["05"]}.items():
        (lists / f"{split}.txt").write_text("\n".join(stems) + "\n")
    path = root / "Annotations" / "00.xml"
    part = "<part><name>ear</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    text = path.read_text().replace("</object>", part + "</object>").replace("<name>cat", "<name> cat ")
    path.write_text(text.replace("<difficult>0", "<difficult>1"))
    data = detection_folder(str(root), workers=0)
    assert [data.size(split) for split in ("train", "val", "test")] == [3, 2, 1]
    (_, boxes), *_ = data.splits["train"].samples
    assert boxes.shape == (1, 6) and boxes[0, 4:].tolist() == [0, 1]


def test_boxes_follow_their_image_to_another_size_and_back(tmp_path):
    root = write(tmp_path / "csv", "csv", scenes(8))
    for resize, wanted in (("pad", (96 / 64, 96 / 64)), ("stretch", (96 / 64, 96 / 48))):
        data = detection_folder(str(root), 96, resize=resize, workers=0)
        source = data.splits["train"]
        index = next(i for i, (_, boxes) in enumerate(source.samples) if len(boxes))
        _, boxes = source.samples[index]
        _, target = source.load(index, None, 0)
        factor = torch.tensor([*wanted, *wanted] if resize == "stretch" else [1.0] * 4)
        torch.testing.assert_close(target[: len(boxes), :4], boxes[:, :4] * factor)


def rewrite(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text, path
    path.write_text(text.replace(before, after, 1))


def yolo_line(root: Path, line: str) -> None:
    (root / "labels" / "01.txt").write_text(line + "\n")


def xywh_as_corners(root: Path) -> None:
    with (root / "detections.csv").open() as file:
        rows = list(csv.reader(file))
    for row in rows[1:]:
        if row[1]:
            x1, y1, x2, y2 = map(float, row[3:])
            row[5:] = [str(x2 - x1), str(y2 - y1)]
    with (root / "detections.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def corners_as_xywh(root: Path) -> None:
    rewrite(root / "detections.csv", "x1,y1,x2,y2", "x,y,width,height")


def parts_of_the_image(root: Path) -> None:
    with (root / "detections.csv").open() as file:
        rows = list(csv.reader(file))
    for row in rows[1:]:
        row[3:] = [str(float(value) / 100) if value else "" for value in row[3:]]
    with (root / "detections.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / "JPEGImages" / "01.png") as image:
        content = image.copy()
    content.save(root / "JPEGImages" / "01.png", exif=exif)


def truncated(root: Path) -> None:
    path = root / "detections.json"
    path.write_text(path.read_text()[:200])


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'


@pytest.mark.parametrize(
    ("form", "break_it", "told"),
    [
        (
            "yolo",
            lambda root: yolo_line(root, "4 0.5 0.5 0.1 0.1"),
            r"01\.txt, line 1: class 4, but data\.classes has 3 n",
        ),
        ("yolo", lambda root: yolo_line(root, "1 1 2 3 4 5 6"), r"01\.txt, line 1: has 7 numbers, a polygon"),
        (
            "yolo",
            lambda root: yolo_line(root, "1 a b c d"),
            r"01\.txt, line 1: must be a class number and four numbers",
        ),
        ("yolo", lambda root: yolo_line(root, "1 0.5 0.5 0 0.1"), r"01\.txt, line 1: a box without extent"),
        ("yolo", lambda root: yolo_line(root, "1 0.5 0.5 -0.2 0.1"), r"01\.txt, line 1: a box without extent"),
        ("yolo", lambda root: yolo_line(root, "1 nan 0.5 0.1 0.1"), r"01\.txt, line 1: a box that is not finite"),
        ("yolo", lambda root: yolo_line(root, "1 1.2 0.5 0.1 0.1"), r"01\.txt, line 1: a box far outside of its image"),
        (
            "yolo",
            lambda root: yolo_line(root, "1 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1"),
            r"01\.txt, line 2: the same box twice",
        ),
        ("yolo", lambda root: (root / "images" / "01.png").unlink(), r"01\.txt: is of an image that is not in"),
        (
            "csv",
            xywh_as_corners,
            r"\d+ of \d+ boxes in detections\.csv have x2 < x1, none have x \+ w outside its image: ",
        ),
        ("csv", corners_as_xywh, r"\d+ of \d+ boxes in .* have x \+ width outside .*; data\.box_format=corners"),
        ("csv", parts_of_the_image, r"all \d+ boxes in detections\.csv are between 0 and 1: parts of the image"),
        (
            "csv",
            lambda root: rewrite(root / "detections.csv", "image,class", "image,kind"),
            r"has no column class; it has",
        ),
        (
            "csv",
            lambda root: (root / "images" / "02.png").unlink(),
            r"line \d+: an annotation of an image that is not there",
        ),
        ("voc", turned, r"01\.png: is 48x64 with its orientation applied, but its annotation says 64x48"),
        ("voc", lambda root: (root / "Annotations" / "01.xml").write_text(BOMB), r"01\.xml: declares entities"),
        ("voc", lambda root: (root / "Annotations" / "01.xml").write_text("<annotation><obj"), r"01\.xml: is no XML"),
        ("coco", truncated, r"detections\.json, line 1: is no JSON \(.*\); is the file cut off\?"),
        (
            "coco",
            lambda root: rewrite(root / "detections.json", '"categories"', '"kinds"'),
            r"detections\.json: has no categories, which COCO's files of objects have",
        ),
    ],
)
def test_what_is_wrong_is_told_with_file_and_remedy(tmp_path, form, break_it, told):
    root = write(tmp_path / form, form, scenes(9))
    break_it(root)
    with pytest.raises(DataError, match=told) as error:
        detection_folder(str(root), workers=0)
    assert "\n" not in str(error.value)


def test_the_settings_that_errors_name_mend_them(tmp_path):
    found = scenes(9)
    wanted = targets_of(detection_folder(str(write(tmp_path / "csv", "csv", found)), workers=0))
    xywh_as_corners(tmp_path / "csv")
    mended = targets_of(detection_folder(str(tmp_path / "csv"), box_format="xywh", workers=0))
    assert all(torch.allclose(mended[name], wanted[name], atol=1e-4) for name in wanted)
    root = write(tmp_path / "yolo", "yolo", found)
    for path in (root / "labels").glob("*.txt"):
        lines = [line.split(maxsplit=1) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{int(label) + 1} {rest}\n" for label, rest in lines))
    with pytest.raises(
        DataError, match=r"has 3 names, 0 to 2 \(\d+ such lines in \d+ files\); if they count from 1: data"
    ):
        detection_folder(str(root), workers=0)
    mended = targets_of(detection_folder(str(root), first_class=1, workers=0))
    assert all(torch.equal(mended[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_the_unturned_image_turn_with_it(tmp_path, orientation):
    root, exif = write(tmp_path / "voc", "voc", scenes(9)), Image.Exif()
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[10:31, 5:47] = 255
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(root / "JPEGImages" / "01.png", exif=exif)
    path = root / "Annotations" / "01.xml"
    path.write_text(re.sub(r"<bndbox>.*?</bndbox>", "<bndbox><xmin>6</xmin><ymin>11</ymin><xmax>47</xmax>"
                           "<ymax>31</ymax></bndbox>", path.read_text(), count=1, flags=re.DOTALL))  # fmt: skip
    data = detection_folder(str(root), 80, exif="ignore", resize="pad", workers=0)
    split = next(split for split in data.splits if any(path.endswith("01.png") for path in data.splits[split].paths()))
    index = [path.endswith("01.png") for path in data.splits[split].paths()].index(True)
    images, boxes = data.samples(split, [index], device=torch.device("cpu"))
    rows, columns = (images[0, 0] > 127).any(1).nonzero()[:, 0], (images[0, 0] > 127).any(0).nonzero()[:, 0]
    shown = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    assert (boxes[0, 0, :4] - shown).abs().max() <= 1
    if orientation >= 5:
        with pytest.raises(
            DataError, match=r"annotation says 64x48; data\.exif=ignore takes boxes as drawn on the unturned image"
        ):
            detection_folder(str(root), 80, workers=0)


def test_images_without_annotations_and_clipped_boxes_are_counted(tmp_path, caplog):
    root = write(tmp_path / "yolo", "yolo", scenes(9))
    (root / "labels" / "02.txt").unlink()
    yolo_line(root, "1 0.5 0.5 1.01 0.1")
    with caplog.at_level(logging.WARNING):
        data = detection_folder(str(root), workers=0)
    assert (
        "1 of 9 images have no annotation file and count as images without objects; data.missing=error" in caplog.text
    )
    assert "1 boxes reach out of their image and are clipped" in data.notes
    boxes = targets_of(data)["01.png"]
    torch.testing.assert_close(boxes[:, :4], clip(torch.tensor([[-0.32, 21.6, 64.32, 26.4]]), (HEIGHT, WIDTH)))
    with pytest.raises(DataError, match=r"1 of 9 images have no annotation file, first .*02\.png; data\.missing=empty"):
        detection_folder(str(root), workers=0, missing="error")


def test_a_folder_without_annotations_says_what_is_expected(tmp_path):
    images(tmp_path / "photos", scenes(2))
    with pytest.raises(DataError, match=r"holds 2 \.png and no annotations; expected images and COCO's JSON"):
        detection_folder(str(tmp_path / "photos"))


class Painted(torch.nn.Module):
    """Finds the red and the blue rectangle of an image by its brightest pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> Outputs:
        boxes = []
        for channel in (0, 2):
            y, x = (images[0, channel] > 0.5).nonzero(as_tuple=True)
            boxes.append([float(x.min()), float(y.min()), float(x.max()) + 1, float(y.max()) + 1])
        return Outputs(torch.tensor([boxes]), torch.tensor([[[0.9, 0.0], [0.0, 0.4]]]))

    def priors(self, size, device=None):
        return None

    def decode(self, outputs, priors):
        return outputs.codes, outputs.classes


def test_detections_are_in_the_images_own_pixels_and_read_again(tmp_path):
    image = torch.zeros(3, 60, 100, dtype=torch.uint8)
    image[0, 10:30, 20:60] = 255
    image[2, 40:60, 70:100] = 255
    wanted = torch.tensor([[20.0, 10, 60, 30], [70, 40, 100, 60]])
    for resize, tolerance in (("own", 1e-4), ("pad", 2.5), ("stretch", 2.5)):
        how = {"image_size": [48, 64], "resize": resize, "mean": [0.0] * 3, "std": [1.0] * 3, "in_channels": 3}
        finder = Finder(Painted(), how, NMS(), [0.5, 0.3], ["red", "blue"])
        found = finder(image)
        assert found[:, 4].tolist() == [0, 1] and found[:, 5].tolist() == pytest.approx([0.9, 0.4])
        torch.testing.assert_close(found[:, :4], wanted, rtol=0, atol=tolerance)
    assert len(Finder(Painted(), how, NMS(), [0.5, 0.5], ["red", "blue"])(image)) == 1
    path = tmp_path / "a.png"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "bad.png").write_text("no image")
    names = [(path, Path("a")), (tmp_path / "bad.png", Path("bad"))]
    with pytest.raises(DataError, match=r"bad\.png.*; 1 of 2 images are predicted"):
        detect(finder, names, tmp_path / "out", "coco")
    (first, second, bad) = csv.DictReader((tmp_path / "out" / "detections.csv").read_text().splitlines())
    assert bad["image"] == "bad.png" and "bad.png" in bad["error"] and not first["error"]
    (entry,) = detect(finder, names[:1], tmp_path / "out", "coco")
    (first, second) = csv.DictReader((tmp_path / "out" / "detections.csv").read_text().splitlines())
    assert (first["image"], first["class"], second["class"]) == ("a.png", "red", "blue")
    assert torch.equal(torch.tensor([float(first[k]) for k in ("x1", "y1", "x2", "y2")]), entry.rows[0, :4])
    assert (tmp_path / "out" / "overlays" / "a.png").is_file()
    assert json.loads((tmp_path / "out" / "detections.json").read_text())["annotations"][1]["category_id"] == 2


def voc_year(root: Path, year: str, splits: dict[str, list[int]]) -> None:
    """Scenes as the archives of PASCAL VOC unpack, by number in each list."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    found = [scene._replace(image=f"{year}_{scene.image}") for scene in scenes(9, int(year))]
    images(folder / "JPEGImages", found)
    write_voc(found, ["cat", "dog", "person"], folder)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, numbers in splits.items():
        names = [Path(found[number].image).stem for number in numbers]
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))


def test_pascal_voc_of_both_years(tmp_path):
    voc_year(tmp_path, "2007", {"train": [0, 1, 2], "val": [3, 4], "test": [5, 6, 7]})
    voc_year(tmp_path, "2012", {"train": [0, 1, 2, 3], "val": [4, 5, 8]})
    names = {}
    for year in ("2007", "2012", "07+12"):
        data = voc_detection(str(tmp_path), 96, year=year, verify=False, workers=0)
        names[year] = {split: {Path(path).name[:7] for path in source.paths()} for split, source in data.splits.items()}
        assert data.num_classes == 20 and data.class_names[7] == "cat" and data.image_size == (96, 96)
    assert names["2007"]["test"] == {"2007_05", "2007_06", "2007_07"} and names["2012"]["test"] == names["2012"]["val"]
    every = [names[year][split] for year in ("2007", "2012") for split in ("train", "val")]
    assert names["07+12"]["train"] == set.union(*every) and len(names["07+12"]["train"]) == 12
    assert names["07+12"]["val"] == names["07+12"]["test"] == names["2007"]["test"]
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(
        DataError, match=r"has no ImageSets/Main/test\.txt of VOC2007, which data\.year=07\+12 is judged"
    ):
        voc_detection(str(tmp_path), 96, year="07+12", verify=False, workers=0)
    with pytest.raises(DataError, match=r"VOCdevkit has no VOCdevkit/VOC2012; expected"):
        voc_detection(str(tmp_path / "VOCdevkit"), 96, verify=False, workers=0)


def test_coco_as_its_archives_unpack(tmp_path):
    for part, numbers in (("train2017", slice(0, 6)), ("val2017", slice(6, 9))):
        found = scenes(9)[numbers]
        images(tmp_path / part, found)
        write_coco(found, NAMES, tmp_path / "written")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "written" / "detections.json").rename(tmp_path / "annotations" / f"instances_{part}.json")
        (tmp_path / "annotations" / f"captions_{part}.json").write_text('{"annotations": []}')
    words = ["data=coco", f"data.root={tmp_path}", "model=fcos", "image_size=96", "data.workers=0"]
    data = build(compose(words).data)
    assert {split: data.size(split) for split in data.splits} == {"train": 6, "val": 3, "test": 3}
    assert data.class_names == NAMES and Path(data.splits["val"].paths()[0]).parent.name == "val2017"
