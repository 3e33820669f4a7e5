"""Samplers and pruning: drawn by Optuna from what the folders tell, so that kills change nothing."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import end
from sweeps import COMMON, begin, newest, records, stub, sweep

from cnn_train.config.choices import Choices
from cnn_train.errors import ConfigError
from cnn_train.sweep import start
from cnn_train.sweep.axes import Axes
from cnn_train.sweep.job import Job
from cnn_train.sweep.ranking import Objective
from cnn_train.sweep.sampling import Pruner, Sampler, mean_curve

SPACE = ("optimizer.lr=tag(log,interval(1e-4,1e-1))", "norm=bn,gn,in", "data.batch_size=int(interval(16,64))")
MOST = Objective("val/acc", most=True)


@pytest.fixture
def worker(tmp_path: Path) -> list[str]:
    return stub(tmp_path)


def history(sampler: Sampler, count: int, again: bool) -> list[dict]:
    """Draw `count` combinations; with `again`, by a sampler made anew for each."""
    jobs: list[Job] = []
    for number in range(count):
        if again:
            sampler = Sampler(sampler.kind, sampler.axes, sampler.goal, sampler.seed)
        params = sampler.ask(jobs)
        value = -abs(math.log10(params["optimizer.lr"] / 0.02))
        changes = [f"{key}={value}" for key, value in params.items()]
        jobs.append(Job(number, changes, changes, params=params, state="done", metrics={"val/acc": value}))
    return [job.params for job in jobs]


def sampler(kind: str, *words: str, seed: int = 0) -> Sampler:
    return Sampler(kind, Axes.read(words or SPACE, Choices.find()), MOST, seed)


def test_a_sampler_made_anew_draws_the_same_and_learns():
    drawn = history(sampler("tpe"), 30, again=False)
    assert history(sampler("tpe"), 30, again=True) == drawn
    assert history(sampler("tpe", seed=1), 3, again=False) != drawn[:3]
    assert len({tuple(params.values()) for params in drawn}) == 30
    assert {params["norm"] for params in drawn} <= {"bn", "gn", "in"}
    assert all(isinstance(params["data.batch_size"], int) and 16 <= params["data.batch_size"] <= 64 for params in drawn)
    distance = [abs(math.log10(params["optimizer.lr"] / 0.02)) for params in drawn]
    assert sum(distance[15:]) < 0.6 * sum(distance[:15]), "later draws are nearer to what was good"


def test_log_draws_are_even_over_decades():
    drawn = history(sampler("random"), 120, again=False)
    decades = [math.floor(math.log10(params["optimizer.lr"])) for params in drawn]
    assert all(25 < decades.count(decade) < 56 for decade in (-4, -3, -2)), [decades.count(d) for d in (-4, -3, -2)]
    plain = history(sampler("random", "optimizer.lr=interval(1e-4,1e-1)"), 60, again=False)
    assert sum(params["optimizer.lr"] > 0.01 for params in plain) > 46


def test_seeds_repeat_each_draw(worker, tmp_path):
    words = ("sweep=random", "sweep.trials=2", "optimizer.lr=interval(0.01,0.1)", "seed=3,4")
    code, folder = sweep(worker, tmp_path, *words)
    assert code == 0
    found = records(folder)
    assert [record["changes"][1] for record in found] == ["seed=3", "seed=4"] * 2
    assert len({record["changes"][0] for record in found}) == 2
    assert start.resume(folder, ["sweep.trials=3"], worker=worker) == 0
    assert len(records(folder)) == 6
    with pytest.raises(ConfigError, match=r"sweep\.trials=N draws more"):
        start.resume(folder, ["norm=bn,gn"], worker=worker)


def test_a_space_that_is_used_up_ends_the_sweep(worker, tmp_path, capsys):
    code, folder = sweep(worker, tmp_path, "sweep=random", "sweep.trials=9", "norm=bn,gn,in")
    assert code == 0
    assert sorted(record["changes"][0] for record in records(folder)) == ["norm=bn", "norm=gn", "norm=in"]
    assert "no combination that is new: 3 instead of 9" in capsys.readouterr().err


def test_a_list_takes_the_values_side_by_side(worker, tmp_path):
    _, folder = sweep(worker, tmp_path, "sweep=list", "norm=bn,gn", "optimizer.lr=0.1,0.2", "seed=0,1")
    changes = [" ".join(record["changes"]) for record in records(folder)]
    pairs = ("norm=bn optimizer.lr=0.1", "norm=gn optimizer.lr=0.2")
    assert changes == [f"{pair} seed={seed}" for pair in pairs for seed in (0, 1)]


def tpe_with_kills(worker: list[str], out: Path, trials: int, kills: int) -> list[list[str]]:
    """The combinations that a sweep on one place draws, killed so often at random moments and continued."""
    chance = random.Random(0)
    line = [*COMMON, "sweep=tpe", f"sweep.trials={trials}", *SPACE, "sweep.jobs=1", f"output_dir={out}", "resume=auto"]
    code = None
    while code != 0:
        child = begin(lambda: start.start(line, worker=worker), out.with_suffix(".log"))
        if kills > 0:
            time.sleep(chance.uniform(1.0, 2.2))
            os.kill(child, signal.SIGKILL)
            kills -= 1
        code = end(child)
        assert code in (0, -signal.SIGKILL), out.with_suffix(".log").read_text()
    found = records(newest(out))
    assert [record["state"] for record in found] == ["done"] * trials
    return [record["overrides"][:-1] for record in found]


def test_kills_change_no_draw(worker, tmp_path):
    undisturbed = tpe_with_kills(worker, tmp_path / "a", 5, 0)
    assert tpe_with_kills(worker, tmp_path / "b", 5, 2) == undisturbed


@pytest.mark.slow
def test_ten_kills_change_none_of_twenty_draws(worker, tmp_path):
    undisturbed = tpe_with_kills(worker, tmp_path / "a", 20, 0)
    assert tpe_with_kills(worker, tmp_path / "b", 20, 10) == undisturbed


def test_several_places_lose_no_draw_and_make_none_twice(worker, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_SECONDS", "0.02")
    code, folder = sweep(worker, tmp_path, "sweep=tpe", "sweep.trials=12", *SPACE, "sweep.jobs=4")
    found = records(folder)
    assert code == 0 and [record["number"] for record in found] == list(range(12))
    assert len({tuple(record["params"].values()) for record in found}) == 12


# -- Pruning ----------------------------------------------------------------------------------------------------------


def curve(folder: Path, values: list[float]) -> Path:
    folder.mkdir()
    rows = "".join(f"{epoch},{value}\n" for epoch, value in enumerate(values, 1))
    (folder / "metrics.csv").write_text("epoch,val/acc\n" + rows)
    return folder


def runs(tmp_path: Path, ends: list[tuple[str, float]], epochs: int = 9, falls: bool = False) -> list[Job]:
    """Jobs in these states whose curves rise (or fall) to these values, those that run up to a third."""
    jobs = []
    for number, (state, value) in enumerate(ends):
        known = epochs if state == "done" else epochs // 3
        folder = curve(
            tmp_path / str(number),
            [value * (2 - epoch / epochs if falls else epoch / epochs) for epoch in range(1, known + 1)],
        )
        jobs.append(Job(number, [f"norm={number}"], [], state=state, folder=folder, epochs=epochs))
    return jobs


def test_the_median_ends_what_falls_behind(tmp_path):
    jobs = runs(tmp_path, [("done", 0.9), ("done", 0.6), ("done", 0.3), ("running", 0.5), ("running", 0.7)])
    assert [(job.number, reason) for job, reason in Pruner("median", MOST, 9).to_prune(jobs)] == [
        (3, "median: val/acc 0.1667 at epoch 3, the median of 3 others is 0.2000")
    ]
    assert Pruner("median", MOST, 9).to_prune(jobs[:1] + jobs[3:]) == [], "too few to compare with"


def test_where_less_is_better_the_median_ends_what_is_above(tmp_path):
    ends = [("done", 0.9), ("done", 0.6), ("done", 0.3), ("running", 0.5), ("running", 0.7)]
    least = Objective("val/acc", most=False)
    jobs = runs(tmp_path, ends, falls=True)
    assert [job.number for job, _ in Pruner("median", least, 9).to_prune(jobs)] == [4]


def test_hyperband_keeps_the_best_third(tmp_path):
    ends = [("running", value) for value in (0.9, 0.8, 0.7, 0.3, 0.2, 0.1, 0.25, 0.15, 0.05, 0.95)]
    jobs = runs(tmp_path, ends)
    pruned = Pruner("hyperband", MOST, 9).to_prune(jobs)
    values = {job.number: ends[job.number][1] for job in jobs}
    assert pruned and max(values[job.number] for job, _ in pruned) < 0.9
    assert all("not among the best 1/3" in reason for _, reason in pruned)


def test_seeds_are_pruned_together_by_their_mean(tmp_path):
    jobs = runs(tmp_path, [("done", 0.8), ("done", 0.8), ("running", 0.9), ("running", 0.3), ("waiting", 0.0)])
    for seed, job in enumerate(jobs[2:]):
        job.changes = ["norm=x", f"seed={seed}"]
    jobs[4].folder = tmp_path / "absent"
    assert mean_curve(jobs[2:], "val/acc")[3] == pytest.approx(0.2)
    assert [job.number for job, _ in Pruner("median", MOST, 9).to_prune(jobs)] == [2, 3, 4]


def test_pruning_learning_rates_keeps_the_winner_and_saves_two_fifths_of_the_epochs(worker, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_SECONDS", "0.1")
    rates = "optimizer.lr=0.03,0.04,0.1,0.2,0.3,0.5,0.6,0.8,0.9,0.7"
    words = (rates, "trainer.max_epochs=10", "monitor=val/acc", "sweep.prune=median", "sweep.jobs=2")
    code, folder = sweep(worker, tmp_path, *words)
    found = records(folder)
    assert code == 0
    assert found[0]["state"] == "done" and {record["state"] for record in found} == {"done", "pruned"}
    epochs = [len((folder / record["folder"] / "metrics.csv").read_text().splitlines()) - 1 for record in found]
    assert sum(epochs) <= 60, f"{sum(epochs)} of 100 epochs"
    pruned = next(record for record in found if record["state"] == "pruned")
    assert pruned["error"].startswith("median: val/acc ") and (folder / pruned["folder"] / "saved").exists()
    assert start.resume(folder, worker=worker) == 0, "what was pruned stays so"


def test_optuna_is_imported_only_for_what_needs_it():
    code = "import sys, cnn_train.sweep.start; print('optuna' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr
