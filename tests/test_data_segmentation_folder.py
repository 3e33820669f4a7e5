"""Images and masks: pairs, colours and numbers of classes, and the many ways in which masks are wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_train.data.augment import Flip, flip_crop, scale_crop_flip
from cnn_train.data.segmentation_folder import VOC_CLASSES, segmentation_folder, voc
from cnn_train.errors import DataError

CPU = torch.device("cpu")
COLOURS = [[0, 0, 0], [128, 0, 0], [0, 128, 64]]


def labels_of(seed: int, height: int = 20, width: int = 28) -> np.ndarray:
    """Blocks of the classes 0, 1, 2, each of them present."""
    random = np.random.default_rng(seed)
    blocks = random.permutation(np.resize([0, 1, 2], 12)).reshape(3, 4).astype(np.uint8)
    return blocks.repeat(-(-height // 3), 0).repeat(-(-width // 4), 1)[:height, :width]


def write(folder: Path, n: int, convert=lambda labels: labels, first: int = 0, mode: str | None = None) -> None:
    """n images, red where the class is 1 and green where it is 2, and their masks."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        labels = labels_of(i)
        image = np.zeros((*labels.shape, 3), np.uint8)
        image[labels == 1, 0] = 250
        image[labels == 2, 1] = 250
        Image.fromarray(image).save(folder / "images" / f"{i:02d}.png")
        mask = Image.fromarray(np.asarray(convert(labels)))
        if mode == "P":
            mask.putpalette([part for colour in COLOURS for part in colour])
        mask.save(folder / "masks" / f"{i:02d}.png")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "fields"


def build(root: Path, **options):
    options = {"classes": ["ground", "road", "tree"], "batch_size": 3, "workers": 0, **options}
    return segmentation_folder(str(root), options.pop("image_size", None), **options)


def shown(images: torch.Tensor) -> torch.Tensor:
    """The classes that the pictures show (N, H, W)."""
    return (images[:, 0] > 0.5).long() + 2 * (images[:, 1] > 0.5).long()


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value) and error.value.exit_code == 3
    return str(error.value)


def fails(root: Path, **options) -> str:
    with pytest.raises(DataError) as error:
        build(root, **options)
    return one_line(error)


KINDS = {
    "numbers": (lambda labels: labels, None, {}),
    "palette file": (lambda labels: labels, "P", {}),
    "grey as RGB": (lambda labels: np.stack([labels] * 3, -1), None, {}),
    "colours": (lambda labels: np.array(COLOURS, np.uint8)[labels], None, {"palette": COLOURS}),
    "palette file by colour": (lambda labels: labels, "P", {"palette": COLOURS}),
    "other numbers": (lambda labels: np.array([0, 128, 255], np.uint8)[labels], None, {"mask_values": [0, 128, 255]}),
    "16 bits": (lambda labels: labels.astype(np.uint16) * 1000, None, {"mask_values": [0, 1000, 2000]}),
    "from 1": (lambda labels: labels + np.uint8(1), None, {"mask_values": [1, 2, 3]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_every_kind_give_the_classes(root, kind):
    convert, mode, options = KINDS[kind]
    write(root, 10, convert, mode=mode)
    data = build(root, **options)
    assert data.task == "segmentation" and data.ignore_index == 255 and data.image_size == (20, 28)
    assert [data.size(split) for split in ("train", "val", "test")] == [6, 2, 2]
    for split in ("train", "val", "test"):
        for batch in data.eval_batches(split, device=CPU):
            assert batch.targets.dtype == torch.int64
            assert torch.equal(shown(data.denormalize(batch.images)), batch.targets)
    counts = data.class_counts("train")
    assert counts.sum() == 6 * 20 * 28 and (counts > 0).all()


@pytest.mark.parametrize("layout", ["split/images", "images/split"])
def test_given_splits(root, layout):
    for split, (n, first) in {"train": (5, 0), "val": (3, 5), "test": (2, 8)}.items():
        write(root / split, n, first=first)
        if layout == "images/split":
            for part in ("images", "masks"):
                (root / part).mkdir(exist_ok=True)
                (root / split / part).rename(root / part / split)
            (root / split).rmdir()
    data = build(root)
    assert [data.size(split) for split in ("train", "val", "test")] == [5, 3, 2]


def test_a_whole_is_not_divided_and_needs_no_train(root):
    write(root / "test", 2)
    assert "has no training images" in fails(root)
    data = build(root, val_fraction=None)
    data.join()
    assert data.size("all") == data.size("val") == 2 and data.notes[0].startswith("not divided: ")


def test_test_is_val_where_it_is_missing(root):
    write(root / "train", 4)
    write(root / "val", 2, first=4)
    data = build(root)
    assert data.splits["test"].samples == data.splits["val"].samples
    shutil.rmtree(root / "val")
    assert [build(root).size(split) for split in ("train", "val", "test")] == [2, 1, 1]


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("augment", [flip_crop(3), scale_crop_flip(), Flip()], ids=["crop", "scale", "flip"])
def test_augmented_masks_show_what_the_images_do(root, augment, in_memory):
    write(root, 12)
    data = build(root, augment=augment, in_memory=in_memory, image_size=[20, 28])
    for batch in data.train_batches(0, device=CPU):
        counted = batch.targets != 255
        assert set(batch.targets.unique().tolist()) <= {0, 1, 2, 255}
        wrong = (shown(data.denormalize(batch.images)) != batch.targets) & counted
        assert counted.any() and wrong.float().mean() < 0.05


def test_workers_change_nothing(root):
    write(root, 12)
    alone, shared = (
        list(build(root, augment=scale_crop_flip(), workers=w).train_batches(1, device=CPU)) for w in (0, 2)
    )
    assert all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
        for a, b in zip(alone, shared, strict=True)
    )


def test_images_of_several_sizes_are_padded_and_the_padding_ignored(root):
    write(root, 8)
    for path in sorted((root / "images").iterdir())[:4]:
        for file in (path, root / "masks" / path.name):
            Image.open(file).crop((0, 0, 15, 12)).save(file)
    assert "differ in size" in fails(root)
    data = build(root, image_size=24)
    for batch in data.eval_batches("train", device=CPU):
        for image, target in zip(data.denormalize(batch.images), batch.targets, strict=True):
            assert (target == 255).any()
            assert (image[:, target == 255] == 0).all()


def test_own_sizes_in_evaluation_and_crops_in_training(root):
    for split, count in (("train", 5), ("val", 2), ("test", 2)):
        write(root / split, count)
        for i, path in enumerate(sorted((root / split / "images").iterdir())):
            for part in ("images", "masks"):
                file = root / split / part / path.name
                with Image.open(file) as image:
                    image.crop((0, 0, 28 - i, 20)).save(file)
    assert "augment=scale_crop_flip" in fails(root, image_size=16, resize="own")
    options = {"image_size": 16, "resize": "own", "augment": scale_crop_flip(), "eval_batch_size": 4}
    assert "data.in_memory=false" in fails(root, **options, in_memory=True)
    data = build(root, **options)
    assert {tuple(batch.images.shape[-2:]) for batch in data.train_batches(0, device=CPU)} == {(16, 16)}
    batches = list(data.eval_batches("val", device=CPU))
    assert [tuple(batch.images.shape) for batch in batches] == [(1, 3, 20, 28), (1, 3, 20, 27)]
    for batch in batches:
        assert torch.equal(shown(data.denormalize(batch.images)), batch.targets)
    images, targets = data.samples("val", [1, 0], device=CPU)
    assert images.shape == (2, 3, 20, 28) and (targets[0, :, 27] == data.ignore_index).all()
    assert torch.equal(targets[1], batches[0].targets[0])
    # Of one size: as many at a time as asked for.
    shutil.rmtree(root)
    write(root, 10)
    assert build(root, **options).eval_batch_size == 4


def test_ignored_values_and_colours(root):
    def framed(labels):
        labels = labels.copy()
        labels[:3] = 200
        return labels

    write(root, 8, framed)
    data = build(root, ignore_index=200)
    targets = next(iter(data.eval_batches("val", device=CPU))).targets
    assert (targets[:, :3] == 255).all() and (targets[:, 3:] < 3).all()
    assert data.class_counts("train").sum() == data.size("train") * 17 * 28
    shutil.rmtree(root)
    write(root, 8, lambda labels: np.array([*COLOURS, *[[0, 0, 0]] * 197, [224, 224, 192]], np.uint8)[framed(labels)])
    assert "[224, 224, 192]" in fails(root, palette=COLOURS)
    data = build(root, palette=COLOURS, ignore_color=[224, 224, 192])
    assert torch.equal(next(iter(data.eval_batches("val", device=CPU))).targets, targets)


# -- What bad input gets ---------------------------------------------------------------------------------


def test_0_and_255_are_recognized(root):
    write(root, 8, lambda labels: (labels > 0).astype(np.uint8) * 255)
    two = {"classes": ["ground", "road"]}
    text = fails(root, **two)
    assert "hold only 0 and 255" in text and "data.mask_values=[0,255]" in text
    assert "data.mask_values=[0,255]" in fails(root, **two, ignore_index=254)
    data = build(root, **two, mask_values=[0, 255])
    assert (data.class_counts("train") > 0).all() and data.ignore_index == 255


@pytest.mark.parametrize(
    "convert, options, words",
    [
        (lambda x: x + 1, {}, ["hold 1, 2, 3", "classes are 0 to 2", "data.mask_values=[1,2,3]"]),
        (lambda x: x, {"classes": 2}, ["hold 0, 1, 2", "data.classes needs 3 names"]),
        (lambda x: x * 100, {}, ["hold 0, 100, 200", "data.mask_values=[0,100,200]"]),
        (lambda x: x * 100, {"mask_values": [0, 100, 201]}, ["data.mask_values are 0, 100, 201"]),
        (lambda x: np.array(COLOURS, np.uint8)[x], {}, ["data.palette=[[0,0,0],[128,0,0],[0,128,64]]"]),
        (lambda x: np.array(COLOURS, np.uint8)[x], {"palette": [*COLOURS[:2], [1, 1, 1]]}, ["[0, 128, 64]"]),
        (lambda x: x, {"classes": None}, ["data.classes is not set", "hold 0, 1, 2"]),
        (lambda x: x, {"palette": COLOURS[:2]}, ["data.palette has 2 entries for 3 classes"]),
        (lambda x: x, {"palette": [[0, 0, 0], [300, 0, 0], [1, 1, 1]]}, ["[300, 0, 0]"]),
        (lambda x: x, {"ignore_index": 0}, ["data.ignore_index=0 is also a class"]),
    ],
)
def test_values_that_are_no_classes(root, convert, options, words):
    write(root, 8, lambda labels: convert(labels).astype(np.uint8))
    text = fails(root, **options)
    assert all(word in text for word in words), text


def test_one_wrong_mask_among_many_is_named(root):
    write(root, 12)
    labels = labels_of(7)
    labels[0, 0] = 9
    Image.fromarray(labels).save(root / "masks" / "07.png")
    assert str(root / "masks" / "07.png") in fails(root)
    with pytest.raises(DataError, match=r"07\.png"):
        data = build(root, verify=False)
        for split in ("train", "val", "test"):
            list(data.eval_batches(split, device=CPU))


def test_sizes_that_differ(root):
    write(root, 8)
    Image.fromarray(labels_of(3, 21, 28)).save(root / "masks" / "03.png")
    text = fails(root)
    assert "03.png" in text and "20x28" in text and "21x28" in text


def test_no_mask_for_an_image(root):
    write(root, 8)
    (root / "masks" / "05.png").rename(root / "masks" / "05_mask.png")
    text = fails(root)
    assert "1 of 8 images have no mask" in text and str(root / "masks" / "05.png") in text and "mask_suffix" in text


def test_masks_with_a_suffix(root, caplog):
    write(root, 8)
    for path in list((root / "masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    assert build(root, mask_suffix="_mask").size("train") == 4
    Image.fromarray(labels_of(0)).save(root / "masks" / "99_mask.png")
    build(root, mask_suffix="_mask")
    assert "belong to no image, as 99_mask.png" in caplog.text


def test_damaged_files(root):
    write(root, 8)
    path = root / "masks" / "02.png"
    path.write_bytes(path.read_bytes()[:60])
    assert str(path) in fails(root)
    path.write_text("no image")
    assert "not an image" in fails(root)
    assert "max_pixels=100" in fails(root, max_pixels=100)


def test_class_absent_from_val(root, caplog):
    write(root / "train", 4)
    write(root / "val", 2, lambda labels: labels.clip(max=1), first=4)
    build(root)
    assert "the val split has no pixel of 1 class(es): tree" in caplog.text


def test_missing_folders(root):
    assert f"no folder {root}" in fails(root)
    write(root, 4)
    (root / "masks").rename(root / "labels")
    text = fails(root)
    assert f"no folder {root / 'masks'}" in text and "2 folders" in text and "expected images/" in text
    assert text.endswith("data.masks=labels if these are the masks")
    assert build(root, masks="labels").size("train") == 2


def test_checked_once(root, monkeypatch):
    write(root, 8)
    build(root)
    monkeypatch.setattr("cnn_train.data.masks.look_over", lambda *args: pytest.fail("checked again"))
    build(root)
    Image.fromarray(labels_of(3)).save(root / "masks" / "03.png")
    with pytest.raises(pytest.fail.Exception):
        build(root)


def test_voc(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / part).mkdir(parents=True)
    for split, names in {"train": ("a", "b", "c"), "val": ("d", "e")}.items():
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            labels = np.zeros((30, 40), np.uint8)
            labels[5:20, 5:20], labels[4, 4:20] = 15, 255
            mask = Image.fromarray(labels)
            mask.putpalette([v % 256 for v in range(768)])
            mask.save(base / "SegmentationClass" / f"{name}.png")
            Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(base / "JPEGImages" / f"{name}.jpg")
    data = voc(str(tmp_path), 48, workers=0, batch_size=2, verify=True, cache_dir=str(tmp_path / "cache"))
    assert [data.size(split) for split in ("train", "val", "test")] == [3, 2, 2]
    assert data.class_names == VOC_CLASSES and data.num_classes == 21 and data.class_names[15] == "person"
    targets = next(data.train_batches(0, device=CPU)).targets
    assert set(targets.unique().tolist()) == {0, 15, 255} and targets.shape == (2, 48, 48)
    with pytest.raises(DataError, match=r"VOCdevkit/VOC2012.*data.download=true"):
        voc(str(tmp_path / "elsewhere"))
