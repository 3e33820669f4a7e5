"""What a run survives besides kills: changed data, lost readers, workers that die, too little shared memory."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from kills import OPTIONS, prepare
from PIL import Image

from cnn_train.config.compose import compose
from cnn_train.data.room import check_shared_memory
from cnn_train.errors import DataError, EnvError
from cnn_train.experiment.train import train
from cnn_train.runs import checkpoint
from cnn_train.training.progress import Sums

ROOT = Path(__file__).parents[1]


def photographs(root: Path, count: int = 12) -> Path:
    for name in ("cat", "dog"):
        for split, number in (("train", count), ("val", 4), ("test", 4)):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(number):
                image = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
                Image.fromarray(image.numpy()).save(root / split / name / f"{index}.png")
    return root


def rename_class(root: Path) -> None:
    for split in ("train", "val", "test"):
        (root / split / "cat").rename(root / split / "zebra")


CHANGES = {
    "gone": (lambda root: (root / "train/cat/0.png").unlink(), "train has 23 samples instead of 24"),
    "added": (
        lambda root: (root / "val/dog/more.png").write_bytes((root / "val/dog/0.png").read_bytes()),
        "val has 9 samples instead of 8",
    ),
    "edited": (
        lambda root: Image.new("RGB", (16, 16)).save(root / "test/cat/1.png"),
        "test has as many samples, but other ones or edited ones",
    ),
    "renamed": (rename_class, "the classes are others (without 'cat'; with 'zebra')"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_is_told_at_resume_and_accepted_by_a_word(tmp_path, change):
    root = photographs(tmp_path / "photos")
    options = [*OPTIONS, "data=folder", f"data.root={root}", "data.workers=0", "image_size=32", "model=lenet5"]
    options += ["trainer.max_epochs=1", "data.batch_size=8"]
    folder = prepare(tmp_path / "run", *options)
    train(compose(options), folder)
    act, told = CHANGES[change]
    act(root)
    longer = compose([*options, "trainer.max_epochs=2"])
    with pytest.raises(DataError) as caught:
        train(longer, folder, resume=True)
    assert told in str(caught.value) and f"cnn-train resume {folder} changed_data=accept" in str(caught.value)
    train(longer, folder, resume=True, changed_data=True)
    assert checkpoint.load(folder / "last.ckpt")["progress"]["epoch"] == 2


WORDS = ["trainer.max_epochs=6", "trainer.limit_batches=5", "data.batch_size=16", "norm=none", "logger=none",
         "callbacks.samples=0", "trainer.progress=plain"]  # fmt: skip


@pytest.mark.parametrize(
    "streams", ["2>&1 | true", *(pytest.param(s, marks=pytest.mark.slow) for s in ("2>&-", ">&- 2>&-"))]
)
def test_a_run_without_a_reader_is_trained_to_its_end(tmp_path, streams):
    command = f"{sys.executable} -m cnn_train {' '.join(WORDS)} output_dir={tmp_path}"
    script = f"set -o pipefail; {command} {streams}; echo $? > {tmp_path}/code"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-c", script], env=environment, timeout=200, capture_output=True)
    (folder,) = (tmp_path / "lenet5").iterdir()
    assert (folder / "metrics.json").is_file()
    log = (folder / "log.txt").read_text()
    assert log.rstrip().endswith("done")
    if "true" in streams:
        assert log.count("nobody reads the output any more") >= 1
    assert (tmp_path / "code").read_text().strip() == "0"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers by /proc")
def test_a_killed_worker_is_told_of_and_the_state_saved(tmp_path):
    root = photographs(tmp_path / "photos", 200)
    words = ["data=folder", f"data.root={root}", "data.workers=2", "data.cache=none", "trainer.max_epochs=50"]
    words += ["model=lenet5", "image_size=32", "data.batch_size=8", "trainer.progress=plain", "logger=none"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cnn_train", *words, f"output_dir={tmp_path}"], stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("lenet5/*/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    # One that dies when its work is done is not missed: the next epoch has others. So one after the other is killed.
    start, killed = time.monotonic(), 0
    while process.poll() is None and time.monotonic() - start < 30:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with suppress(OSError):
                if Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
                    killed += 1
        time.sleep(0.3)
    _, err = process.communicate(timeout=30)
    assert killed
    assert process.returncode in (3, 4) and "a data worker was killed" in err
    (folder,) = (tmp_path / "lenet5").iterdir()
    assert checkpoint.load(folder / "last.ckpt")["progress"]["step"] > 0


def test_too_little_shared_memory_is_told_with_what_helps(tmp_path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(64 << 20, 0, 64 << 20))
    check_shared_memory(2, 16 << 20, tmp_path)  # just fits
    check_shared_memory(0, 1 << 40, tmp_path)
    check_shared_memory(2, 1 << 40, tmp_path / "no such folder")
    with pytest.raises(EnvError, match=r"64 MiB free, but 4 data workers need 128 MiB .*--shm-size=256m"):
        check_shared_memory(4, 16 << 20, tmp_path)


def test_sums_of_an_epoch_are_each_processs_own_or_all_in_the_first():
    rows, cpu = torch.arange(12, dtype=torch.float64).view(2, 6), torch.device("cpu")

    def joined(rank: int, processes: int) -> list[float]:
        return torch.cat(Sums.of(rows, rank, processes, cpu).values()).tolist()

    assert [joined(rank, 2) for rank in range(2)] == rows.tolist()
    assert joined(0, 3) == rows.sum(0).tolist() and joined(2, 3) == [0.0] * 6
