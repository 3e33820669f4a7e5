"""`cnn-train compare`: the keys that differ, means over seeds, what is best, and the formats."""

import csv
import io
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from test_report_runs import NORMS, RATES, SEEDS, write_grid, write_run

from cnn_train.cli.line import Line
from cnn_train.cli.options import read
from cnn_train.commands import compare as command
from cnn_train.errors import ConfigError
from cnn_train.report import runs, settings, tables


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return write_grid(tmp_path_factory.mktemp("compare") / "grid", samples=50)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def compare(folder, **options):
    line = Line("compare", words=[str(folder)], overrides=[f"{name}={value}" for name, value in options.items()])
    return command.run(read(command.Options, line))


def test_means_are_over_the_seeds_of_a_setting(grid):
    found = json.loads(tables.table(settings.compare(runs.read([grid]).runs), "json"))
    assert found["keys"] == ["norm", "optimizer.lr"] and found["ranked_by"] == "val/loss"
    assert len(found["settings"]) == 9 and not found["higher_is_better"]
    for row in found["settings"]:
        index = 9 * NORMS.index(row["setting"]["norm"]) + 3 * RATES.index(row["setting"]["optimizer.lr"])
        records = [metrics_of(grid / f"{index + i:02}") for i in range(len(SEEDS))]
        assert set(row["metrics"]) == set(records[0])
        for name, summary in row["metrics"].items():
            values = [record[name] for record in records]
            assert summary["n"] == 3 and summary["not_finite"] == 0
            assert summary["mean"] == pytest.approx(np.mean(values), rel=1e-12)
            assert summary["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        assert row["cost"]["seconds"]["mean"] == pytest.approx(60 + 5 * (index + 1))
        assert [run["seed"] for run in row["runs"]] == [0, 1, 2]
    losses = [row["metrics"]["val/loss"]["mean"] for row in found["settings"]]
    assert losses == sorted(losses)
    for name, pick in (("val/loss", min), ("test/acc", max), ("test/loss", min)):
        means = [row["metrics"][name]["mean"] for row in found["settings"]]
        assert [row["metrics"][name]["best"] for row in found["settings"]] == [mean == pick(means) for mean in means]


@pytest.mark.parametrize("metric", ["val/loss", "test/brier", "test/ece", "test/loss_box"])
def test_less_is_better_where_it_is(metric, tmp_path):
    for name, value in (("bn", 0.1), ("gn", 0.2)):
        write_run(tmp_path / name, {"norm": name, "seed": 0}, {metric: value, "test/acc": value})
    found = json.loads(tables.table(settings.compare(runs.read([tmp_path]).runs), "json"))["settings"]
    best = {row["setting"]["norm"]: [row["metrics"][name]["best"] for name in (metric, "test/acc")] for row in found}
    assert best == {"bn": [True, False], "gn": [False, True]}


def test_a_single_setting_is_not_marked_as_the_best(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), {"norm": "bn", "seed": seed}, {"val/loss": 0.5, "test/acc": 0.9})
    comparison = settings.compare(runs.read([tmp_path]).runs)
    assert "**" not in tables.table(comparison, "md") and "*" not in tables.table(comparison, "text")
    assert not any(m["best"] for m in json.loads(tables.table(comparison, "json"))["settings"][0]["metrics"].values())


def test_every_format_says_the_same(grid):
    comparison = settings.compare(runs.read([grid]).runs)
    best = comparison.settings[0]
    cell = str(best.summary("test/acc"))
    mean, std = best.summary("test/acc").mean, best.summary("test/acc").std
    assert cell == f"{mean:.4f} ± {std:.4f} (3)"
    first = {name: tables.table(comparison, name).splitlines() for name in tables.FORMATS}
    assert cell in first["text"][1] and f"| **{best.summary('val/loss')}** |" in first["md"][2]
    assert rf"\textbf{{{best.summary('val/loss')}}}".replace("±", r"$\pm$") in first["latex"][4]
    rows = list(csv.DictReader(io.StringIO(tables.table(comparison, "csv"))))
    assert len(rows) == 9 and float(rows[0]["test/acc mean"]) == mean and float(rows[0]["test/acc std"]) == std
    assert [row["val/loss best"] for row in rows] == ["1"] + ["0"] * 8


def test_what_is_not_done_or_not_finite_stays_out_of_means(tmp_path):
    for seed, loss in enumerate([0.5, 0.7, math.nan, math.inf, None]):
        metrics = None if loss is None else {"val/loss": loss, "test/acc": 0.9}
        write_run(tmp_path / f"a{seed}", {"norm": "bn", "seed": seed}, metrics, [{"epoch": 1, "val/loss": 9.0}])
    write_run(tmp_path / "b", {"norm": "gn", "seed": 0}, {"val/loss": math.nan, "test/acc": 0.8})
    write_run(tmp_path / "c", {"norm": "ln", "seed": 0}, {"val/loss": 0.6, "test/acc": 0.8})
    comparison = settings.compare(runs.read([tmp_path]).runs)
    assert [setting.name for setting in comparison.settings] == ["norm=bn", "norm=ln", "norm=gn"]
    bn, ln, gn = (setting.summary("val/loss") for setting in comparison.settings)
    assert (bn.n, bn.lost, bn.mean) == (2, 2, pytest.approx(0.6)) and bn.std == pytest.approx(math.sqrt(0.02))
    assert str(bn) == "0.6000 ± 0.1414 (2 of 4)" and str(ln) == "0.6000 (1)" and str(gn) == "NaN (0 of 1)"
    lines = tables.table(comparison).splitlines()
    assert "4 of 5" in lines[1]
    assert "*" not in lines[3]
    assert json.loads(tables.table(comparison, "json"))["settings"][2]["metrics"]["val/loss"]["mean"] is None


def leaves(choices, **others):
    return {**{f"choices.{key}": value for key, value in choices.items()}, "seed": 0, **others}


def run_of(config, typed=()):
    return runs.Run(None, "done", config=config, typed=frozenset(typed))


def test_what_a_choice_brings_is_no_key_of_its_own():
    bn = leaves({"model": "resnet18", "norm": "bn"}, **{"norm._target_": "BatchNorm2d", "norm.eps": 1e-5, "name": "a"})
    gn = leaves({"model": "resnet18", "norm": "gn"}, **{"norm._target_": "GroupNorm", "norm.eps": 1e-5, "name": "b"})
    assert settings.differing([run_of(bn), run_of(gn)]) == ["choices.norm"]
    other = {**gn, "norm.eps": 1e-3}
    assert settings.differing([run_of(bn), run_of(gn), run_of(other)]) == ["choices.norm", "norm.eps"]
    assert settings.differing([run_of(bn), run_of(other, {"norm.eps"})]) == ["choices.norm", "norm.eps"]
    unet = leaves({"model": "unet", "norm": "bn", "data": "scenes"}, **{"data.batch_size": 4, "output_dir": "x"})
    lenet = leaves({"model": "lenet5", "norm": "bn", "data": "digits"}, **{"data.batch_size": 64, "output_dir": "y"})
    assert settings.differing([run_of(unet), run_of(lenet)]) == ["choices.model"]
    assert settings.differing([run_of(unet), run_of(lenet, {"data"})]) == ["choices.model", "choices.data"]
    slow, fast = leaves({"norm": "bn"}, **{"optimizer.lr": 0.1}), leaves({"norm": "gn"}, **{"optimizer.lr": 0.2})
    assert settings.differing([run_of(slow), run_of(fast)]) == ["choices.norm", "optimizer.lr"]


def test_what_only_the_programs_version_decides_is_no_key():
    old = leaves({"norm": "bn"}, **{"scheduler._target_": "tasks.Cosine"})
    new = leaves({"norm": "bn"}, **{"scheduler._target_": "training.Cosine", "trainer.num_nodes": 1, "loss.gamma": 2})
    newer = {**new, "loss.gamma": 3}
    assert settings.differing([run_of(old), run_of(new)]) == []
    assert settings.differing([run_of(old), run_of(new), run_of(newer)]) == ["loss.gamma"]
    assert settings.differing([run_of(old), run_of(new, {"trainer.num_nodes"})]) == ["trainer.num_nodes"]
    assert settings.differing([run_of(old), run_of(new, {"scheduler._target_"})]) == ["scheduler._target_"]


def test_a_repeated_run_counts_once(tmp_path):
    for name, loss, day in (("a", 0.5, 1), ("b", 0.6, 2), ("c", None, 3)):
        folder = write_run(tmp_path / name, {"seed": 0}, None if loss is None else {"val/loss": loss})
        (folder / "environment.json").write_text(json.dumps({"started": f"2026-11-0{day}T00:00:00+0000"}))
    comparison = settings.compare(runs.read([tmp_path]).runs)
    assert comparison.settings[0].summary("val/loss") == settings.Summary(0.6, pytest.approx(math.nan, nan_ok=True), 1)
    assert len(comparison.notes) == 2 and str(tmp_path / "a") in "".join(comparison.notes)


def test_where_chooses_runs(grid, capsys):
    every = runs.read([grid]).runs

    def count(conditions):
        return len(settings.where(every, conditions))

    assert count("norm=bn") == 9 and count("norm=bn|gn") == 18 and count("norm!=bn") == 18
    assert count("optimizer.lr<0.1") == 18 and count("optimizer.lr>=0.01,norm=gn,seed=0") == 2
    assert count("optimizer.lr=1e-2") == 9 and count("state=done") == 27
    threshold = sorted(run.metrics["test/acc"] for run in every)[20]
    assert count(f"test/acc>{threshold}") == sum(run.metrics["test/acc"] > threshold for run in every)
    assert compare(grid, where="norm=gn", format="csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["optimizer.lr"] for row in rows} == {"0.1", "0.01", "0.001"} and "norm" not in rows[0]


def test_sort_orders_by_metric_cost_or_key(grid):
    comparison = settings.compare(runs.read([grid]).runs)

    def order(name):
        return tables.sorted_by(comparison, name)

    assert [s.mean("test/acc") for s in order("test/acc")] == sorted(
        (s.mean("test/acc") for s in order("norm")), reverse=True
    )
    assert [s.mean("seconds") for s in order("seconds")] == [65.0 + 15 * i for i in range(9)]
    assert [s.values["optimizer.lr"] for s in order("optimizer.lr")] == [0.001] * 3 + [0.01] * 3 + [0.1] * 3
    assert [s.values["choices.norm"] for s in order("norm")] == ["bn"] * 3 + ["gn"] * 3 + ["none"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xml"}, "format must be one of text, md, csv, json, latex, got 'xml'"),
        ({"sort": "test/ac"}, "no run has the metric, cost or key that differs 'test/ac'. Did you mean test/acc?"),
        ({"where": "nrm=bn"}, "no run has the key 'nrm'. Did you mean norm?"),
        ({"where": "norm"}, "where=norm: 'norm' is no condition; write key=value, key!=value or key<1"),
        ({"where": "norm<bn"}, "where=norm<bn: < compares numbers; use = or !="),
        ({"where": "norm=xx"}, "where=norm=xx: none of the 27 runs fulfils it"),
        (
            {"by": "a"},
            "compare takes folders=, where=, sort=, format=, got 'by=a'; `cnn-train help compare` says more",
        ),
        ({"sort": ""}, "sort= is empty; it is the metric to sort by"),
    ],
)
def test_bad_input_is_one_line(grid, options, message):
    with pytest.raises(ConfigError) as error:
        compare(grid, **options)
    assert str(error.value) == message and error.value.exit_code == 2


def test_compare_needs_a_folder():
    with pytest.raises(ConfigError, match="compare needs folders=DIR: folders of runs or sweeps"):
        read(command.Options, Line("compare"))


def test_names_are_escaped_in_markdown_and_latex(tmp_path):
    for value in ("a|b<i>", "50%_{x}"):
        write_run(tmp_path / str(len(value)), {"norm": value}, {"val/loss": 0.5})
    comparison = settings.compare(runs.read([tmp_path]).runs)
    assert r"| a\|b&lt;i> |" in tables.table(comparison, "md")
    assert r"50\%\_\{x\} &" in tables.table(comparison, "latex")


def test_ties_are_all_marked(tmp_path):
    for norm, seed in itertools.product(("bn", "gn"), (0, 1)):
        write_run(
            tmp_path / f"{norm}{seed}", {"norm": norm, "seed": seed}, {"val/loss": 0.5, "test/acc": 0.9 + seed / 100}
        )
    lines = tables.table(settings.compare(runs.read([tmp_path]).runs)).splitlines()
    assert all("0.5000 ± 0.0000 (2)*" in line and "0.9050 ± 0.0071 (2)*" in line for line in lines[1:])


def test_numbers_have_as_many_decimals_as_say_something():
    def shown(*values):
        return str(settings.Summary.of(values))

    assert shown(0.95, 0.9505) == "0.9503 ± 0.0004 (2)" and shown(0.5, 0.500001) == "0.5000 ± 7.07e-07 (2)"
    assert shown(0.5, 0.5) == "0.5000 ± 0.0000 (2)" and shown(2e-5, 4e-5) == "3e-05 ± 1.41e-05 (2)"
    assert shown(123456.0) == "1.23e+05 (1)" and shown(0.0) == "0.0000 (1)" and shown(-math.inf) == "NaN (0 of 1)"
    assert [settings.number(value) for value in (math.inf, -math.inf, None)] == ["inf", "-inf", "–"]


def test_more_than_usual_is_better_where_the_config_says_so(tmp_path):
    for norm, loss in (("bn", 0.5), ("gn", 0.7)):
        folder = write_run(tmp_path / norm, {"norm": norm}, {"val/loss": loss, "val/acc": loss})
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("metric: null", "metric: val/loss").replace("auto", "max"))
    comparison = settings.compare(runs.read([tmp_path]).runs)
    assert comparison.higher and comparison.settings[0].name == "norm=gn"


def test_reading_needs_no_torch():
    code = """
import sys, cnn_train.commands.compare, cnn_train.commands.report
print({"torch", "lightning", "numpy", "hydra"} & set(sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
