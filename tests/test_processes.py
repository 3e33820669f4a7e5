"""Two processes that train one run on the CPU: they stop, fail and end together. Slow: each starts torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kills import leftovers, prepare

from cnn_train.errors import EnvError
from cnn_train.experiment import processes
from cnn_train.runs import checkpoint
from cnn_train.runs.signals import Interrupted

ROOT = Path(__file__).parents[1]
TWO = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=3", "norm=gn")


@pytest.mark.parametrize(
    ("codes", "errors", "kind", "code", "says"),
    [
        (
            {0: 1, 1: 3},
            ["unexpected RuntimeError: gloo", "cannot read x.jpg"],
            processes.ProcessFailed,
            3,
            "cannot read",
        ),
        ({1: -9, 0: 1}, ["unexpected RuntimeError: gloo", ""], EnvError, 4, "process 1 of 2 was killed by SIGKILL"),
        ({1: 143, 0: 143}, ["stopped at step 4", "stopped at step 4"], Interrupted, 143, "stopped at step 4"),
        ({1: 1, 0: 1}, ["gloo", "IndexError\ntraceback: log.txt"], processes.ProcessFailed, 1, "IndexError"),
        (
            {0: 1, 1: 1},
            ["another process failed after step 4; the state is saved in last.ckpt", "unexpected IndexError"],
            processes.ProcessFailed,
            1,
            "IndexError",
        ),
        ({0: 0, 1: 7}, ["", ""], processes.ProcessFailed, 7, "process 1 of 2 ended with exit code 7"),
    ],
)
def test_the_error_that_the_others_follow_from_is_told(codes, errors, kind, code, says):
    error = processes.failure(codes, errors)
    assert type(error) is kind and error.exit_code == code and says in str(error)


def start(folder: Path, *words: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "cnn_train", "worker", str(folder), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def ranks(parent: int) -> dict[int, int]:
    """Process ids of the ranks that a process has started."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1] == str(parent):
                environment = path.joinpath("environ").read_bytes().split(b"\0")
                rank = next(word for word in environment if word.startswith(b"LOCAL_RANK="))
                found[int(rank.split(b"=")[1])] = int(path.name)
        except (OSError, StopIteration):
            continue
    return found


def alive(pids: Iterator[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in state_of(pid)]


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_stop_at_one_step_and_go_on(tmp_path):
    """A signal to the one that started them, to the first alone, to the second alone."""
    reference = prepare(tmp_path / "reference", *TWO)
    process = start(reference)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    folder, resume = prepare(tmp_path / "a", *TWO), []
    for to, number in ((None, signal.SIGTERM), (0, signal.SIGINT), (1, signal.SIGTERM)):
        (folder / "metrics.csv").unlink(missing_ok=True)
        process = start(folder, *resume)
        wait_for(folder / "last.ckpt", process) if not resume else time.sleep(0)
        if resume:
            wait_for(folder / "metrics.csv", process)
        both = ranks(process.pid)
        os.kill(process.pid if to is None else both[to], number)
        begun = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number, err
        assert time.monotonic() - begun < 10
        step = checkpoint.load(folder / "last.ckpt")["progress"]["step"]
        assert err.count("stopped at step") == 1 and f"stopped at step {step}," in err
        assert "Traceback" not in err and "gloo" not in err
        assert alive(both.values()) == []
        resume = ["resume=true"]
    process = start(folder, "resume=true")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert leftovers(folder) == []
    first, second = (checkpoint.load(path / "last.ckpt")["network"] for path in (folder, reference))
    assert all((first[name] == second[name]).all() for name in first)


FAILING = """
import os
from cnn_train.data.digits import digits
from cnn_train.data.data import Data
from cnn_train.errors import DataError

def failing(**options):
    batches = Data.METHOD
    def failing_batches(self, split, *, rank=0, **where):
        for number, batch in enumerate(batches(self, split, rank=rank, **where)):
            if rank == 1 and number == AT:
                FAIL
            yield batch
    Data.METHOD = failing_batches
    return digits(**options)
"""


def fail_in(folder: Path, method: str, at: int, fail: str) -> str:
    """Make the second process of the run in `folder` fail at a batch; its config as it was."""
    (folder / "spoilt.py").write_text(FAILING.replace("METHOD", method).replace("AT", str(at)).replace("FAIL", fail))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("cnn_train.data.digits.digits", "spoilt.failing"))
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fail", "code", "says"),
    [
        ("raise DataError('cannot read cat.jpg')", 3, "error: cannot read cat.jpg"),
        ("raise IndexError('list index out of range')", 1, "error: unexpected IndexError: list index out of range"),
        (
            "os.kill(os.getpid(), 9)",
            4,
            "error: process 1 of 2 was killed by SIGKILL, usually for memory; the others were ended",
        ),
    ],
)
def test_one_that_fails_ends_the_other_and_its_error_is_shown(tmp_path, fail, code, says):
    folder = prepare(tmp_path / "a", *TWO)
    fail_in(folder, "train_batches", 2, fail)
    process = start(folder, "trust=spoilt")
    wait_for(folder / "log.txt", process)
    pids: dict[int, int] = {}
    while process.poll() is None:
        pids |= ranks(process.pid)
        time.sleep(0.1)
    _, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert process.returncode == code, err
    assert lines == [says]
    assert "gloo" not in err and "Traceback" not in err
    assert len(pids) == 2 and alive(pids.values()) == []


@pytest.mark.slow
def test_an_error_in_one_saves_what_all_have_reached(tmp_path):
    """At the third batch of an epoch, and in validation; the run is resumed to the bits of an undisturbed one."""
    reference = prepare(tmp_path / "reference", *TWO)
    _, err = start(reference).communicate(timeout=200)
    wanted = checkpoint.load(reference / "last.ckpt")
    for method, at, step in (("train_batches", 2, 2), ("eval_batches", 0, wanted["progress"]["step"] // 3)):
        folder = prepare(tmp_path / method, *TWO)
        config = fail_in(folder, method, at, "raise DataError('cannot read cat.jpg')")
        process = start(folder, "trust=spoilt")
        _, err = process.communicate(timeout=200)
        assert process.returncode == 3 and "error: cannot read cat.jpg" in err, err
        assert checkpoint.load(folder / "last.ckpt")["progress"]["step"] == step
        (folder / "config.yaml").write_text(config)
        process = start(folder, "resume=true")
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        found = checkpoint.load(folder / "last.ckpt")
        assert all((found["network"][name] == value).all() for name, value in wanted["network"].items())
        assert (folder / "metrics.csv").read_text() == (reference / "metrics.csv").read_text()


@pytest.mark.slow
def test_without_their_parent_they_end(tmp_path):
    folder = prepare(tmp_path / "a", *TWO, "trainer.max_epochs=500")
    process = start(folder)
    wait_for(folder / "last.ckpt", process)
    pids = ranks(process.pid)
    assert len(pids) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while alive(pids.values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
