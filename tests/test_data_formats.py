"""What files hold reaches the network: orientation, ranges of values, channels, formats by content."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from cnn_train.data.decode import read_header, read_values
from cnn_train.data.files import images_in, left_out
from cnn_train.data.folder import folder
from cnn_train.data.images import Reader, fault_of, read_image, training_size, visible
from cnn_train.data.segmentation_folder import segmentation_folder
from cnn_train.errors import DataError

CPU = torch.device("cpu")
UPRIGHT = (np.arange(6 * 8 * 3).reshape(6, 8, 3) * 5 % 251).astype(np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stored(array: np.ndarray, orientation: int) -> np.ndarray:
    """How a file of this orientation stores an upright array, pixel by pixel by the definition in EXIF 2.3."""
    height, width = array.shape[:2]
    shape = (height, width) if orientation < 5 else (width, height)
    place = {
        1: lambda r, c: (r, c),
        2: lambda r, c: (r, width - 1 - c),
        3: lambda r, c: (height - 1 - r, width - 1 - c),
        4: lambda r, c: (height - 1 - r, c),
        5: lambda r, c: (c, r),
        6: lambda r, c: (c, width - 1 - r),
        7: lambda r, c: (height - 1 - c, width - 1 - r),
        8: lambda r, c: (height - 1 - c, r),
    }[orientation]
    return np.array([[array[place(r, c)] for c in range(shape[1])] for r in range(shape[0])])


def save(path: Path, array: np.ndarray, orientation: int = 1, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored(array, orientation)).save(path, exif=exif, **options)
    return path


def classes(root: Path, make, n: int = 5) -> Path:
    """Two class folders of n files by `make(path without suffix, number)`."""
    for label, name in enumerate(("ant", "bee")):
        (root / name).mkdir(parents=True)
        for i in range(n):
            make(root / name / f"{i}", label * 100 + i)
    return root


def build(root: Path, **options):
    return folder(str(root), options.pop("image_size", None), **{"batch_size": 4, "workers": 0, **options})


def fails(root: Path, **options) -> str:
    with pytest.raises(DataError) as error:
        build(root, **options)
    assert "\n" not in str(error.value) and error.value.exit_code == 3
    return str(error.value)


# -- Orientation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation, tmp_path):
    for suffix, options in (("png", {}), ("tif", {}), ("webp", {"lossless": True})):
        path = save(tmp_path / f"a.{suffix}", UPRIGHT, orientation, **options)
        assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), UPRIGHT), suffix
        header = read_header(path)
        assert (header.height, header.width) == (6, 8), suffix
    smooth = np.broadcast_to(np.arange(0, 240, 5, dtype=np.uint8)[:, None, None], (48, 64, 3))
    path = save(tmp_path / "a.jpg", smooth, orientation, quality=95)
    assert np.abs(read_image(path).permute(1, 2, 0).numpy().astype(int) - smooth).max() < 6
    six = (np.arange(6 * 8 * 6).reshape(6, 8, 6) % 251).astype(np.uint16)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(
        tmp_path / "six.tif", stored(six, orientation), extratags=tag, photometric="minisblack", planarconfig="contig"
    )
    assert np.array_equal(read_values(tmp_path / "six.tif"), six)
    assert read_header(tmp_path / "six.tif").width == 8


def test_masks_and_square_photographs_are_turned_too(tmp_path):
    for i in range(6):
        mask = np.zeros((16, 16), np.uint8)
        mask[: 3 + i, : 9 - i] = 1
        save(tmp_path / "images" / f"{i}.png", np.stack([mask * 200] * 3, -1), 6)
        save(tmp_path / "masks" / f"{i}.png", mask, (1, 8)[i % 2])
    data = segmentation_folder(str(tmp_path), classes=2, workers=0)
    for batch in data.eval_batches("train", device=CPU):
        assert torch.equal((data.denormalize(batch.images)[:, 0] > 0.3).long(), batch.targets)


# -- Values and channels -----------------------------------------------------------------------------------------------


def png_16(array: np.ndarray) -> bytes:
    """A PNG of 16 bits, RGB, RGBA or grey with alpha, which Pillow cannot write."""
    height, width, channels = array.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["float.tif", "uint16.png", "uint16.tif", "12bit.npy", "rgb16.png"])
def test_deep_values_have_one_range_for_the_whole_set(kind, tmp_path):
    top = {"float": 1.0, "12bit": 4095}.get(kind.split(".")[0], 40000)
    suffix = kind.split(".")[1]

    def make(path, number):
        level = 0.004 if number == 3 else 1.0 if number == 103 else 0.5  # one file is nearly black, one reaches the top
        values = np.linspace(0, level, 12 * 12).reshape(12, 12) * top
        array = values.astype(np.float32 if kind.startswith("float") else np.uint16)
        if kind == "rgb16.png":
            path.with_suffix(".png").write_bytes(png_16(np.stack([array] * 3, -1)))
        elif suffix == "npy":
            np.save(path.with_suffix(".npy"), array)
        elif suffix == "tif":
            tifffile.imwrite(path.with_suffix(".tif"), array)
        else:
            Image.fromarray(array).save(path.with_suffix(".png"))

    data = build(classes(tmp_path / "deep", make))
    assert data.in_channels == (3 if kind == "rgb16.png" else 1)
    low, high = data.preprocessing()["range"]
    assert low == 0 and high == top and any("become 0 to 255 (data.range)" in note for note in data.notes)
    read = Reader.of(data.preprocessing())
    dark, light = (read(tmp_path / "deep" / name).max().item() for name in (f"ant/3.{suffix}", f"bee/3.{suffix}"))
    assert dark <= 2 and light == 255
    middle = read(tmp_path / "deep" / f"ant/0.{suffix}").max().item()
    assert abs(middle - 127.5) <= 1
    half = build(tmp_path / "deep", range=[0, top / 2])
    assert Reader.of(half.preprocessing())(tmp_path / "deep" / f"ant/0.{suffix}").max() == 255
    assert "data.range=[5, 5]" in fails(tmp_path / "deep", range=[5, 5])


def test_depths_that_differ_name_both_files(tmp_path):
    def make(path, number):
        deep = number == 2
        array = np.full((9, 9), 500 if deep else 50, np.uint16 if deep else np.uint8)
        Image.fromarray(array).save(path.with_suffix(".png"))

    root = classes(tmp_path / "mixed", make)
    text = fails(root)
    assert "ant/2.png" in text and "8 bits" in text and "uint16" in text and "data.range=[low,high]" in text
    assert build(root, range=[0, 1000]).preprocessing()["range"] == [0, 1000]
    with pytest.raises(DataError, match="holds uint16 values, but images of 8 bits"):
        read_image(root / "ant" / "2.png")


def test_values_that_are_not_finite(tmp_path):
    def make(path, number):
        tifffile.imwrite(path.with_suffix(".tif"), np.full((9, 9), np.nan if number == 1 else 0.5, np.float32))

    assert "ant/1.tif holds 81 values that are not finite" in fails(classes(tmp_path / "nan", make))


WRITE = {
    "npy": lambda path, array: np.save(path, array),
    "npz": lambda path, array: np.savez_compressed(path, image=array),
    "tif": lambda path, array: tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig"),
    "planes.tif": lambda path, array: tifffile.imwrite(
        path, array.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"
    ),
    "pages.tif": lambda path, array: tifffile.imwrite(path, array.transpose(2, 0, 1), photometric="minisblack"),
    "first.npy": lambda path, array: np.save(path, np.ascontiguousarray(array.transpose(2, 0, 1))),
}


@pytest.mark.parametrize("count", [2, 4, 6, 12])
@pytest.mark.parametrize("kind", WRITE)
def test_any_number_of_channels(kind, count, tmp_path):
    array = (np.arange(20 * 16 * count) % 251).astype(np.uint8).reshape(20, 16, count)
    path = tmp_path / f"a.{kind}"
    WRITE[kind](path, array)
    assert np.array_equal(read_values(path), array)
    assert read_header(path).channels == count
    assert torch.equal(Reader((2, 1))(path), torch.from_numpy(array[..., [1, 0]]).permute(2, 0, 1))
    assert visible(Reader(count)(path)).shape[0] == (1 if count == 2 else 3)


def test_channels_are_found_and_chosen(tmp_path):
    def make(path, number):
        array = np.random.default_rng(number).integers(0, 256, (18, 16, 6), dtype=np.uint8)
        np.save(path.with_suffix(".npy"), array)

    root = classes(tmp_path / "six", make)
    data = build(root)
    assert data.in_channels == 6 and len(data.mean) == 6 and next(data.train_batches(0, device=CPU)).images.size(1) == 6
    chosen = build(root, channels=[3, 2, 1])
    assert chosen.in_channels == 3 and chosen.preprocessing()["channels"] == [3, 2, 1]
    image = chosen.splits["train"].load(0, None, 0)[0]
    array = np.load(chosen.splits["train"].samples[0][0])
    assert np.array_equal(image.permute(1, 2, 0).numpy(), array[..., [2, 1, 0]])
    assert "has 6 channel(s), so data.channels=[7]" in fails(root, channels=[7])
    assert "bands are counted from 1" in fails(root, channels=[0, 1])
    np.save(root / "bee" / "9.npy", np.zeros((18, 16, 4), np.uint8))
    text = fails(root)
    assert "bee/9.npy has 4 channel(s) but" in text and "has 6" in text


def test_grey_files_give_one_channel_and_grey_among_colours_three(tmp_path):
    grey = lambda path, number: save(path.with_suffix(".png"), UPRIGHT[..., 0] + np.uint8(number % 5))  # noqa: E731
    root = classes(tmp_path / "grey", grey)
    assert build(root).in_channels == 1
    assert build(root, channels=3).in_channels == 3
    save(root / "ant" / "7.png", UPRIGHT)
    assert build(root).in_channels == 3


def test_a_fourth_channel_is_kept_unless_it_is_alpha(tmp_path):
    four = np.concatenate([UPRIGHT, UPRIGHT[..., :1]], -1)
    tifffile.imwrite(tmp_path / "near_infrared.tif", four, photometric="rgb", extrasamples=["unspecified"])
    tifffile.imwrite(tmp_path / "alpha.tif", four, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read_values(tmp_path / "near_infrared.tif"), four)
    assert np.array_equal(read_values(tmp_path / "alpha.tif"), UPRIGHT)
    deep = four.astype(np.uint16) * 7
    (tmp_path / "deep.png").write_bytes(png_16(deep))
    assert np.array_equal(read_values(tmp_path / "deep.png"), deep[..., :3])
    (tmp_path / "deep.png").write_bytes(png_16(deep[..., :2]))
    assert "grey of 16 bits with alpha" in fault_of(tmp_path / "deep.png")


# -- Files -------------------------------------------------------------------------------------------------------------


def test_files_are_recognized_by_content(tmp_path):
    root = tmp_path / "pets"
    classes(root, lambda path, number: save(path.with_suffix(".png"), UPRIGHT + np.uint8(number % 7)))
    (root / "ant" / "0.png").rename(root / "ant" / "0.jpg")
    (root / "ant" / "1.png").rename(root / "ant" / "1")
    (root / "ant" / "2.png").rename(root / "ant" / "2.jfif")
    (root / "ant" / "3.png").rename(root / "ant" / "Бабочка 花.dat")
    (root / "bee" / "notes.txt").write_text("read me")
    (root / "bee" / ".hidden.png").write_bytes(b"")
    (root / "bee" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "bee" / "link.png").symlink_to(root / "bee" / "0.png")
    data = build(root)
    assert sum(data.size(split) for split in ("train", "val", "test")) == 11
    assert data.notes[-1] == "left out as no images: 1 .txt, 1 broken links"
    assert [path.name for path in images_in(root / "ant")] == sorted(
        ["0.jpg", "1", "2.jfif", "4.png", "Бабочка 花.dat"]
    )
    assert left_out([root / "ant"]) == ""


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><p>404", "it is a web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "pillow-heif"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF is not read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_what_is_no_image_is_told(content, words, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert words in fault_of(path) and str(path) in fault_of(path)
    assert fault_of(save(tmp_path / "b.png", UPRIGHT)) is None


def test_arrays_that_are_no_images(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros((4, 4)), b=np.zeros((4, 4)))
    np.save(tmp_path / "flat.npy", np.zeros(5))
    np.save(tmp_path / "code.npy", np.array([[{}]]), allow_pickle=True)
    assert "holds 2 arrays (a, b)" in fault_of(tmp_path / "two.npz")
    assert "an array of 5 float64" in fault_of(tmp_path / "flat.npy")
    assert str(tmp_path / "code.npy") in fault_of(tmp_path / "code.npy")


def test_every_bad_file_is_listed(tmp_path):
    root = classes(tmp_path / "bad", lambda path, number: save(path.with_suffix(".png"), UPRIGHT), n=30)
    for path in sorted((root / "ant").iterdir())[:25]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"\(and 24 more; all are listed in (.*\.txt)\)") as error:
        build(root)
    assert len(error.value.__notes__) == 19 and all("is empty" in note for note in error.value.__notes__)
    listed = Path(str(error.value).split("listed in ")[1].rstrip(")")).read_text().splitlines()
    assert len(listed) == 25 and len(set(listed)) == 25


# -- Folders, sizes, statistics ----------------------------------------------------------------------------------------


def split(root: Path, **names: str) -> Path:
    for number, name in enumerate(names.values()):
        classes(root / name, lambda path, i, n=number: save(path.with_suffix(".png"), UPRIGHT + np.uint8(i % 9 + n)), 3)
    return root


@pytest.mark.parametrize(
    "names", [("Training", "validation", "Testing"), ("TRAIN", "valid", "eval"), ("train", "dev", "test")]
)
def test_splits_by_their_usual_names(names, tmp_path):
    root = split(tmp_path / "data", train=names[0], val=names[1], test=names[2])
    data = build(root)
    assert data.class_names == ["ant", "bee"] and [data.size(s) for s in ("train", "val", "test")] == [6, 6, 6]
    assert data.notes[0] == f"train from {names[0]}/, val from {names[1]}/, test from {names[2]}/"


def test_splits_that_are_missing_are_said(tmp_path):
    data = build(split(tmp_path / "a", train="Train", val="Valid"))
    assert data.notes[0] == "train from Train/, val from Valid/, test is val" and data.size("test") == 6
    data = build(split(tmp_path / "b", train="Train", test="Test"))
    assert data.notes[0] == "train from Train/, test from Test/, val cut from train" and data.size("test") == 6


def test_folders_that_could_mean_both_are_refused(tmp_path):
    root = split(tmp_path / "a", train="train", val="val")
    classes(root, lambda path, number: save(path.with_suffix(".png"), UPRIGHT))
    assert "train, val, named like splits, beside ant, bee" in fails(root)
    for name in ("training", "validation"):
        save(tmp_path / "b" / name / "0.png", UPRIGHT)
    assert "training holds no class folders but 1 .png" in fails(tmp_path / "b")
    assert "both look like the val split" in fails(split(tmp_path / "c", train="train", val="val", test="dev"))


def test_segmentation_splits_by_other_names(tmp_path):
    for name, count in (("Training", 3), ("valid", 2)):
        for i in range(count):
            mask = np.eye(12, dtype=np.uint8)
            save(tmp_path / name / "images" / f"{i}.png", np.stack([mask * 90] * 3, -1))
            save(tmp_path / name / "masks" / f"{i}.png", mask)
    data = segmentation_folder(str(tmp_path), classes=2, workers=0)
    assert [data.size(s) for s in ("train", "val", "test")] == [3, 2, 2]
    assert data.notes[0] == "train from Training/, val from valid/, test is val"


def test_a_split_that_was_kept_is_taken(tmp_path):
    root = classes(tmp_path / "a", lambda path, number: save(path.with_suffix(".png"), UPRIGHT + np.uint8(number % 7)))
    data = build(root)
    kept = tmp_path / "splits.csv"
    kept.write_text(data.split_table(), encoding="utf-8")
    lines = kept.read_text().splitlines()
    assert lines[0] == "path,split" and len(lines) == 11 and sum(line.endswith(",val") for line in lines) == 2
    save(root / "ant" / "9.png", UPRIGHT)
    assert "does not name ant/9.png" in fails(root, splits=str(kept))
    kept.write_text("\n".join([*lines, "ant/9.png,test"]), encoding="utf-8")
    again = build(root, splits=str(kept), in_memory=True)
    assert [set(again.splits[s].paths()) for s in ("train", "val")] == [
        set(data.splits[s].paths()) for s in ("train", "val")
    ]
    assert again.size("test") == 3 and again.split_table().splitlines()[-1] == "ant/9.png,test"
    kept.write_text("path,split\nant/none.png,train\n")
    assert "names ant/none.png, which is not in" in fails(root, splits=str(kept))


def test_one_class_is_an_error(tmp_path):
    for i in range(5):
        save(tmp_path / "one" / "cat" / f"{i}.png", UPRIGHT)
    assert "one class, cat with 5 image(s)" in fails(tmp_path / "one")


def test_large_images_are_made_smaller_unasked(tmp_path):
    large = np.zeros((520, 780, 3), np.uint8)
    root = classes(tmp_path / "large", lambda path, number: save(path.with_suffix(".png"), large, compress_level=0), 3)
    data = build(root, mean=[0.5] * 3, std=[0.5] * 3)
    assert data.image_size == (224, 320)
    assert "images of 520x780 are trained at 224x320 (image_size= chooses)" in data.notes
    assert build(root, image_size=[520, 780], mean=[0.5] * 3, std=[0.5] * 3).image_size == (520, 780)
    assert training_size((512, 400), 224) == (512, 400) and training_size((3000, 3000), 256) == (256, 256)


def test_padding_does_not_count_in_the_statistics(tmp_path):
    light = np.full((36, 50, 3), 200, np.uint8)
    root = classes(tmp_path / "light", lambda path, number: save(path.with_suffix(".png"), light))
    for in_memory in (False, True):
        data = build(root, image_size=64, resize="pad", in_memory=in_memory)
        assert data.mean == pytest.approx([200 / 255] * 3) and max(data.std) < 1e-3


def test_transparent_pixels_of_masks_are_background(tmp_path):
    for i in range(5):
        colours = np.zeros((12, 12, 4), np.uint8)
        colours[..., 0], colours[3:9, 2:7, 3] = 200, 255  # red all over, but seen in a rectangle only
        save(tmp_path / "masks" / f"{i}.png", colours)
        save(tmp_path / "images" / f"{i}.png", colours[..., :3] * (colours[..., 3:] > 0))
    options = {"classes": ["ground", "sign"], "workers": 0}
    with pytest.raises(DataError, match=r"data\.palette=\[\[0,0,0\],\[200,0,0\]\]"):
        segmentation_folder(str(tmp_path), **options)
    data = segmentation_folder(str(tmp_path), palette=[[0, 0, 0], [200, 0, 0]], **options)
    assert data.class_counts("train").tolist() == [3 * 114, 3 * 30]


@pytest.mark.parametrize("settings", [{}, {"mask_values": [0, 255]}])
def test_lossy_masks_are_told_and_rounded(settings, tmp_path):
    for i in range(6):
        mask = np.zeros((32, 32), np.uint8)
        mask[5 : 20 + i, 7 : 13 + i] = 255
        save(tmp_path / "images" / f"{i}.png", np.stack([mask] * 3, -1))
        save(tmp_path / "masks" / f"{i}.jpg", mask, quality=60)
    options = {"classes": ["ground", "road"], "workers": 0, **settings}
    with pytest.raises(
        DataError, match=r"is a JPEG, which is lossy.*export masks as PNG.*data.mask_round=true"
    ) as error:
        segmentation_folder(str(tmp_path), **options)
    assert ("data.mask_values=[0,255]" in str(error.value)) == (not settings)
    data = segmentation_folder(str(tmp_path), **options | {"mask_values": [0, 255], "mask_round": True})
    batch = next(data.eval_batches("train", device=CPU))
    wrong = (data.denormalize(batch.images)[:, 0] > 0.5).long() != batch.targets
    assert wrong.float().mean() < 0.01


def test_settings_of_batching_are_checked_without_torch():
    from cnn_train.config.signatures import signature

    common = {"batch_size", "eval_batch_size", "seed", "augment", "drop_last", "normalize", "mean", "std"}
    for target in (
        "digits.digits", "digit_scenes.digit_scenes", "public.small_images", "folder.folder",
        "segmentation_folder.segmentation_folder", "segmentation_folder.voc",
    ):  # fmt: skip
        found = signature(f"cnn_train.data.{target}")
        assert not found.open_ended and common < set(found.parameters)
        assert found.parameters["normalize"] == "Literal['standardize', 'minmax', 'none']"
