"""Images listed in a table: columns, several labels, splits, groups and folds."""

import re
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_train.data.csv_file import csv_file
from cnn_train.data.folder import folder
from cnn_train.data.splits import in_folds
from cnn_train.errors import DataError

CPU = torch.device("cpu")
SPLITS = ("train", "val", "test")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """40 grey images of 8x8, number i of brightness 5 * i."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for i in range(40):
        Image.fromarray(np.full((8, 8), 5 * i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def table(root: Path, lines: list[str]) -> str:
    (root / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(root / "table.csv")


def build(place: Path, lines: list[str], **options):
    return csv_file(table(place, lines), options.pop("root", None), workers=0, normalize="none", **options)


def numbers(data, split: str) -> list[int]:
    return [int(Path(path).stem) for path, _ in data.splits[split].samples]


PLAIN = [f"images/{i}.png,{'ant' if i % 2 else 'bee'}" for i in range(40)]


@pytest.mark.parametrize("lines", [
    ["path,label", *PLAIN],
    PLAIN,
    ["label;path", *(";".join(reversed(line.split(","))) for line in PLAIN)],
    ["\ufeffpath\tlabel\tnote", *(line.replace(",", "\t") + "\tx" for line in PLAIN)],
], ids=["header", "none", "semicolons", "tabs"])  # fmt: skip
def test_delimiter_and_header_are_found(root, lines):
    data = build(root, lines)
    assert data.class_names == ["ant", "bee"] and data.targets == "labels" and data.in_channels == 1
    assert [data.size(split) for split in SPLITS] == [24, 8, 8]
    assert sorted(chain(*(numbers(data, split) for split in SPLITS))) == list(range(40))
    for split in SPLITS:
        for batch in data.eval_batches(split, device=CPU):
            shown = batch.images[:, 0, 0, 0].round().long() // 5
            assert torch.equal(batch.targets, 1 - shown % 2)


def test_names_of_columns_and_another_root(root):
    lines = ["species,image", *(f"{line.split(',')[1]},{line.split(',')[0].split('/')[1]}" for line in PLAIN)]
    data = build(root, lines, root=str(root / "images"), columns={"path": "image", "label": "species"})
    assert data.class_names == ["ant", "bee"] and sum(data.size(split) for split in SPLITS) == 40


def test_given_splits_are_kept(root):
    lines = [
        "path,label,split",
        *(f"{line},{('Train', 'train', 'valid', 'test')[i % 4]}" for i, line in enumerate(PLAIN)),
    ]
    lines[3:5] = [lines[3].replace("ant", "bee"), lines[4].replace("ant", "bee")]
    data = build(root, lines)
    assert numbers(data, "val") == list(range(2, 40, 4)) and data.size("train") == 20
    assert data.notes[0] == "splits as the table says"


def test_no_group_is_in_two_splits(root):
    lines = ["path,label,group", *(f"{line},patient{i // 4}" for i, line in enumerate(PLAIN))]
    data = build(root, lines)
    groups = [{number // 4 for number in numbers(data, split)} for split in SPLITS]
    assert sum(map(len, groups)) == 10 and len(set.union(*groups)) == 10


def test_several_labels(root):
    words = ["", "sun", "sun;sea", "sea; sand"]
    several = build(root, ["path,label", *(f"images/{i}.png,{words[i % 4]}" for i in range(40))], task="multilabel")
    columns = build(
        root,
        [
            "path,sand,sea,sun",
            *(f"images/{i}.png,{int(i % 4 == 3)},{int(i % 4 > 1)},{int(i % 4 in (1, 2))}" for i in range(40)),
        ],
        task="multilabel",
    )
    wanted = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 0]]).float()
    for data in (several, columns):
        assert data.class_names == ["sand", "sea", "sun"] and data.targets == "multilabels"
        assert data.task == "multilabel"
        batch = next(data.train_batches(0, device=CPU))
        shown = batch.images[:, 0, 0, 0].round().long() // 5
        assert batch.targets.dtype == torch.float32 and torch.equal(batch.targets, wanted[shown % 4])
        assert (
            data.class_counts("train").tolist()
            == torch.stack([wanted[number % 4] for number in numbers(data, "train")]).sum(0).tolist()
        )


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_test_each_image_once(root, grouped):
    lines = ["path,label,group", *(f"{line},{i // 2 if grouped else ''}" for i, line in enumerate(PLAIN))]
    tested: Counter[int] = Counter()
    for fold in range(5):
        data = build(root, lines, folds=5, fold=fold)
        parts = [set(numbers(data, split)) for split in SPLITS]
        assert set.union(*parts) == set(range(40)) and sum(map(len, parts)) == 40
        assert data.class_counts("test").tolist() == [4, 4]
        tested.update(parts[2])
        if grouped:
            assert not any({n // 2 for n in a} & {n // 2 for n in b} for a, b in pairwise(parts))
        assert data.notes[0] == f"test is fold {fold} of 5, val cut from the rest"
    assert set(tested.values()) == {1}


def test_folds_of_a_folder(root):
    for name in ("ant", "bee"):
        (root / "classes" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(root / "classes" / name / f"{i}.png")
    data = folder(str(root / "classes"), folds=5, fold=2, workers=0)
    assert data.class_counts("test").tolist() == [2, 2] and sum(data.size(split) for split in SPLITS) == 20
    assert 3 <= data.size("val") <= 4 and min(data.class_counts("val").tolist()) >= 1
    with pytest.raises(DataError, match=r"data\.fold=5: must be 0 to 4"):
        folder(str(root / "classes"), folds=5, fold=5, workers=0)
    with pytest.raises(DataError, match=r"folds=5 cuts val by data\.val_fraction, which is null; set it"):
        folder(str(root / "classes"), folds=5, val_fraction=None, workers=0)
    whole = folder(str(root / "classes"), val_fraction=None, workers=0)
    whole.join()
    assert whole.size("all") == whole.size("val") == 20 and whole.notes[0].startswith("not divided: ")


def test_rare_kinds_are_still_divided():
    splits, _ = in_folds(list(range(12)), list(range(12)), 3, 0, 0.25)
    assert sorted(chain(*splits.values())) == list(range(12)) and len(splits["test"]) == 4


@pytest.mark.parametrize(
    "lines, options, words",
    [
        (["path,label", "images/0.png,a", "images/99.png,b"], {}, ["line 3: no file", "99.png"]),
        (["path,label", "images/0.png,a", "images/1.png,"], {}, ["line 3 has no label"]),
        (["path,label", "images/0.png,a;b"], {}, ["line 2 has several labels", "data.task=multilabel"]),
        (["path,label", "images/0.png,a", "images/1.png"], {}, ["line 3 has 1 fields"]),
        (["path,label", "images/0.png,a", "images/1.png,a"], {}, ["one class, a, on 2 lines"]),
        (["file,label,x", "images/0.png,a,1"], {}, ["columns file, label, x", "data.columns={path: ..., label: ...}"]),
        (["path,label", "images/0.png,a"], {"columns": {"label": "kind"}}, ["no column 'kind'", "path, label"]),
        (["path,label", "images/0.png,a"], {"columns": {"labels": "kind"}}, ["it may name path, label, split, group"]),
        (["path,a,b", "images/0.png,0,2"], {"task": "multilabel"}, ["line 2: b is '2'", "0 or 1"]),
        (["path,label,split", "images/0.png,a,train", "images/1.png,b,other"], {}, ["line 3: split is 'other'"]),
        ([""], {}, ["is empty"]),
    ],
)
def test_a_wrong_table_names_its_line(root, lines, options, words):
    with pytest.raises(DataError) as error:
        build(root, lines, **options)
    text = str(error.value)
    assert "\n" not in text and "table.csv" in text and all(word in text for word in words), text


def test_no_table(root):
    with pytest.raises(DataError, match=r"data\.file is not set"):
        csv_file()
    with pytest.raises(DataError, match=r"cannot read .*none\.csv"):
        csv_file(str(root / "none.csv"))


def test_training_draws_in_proportion_to_the_column_weight(root):
    lines = ["path,label,weight", *(f"{line},{i % 4 or ''}" for i, line in enumerate(PLAIN))]
    data = build(root, lines)
    images = numbers(data, "train")
    weight = torch.tensor([i % 4 or 1 for i in images], dtype=torch.float64)
    due = weight / weight.sum() * len(images)
    drawn = torch.zeros(len(images))
    for epoch in range(300):
        indices = torch.cat([batch.indices for batch in data.train_batches(epoch, device=CPU)])
        times = torch.bincount(indices, minlength=len(images))
        assert len(indices) == len(images) and bool((times >= due.floor()).all() and (times <= due.ceil()).all())
        drawn += times
    assert torch.allclose(drawn.double() / 300, due, atol=0.15)  # five deviations of a mean of 300 are at most 0.144
    assert "training draws by the column weight" in data.notes
    assert sorted(torch.cat([batch.indices for batch in data.eval_batches("test", device=CPU)]).tolist()) == list(
        range(8)
    )

    plain = build(root, [",".join([*line.split(",")[:2], "3"]) if i else line for i, line in enumerate(lines)])
    assert not any("weight" in note for note in plain.notes)
    passed_over = build(root, lines, columns={"weight": None})
    assert torch.equal(passed_over._order(0, 0), plain._order(0, 0))


@pytest.mark.parametrize(("weights", "options", "said"), [
    (["-1"], {}, "line 2: weight is '-1'; it must be a number of 0 or more"),
    (["heavy"], {}, "line 2: weight is 'heavy'"),
    (["nan"], {}, "line 2: weight is 'nan'"),
    (["2"], {"sampler": "balanced"}, "both say how often an image is drawn"),
])  # fmt: skip
def test_weights_that_cannot_be_used(root, weights, options, said):
    lines = ["path,label,weight", *(f"{line},{w}" for line, w in zip(PLAIN, weights + ["1"] * 39, strict=True))]
    with pytest.raises(DataError, match=re.escape(said)):
        build(root, lines, **options)


def test_weights_of_zero_leave_images_out_of_training(root):
    lines = [
        "path,label,split,weight",
        *(f"{p},{'train' if i < 30 else 'val'},{int(i < 10)}" for i, p in enumerate(PLAIN)),
    ]
    data = build(root, lines)
    drawn = torch.cat([batch.indices for batch in data.train_batches(0, device=CPU)])
    assert {numbers(data, "train")[i] for i in drawn.tolist()} == set(range(10)) and len(drawn) == 30
    none = [lines[0], *(line[:-1] + str(int(",val," in line)) for line in lines[1:])]
    with pytest.raises(DataError, match="every training image has weight 0"):
        build(root, none)
