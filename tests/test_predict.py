"""Predictions of many images: order, memory, what a bad file costs, and every way to name the input."""

import csv
import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_train.__main__ import main
from cnn_train.config.compose import compose
from cnn_train.errors import ConfigError, DataError
from cnn_train.experiment.predict import Item, batches, chosen, predict
from cnn_train.experiment.train import train
from cnn_train.experiment.trained import load

QUICK = ["trainer.max_epochs=1", "trainer.limit_batches=2", "trainer.progress=none", "logger=none", "trainer=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(compose(["model=lenet5", *QUICK, f"output_dir={folder}"]))
    (path,) = (folder / "lenet5").iterdir()
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(random.integers(0, 256, (20 + i, 30), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "3b.png").write_bytes(b"no image")
    (folder / "4b.jpg").write_bytes((folder / "4.png").read_bytes()[:60])
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_bad_image_costs_a_row_and_the_others_are_as_alone(run, images, tmp_path):
    with pytest.raises(DataError, match=r"3b\.png: not an image.*\(and 1 more like it\); 7 of 9 images are predicted"):
        predict(run, images, tmp_path, batch_size=4)
    rows = rows_of(tmp_path / "predictions.csv")
    assert [Path(row["image"]).name for row in rows] == sorted(path.name for path in images.iterdir())
    assert {Path(row["image"]).name for row in rows if row["error"]} == {"3b.png", "4b.jpg"}
    model = load(run)
    for row in rows:
        if row["error"]:
            assert "cannot read" in row["error"] and row["class_1"] == ""
            continue
        alone = model.predict(row["image"])
        assert row["class_1"] == alone.label
        assert float(row["probability_1"]) == pytest.approx(alone.probability, abs=2e-6)
    with pytest.raises(DataError, match=r"3b\.png"):
        predict(run, images, tmp_path / "strict", strict=True)
    assert len(rows_of(tmp_path / "strict" / "predictions.csv")) == 0


def test_exit_codes_and_the_answer_to_one_image_on_the_terminal(run, images, tmp_path, capsys):
    assert main(["predict", f"run={run}", f"input={images}", f"output={tmp_path}"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: cannot read") and error.count("\n") == 1
    assert main(["predict", str(run), str(images / "0.png"), f"output={tmp_path}", "top=2"]) == 0
    out = capsys.readouterr().out.splitlines()
    answer = load(run).predict(images / "0.png")
    assert out[0].split() == [f"{answer.probability:.4f}", answer.label] and len(out) == 3
    assert main(["predict", str(run), str(images / "0.png"), "postprocess=crf"]) == 2
    assert "postprocess=crf is for segmentation" in capsys.readouterr().err
    assert main(["predict", f"run={run}", f"input={images}", "--strict", f"output={tmp_path / 'strict'}"]) == 3
    assert "images are predicted" not in capsys.readouterr().err and rows_of(tmp_path / "strict/predictions.csv") == []
    assert main(["predict", f"run={run}", "input=a.png", "input=b.png"]) == 2
    assert "input is given twice: a.png and b.png; write all in one, with commas" in capsys.readouterr().err


def test_rows_of_json(run, images, tmp_path):
    predict(run, [images / "1.png", images / "0.png"], tmp_path, top=2, form="jsonl")
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["1.png", "0.png"]
    assert rows[0]["class_1"] in load(run).class_names and 0 < rows[0]["probability_1"] <= 1
    with pytest.raises(
        ConfigError, match="format must be csv, jsonl, or for detection csv, coco, voc, yolo, got 'xml'"
    ):
        predict(run, images, tmp_path, form="xml")


def test_every_way_to_name_images(images, tmp_path, monkeypatch):
    def names(*sources: object, column: str | None = None) -> list[str]:
        return [item.path.name for item in chosen([str(source) for source in sources], column)]

    assert names(images / "2.png", images / "1.png") == ["2.png", "1.png"]
    assert names(images / "[01].png") == ["0.png", "1.png"]
    assert len(names(images)) == 9
    table = tmp_path / "images.csv"
    table.write_text(f"label,path,photo\n3,{images / '5.png'},{images / '1.png'}\n4,{images / '6.png'},\n")
    assert names(table) == ["5.png", "6.png"] and names(table, column="photo") == ["1.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images / '6.png'}\n\n{images / '0.png'}\n"))
    assert names("-") == ["6.png", "0.png"]
    (tmp_path / "empty").mkdir()
    for source, text in (
        ("nowhere", "no image or folder"),
        (tmp_path / "*.gif", "no file matches"),
        (tmp_path / "empty", "holds no images"),
    ):
        with pytest.raises(DataError, match=text):
            names(source)
    with pytest.raises(DataError, match=r"has no column size, but label, path, photo; column=NAME"):
        names(table, column="size")


def test_names_that_come_twice_do_not_overwrite_each_other(images):
    items = chosen([images / "0.png", images / "0.png", images])
    assert [item.name.name for item in items][:3] == ["0", "0_2", "0_3"]


def test_the_stream_keeps_its_order_and_reads_no_further_than_two_batches_ahead():
    lock, open_now, most = threading.Lock(), 0, 0
    taken = 0

    def items():
        nonlocal taken
        for number in range(200):
            taken += 1
            yield Item(Path(str(number)), Path(str(number)))

    def read(path: Path) -> torch.Tensor:
        return torch.tensor(int(path.name))

    seen: list[int] = []
    for batch in batches(items(), read, 8, 4):
        seen += [int(value) for _, value in batch]
        with lock:
            most = max(most, taken - len(seen))
    assert seen == list(range(200)) and most <= 16 and open_now == 0
