"""Real jobs: forked from the warm server, killed, as several processes. Minutes, so all marked slow."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import end
from kills import leftovers, unequal
from sweeps import begin, newest, processes_of, records, states

from cnn_train.runs import checkpoint
from cnn_train.sweep import start, system

ROOT = Path(__file__).parents[1]
SMALL = ("trainer=cpu", "trainer.max_epochs=3", "trainer.limit_batches=6", "trainer.progress=none", "logger=none")


def cnn_train(*words: str, code: int = 0, **more: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, "-m", "cnn_train", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def difference(folder: Path, other: Path) -> str:
    """What differs between the results of two runs, bit by bit, but where their folders are; "" if nothing."""
    for name in ("last.ckpt", "best.ckpt"):
        states = [checkpoint.load(path / name) for path in (folder, other)]
        for state in states:
            del state["config"]
        if found := unequal(*states, name):
            return found
    for name in ("metrics.csv", "metrics.json"):
        if (folder / name).read_bytes() != (other / name).read_bytes():
            return name
    return ""


@pytest.mark.slow
def test_warm_workers_train_to_the_bits_of_fresh_ones(tmp_path):
    words = ("-m", *SMALL, "act=relu,tanh", "augment=shift", "model.dropout=0.3")
    assert "best by val/loss" in cnn_train(*words, f"output_dir={tmp_path / 'warm'}")
    cnn_train(*words, f"output_dir={tmp_path / 'fresh'}", "sweep.fresh=true")
    warm, fresh = newest(tmp_path / "warm"), newest(tmp_path / "fresh")
    for number in "01":
        assert difference(warm / number, fresh / number) == ""
    assert not processes_of(tmp_path)


@pytest.mark.slow
def test_twenty_kills_of_a_real_sweep(tmp_path):
    """kill -9 of the sweep, of a job or of both at random moments; every job ends with the undisturbed bits."""
    words = [*SMALL, "act=relu,tanh", "seed=0,1", "sweep.jobs=2", "callbacks.checkpoint.every_steps=1"]
    cnn_train("-m", *words, f"output_dir={tmp_path / 'a'}")
    undisturbed = newest(tmp_path / "a")
    chance, done, number = random.Random(0), 0, 0
    while done < 20:
        out, code = tmp_path / f"b{number}", None
        while code != 0:
            line = [*words, f"output_dir={out}", "resume=auto"]
            child = begin(lambda line=line: start.start(line), tmp_path / f"log{number}")
            if done < 20:
                time.sleep(chance.uniform(1.0, 14.0))
                done += disturb(chance.choice(["sweep", "job", "both"]), child, out)
            code = end(child, 120)
        folder = next(path for path in (out / "sweeps").iterdir() if (path / "sweep.csv").exists())
        assert states(folder) == ["done"] * 4
        for name in "0123":
            assert difference(folder / name, undisturbed / name) == "", f"after {done} kills"
            assert leftovers(folder / name) == []
        number += 1


def disturb(what: str, sweep: int, out: Path) -> int:
    """kill -9; how many kills that were. Warm jobs are found by the folder that each works in."""
    jobs = workers(out)
    killed = 0
    if what in ("sweep", "both"):
        os.kill(sweep, signal.SIGKILL)
        killed += 1
    if what in ("job", "both") and jobs:
        system.kill(jobs[0])
        killed += 1
    return killed


def workers(out: Path) -> list[int]:
    """Processes whose output goes to a job's log."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if os.readlink(entry).startswith(str(out)) and os.readlink(entry).endswith("log.txt"):
                found.append(int(entry.parts[2]))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_no_job_outlives_its_sweep(tmp_path, number):
    """Of a killed sweep and of a closed terminal: the jobs save, and are gone within 30 s."""
    words = [*SMALL, "trainer.max_epochs=500", "act=relu,tanh", "sweep.jobs=2", f"output_dir={tmp_path / 'out'}"]
    child = begin(lambda: start.start(words), tmp_path / "log")
    since = time.monotonic()
    while len(list(tmp_path.glob("out/sweeps/*/*/metrics.csv"))) < 2:
        assert time.monotonic() - since < 120, (tmp_path / "log").read_text()
        time.sleep(0.1)
    os.kill(child, number)
    assert end(child) == (-number if number == signal.SIGKILL else 128 + number)
    since = time.monotonic()
    while workers(tmp_path):
        assert time.monotonic() - since < 30
        time.sleep(0.1)
    folder = newest(tmp_path / "out")
    assert all("stopped at step" in (folder / name / "log.txt").read_text() for name in "01")
    assert f"continue: cnn-train resume {folder}" in cnn_train("sweep", "status", str(folder), code=1)


TELLING = """
from pathlib import Path
import lightning as L

class Tell(L.Callback):
    def on_train_start(self, trainer, loop):
        path = Path(trainer.default_root_dir, f"rank{trainer.global_rank}.txt")
        path.write_text(str(trainer.optimizers[0].defaults["lr"]))
"""


@pytest.mark.slow
def test_the_ranks_of_each_job_report_its_own_hyperparameters(tmp_path):
    (tmp_path / "telling.py").write_text(TELLING)
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "callbacks.tell={_target_: telling.Tell}")
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    cnn_train("-m", *SMALL[1:], *ddp, "optimizer.lr=0.001,0.002", f"output_dir={tmp_path}", **environment)
    folder = newest(tmp_path)
    assert states(folder) == ["done", "done"]
    for name, rate in (("0", 0.001), ("1", 0.002)):
        first = (folder / name / "metrics.csv").read_text().splitlines()[1:2]
        assert first and json.loads((folder / name / "job.json").read_text())["changes"] == [f"optimizer.lr={rate}"]
        assert f"lr: {rate}" in (folder / name / "config.yaml").read_text()
        assert [(folder / name / f"rank{rank}.txt").read_text() for rank in (0, 1)] == [str(rate)] * 2


@pytest.mark.slow
def test_an_experiment_that_holds_its_axes_is_a_sweep_by_one_word(tmp_path):
    mine = tmp_path / "conf" / "experiment" / "norms.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(
        "# @package _global_\n# cnn-train experiment=norms\n# Two norms, two rates\n"
        "sweep:\n  axes:\n    norm: [bn, gn]\n    optimizer.lr: 0.001,0.01\n"
    )
    own = ("experiment=norms", "--config-dir", str(tmp_path / "conf"), f"output_dir={tmp_path / 'out'}")
    cnn_train(*own, "trainer=smoke")
    folder = newest(tmp_path / "out")
    assert [" ".join(record["changes"]) for record in records(folder)] == [
        f"norm={norm} optimizer.lr={rate}" for norm in ("bn", "gn") for rate in ("0.001", "0.01")
    ]
    cnn_train("resume", str(folder))
    assert states(folder) == ["done"] * 4
