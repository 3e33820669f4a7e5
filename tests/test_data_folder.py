"""Images in folders: layouts, splits, workers, and what each kind of damage is answered with."""

import multiprocessing
import shutil
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from cnn_train.data.augment import Compose, Flip, PadCrop, PerSample, RandomResizedCrop, ScaleCrop, apply
from cnn_train.data.disk import OnDisk
from cnn_train.data.folder import folder
from cnn_train.data.images import Reader, bring_to_size, read_image
from cnn_train.data.source import Held
from cnn_train.data.splits import cut_by_name
from cnn_train.data.targets import TargetSpec
from cnn_train.errors import DataError, EnvError

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat")


def picture(seed: int, size: tuple[int, int] = (40, 30), channels: int = 3) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, channels), dtype=np.uint8)
    return Image.fromarray(coarse.squeeze()).resize(size, Image.Resampling.BILINEAR)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """12 images of each of three classes, of several formats and sizes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "pets"
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(12):
            picture(label * 100 + i, (40 + i, 30 + label)).save(root / name / f"{i:03d}.{('jpg', 'png', 'bmp')[i % 3]}")
    return root


@pytest.fixture
def split_root(root) -> Path:
    """The same as train, val, test of 6, 3, 3 images a class."""
    for name in CLASSES:
        for i, path in enumerate(sorted((root / name).iterdir())):
            split = "train" if i < 6 else "val" if i < 9 else "test"
            (root / split / name).mkdir(parents=True, exist_ok=True)
            path.rename(root / split / name / path.name)
        (root / name).rmdir()
    return root


def build(root: Path, **options):
    return folder(str(root), options.pop("image_size", 32), **{"batch_size": 5, "workers": 0, **options})


def epoch(data, number: int = 0, **options):
    return list(data.train_batches(number, device=CPU, **options))


def test_classes_and_split_by_name(root, tmp_path):
    data = build(root)
    assert data.class_names == list(CLASSES) and data.task == "classification" and data.name == "pets"
    assert [data.size(split) for split in ("train", "val", "test")] == [24, 6, 6]
    assert all(data.class_counts(split).tolist() == [n] * 3 for split, n in (("train", 8), ("val", 2), ("test", 2)))
    paths = {split: {Path(p).relative_to(root) for p, _ in data.splits[split].samples} for split in data.splits}
    assert len(set.union(*paths.values())) == 36
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    assert {Path(p).relative_to(moved) for p, _ in build(moved).splits["val"].samples} == paths["val"]


def test_given_splits_are_kept(split_root):
    data = build(split_root)
    assert [data.size(split) for split in ("train", "val", "test")] == [18, 9, 9]
    assert all("/val/" in path for path, _ in data.splits["val"].samples)


def test_a_missing_test_is_val_and_a_missing_val_is_cut_from_train(split_root):
    shutil.rmtree(split_root / "test")
    data = build(split_root)
    assert data.splits["test"].samples == data.splits["val"].samples
    shutil.rmtree(split_root / "val")
    data = build(split_root)
    assert [data.size(split) for split in ("train", "val", "test")] == [12, 3, 3]


def test_labels_follow_the_images(root):
    data = build(root)
    for batch in data.eval_batches("val", device=CPU):
        for index, label in zip(batch.indices, batch.targets, strict=True):
            assert Path(data.splits["val"].samples[index][0]).parent.name == CLASSES[label]


@pytest.mark.parametrize("augment", [None, Compose([RandomResizedCrop(), Flip()]), Compose([Flip(), ScaleCrop()])])
def test_workers_change_nothing(root, augment):
    alone = epoch(build(root, augment=augment), 2)
    shared = epoch(build(root, augment=augment, workers=2), 2)
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
    assert torch.equal(torch.cat([a.indices for a in alone]), torch.cat([b.indices for b in shared]))


def test_augmentation_depends_on_the_epoch_and_not_on_start_or_rank(root):
    data = build(root, augment=Compose([RandomResizedCrop(), Flip()]))
    whole = epoch(data, 1)
    assert all(torch.equal(a.images, b.images) for a, b in zip(epoch(data, 1, start=3), whole[3:], strict=True))
    by_index = {int(i): x for batch in whole for i, x in zip(batch.indices, batch.images, strict=True)}
    for batch in epoch(data, 1, rank=1, world_size=2):
        assert all(torch.equal(by_index[int(i)], x) for i, x in zip(batch.indices, batch.images, strict=True))
    other = {int(i): x for batch in epoch(data, 2) for i, x in zip(batch.indices, batch.images, strict=True)}
    assert not any(torch.equal(by_index[i], other[i]) for i in range(24))


def test_skipped_steps_are_not_decoded(root):
    data = build(root)
    order = torch.cat([batch.indices for batch in epoch(data)])
    for index in order[:10].tolist():
        Path(data.splits["train"].samples[index][0]).write_bytes(b"gone")
    assert len(epoch(data, start=2)) == 3
    with pytest.raises(DataError, match="cannot read"):
        epoch(data)


def test_evaluation_is_unaltered_by_augmentation(root):
    class Never(PerSample):
        def change(self, image, target, size, spec):
            raise AssertionError("augmented in evaluation")

    data = build(root, augment=Never())
    for split in ("train", "val", "test"):
        assert sum(len(batch.indices) for batch in data.eval_batches(split, device=CPU)) == data.size(split)


@pytest.mark.parametrize(
    "augment", [None, RandomResizedCrop, PadCrop], ids=lambda augment: getattr(augment, "__name__", "none")
)
@pytest.mark.parametrize("cache", ["auto", "ram", "disk"])
def test_a_cache_gives_the_same_bits_and_decodes_once(root, cache, augment, monkeypatch):
    own = augment and (augment(4) if augment is PadCrop else augment())
    plain, kept = (build(root, augment=own, workers=0, cache=which) for which in ("none", cache))
    whole = augment is RandomResizedCrop and cache != "disk"  # those crop whole images, which memory does not hold
    assert isinstance(kept.splits["train"], OnDisk if whole or cache == "disk" else Held)
    reads = []
    read = Reader.values
    monkeypatch.setattr(Reader, "values", lambda self, path: reads.append(path) or read(self, path))
    for number in range(2):
        for a, b in zip(epoch(plain, number), epoch(kept, number), strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
        for a, b in zip(*(data.eval_batches("val", device=CPU) for data in (plain, kept)), strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
    train, val = plain.size("train"), plain.size("val")
    assert len(reads) == 2 * (train + val) + (2 if whole else 1) * train + val


def test_pixels_kept_on_disk_are_of_the_file_as_it_is(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    data = build(root, workers=0, cache="disk", normalize="none")
    images = torch.cat([batch.images for batch in data.eval_batches("train", device=CPU)])
    files = sorted((tmp_path / "kept").rglob("decoded/*/*.npy"))
    assert len(files) == data.size("train")
    assert f"decoded images are kept in {tmp_path / 'kept' / 'cnn-train' / 'decoded'}" in data.notes
    files[0].write_bytes(files[0].read_bytes()[:90])  # cut off
    np.save(files[1], np.array([{"code": 1}], dtype=object))  # a pickle, which is not read
    np.save(files[2], np.zeros((1, 4, 4), np.uint8))  # another number of channels
    again = torch.cat([batch.images for batch in data.eval_batches("train", device=CPU)])
    assert torch.equal(images, again)
    path = Path(data.splits["train"].paths()[0])
    with Image.open(path) as image:
        turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned.save(path)
    other = build(root, workers=0, cache="disk", normalize="none", mean=[0.0] * 3, std=[1.0] * 3)
    assert not torch.equal(next(iter(other.eval_batches("train", device=CPU))).images[0], images[0])


def test_a_cache_that_does_not_fit_is_not_begun(root, monkeypatch):
    needed = 36 * 3 * 32 * 32
    monkeypatch.setattr("cnn_train.data.room.free_memory", lambda: 4 * needed)
    assert isinstance(build(root, cache="auto").splits["train"], Held)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert isinstance(build(root, cache="auto").splits["train"], OnDisk)
    assert isinstance(build(root, cache="ram").splits["train"], Held)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(EnvError, match=r"data\.cache=disk needs .* GiB free; set data\.cache_dir=DIR"):
        build(root, cache="disk")


def test_statistics_are_computed_once_and_kept(root, monkeypatch):
    data = build(root)
    images = torch.cat([batch.images for batch in data.eval_batches("train", device=CPU)])
    assert images.mean((0, 2, 3)).abs().max() < 1e-4 and (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
    monkeypatch.setattr("cnn_train.data.disk.histogram_statistics", lambda counts: pytest.fail("computed again"))
    monkeypatch.setattr("cnn_train.data.survey.look_over", lambda *args: pytest.fail("verified again"))
    assert build(root).mean == data.mean
    assert build(root, mean=[0.5] * 3, std=[0.2] * 3, image_size=16).std == [0.2] * 3


def test_grey_images(root):
    data = build(root, channels=1)
    batch = epoch(data)[0]
    assert data.in_channels == 1 and batch.images.shape == (5, 1, 32, 32)


def test_own_size_where_all_have_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in "ab":
        (tmp_path / "same" / name).mkdir(parents=True)
        for i in range(4):
            picture(i, (20, 14)).save(tmp_path / "same" / name / f"{i}.png")
    data = build(tmp_path / "same", image_size=None)
    assert data.image_size == (14, 20)
    index = data.splits["train"].samples[0][0]
    assert torch.equal(data.splits["train"].load(0, None, 0)[0], read_image(index, 3))
    picture(0, (21, 14)).save(tmp_path / "same" / "a" / "0.png")
    picture(0, (21, 15)).save(tmp_path / "same" / "a" / "1.png")
    assert build(tmp_path / "same", image_size=None).image_size == (224, 224)


def test_crop_is_resize_256_and_center_crop_224():
    from torchvision.transforms.v2 import functional as V

    image = torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8)
    image = V.resize(image, [300, 400], antialias=True)
    got = bring_to_size((300, 400), (224, 224), "crop").images(image)
    wanted = V.center_crop(V.resize(image, [256], antialias=True), [224, 224])
    assert torch.equal(got, wanted)


def test_pad_keeps_the_aspect_and_ignores_the_border():
    image = torch.full((1, 20, 40), 200, dtype=torch.uint8)
    label_map = torch.full((20, 40), 3, dtype=torch.uint8)
    spec = TargetSpec("maps", 4, 255)
    got, labels = apply(bring_to_size((20, 40), (30, 30), "pad"), image, label_map, spec)
    assert (got[:, :15] == 200).all() and (got[:, 15:] == 0).all()
    assert (labels[:15] == 3).all() and (labels[15:] == 255).all()
    got, labels = apply(bring_to_size((20, 40), (64, 64), "pad"), image, label_map, spec)  # never made larger
    assert (got > 0).sum() == 800 and (labels == 3).sum() == 800
    assert bring_to_size((20, 40), (7, 9), "stretch").maps(label_map, 255).shape == (7, 9)


def test_modes_of_pillow(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for mode, array, suffix in (
        ("L", grey, "png"),
        ("LA", np.stack([grey, grey], -1), "png"),
        ("RGBA", np.stack([grey] * 4, -1), "png"),
        ("P", None, "gif"),
    ):
        path = tmp_path / f"{mode.replace(';', '')}.{suffix}"
        image = Image.fromarray(grey).convert("P") if array is None else Image.fromarray(array)
        image.save(path, **({"transparency": 0} if array is None else {}))
        assert torch.equal(read_image(path, 1)[0], torch.from_numpy(grey)), mode
        assert torch.equal(read_image(path, 3), torch.from_numpy(grey).expand(3, 16, 16)), mode


def test_split_by_name_is_stable_when_files_are_added():
    names = [f"{i}.jpg" for i in range(1000)]
    val, test, train = cut_by_name(names, (0.2, 0.1))
    assert sorted(val + test + train) == list(range(1000)) and len(val) == 200 and len(test) == 100
    more = cut_by_name([*names, "new.jpg"], (0.2, 0.1))
    assert len(set(val) ^ set(more[0])) <= 2


# -- What bad input gets ---------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value) and error.value.exit_code == 3
    return str(error.value)


def test_missing_folder_says_where_it_looked(root):
    with pytest.raises(DataError) as error:
        build(root.parent / "pest" / "images")
    text = one_line(error)
    assert str(root.parent / "pest" / "images") in text and f"{root.parent} exists and holds" in text
    assert "pets" in text and "<class>" in text
    with pytest.raises(DataError, match=r"data\.root is not set"):
        folder(None)


def test_folders_without_images_say_what_they_hold(root, tmp_path):
    (root / "dog").mkdir()
    (root / "dog" / "labels.csv").write_text("")
    with pytest.raises(DataError, match=r"dog holds no images, but 1 \.csv"):
        build(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders but no files at all"):
        build(tmp_path / "empty")


def test_classes_that_train_has_not(split_root):
    (split_root / "val" / "cat").rename(split_root / "val" / "dog")
    with pytest.raises(DataError, match=r"1 class\(es\) that train has not: dog"):
        build(split_root)


def test_val_without_train(split_root):
    shutil.rmtree(split_root / "train")
    with pytest.raises(DataError, match="no folder train"):
        build(split_root)


def test_class_absent_from_val_is_a_warning(split_root, caplog):
    shutil.rmtree(split_root / "val" / "cat")
    build(split_root)
    assert "the val split has no image of 1 class(es): cat" in caplog.text


def test_too_few_to_split(root):
    for path in sorted((root / "bee").iterdir())[2:]:
        path.unlink()
    with pytest.raises(DataError, match=r"bee holds 2 image\(s\), too few"):
        build(root)
    with pytest.raises(DataError, match="val_fraction"):
        build(root, val_fraction=0.7, test_fraction=0.4)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def not_an_image(path: Path) -> None:
    path.write_text("<html>404</html>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def bomb(path: Path) -> None:
    """A PNG that says of itself to be 60,000 x 60,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


@pytest.mark.parametrize("damage", [truncate, not_an_image, empty, bomb], ids=lambda f: f.__name__)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("verify", [True, False])
def test_damaged_files_are_named(root, damage, workers, verify):
    path = root / "bee" / "000.jpg"
    damage(path)
    with pytest.raises(DataError) as error:
        data = build(root, verify=verify, workers=workers, mean=[0.5] * 3, std=[0.5] * 3)
        for split in ("train", "val", "test"):
            list(data.eval_batches(split, device=CPU))
    assert str(path) in one_line(error)


def test_size_limit_is_checked_before_decoding(root):
    with pytest.raises(
        DataError, match=r"pixels, more than data.max_pixels=1000; .*\(and 35 more; all are listed in .*txt\)"
    ) as error:
        build(root, max_pixels=1000)
    assert "000" in one_line(error)


def test_a_killed_worker_is_explained(root):
    import os
    import signal

    class Dies(PerSample):
        def change(self, image, target, size, spec):
            os.kill(os.getpid(), signal.SIGKILL)
            return image, target

    data = build(root, augment=Dies(), workers=1)
    with pytest.raises(DataError, match="worker was killed, usually for memory"):
        epoch(data)


def test_workers_live_as_long_as_the_split_and_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "images"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for index in range(8):
            pixels = np.random.default_rng(index).integers(0, 255, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    data, alone = (folder(str(root), 16, batch_size=3, workers=workers) for workers in (2, 0))
    cpu, pids = torch.device("cpu"), []
    before = {child.pid for child in multiprocessing.active_children()}  # of other tests' data
    for epoch in range(3):
        batches = data.train_batches(epoch, device=cpu)
        if epoch == 1:
            next(batches)  # a pass that is left, and one beside it
            inner = next(data.train_batches(epoch, device=cpu))
            assert torch.equal(inner.images, next(alone.train_batches(epoch, device=cpu)).images)
            batches = data.train_batches(epoch, device=cpu)
        expected = alone.train_batches(epoch, device=cpu)
        for batch, other in zip(batches, expected, strict=True):
            assert torch.equal(batch.images, other.images) and torch.equal(batch.indices, other.indices)
        list(data.eval_batches("val", device=cpu))
        pids.append({child.pid for child in multiprocessing.active_children()} - before)
    assert 3 <= len(pids[0]) <= 4 and pids[0] <= pids[1] and pids[0] <= pids[2]


def test_workers_that_filled_the_memory_end_and_a_file_that_is_gone_is_named(root):
    before = {child.pid for child in multiprocessing.active_children()}
    held = build(root, workers=2, cache="ram")
    for split in held.splits:
        list(held.eval_batches(split, device=CPU))
    assert {child.pid for child in multiprocessing.active_children()} <= before
    kept = build(root, workers=0, cache="disk")
    path = Path(kept.splits["val"].paths()[0])
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        list(kept.eval_batches("val", device=CPU))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes of photographs of 1280x854, one of them turned by its EXIF tag."""
    root = tmp_path_factory.mktemp("photographs")
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "val", "test"):
        for name, pixels in zip(("a", "b"), load_sample_images().images, strict=True):
            (root / split / name).mkdir(parents=True)
            image = Image.fromarray(pixels).resize((1280, 854), Image.Resampling.BICUBIC)
            image.save(root / split / name / "0.jpg", quality=95, **({"exif": exif} if name == "b" else {}))
    return root


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_scaled_decoding_gives_nearly_the_same_pixels(photographs, size, resize):
    """On average within 2 of 255; and it did decode smaller."""
    exact, scaled = (
        folder(str(photographs), size, resize=resize, decode=decode, workers=0, verify=False)
        for decode in ("exact", "scaled")
    )
    one, two = (
        next(iter(data.splits["train"].batches([torch.arange(2)], None, 0, CPU)))[0] for data in (exact, scaled)
    )
    assert one.shape == two.shape
    assert 0 < (one.float() - two.float()).abs().mean() < 2


def test_scaled_decoding_cuts_the_same_parts(photographs):
    augment = Compose([RandomResizedCrop((0.2, 1.0))])
    exact, scaled = (
        folder(str(photographs), 64, decode=decode, workers=0, verify=False, augment=augment)
        for decode in ("exact", "scaled")
    )
    apart = []
    for epoch in range(10):
        one, two = (
            next(iter(data.splits["train"].batches([torch.arange(2)], epoch, 0, CPU)))[0].float()
            for data in (exact, scaled)
        )
        apart.append((one - two).abs().mean())
        assert 0 < apart[-1] < 4
    assert sum(apart) / len(apart) < 2.5


def test_jpegs_decode_to_pillows_bits(photographs, tmp_path):
    from cnn_train.data.decode import read_values

    def by_pillow(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image))

    for path in photographs.rglob("*.jpg"):
        assert np.array_equal(read_values(path), by_pillow(path))
    grey = tmp_path / "grey.jpg"
    Image.fromarray(read_values(path)).convert("L").save(grey)
    assert np.array_equal(read_values(grey)[..., 0], by_pillow(grey))
    rows, columns = by_pillow(grey).shape
    halves = [read_values(grey, least=(-(-rows // f), 1)).shape[:2] for f in (1, 2, 3, 4, 8, 100)]
    assert halves == [(-(-rows // f), -(-columns // f)) for f in (1, 2, 2, 4, 8, 8)]


def test_what_decode_takes(photographs):
    with pytest.raises(DataError, match=r"data\.decode must be exact or scaled, got 'half'"):
        folder(str(photographs), 64, decode="half", workers=0)
