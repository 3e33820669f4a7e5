"""Tar shards: read by an index to the pixel, in any order, resumed to the bit, and nothing hostile runs."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_train.__main__ import main
from cnn_train.data.shards import expand
from cnn_train.data.webdataset import webdataset
from cnn_train.errors import DataError

CPU = torch.device("cpu")
SIDE = 16


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def encoded(pixels, kind="PNG", **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def add(archive, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write(folder, shards: int = 4, each: int = 10, label=lambda n: {"cls": str(n % 2).encode()}) -> list[np.ndarray]:
    """Shards of PNGs, and the pixels of each sample in order."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    every = []
    for shard in range(shards):
        with tarfile.open(folder / f"s-{shard:03}.tar", "w") as archive:
            for _ in range(each):
                pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                n = len(every)
                add(archive, f"part/{n:05}.png", encoded(pixels))
                for suffix, content in label(n).items():
                    add(archive, f"part/{n:05}.{suffix}", content)
                every.append(pixels)
    return every


def test_every_sample_is_read_to_the_pixel(tmp_path):
    every = write(tmp_path / "s")
    data = webdataset(
        str(tmp_path / "s" / "s-{000..002}.tar"), str(tmp_path / "s" / "s-003.tar"), workers=0, normalize="none"
    )
    assert [data.size(split) for split in ("train", "val", "test")] == [30, 10, 10]
    assert data.class_names == ["0", "1"] and data.image_size == (SIDE, SIDE)
    images, labels = data.samples("train", range(30), device=CPU)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(every[:30]))
    assert labels.tolist() == [n % 2 for n in range(30)]
    images, _ = data.samples("val", range(10), device=CPU)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(every[30:]))
    assert data.class_counts("train").tolist() == [15, 15]
    whole = webdataset(str(tmp_path / "s" / "s-{000..003}.tar"), workers=0, val_fraction=None)
    whole.join()
    assert whole.size("all") == whole.size("val") == 40
    mean, std = data.splits["train"].statistics()
    pixels = np.stack(every[:30]).reshape(-1, 3) / 255
    assert np.allclose(mean, pixels.mean(0), atol=1e-6) and np.allclose(std, pixels.std(0), atol=1e-6)


def test_batches_are_the_same_for_workers_processes_and_after_a_stop(tmp_path):
    write(tmp_path / "s")
    made = [webdataset(str(tmp_path / "s" / "*.tar"), workers=workers, batch_size=8) for workers in (0, 2)]
    whole = [list(data.train_batches(3, device=CPU)) for data in made]
    for one, other in zip(*whole, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
    later = list(made[1].train_batches(3, device=CPU, start=2))
    assert len(later) == len(whole[0]) - 2
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[0][2:], later, strict=True))
    ranks = [list(made[0].train_batches(3, device=CPU, rank=rank, world_size=2)) for rank in (0, 1)]
    seen = torch.cat([batch.indices for part in ranks for batch in part])
    assert sorted(seen.tolist()) == list(range(len(seen))) == sorted(torch.cat([b.indices for b in whole[0]]).tolist())
    assert made[0].splits["train"].samples[5][0].name.endswith(".png")


@pytest.mark.parametrize(
    ("label", "names", "options"),
    [
        (lambda n: {"json": json.dumps({"label": n % 3, "w": 2}).encode()}, ["0", "1", "2"], {}),
        (lambda n: {"json": json.dumps({"kind": "ab"[n % 2]}).encode()}, ["a", "b"], {"label": "kind"}),
        (lambda n: {"txt": b"sea\n" if n % 2 else b"sun\n"}, ["sea", "sun"], {}),
        (lambda n: {"json": b'"%d"' % (n % 2)}, ["no", "yes"], {"classes": ["no", "yes"]}),
        (lambda n: {"cls": b"%d" % (n % 2), "txt": b"a caption"}, ["0", "1"], {}),
    ],
)
def test_labels_in_every_form(label, names, options, tmp_path):
    write(tmp_path / "s", label=label)
    data = webdataset(str(tmp_path / "s" / "*.tar"), workers=0, **options)
    assert data.class_names == names
    counts = sum(data.class_counts(split) for split in data.splits)
    assert counts.sum() == 40 and counts.min() > 0


class Boom:
    def __reduce__(self):
        return pytest.fail, ("code of a shard ran",)


def test_nothing_in_a_shard_runs_or_is_followed(tmp_path):
    write(tmp_path / "s", 1)
    evil = pickle.dumps(Boom())
    with tarfile.open(tmp_path / "s" / "t.tar", "w") as archive:
        for suffix in ("pyd", "pickle", "pth", "npy", "cls.pyd"):
            add(archive, f"x.{suffix}", evil)
        add(archive, "x.png", encoded(np.zeros((SIDE, SIDE, 3), np.uint8)))
        add(archive, "x.cls", b"1")
        for kind, name in ((tarfile.SYMTYPE, "l.png"), (tarfile.LNKTYPE, "h.png"), (tarfile.FIFOTYPE, "f.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
        add(archive, "../../outside.jpg", b"no image, and nowhere written")
    with pytest.raises(DataError, match=r"outside\.jpg has no label"):
        webdataset(str(tmp_path / "s" / "*.tar"), workers=0)
    with tarfile.open(tmp_path / "s" / "t.tar", "w") as archive:
        for suffix in ("pyd", "pth"):
            add(archive, f"x.{suffix}", evil)
        add(archive, "x.png", encoded(np.zeros((SIDE, SIDE, 3), np.uint8)))
        add(archive, "x.cls", b"1")
    data = webdataset(str(tmp_path / "s" / "*.tar"), workers=0)
    assert sum(data.size(split) for split in data.splits) == 11
    assert "left out of the shards: 1 .pth, 1 .pyd" in data.notes
    assert not (tmp_path.parent / "outside.jpg").exists()


def test_bad_shards_and_labels_are_told_in_a_line(tmp_path):
    write(tmp_path / "s", 2)
    good = tmp_path / "s" / "s-000.tar"
    bad = tmp_path / "bad.tar"

    def told(words: str, urls=str(bad), **options) -> None:
        with pytest.raises(DataError, match=words) as error:
            webdataset(urls, workers=0, **options)
        assert "\n" not in str(error.value)

    told(r"data\.urls is not set", None)
    told("fetched? local files|read from local files; fetch them first", "pipe:cat x")
    told("read from local files; fetch them first", "https://example.org/a.tar")
    told(r"no file .*bad.tar \(1 of 1 shards are missing\)")
    told("no file fits in", str(tmp_path / "none" / "*.tar"))
    bad.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    told(r"bad\.tar is cut off: it has no end mark")
    bad.write_bytes(good.read_bytes()[:1024])
    told(r"bad\.tar is cut off in 'part/|unexpected end of data")
    bad.write_bytes(b"\x1f\x8b" + bytes(2000))
    told("shards are tar files that are not compressed")
    for label, words in (
        ({}, "has no label; a sample is key.jpg with"),
        ({"json": b"{"}, "cannot read the label"),
        ({"json": b"[1]"}, "a label is a number from 0 or a word"),
        ({"json": b'{"x": 1}'}, r"has the keys x; data\.label names"),
        ({"cls": b"-1"}, "the shards hold one class, -1"),
        ({"cls": bytes(2 << 20)}, "a label is small"),
        ({"txt": b"\xff"}, "cannot read the label"),
        ({"cls": b"7"}, "None"),
    ):
        with tarfile.open(bad, "w") as archive:
            for n in range(4):
                add(archive, f"{n}.png", encoded(np.zeros((SIDE, SIDE, 3), np.uint8)))
                for suffix, content in label.items():
                    add(archive, f"{n}.{suffix}", content)
        if words != "None":
            told(words)
        else:
            told("says 7, which is none of 2 classes", [str(good), str(bad)], classes=["a", "b"])
    with tarfile.open(bad, "w") as archive:
        for n in range(4):
            add(archive, f"{n}.jpg", b"<html>" if n == 2 else encoded(np.zeros((SIDE, SIDE, 3), np.uint8)))
            add(archive, f"{n}.cls", str(n % 2).encode())
    told(r"cannot read .*bad\.tar/2\.jpg: not an image")
    told(r"1 of 4 files are bad, more than the 1 %", verify=True, on_error="skip")
    told(r"on_error=skip needs data\.verify=true", on_error="skip")


def test_patterns(tmp_path):
    for n in range(8, 12):
        (tmp_path / f"a-{n:02}.tar").touch()
    names = [str(tmp_path / f"a-{n:02}.tar") for n in range(8, 12)]
    assert expand("a-{08..11}.tar", "data.urls") == names == expand("a-*.tar", "data.urls")
    assert expand("a-{08,09}.tar", "data.urls") == names[:2] == expand(names[:2], "data.urls")
    for pattern, words in (
        ("a-{11..08}.tar", "must go up"),
        ("a-{0..999999}.tar", "at most"),
        (["a-08.tar"] * 2, "twice"),
    ):
        with pytest.raises(DataError, match=words):
            expand(pattern, "data.urls")


def test_trained_and_resumed_to_the_bit(tmp_path, capsys):
    write(tmp_path / "s", label=lambda n: {"cls": str(n % 2).encode()})
    words = ["data=webdataset", "data.urls=s/s-{000..003}.tar", "model=lenet5", "data.workers=0", "data.batch_size=8",
             "trainer.progress=plain", "scheduler=constant"]  # fmt: skip
    assert main([*words, "trainer.max_epochs=2", "output_dir=whole"]) == 0
    words[1:2] = [f"data.urls=s/s-{n:03}.tar" for n in range(4)]  # as a shell writes the pattern out
    assert main([*words, "trainer.max_epochs=1", "output_dir=parts"]) == 0
    (run,) = (tmp_path / "parts").glob("*/*")
    assert main(["resume", str(run), "trainer.max_epochs=2"]) == 0
    states = []
    for folder in ("whole", "parts"):
        (last,) = (tmp_path / folder).rglob("last.ckpt")
        states.append(torch.load(last, weights_only=True)["network"])
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])
