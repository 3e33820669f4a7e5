"""Reading run folders. `write_run` and `write_grid` make such folders for the other tests of the report."""

import csv
import io
import itertools
import json
import math
import random
from pathlib import Path

import pytest
import yaml

from cnn_train.errors import ConfigError
from cnn_train.report import runs

STARTED = "2026-11-26 01:52:00 [4694] cnn-train {folder}\n"


def write_csv(path, rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())


def write_run(folder, settings=None, metrics=None, curve=(), log=None, **files):
    """A run folder as training leaves it: `settings` are words of its command line, those without a dot are choices."""
    settings = {"seed": 0, **(settings or {})}
    config = {"seed": 0, "monitor": "val/loss", "trainer": {"max_epochs": 3}, "sweep": {"metric": None, "mode": "auto"}}
    config |= {"settings": [f"{key}={value}" for key, value in settings.items() if "." in key], "choices": {}}
    for key, value in settings.items():
        node = config if "." in key or key in config else config["choices"]
        *path, leaf = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "command.txt").write_text(" ".join(["cnn-train", *(f"{k}={v}" for k, v in settings.items())]) + "\n")
    (folder / "environment.json").write_text(json.dumps({"python": "3.11.7", "git_commit": "6afe659"}))
    (folder / "log.txt").write_text(STARTED.format(folder=folder) if log is None else log)
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    if curve:
        write_csv(folder / "metrics.csv", curve)
    for name, content in files.items():
        if name == "predictions":
            write_csv(folder / "predictions.csv", content)
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def made_curve(epochs, final, rng):
    """Rows of metrics.csv that end near `final` accuracy."""
    rows = []
    for epoch in range(1, epochs + 1):
        acc = final - 0.5 * 0.6**epoch + rng.gauss(0, 0.003)
        row = {"epoch": epoch, "step": 17 * epoch, "lr": 0.1 / epoch, "val/loss": 1.2 - acc, "val/acc": acc}
        rows.append({**row, "train/loss": 1.1 - acc})
    return rows


NORMS, RATES, SEEDS = ("bn", "gn", "none"), (0.1, 0.01, 0.001), (0, 1, 2)


def write_grid(folder, norms=NORMS, rates=RATES, seeds=SEEDS, samples=200, epochs=12, files=True):
    """27 runs of norm x learning rate x seed, all done, with made-up but plausible results."""
    rng = random.Random(0)
    good = {"bn": 0.04, "gn": 0.02, "none": 0.0, 0.1: 0.0, 0.01: 0.03, 0.001: -0.02}
    for number, (norm, rate, seed) in enumerate(itertools.product(norms, rates, seeds)):
        acc = 0.9 + good[norm] + good[rate] + (0.02 if (norm, rate) == ("bn", 0.1) else 0) + rng.gauss(0, 0.006)
        right = [int(rng.random() < acc) for _ in range(samples)]
        acc = sum(right) / samples
        metrics = {"val/loss": 1.1 - acc + rng.gauss(0, 0.01), "val/acc": acc - 0.01, "test/acc": acc}
        metrics["test/loss"] = 1.15 - acc
        write_run(
            folder / f"{number:02}",
            {"norm": norm, "optimizer.lr": rate, "seed": seed},
            metrics,
            made_curve(epochs, acc, rng),
            **(
                {
                    "predictions": [
                        {"sample": i, "label": i % 10, "prediction": i % 10 if ok else 0, "correct": ok, "loss": 0.1}
                        for i, ok in enumerate(right)
                    ],
                    "cost": {
                        "seconds": 60 + 5 * number,
                        "seconds_per_step": 0.01 + 0.001 * NORMS.index(norm),
                        "peak_memory_bytes": 2e8 + 1e7 * NORMS.index(norm),
                        "parameters": 61706 + 22 * (norm != "none"),
                    },
                }
                if files
                else {}
            ),
        )
    return folder


def test_the_helper_writes_what_training_leaves(tmp_path):
    run = runs.read_run(write_run(tmp_path / "a", {"norm": "gn", "optimizer.lr": 0.1, "seed": 3}, {"val/loss": 0.5}))
    assert (run.config["choices.norm"], run.config["optimizer.lr"], run.seed) == ("gn", 0.1, 3)
    assert run.typed == {"norm", "optimizer.lr", "seed"}
    assert run.done and run.metrics == {"val/loss": 0.5}


OPEN = "the log tells no end: it runs still, or was killed"
TRACEBACK = STARTED + "2026-11-26 01:55:49 [1] Traceback (most recent call last):\n  File ...\n"


@pytest.mark.parametrize(
    ("log", "state", "cause"),
    [
        ("", "waiting", "not started"),
        (STARTED, "unfinished", OPEN),
        (STARTED + "epoch 1/2  val loss 0.2\repoch 2/2  val", "unfinished", OPEN),
        (TRACEBACK + "cnn_train.errors.DivergedError: diverged at step 2\n", "failed", "diverged at step 2"),
        (TRACEBACK + "\x1b[1;31merror:\x1b[0m unexpected RuntimeError: boom\n  traceback: x\n", "failed",
         "unexpected RuntimeError: boom"),
        (STARTED + "2026-11-26 01:52:09 [1] stopped by SIGTERM\n", "stopped", "stopped by SIGTERM"),
        (TRACEBACK + "RuntimeError: boom\n" + STARTED + "epoch 1\n", "unfinished",
         OPEN),
    ],
)  # fmt: skip
def test_the_end_of_a_run_is_read_from_its_log(tmp_path, log, state, cause):
    run = runs.read_run(write_run(tmp_path / "a", log=log))
    assert (run.state, run.cause) == (state, cause)


def test_sweep_json_tells_what_a_folder_does_not(tmp_path):
    for name in ("0", "1", "2"):
        write_run(tmp_path / name, metrics={"val/loss": 1.0} if name == "2" else None)
    jobs = [
        {"folder": "0", "state": "failed", "error": "killed by SIGKILL (memory?)"},
        {"folder": "1", "state": "pruned", "reason": "median"},
        {"folder": "2", "state": "running", "seconds": 11.4},
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs, "command": "cnn-train -m a=1,2", "sampler": "tpe"}))
    study = runs.read([tmp_path])
    assert [(run.state, run.cause) for run in study.runs] == [
        ("failed", "killed by SIGKILL (memory?)"),
        ("pruned", "median"),
        ("done", ""),
    ]
    assert study.runs[2].cost == {"seconds": 11.4}
    assert (study.command, study.sampler, study.notes) == ("cnn-train -m a=1,2", "tpe", ())


@pytest.mark.parametrize("text", ['{"jobs": [', "[]", '{"jobs": 3}', "\0\xff"])
def test_a_damaged_sweep_json_is_said_and_done_without(tmp_path, text):
    write_run(tmp_path / "0", metrics={"val/loss": 1.0})
    (tmp_path / "sweep.json").write_text(text)
    study = runs.read([tmp_path])
    assert [run.state for run in study.runs] == ["done"]
    assert study.notes == (f"{tmp_path / 'sweep.json'} is damaged; the sweep was rebuilt from its run folders.",)


def test_any_file_may_be_damaged_or_missing(tmp_path):
    junk = [
        "",
        "\0\0",
        "{",
        "[1, 2",
        "a,b\n1",
        "epoch\nNaN\ninf\n7e999\n",
        "!!python/object:os.system {}",
        "a: [",
        "x" * 200_000,
    ]
    names = ("config.yaml", "command.txt", "environment.json", "log.txt", "metrics.json", "metrics.csv", "cost.json",
             "predictions.csv")  # fmt: skip
    for i, (name, text) in enumerate(itertools.product(names, [*junk, None])):
        folder = write_run(
            tmp_path / str(i), {}, {"val/loss": 0.5}, [{"epoch": 1, "val/loss": 0.5}], cost={"seconds": 3},
            predictions=[{"sample": 0, "correct": 1}],
        )  # fmt: skip
        (folder / name).unlink()
        if text is not None:
            (folder / name).write_text(text)
        run = runs.read_run(folder)
        runs.predictions(folder)
        expected = {"config.yaml": {"unreadable"}, "metrics.json": {"unfinished"}}.get(name, {"done"})
        assert run.state in expected, (name, text)
        assert run.epoch == (0 if name == "metrics.csv" else 1)


def test_numbers_that_are_not_finite_are_read_as_such(tmp_path):
    folder = write_run(tmp_path / "a", {}, {"val/loss": math.nan, "test/acc": math.inf, "name": "x", "flag": True})
    (folder / "metrics.csv").write_text("epoch,val/loss,note\n1,nan,\n2,inf,word\n3,0.5,\n,9,\n")
    run = runs.read_run(folder)
    assert math.isnan(run.metrics["val/loss"]) and run.metrics["test/acc"] == math.inf and len(run.metrics) == 2
    assert [row["epoch"] for row in run.curve] == [1, 2, 3]
    assert math.isnan(run.curve[0]["val/loss"]) and run.curve[1] == {"epoch": 2, "val/loss": math.inf}


def test_predictions_give_how_right_each_sample_was(tmp_path):
    rows = [{"sample": "a", "correct": 1}, {"sample": "b", "correct": 0.25}, {"sample": "c", "correct": "nan"}]
    assert runs.predictions(write_run(tmp_path / "0", predictions=rows)) == {"a": 1.0, "b": 0.25}
    assert runs.predictions(write_run(tmp_path / "1")) is None


def test_runs_are_found_in_natural_order_and_not_inside_of_runs(tmp_path):
    for name in ("sweep/10", "sweep/9", "lenet5/a", "sweep/9/eval/test", ".hidden/x"):
        write_run(tmp_path / name)
    found = [str(path.relative_to(tmp_path)) for path in runs.run_folders(tmp_path)]
    assert found == ["lenet5/a", "sweep/9", "sweep/10"]
    assert [run.folder.name for run in runs.read([tmp_path / "sweep", tmp_path / "sweep/9"]).runs] == ["9", "10"]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no runs in .*: no folder in it holds a config\.yaml"):
        runs.read([tmp_path])
    with pytest.raises(ConfigError, match=r"no folder .*missing"):
        runs.read([tmp_path / "missing"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="no folder"):
        runs.read([Path(tmp_path / "file")])
