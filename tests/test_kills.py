"""A run that is killed or stopped at any moment and resumed ends with the very bits of one that never was.

The long form: `python -m pytest tests/test_kills.py -m slow`.
"""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from children import end
from kills import begin, difference, leftovers, prepare, temporary_directory, unreadable, whole

from cnn_train.runs import checkpoint


def kill_and_resume(folder: Path, seconds: float, chance: random.Random, most: int) -> int:
    """Kill the run at random moments, up to `most` times, then let it end; how often it was killed."""
    kills, resume = 0, False
    while kills < most:
        child = begin(folder, resume)
        time.sleep(chance.uniform(0.02, seconds))
        os.kill(child, signal.SIGKILL)
        killed = end(child) != 0
        assert unreadable(folder) == []
        if not killed or (folder / "metrics.json").exists():  # the last file that a run writes
            return kills + killed
        kills, resume = kills + 1, True
    whole(folder, resume=True)
    return kills


def check_kills(tmp_path: Path, kills: int, per_run: int, seed: int, *options: str) -> None:
    reference = prepare(tmp_path / "reference", *options)
    seconds = whole(reference)
    chance, done, number = random.Random(seed), 0, 0
    while done < kills:
        folder = prepare(tmp_path / str(number), *options)
        killed = kill_and_resume(folder, seconds, chance, min(per_run, kills - done))
        assert difference(folder, reference) == "", f"after {killed} kills"
        assert leftovers(folder) == []
        done, number = done + killed, number + 1


def test_fifteen_kills(tmp_path):
    check_kills(tmp_path, 15, 5, 0)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Images in a folder, so that workers read them."""
    from PIL import Image

    chance = random.Random(0)
    for name in "ab":
        for number in range(60):
            path = tmp_path / "pictures" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (32, 32), tuple(chance.randrange(256) for _ in range(3)))
            image.save(path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return [
        "data=folder", f"data.root={tmp_path / 'pictures'}", "data.batch_size=16", "data.eval_batch_size=64",
        "augment=flip",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("workers", [0, 2])
def test_fifty_kills(tmp_path, files, workers, precision):
    """Four times: 200 kills, with TMPDIR in memory, another file system than the runs'."""
    elsewhere = Path("/dev/shm") if os.path.isdir("/dev/shm") else None
    with temporary_directory(elsewhere):
        check_kills(
            tmp_path,
            50,
            5,
            workers + len(precision),
            *files,
            f"data.workers={workers}",
            f"trainer.precision={precision}",
        )


@pytest.mark.slow
def test_resume_from_every_step(tmp_path):
    """Twelve steps of four epochs, each killed right after its checkpoint, and after its epoch's end."""
    options = ["trainer.max_epochs=4", "trainer.limit_batches=3"]
    reference = prepare(tmp_path / "reference", *options)
    whole(reference)
    for step in range(1, 13):
        folder = prepare(tmp_path / str(step), *options)

        def kill_at(step: int = step) -> None:
            from cnn_train.training.callbacks.checkpoints import Checkpoints

            on_step = Checkpoints.on_step

            def killing(self, task):
                on_step(self, task)
                if task.progress.step == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            Checkpoints.on_step = killing

        assert end(begin(folder, False, kill_at)) == -signal.SIGKILL
        whole(folder, resume=True)
        assert difference(folder, reference) == "", f"from step {step}"


# -- Signals ----------------------------------------------------------------------------------------------------------


def check_signals(tmp_path: Path, numbers: list[signal.Signals], seed: int) -> None:
    """Stop a run again and again; each time it saves the state of that very step, in time."""
    reference = prepare(tmp_path / "reference")
    seconds = whole(reference)
    chance, number, folder, resume = random.Random(seed), 0, prepare(tmp_path / "0"), False
    while numbers:
        child = begin(folder, resume)
        time.sleep(chance.uniform(0.02, seconds / 2))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, numbers[-1])
        start = time.monotonic()
        code = end(child)
        assert time.monotonic() - start < 5
        if code == 0 or (folder / "metrics.json").exists():
            assert difference(folder, reference) == "" and leftovers(folder) == []
            number, resume = number + 1, False
            folder = prepare(tmp_path / str(number))
            continue
        out = (folder / "out.txt").read_text()
        assert code == 128 + numbers.pop(), out
        last = out.strip().splitlines()[-2:]
        if (folder / "last.ckpt").exists() and last[0].startswith("stopped at"):
            assert f"stopped at step {checkpoint.load(folder / 'last.ckpt')['progress']['step']}," in last[0]
            assert last[1] == f"  continue: cnn-train resume {folder}"
        resume = True
    whole(folder, resume=True)
    assert difference(folder, reference) == "" and leftovers(folder) == []


SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


def test_six_signals(tmp_path):
    check_signals(tmp_path, SIGNALS * 2, 1)


@pytest.mark.slow
def test_fifty_signals(tmp_path):
    check_signals(tmp_path, [SIGNALS[i % 3] for i in range(50)], 2)


def test_a_second_signal_ends_at_once(tmp_path):
    """The first is taken in the middle of a step that then never ends."""
    folder = prepare(tmp_path / "a")

    def hang() -> None:
        from cnn_train.training.loop import Loop

        Loop.step = lambda self, *batch: time.sleep(60)

    child = begin(folder, False, hang)
    while not (folder / "log.txt").exists():
        time.sleep(0.01)
    time.sleep(1.0)
    os.kill(child, signal.SIGINT)
    time.sleep(0.3)
    start = time.monotonic()
    os.kill(child, signal.SIGINT)
    assert end(child) == 130
    assert time.monotonic() - start < 1


def test_slurm_is_asked_to_start_the_job_again(tmp_path, monkeypatch):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    from cnn_train.training.callbacks.checkpoints import Stopped

    stop = Stopped(signal.SIGUSR1, tmp_path / "run" / "last.ckpt", 7)
    assert stop.exit_code == 138
    assert (tmp_path / "asked").read_text() == "requeue 123\n"
    assert "starts job 123 again" in str(stop)
