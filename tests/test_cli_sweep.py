"""Sweeps: expansion by Hydra's grammar, isolated jobs, failures, interruption, the table.

A stub stands for training.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnn_train.config.choices import Choices
from cnn_train.config.compose import compose
from cnn_train.config.load import load
from cnn_train.errors import ConfigError
from cnn_train.sweep import local
from cnn_train.sweep.local import slots
from cnn_train.sweep.plan import expand
from cnn_train.sweep.progress import duration, last_line

ROOT = Path(__file__).parents[1]

# Ends by the seed: 7 raises, 8 kills itself, 9 gives no metrics, 10 sleeps and saves on SIGTERM, others succeed.
WORKER = """
import json, os, re, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
seed = int(re.search(r"^seed: (\\d+)", (folder / "config.yaml").read_text(), re.M)[1])
print("epoch 1 of seed", seed)
if seed == 7:
    print("error: no good", file=sys.stderr)
    sys.exit(3)
if seed == 8:
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 9:
    sys.exit(0)
if seed == 10:
    def save(*_):
        (folder / "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    (folder / "ready").touch()
    time.sleep(60)
environment = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
(folder / "environment.txt").write_text(json.dumps(environment))
(folder / "metrics.json").write_text(json.dumps({"val/acc": seed / 10, "val/loss": seed, "test/acc": 0.5}))
"""


@pytest.fixture
def worker(tmp_path: Path) -> list[str]:
    (tmp_path / "worker.py").write_text(WORKER)
    return [sys.executable, str(tmp_path / "worker.py")]


def run(worker: list[str], tmp_path: Path, *overrides: str) -> tuple[int, Path]:
    code = local.run([*overrides, f"output_dir={tmp_path / 'out'}"], worker=worker)
    (folder,) = (tmp_path / "out" / "sweeps").iterdir()
    return code, folder


def record(folder: Path) -> list[dict]:
    return json.loads((folder / "sweep.json").read_text())["jobs"]


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
        local.run(["norm=bn,gx", f"output_dir={tmp_path / 'out'}"], worker=worker)
    assert caught.value.__notes__[-1] == "in job 1: norm=gx"
    assert not (tmp_path / "out").exists()


def test_each_job_has_a_frozen_config_in_a_folder_of_its_own(worker, tmp_path, capsys):
    code, folder = run(worker, tmp_path, "seed=1,2", "norm=gn", "trainer=cpu")
    assert code == 0
    assert load(folder / "1") == compose(["seed=2", "norm=gn", "trainer=cpu", f"output_dir={tmp_path / 'out'}"])
    assert (folder / "1" / "command.txt").read_text().startswith("cnn-train seed=2 norm=gn trainer=cpu")
    assert "epoch 1 of seed 2" in (folder / "1" / "log.txt").read_text()
    captured = capsys.readouterr()
    table = captured.out.splitlines()
    assert table[0].split() == ["job", "overrides", "val/loss", "test/acc", "state", "time", "folder"]
    assert table[1].split()[:5] == ["*", "0", "seed=1", "1.0000", "0.5000"]
    assert "best by val/loss: seed=1, 1.0000" in captured.out
    assert "[1/2] seed=1: started" in captured.err and "[2/2] seed=2: done in " in captured.err
    assert "\x1b" not in captured.out + captured.err


def test_a_failed_job_stops_no_other_and_is_explained(worker, tmp_path, capsys):
    code, folder = run(worker, tmp_path, "seed=1,7,8,9,3", "trainer=cpu", "sweep.jobs=2")
    assert code == 1
    jobs = record(folder)
    assert [job["state"] for job in jobs] == ["done", "failed", "failed", "failed", "done"]
    assert [job["exit_code"] for job in jobs] == [0, 3, -9, 0, 0]
    assert [job["error"] for job in jobs[1:4]] == [
        "no good",
        "killed by SIGKILL (memory?)",
        "it ended without metrics.json",
    ]
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["val/loss"] for row in rows] == ["1", "", "", "", "3"]
    captured = capsys.readouterr()
    assert f"job 1 (seed=7): no good; see {folder / '1' / 'log.txt'}" in captured.err
    assert "failed (3)" in captured.out and "best by val/loss: seed=1" in captured.out


@pytest.mark.parametrize(
    ("setting", "winner"),
    [
        ("sweep.metric=val/loss", "seed=1"),
        ("sweep.mode=min", "seed=1"),
        ("monitor=val/acc", "seed=3"),
    ],
)
def test_the_objective(worker, tmp_path, capsys, setting, winner):
    run(worker, tmp_path, "seed=1,3", "trainer=cpu", setting)
    assert f": {winner}, " in capsys.readouterr().out.split("best by")[1]


def test_an_objective_that_no_job_has_is_told(worker, tmp_path, capsys):
    code, _ = run(worker, tmp_path, "seed=1", "sweep.metric=val/nothing")
    captured = capsys.readouterr()
    assert code == 0 and "best by" not in captured.out
    assert "no job has val/nothing" in captured.err and "val/loss" in captured.err


def test_jobs_share_the_cores_and_take_one_gpu_each(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    threads = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    assert slots([compose()]) == [threads] * 4
    assert len(slots([compose(["sweep.jobs=3"])])) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert slots([compose()]) == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in slots([compose(["sweep.jobs=3"])])] == ["2", "5", "2"]
    assert slots([compose(["trainer=cpu"])]) == [threads] * 4
    assert slots([compose(["trainer=ddp"])]) == [{}], "a job on several devices has the machine to itself"


def test_the_live_display_draws_running_jobs(worker, tmp_path, capsys):
    code, _ = run(worker, tmp_path, "seed=1,2", "trainer.progress=rich")
    assert code == 0
    assert "[2/2] seed=2: done" in capsys.readouterr().err


def test_last_line_prefers_the_error_and_strips_escape_codes(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("error: first\nerror: \x1b[31msecond\x1b[0m\n  try: this\n\n")
    assert last_line(log, "error:") == "error: second"
    assert last_line(log) == "try: this"
    assert last_line(tmp_path / "absent") == ""


def test_durations():
    assert [duration(s) for s in (0.4, 59.7, 61, 3660)] == ["0s", "1m00s", "1m01s", "1h01m"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_every_job_save_and_leaves_none_behind(worker, tmp_path, number, code):
    overrides = ["seed=10,11", "trainer=cpu", "sweep.jobs=1", f"output_dir={tmp_path / 'out'}"]
    script = f"""
import sys
from cnn_train.cli.guard import guarded
from cnn_train.sweep import local
sys.exit(guarded(lambda: local.run({overrides!r}, worker={worker!r})))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/sweeps/*/0/ready")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    (folder,) = (tmp_path / "out" / "sweeps").iterdir()
    assert (folder / "0" / "saved").exists()
    assert [job["state"] for job in record(folder)] == ["stopped", "waiting"]
    assert "stopping 1 running job" in err and "Traceback" not in err
    assert "sweep.csv" in out


@pytest.mark.slow
def test_a_real_sweep_through_the_command_line(tmp_path):
    command = [sys.executable, "-m", "cnn_train", "-m", "act=relu,tanh", "trainer=cpu"]
    command += ["trainer.max_epochs=1", f"output_dir={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "best by val/loss" in result.stdout
