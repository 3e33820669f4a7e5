"""Data sets that the package datasets reads: columns found, cached and streamed alike, offline told in a line."""

import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from cnn_train.__main__ import main
from cnn_train.config.build import build
from cnn_train.config.compose import compose
from cnn_train.config.load import load
from cnn_train.data.hf import hf
from cnn_train.errors import DataError, EnvError

datasets = pytest.importorskip("datasets", reason="the extra hf")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
CPU = torch.device("cpu")
SIDE = 12


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def write(folder, labels, splits=("train", "test"), number: int = 40, **more):
    """Parquet files as the Hub keeps them, and each split's pixels."""
    folder.mkdir()
    random, pixels = np.random.default_rng(0), {}
    for split in splits:
        pixels[split] = random.integers(0, 256, (number, SIDE, SIDE, 3), dtype=np.uint8)
        kind, of = labels
        columns = {"picture": list(pixels[split]), "what": [of(n) for n in range(number)]}
        features = {"picture": datasets.Image(), "what": kind}
        for name, (extra, value) in more.items():
            columns[name], features[name] = [value] * number, extra
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return pixels


NAMED = (datasets.ClassLabel(names=["cat", "dog"]), lambda n: n % 2)


@pytest.mark.parametrize("streaming", [False, True])
def test_images_and_labels_are_those_of_the_table(streaming, tmp_path):
    pixels = write(tmp_path / "set", NAMED)
    options = {"workers": 0, "normalize": "none", "streaming": streaming}
    data = hf(str(tmp_path / "set"), **options)
    assert data.class_names == ["cat", "dog"] and data.image_size == (SIDE, SIDE) and data.name == "set"
    assert [data.size(split) for split in ("train", "val", "test")] == [36, 4, 40]
    images, labels = data.samples("test", range(40), device=CPU)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pixels["test"])
    assert labels.tolist() == [n % 2 for n in range(40)]
    assert data.class_counts("val").tolist() == [2, 2]
    both = [data.samples(split, range(data.size(split)), device=CPU) for split in ("train", "val")]
    found = {bytes(image.permute(1, 2, 0).numpy()): int(k) for part in both for image, k in zip(*part, strict=True)}
    assert found == {bytes(image): n % 2 for n, image in enumerate(pixels["train"])}
    mean, _ = data.splits["test"].statistics()
    assert np.allclose(mean, pixels["test"].reshape(-1, 3).mean(0) / 255, atol=1e-6)
    few = hf(str(tmp_path / "set"), samples=20, **options)
    assert few.size("test") == 20 and few.size("train") + few.size("val") == 20
    whole = hf(str(tmp_path / "set"), val_fraction=None, **options)
    whole.join()
    assert whole.size("all") == whole.size("val") == 80  # each once


def test_batches_are_the_same_with_workers(tmp_path):
    write(tmp_path / "set", NAMED)
    made = [list(hf(str(tmp_path / "set"), workers=n, batch_size=8).train_batches(1, device=CPU)) for n in (0, 2)]
    assert all(torch.equal(a.images, b.images) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((datasets.Value("string"), lambda n: ["sun", "sea"][n % 2]), ["sea", "sun"]),
        ((datasets.Value("int64"), lambda n: n % 3), ["0", "1", "2"]),
    ],
)
def test_labels_without_names(labels, names, tmp_path):
    write(tmp_path / "set", labels, splits=("train", "validation", "test"))
    data = hf(str(tmp_path / "set"), label="what", workers=0)
    assert data.class_names == names and [data.size(s) for s in ("train", "val", "test")] == [40, 40, 40]
    with pytest.raises(DataError, match=r"has the columns picture, what; data\.label names"):
        hf(str(tmp_path / "set"), workers=0)


def test_what_does_not_fit_is_told(tmp_path, monkeypatch):
    write(tmp_path / "two", NAMED, fine=(datasets.ClassLabel(names=["a", "b"]), 1), other=(datasets.Image(), None))
    for options, words in (
        ({}, r"has the columns .*, 2 of them images; data\.image names"),
        ({"image": "picture"}, r"what, fine are of labels; data\.label names"),
        ({"image": "other", "label": "what"}, r"train\[0\] has no image"),
        ({"image": "picture", "label": "nothing"}, r"data\.label names"),
        ({"image": "picture", "label": "fine", "streaming": True, "resize": "pad"}, r"data\.resize=crop"),
    ):
        with pytest.raises(DataError, match=words) as error:
            hf(str(tmp_path / "two"), workers=0, **options)
        assert "\n" not in str(error.value)
    write(tmp_path / "hidden", (datasets.ClassLabel(names=["a", "b"]), lambda n: -1))
    with pytest.raises(DataError, match="have no label; its labels may not be public"):
        hf(str(tmp_path / "hidden"), workers=0)
    write(tmp_path / "test_only", NAMED, splits=("test",))
    with pytest.raises(DataError, match="has no split train, only test"):
        hf(str(tmp_path / "test_only"), workers=0)
    with pytest.raises(DataError, match=r"data\.name is not set"):
        hf()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EnvError, match=r"pip install 'cnn-train\[hf\]'"):
        hf("anything")


def test_without_a_network_one_line_and_exit_code_3(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert main(["data=hf", "data.name=cifar10", "model=resnet20"]) == 3
    shown = capsys.readouterr().err
    lines = [line for line in shown.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and "cannot get data.name=cifar10" in lines[0] and "network" in lines[0]
    assert "Traceback" not in shown


def test_a_saved_config_fetches_nothing(tmp_path, monkeypatch):
    """Neither with the word that the command line had, nor without it: only typed anew."""
    asked = []

    def load_dataset(name, *given, download_config, **options):
        asked.append(download_config.local_files_only)
        raise OSError("cannot reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    cfg = compose(["data=hf", "data.name=somebody/photos", "data.download=true", f"output_dir={tmp_path}"])
    for line in ("download: true\n", ""):
        (tmp_path / "config.yaml").write_text(
            OmegaConf.to_yaml(cfg).replace("  download: true\n", line and "  " + line)
        )
        for typed, local in ([], True), (["data.download=true"], False):
            if line or not typed:
                with pytest.raises(DataError, match="cannot get"):
                    build(load(tmp_path, typed).data)
                assert asked.pop() is local
    with pytest.raises(DataError, match=r"type data\.download=true"):
        hf("somebody/photos", streaming=True)
