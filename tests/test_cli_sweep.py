"""Sweeps: expansion by Hydra's grammar, isolated jobs, failures, interruption, the table.

A stub stands for training.
"""

import csv
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from children import end
from sweeps import COMMON, begin, newest, records, states, stub, sweep, until

from cnn_train.__main__ import main
from cnn_train.cli.guard import guarded
from cnn_train.config.choices import Choices
from cnn_train.config.compose import Composer, compose
from cnn_train.config.load import load
from cnn_train.errors import ConfigError
from cnn_train.sweep import start, system
from cnn_train.sweep.job import Job
from cnn_train.sweep.metrics import known_metrics, task_of
from cnn_train.sweep.places import places
from cnn_train.sweep.plan import expand
from cnn_train.sweep.progress import duration, last_line
from cnn_train.sweep.ranking import Objective, best

ROOT = Path(__file__).parents[1]


@pytest.fixture
def worker(tmp_path: Path) -> list[str]:
    return stub(tmp_path)


def run(worker: list[str], tmp_path: Path, *overrides: str) -> tuple[int, Path]:
    return sweep(worker, tmp_path / "out", *overrides)


def changes(*overrides: str) -> list[str]:
    return [" ".join(changed) for changed, _ in expand(overrides, Choices.find())]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["norm=bn,gn", "seed=0,1"], ["norm=bn seed=0", "norm=bn seed=1", "norm=gn seed=0", "norm=gn seed=1"]),
        (["seed=range(1,4)"], ["seed=1", "seed=2", "seed=3"]),
        (["optimizer.lr=range(0.1,0.3,0.1)"], ["optimizer.lr=0.1", "optimizer.lr=0.2"]),
        (["seed=choice(3,1)"], ["seed=3", "seed=1"]),
        (["norm=glob(g*,exclude=gn_*)"], ["norm=gn"]),
        (["image_size=[8,8],[9,9]"], ["image_size=[8,8]", "image_size=[9,9]"]),
        (["optimizer.lr=1e-3,1e-2"], ["optimizer.lr=0.001", "optimizer.lr=0.01"]),
        (["norm=gn"], [""]),
        (["+optimizer.amsgrad=true,false"], ["+optimizer.amsgrad=true", "+optimizer.amsgrad=false"]),
    ],
)
def test_expansion_is_hydras(overrides, expected):
    assert [change.lower() for change in changes(*overrides)] == expected


def test_expansion_refuses_what_has_no_list_of_values():
    with pytest.raises(ConfigError, match="an interval has no list of values"):
        changes("optimizer.lr=interval(0,1)")
    with pytest.raises(ConfigError, match="gives no value"):
        changes("norm=glob(nothing*)")


def test_every_combination_is_checked_before_any_starts(worker, tmp_path):
    with pytest.raises(ConfigError, match="no norm 'gx'") as caught:
        start.start(["norm=bn,gx", f"output_dir={tmp_path / 'out'}"], worker=worker)
    assert caught.value.__notes__[-1] == "in job 1: norm=gx"
    assert not (tmp_path / "out").exists()


def test_each_job_has_a_frozen_config_in_a_folder_of_its_own(worker, tmp_path, capsys):
    code, folder = run(worker, tmp_path, "data.batch_size=32,64", "seed=2", "norm=gn")
    assert code == 0
    words = [*COMMON, "data.batch_size=64", "seed=2", "norm=gn"]
    assert load(folder / "1") == compose([*words, f"output_dir={tmp_path / 'out'}"])
    assert (folder / "1" / "command.txt").read_text().startswith(f"cnn-train {' '.join(words)}")
    assert "epoch 0 of seed 2" in (folder / "1" / "log.txt").read_text()
    captured = capsys.readouterr()
    table = captured.out.splitlines()
    assert table[0].split() == ["job", "overrides", "val/loss", "test/acc", "state", "time", "folder"]
    assert table[1].split()[:5] == ["*", "0", "data.batch_size=32", "32.2000", "0.5000"]
    assert "best by val/loss: data.batch_size=32, 32.2000" in captured.out
    assert "[1/2] data.batch_size=32: started" in captured.err
    assert "[2/2] data.batch_size=64: done in " in captured.err
    assert "\x1b" not in captured.out + captured.err


def test_a_failed_job_stops_no_other_and_is_explained(worker, tmp_path, capsys, monkeypatch):
    code, folder = run(worker, tmp_path, "data.batch_size=1,7,8,9,11,3", "sweep.jobs=2")
    assert code == 1
    jobs = records(folder)
    assert [job["state"] for job in jobs] == ["done", *["failed"] * 4, "done"]
    assert [job["exit_code"] for job in jobs] == [0, 3, -9, 0, 5, 0]
    assert [job["error"] for job in jobs[1:5]] == [
        "no good",
        "killed by SIGKILL (memory?)",
        "it ended without metrics.json",
        "the loss is nan in conv1",
    ]
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["val/loss"] for row in rows] == ["1.0", "", "", "", "", "3.0"]
    captured = capsys.readouterr()
    assert f"job 1 (data.batch_size=7): no good; see {folder / '1' / 'log.txt'}" in captured.err
    assert "failed (3)" in captured.out and "best by val/loss: data.batch_size=1" in captured.out
    assert captured.err.endswith(f"2 done, 4 failed\ncontinue: cnn-train resume {folder}\n")

    monkeypatch.setenv("STUB_HEALED", "1")
    before = [(folder / name / "log.txt").read_text() for name in "05"]
    assert start.resume(folder, worker=worker) == 0
    assert states(folder) == ["done"] * 6
    assert [(folder / name / "log.txt").read_text() for name in "05"] == before, "done jobs are not run again"
    assert capsys.readouterr().err.count(": started") == 4


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("retry", ["failed", "failed", "failed", "done"]), ("stop", ["failed", "waiting", "waiting", "waiting"])],
)
def test_what_follows_a_failure(worker, tmp_path, policy, expected):
    """Tried once more is what may pass: not an error of the config, nor a loss that diverges to the same bits."""
    code, folder = run(worker, tmp_path, "data.batch_size=7,8,11,3", "sweep.jobs=1", f"sweep.on_failure={policy}")
    assert code == 1 and states(folder) == expected
    if policy == "retry":
        assert [(folder / name / "log.txt").read_text().count("starts") for name in "0123"] == [2, 2, 1, 1]
    else:
        assert not (folder / "1" / "log.txt").exists()


@pytest.mark.parametrize(
    ("setting", "winner"),
    [
        ("sweep.metric=val/loss", "data.batch_size=1"),
        ("sweep.mode=max", "data.batch_size=3"),
        ("monitor=val/acc", "data.batch_size=1"),
    ],
)
def test_the_objective(worker, tmp_path, capsys, setting, winner):
    run(worker, tmp_path, "data.batch_size=1,3", setting)
    assert f": {winner}, " in capsys.readouterr().out.split("best by")[1]


def test_seeds_are_repeats_and_the_mean_over_them_ranks(worker, tmp_path, capsys):
    """The single best job, 1 with seed 0, is of the combination with the worse mean."""
    run(worker, tmp_path, "data.batch_size=1,2", "seed=0,40,2", "sweep.jobs=2")
    out = capsys.readouterr().out
    deviation = np.std([0, 4, 0.2], ddof=1)
    assert f"* 0,1,2 data.batch_size=1 {1 + 4.2 / 3:.4f} ± {deviation:.4f} (3)" in " ".join(out.split())
    assert f"best by val/loss: data.batch_size=1, {1 + 4.2 / 3:.4f} ± {deviation:.4f} (3)" in out


def test_the_metrics_of_repeats_alone_are_told_with_their_deviation(worker, tmp_path, capsys):
    run(worker, tmp_path, "seed=0,40,2", "sweep.jobs=2")
    told = capsys.readouterr().out.split("over the repeats: ")[1].splitlines()[0].split(", ")
    rows = list(csv.DictReader(next(tmp_path.rglob("sweep.csv")).read_text().splitlines()))
    for text in told:
        name, mean, _, deviation, number = text.split()
        values = [float(row[name]) for row in rows]
        assert (mean, deviation) == (f"{np.mean(values):.4f}", f"{np.std(values, ddof=1):.4f}") and number == "(3)"
    assert [text.split()[0] for text in told] == ["val/loss", "test/acc"]


def job(number: int, changes: list[str], loss: float, state: str = "done") -> Job:
    return Job(number, changes, changes, state=state, metrics={"val/loss": loss})


def test_a_combination_counts_when_all_its_seeds_have_numbers():
    goal = Objective("val/loss", most=False)
    lucky = [job(0, ["norm=bn", "seed=0"], 0.1), job(1, ["norm=bn", "seed=1"], 9.0)]
    steady = [job(2, ["norm=gn", "seed=0"], 1.0), job(3, ["norm=gn", "seed=1"], 2.0)]
    failed = [job(4, ["norm=in", "seed=0"], 0.0), job(5, ["norm=in", "seed=1"], 0.0, state="failed")]
    nan = [job(6, ["norm=ln", "seed=0"], 0.0), job(7, ["norm=ln", "seed=1"], float("nan"))]
    winner = best([*lucky, *steady, *failed, *nan], goal)
    assert winner is not None and winner.name == "norm=gn" and winner.mean == 1.5
    assert best([*failed, lucky[0]], goal).name == "norm=bn", "one whose seeds are all done comes first"
    assert best(failed, goal).name == "norm=in"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["norm=gn"], "nothing to vary"),
        (["norm=bn,gn", "sweep.jobs=1,2"], "sweep.jobs is one for the whole sweep"),
        (["norm=bn,gn", "output_dir=a,b"], "output_dir is one for the whole sweep"),
        (["seed=range(1,3),7"], "has no range"),
        (["norm=bn,gn", "sweep.metric=val/nothing"], "no job of this sweep has such a metric"),
        (["norm=bn,gn", "monitor=val/miou"], "no job of this sweep has such a metric"),
        (["norm=bn,gn", "model=fcn32s", "sweep.metric=val/top5"], "no job of this sweep has such a metric"),
        (["norm=bn,gn", "resume=DIR"], "a sweep takes resume=auto"),
        (["sweep=list", "norm=bn,gn", "optimizer.lr=0.1,0.2,0.3"], "lists of one length"),
        (["optimizer.lr=interval(0.1,1)"], "an interval has no list of values"),
        (["optimizer.lr=tag(log,interval(0,1))", "sweep=tpe"], "begins above 0"),
        (["optimizer.lr=interval(1,0)", "sweep=tpe"], "from a smaller to a larger"),
        (["seed=0,1", "sweep=tpe"], "nothing to draw"),
    ],
)
def test_bad_input_is_told_before_any_job_starts(worker, tmp_path, words, told):
    with pytest.raises(ConfigError, match=told):
        start.start([f"output_dir={tmp_path / 'out'}", *words], worker=worker)
    assert not (tmp_path / "out").exists()


def test_metrics_are_known_without_torch():
    """As the tasks have them: if their sources say it elsewhere, this must learn it."""
    from cnn_train.tasks.classification import Classification
    from cnn_train.tasks.segmentation import Segmentation

    assert known_metrics(compose()) == {f"val/{name}" for name in Classification.metric_names}
    assert known_metrics(compose(["model=fcn32s"])) == {f"val/{name}" for name in Segmentation.metric_names}
    assert task_of(compose(["data=voc", "data.root=."])) == "segmentation"


def test_an_error_in_a_sweep_keeps_its_lists_in_the_line_to_try(worker):
    with pytest.raises(ConfigError, match="Did you mean gn") as caught:
        start.start(["norm=bn,gnn", "seed=0,1", "sweep.jobs=2"], worker=worker)
    assert caught.value.__notes__ == [
        "try: cnn-train -m norm=bn,gn seed=0,1 sweep.jobs=2",
        "in job 2: norm=gnn seed=0",
    ]
    with pytest.raises(ConfigError, match=r"Did you mean optimizer\.lr") as caught:
        start.start(["norm=bn,gn", "lr=1,2"], worker=worker)
    assert caught.value.__notes__[0] == "try: cnn-train -m norm=bn,gn optimizer.lr=1,2"


@pytest.mark.parametrize("verb", ["-m", "sweep"])
@pytest.mark.parametrize(
    ("words", "tried"),
    [
        (["norm=bm,gn", "act=relu,elu"], ["norm=bn,gn", "act=relu,elu"]),
        (["norm=bn,gn", "seed=range(1,3),7"], ["norm=bn,gn", "seed=1,2,7"]),
        (["norm=gn"], ["norm=gn", "seed=0,1,2"]),
    ],
)
def test_the_line_to_try_keeps_the_verb_that_was_typed(capsys, verb, words, tried):
    assert main([verb, *words]) == 2
    assert f"  try: cnn-train {shlex.join([verb, *tried])}\n" in capsys.readouterr().err


def test_jobs_share_the_cores_and_take_one_gpu_each(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(system, "cores", lambda: 8)
    monkeypatch.setattr(system, "gibibytes", lambda: 64.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def cores(count: int, threads: int) -> list[dict[str, str]]:
        return [{"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}] * count

    assert places([compose()], "auto", 100, None) == cores(8, 1)
    assert places([compose()], "auto", 2, None) == cores(2, 4), "few jobs share all the cores"
    assert places([compose()], "auto", 2, 1) == cores(2, 1), "the threads of the first start stay"
    assert places([compose()], 3, 100, None) == cores(3, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert places([compose()], "auto", 100, None) == cores(2, 4)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(system, "gibibytes", lambda: 3.5)
    assert len(places([compose()], "auto", 100, None)) == 3, "a gibibyte for each job"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert places([compose()], "auto", 9, None) == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places([compose()], 3, 9, None)] == ["2", "5", "2"]
    assert len(places([compose(["trainer=cpu"])], "auto", 100, None)) == 3
    assert places([compose(["trainer=ddp"])], "auto", 9, None) == [{}], "a job on several devices has the machine"


def test_the_live_display_draws_running_jobs(worker, tmp_path, capsys):
    code, _ = run(worker, tmp_path, "norm=bn,gn", "trainer.progress=rich")
    assert code == 0
    assert "[2/2] norm=gn: done" in capsys.readouterr().err


def test_last_line_prefers_the_error_and_strips_escape_codes(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("error: first\nerror: \x1b[31msecond\x1b[0m\n  try: this\n\n")
    assert last_line(log, "error:") == "error: second"
    assert last_line(log) == "try: this"
    assert last_line(tmp_path / "absent") == ""


def test_durations():
    assert [duration(s) for s in (0.4, 59.7, 61, 3660)] == ["0s", "1m00s", "1m01s", "1h01m"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_lets_every_job_save_and_leaves_none_behind(worker, tmp_path, number):
    """And it prints the line that continues, which does."""
    words = [*COMMON, "data.batch_size=10,12", "sweep.jobs=1", f"output_dir={tmp_path / 'out'}"]
    out = tmp_path / "out.txt"
    child = begin(lambda: start.start(words, worker=worker), out)
    until(lambda: list(tmp_path.glob("out/sweeps/*/0/ready")))
    os.kill(child, number)
    assert end(child) == 128 + number, out.read_text()
    folder = newest(tmp_path / "out")
    assert (folder / "0" / "saved").exists()
    assert states(folder) == ["stopped", "waiting"]
    told = out.read_text()
    assert "stopping 1 running job" in told and "Traceback" not in told and "sweep.csv" in told
    assert told.endswith(f"1 stopped, 1 waiting\ncontinue: cnn-train resume {folder}\n")


@pytest.mark.parametrize("words", [["sweep=tpe"], ["sweep.prune=median"]])
def test_a_missing_extra_is_told_before_there_is_a_folder(worker, tmp_path, capsys, monkeypatch, words):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "cnn_train.sweep.sampling", raising=False)
    monkeypatch.delattr("cnn_train.sweep.sampling", raising=False)
    line = ["norm=bn,gn", *words, f"output_dir={tmp_path / 'out'}"]
    assert guarded(lambda: start.start(line, worker=worker)) == 4
    error = capsys.readouterr().err
    assert "the package optuna is not installed" in error and "try: pip install" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "lists",
    [
        ("norm=bn,gn,none", "act=paper,elu"),
        ("model=lenet5,fcn32s", "norm=bn,gn"),
        ("optimizer=sgd,adam", "trainer=cpu,smoke"),
    ],
)
def test_configs_put_together_are_those_that_hydra_composes(lists):
    """Also where a model brings choices of its own, so that they are not independent."""
    composer = Composer()
    calls = []
    by_hydra = composer._compose_by_hydra
    composer._compose_by_hydra = lambda selected: calls.append(selected) or by_hydra(selected)
    lines = [line for _, line in expand([*lists, "seed=3"], Choices.find())]
    for line in lines:
        assert composer.compose(line) == Composer().compose(line), line
    independent = not lists[0].startswith("model")
    assert (len(calls) < len(lines)) == independent


def test_composing_works_inside_a_program_of_hydras(tmp_path):
    """And leaves that program's own Hydra as it was."""
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import hydra\nfrom hydra.core.global_hydra import GlobalHydra\n"
        "@hydra.main(config_path='.', config_name='mine', version_base='1.3')\n"
        "def main(cfg):\n    from cnn_train.config.compose import compose\n"
        "    before = GlobalHydra.instance().hydra\n"
        "    print(compose(['norm=gn']).choices.norm, GlobalHydra.instance().hydra is before is not None)\nmain()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), f"hydra.run.dir={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.split() == ["gn", "True"], done.stderr


@pytest.mark.slow
def test_a_real_sweep_through_the_command_line(tmp_path):
    command = [sys.executable, "-m", "cnn_train", "-m", "act=relu,tanh", "trainer=cpu"]
    command += ["trainer.max_epochs=1", f"output_dir={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "best by val/loss" in result.stdout
