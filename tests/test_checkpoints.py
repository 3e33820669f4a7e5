"""Checkpoints under failing disks, damage and errors; values that are not finite; memory."""

import csv
import errno
import json
import logging
import math
import os
import random
import resource
from pathlib import Path

import pytest
import torch
from children import end
from kills import begin, difference, leftovers, prepare, unequal, whole

from cnn_train.atomic import create
from cnn_train.config.compose import compose
from cnn_train.errors import ConfigError, DataError, DivergedError, EnvError
from cnn_train.experiment.callbacks import build_callbacks
from cnn_train.experiment.network import build_network_and_data
from cnn_train.experiment.train import train
from cnn_train.runs import checkpoint
from cnn_train.training.loop import Callback

SHORT = ("trainer.max_epochs=2", "trainer.limit_batches=4", "trainer.progress=none", "logger=none")


def run(folder: Path, *overrides: str, resume: bool = False) -> dict[str, float]:
    folder.mkdir(exist_ok=True)
    return train(compose([*SHORT, *overrides]), folder, resume)


def state(value: float) -> dict[str, object]:
    return {"progress": {"step": int(value)}, "network": {"w": torch.full((1000,), value)}}


# -- Every operation of a save ----------------------------------------------------------------------------------------


class Disk:
    """Counts the file operations of a save and does `act` before number `fails`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: int, act: object):
        self.count, self.fails, self.act = 0, fails, act
        for name in ("fsync", "link", "replace", "open"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        monkeypatch.setattr(checkpoint, "create", self.opened)

    def counted(self, function):
        def call(*arguments, **options):
            self.count += 1
            if self.count == self.fails:
                self.act()
            return function(*arguments, **options)

        return call

    def opened(self, *arguments):
        file = self.counted(create)(*arguments)
        file_write, file_flush = file.write, file.flush

        class File:
            write = staticmethod(self.counted(file_write))
            flush = staticmethod(self.counted(file_flush))
            fileno = file.fileno

            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

        return File()


def operations(folder: Path) -> int:
    """How many file operations a save does."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, -1, None)
        checkpoint.save(state(2), folder / "last.ckpt", folder / "previous.ckpt")
    return disk.count


def started(folder: Path) -> Path:
    folder.mkdir()
    checkpoint.save(state(0), folder / "last.ckpt", folder / "previous.ckpt")
    checkpoint.save(state(1), folder / "last.ckpt", folder / "previous.ckpt")
    return folder


def test_dying_at_any_operation_of_a_save_leaves_the_newest_or_the_one_before(tmp_path):
    count = operations(started(tmp_path / "count"))
    assert count >= 8
    seen = set()
    for fails in range(1, count + 1):
        folder = started(tmp_path / str(fails))
        child = os.fork()
        if not child:
            Disk(pytest.MonkeyPatch(), fails, lambda: os._exit(9))
            checkpoint.save(state(2), folder / "last.ckpt", folder / "previous.ckpt")
            os._exit(0)
        assert end(child) == 9
        for path in folder.glob("*.ckpt"):
            checkpoint.load(path)
        found, told = checkpoint.load_newest(folder)
        assert told == ""
        seen.add(found["progress"]["step"])
    assert seen == {1, 2}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_operation_of_a_save_is_one_line_and_leaves_no_half_file(tmp_path, number):
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    count = operations(started(tmp_path / "count"))
    for fails in range(1, count + 1):
        folder = started(tmp_path / str(fails))
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, fails, fail)
            try:
                checkpoint.save(state(2), folder / "last.ckpt", folder / "previous.ckpt")
            except EnvError as error:
                assert os.strerror(number) in str(error) and "\n" not in str(error)
        assert checkpoint.load_newest(folder)[0]["progress"]["step"] in (1, 2)
        assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_where_no_second_name_can_be_given_the_one_before_is_kept_too(tmp_path, monkeypatch):
    def refuse(*names: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder = started(tmp_path / "a")
    steps = [checkpoint.load(folder / name)["progress"]["step"] for name in ("last.ckpt", "previous.ckpt")]
    assert steps == [1, 0]


def test_a_disk_that_is_too_small_is_noticed_before_the_write(tmp_path, monkeypatch):
    folder = started(tmp_path / "a")
    usage = type("usage", (), {"free": 3000})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(EnvError, match=r"needs 0 MB and 0 MB are free; the checkpoint before is untouched"):
        checkpoint.save(state(2), folder / "last.ckpt", folder / "previous.ckpt")
    assert checkpoint.load(folder / "last.ckpt")["progress"]["step"] == 1


def test_a_run_on_a_full_disk_ends_with_4_and_goes_on_when_there_is_room(tmp_path):
    """The limit of a file's size stands for a full disk: the write fails in the middle of a checkpoint."""
    reference = prepare(tmp_path / "reference")
    whole(reference)
    size = (reference / "last.ckpt").stat().st_size
    room, folder = size // 2, prepare(tmp_path / "full")

    def small() -> None:
        from cnn_train.training.callbacks.checkpoints import Checkpoints

        on_step = Checkpoints.on_step

        def smaller(self, loop):
            if loop.progress.step == 7:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            on_step(self, loop)

        Checkpoints.on_step = smaller
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    assert end(begin(folder, False, small)) == 4
    error = (folder / "out.txt").read_text().strip()
    assert error.startswith("error: cannot write") and "File too large" in error and "\n" not in error
    assert checkpoint.load(folder / "last.ckpt")["progress"]["step"] == 6
    assert leftovers(folder) == ["previous.ckpt"]
    whole(folder, resume=True)
    assert difference(folder, reference) == ""


# -- Damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_byte_is_noticed_or_harmless(tmp_path):
    path, copy = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    checkpoint.save(state(1), path)
    content, chance = path.read_bytes(), random.Random(0)
    noticed = 0
    for _ in range(300):
        changed = bytearray(content)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        copy.write_bytes(changed)
        try:
            assert unequal(checkpoint.load(copy), state(1), "") == ""
        except ConfigError as error:
            noticed += 1
            assert "\n" not in str(error) and "b.ckpt" in str(error)
    assert noticed > 200


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_used(tmp_path, capsys, damage):
    options = ["callbacks.checkpoint.every_steps=1", "trainer.max_epochs=3"]
    run(tmp_path / "reference", *options)

    class Stop(Callback):
        def on_step(self, loop):
            if loop.progress.step == 7:
                raise KeyError("stop")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError):
        with_callback(patch, Stop())
        run(tmp_path / "a", *options)
    last = tmp_path / "a" / "last.ckpt"
    assert checkpoint.load(last)["progress"]["step"] == 7
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.unlink() if damage == "missing" else last.write_bytes(content)
    capsys.readouterr()
    run(tmp_path / "a", *options, resume=True)
    err = capsys.readouterr().err
    assert damage == "missing" or ("last.ckpt is damaged" in err and "going on from previous.ckpt, step 6" in err)
    assert difference_of_weights(tmp_path / "a", tmp_path / "reference") == ""


def with_callback(patch: pytest.MonkeyPatch, callback: Callback) -> None:
    build = build_callbacks

    def with_one_more(cfg, machine):
        return [*build(cfg, machine), callback]

    patch.setattr("cnn_train.experiment.fit.build_callbacks", with_one_more)


def difference_of_weights(a: Path, b: Path) -> str:
    first, second = checkpoint.load(a / "last.ckpt"), checkpoint.load(b / "last.ckpt")
    return unequal(first["network"], second["network"], "") or unequal(first["optimizer"], second["optimizer"], "")


def test_an_error_keeps_what_was_reached(tmp_path, monkeypatch):
    """An image that cannot be read in the third batch: the two steps before are saved."""
    from cnn_train.data.data import Data

    batches = Data.train_batches

    def failing(self, epoch, **where):
        for number, batch in enumerate(batches(self, epoch, **where)):
            if number == 2:
                raise DataError("cannot read cat.jpg")
            yield batch

    monkeypatch.setattr(Data, "train_batches", failing)
    with pytest.raises(DataError):
        run(tmp_path / "a")
    assert checkpoint.load(tmp_path / "a" / "last.ckpt")["progress"]["step"] == 2


def test_the_best_epochs_are_kept(tmp_path):
    options = ["monitor=val/acc", "optimizer.lr=0.05", "callbacks.checkpoint.keep_best=3"]
    run(tmp_path / "a", "trainer.max_epochs=6", *options)
    with open(tmp_path / "a" / "metrics.csv", newline="") as file:
        values = [float(row["val/acc"]) for row in csv.DictReader(file)]
    ranked = sorted(range(6), key=lambda i: (-values[i], i))[:3]
    names = {path.name for path in (tmp_path / "a").glob("epoch-*.ckpt")}
    assert names == {f"epoch-{i + 1}.ckpt" for i in ranked}
    best = checkpoint.load(tmp_path / "a" / "best.ckpt")["network"]
    assert unequal(best, checkpoint.load(tmp_path / "a" / f"epoch-{ranked[0] + 1}.ckpt")["network"], "") == ""


def test_two_processes_do_not_train_in_one_folder(tmp_path, monkeypatch):
    from cnn_train.runs import folder as run_folder

    lock = run_folder._lock
    monkeypatch.setattr(run_folder, "_lock", lambda folder: lock(folder, patience=0.1))
    with (
        run_folder.in_use(tmp_path),
        pytest.raises(EnvError, match="another process trains in"),
        run_folder.in_use(tmp_path),
    ):
        pass
    with run_folder.in_use(tmp_path):
        pass


# -- Not finite -------------------------------------------------------------------------------------------------------


class Poison(Callback):
    """Makes one weight so large that the next step's loss is not finite."""

    def __init__(self, step: int, name: str = "fc2.weight"):
        self.step, self.name = step, name

    def on_step(self, loop):
        if loop.progress.step == self.step:
            self.loop = loop
            loop.network.get_submodule(self.name.rpartition(".")[0]).register_forward_hook(self.spoil)

    def spoil(self, module, inputs, output):
        return output * math.nan if module.training and self.loop.progress.step == self.step else output


def test_not_finite_stops_before_the_update_and_names_layer_and_samples(tmp_path, monkeypatch):
    with_callback(monkeypatch, Poison(5))
    with pytest.raises(DivergedError) as caught:
        run(tmp_path / "a", "callbacks.checkpoint.every_steps=1")
    text = str(caught.value)
    assert "diverged at step 6 (epoch 2): loss nan" in text and "the output of fc2 (Linear)" in text
    assert "last.ckpt is from before" in text and "\n" not in text
    report = json.loads((tmp_path / "a" / "not_finite.json").read_text())
    data = build_network_and_data(compose(SHORT))[1]
    batches = list(data.train_batches(1, device=torch.device("cpu")))
    assert report["samples"] == batches[1].indices.tolist()
    monkeypatch.undo()
    saved = checkpoint.load(tmp_path / "a" / "last.ckpt")
    assert saved["progress"]["step"] == 5
    assert all(bool(value.isfinite().all()) for value in saved["network"].values())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_fused_optimizer_leaves_the_weights_alone_until_the_step_is_found(tmp_path, monkeypatch, optimizer):
    """As on a GPU, where nothing waits: the step is found when the curve is read, and no weight has changed since."""
    seen = {}

    class AsOnGPU(Poison):
        def on_train_start(self, trainer, loop):
            assert loop.update.poison is None
            loop.update.poison = torch.zeros(())

        def on_step(self, loop):
            super().on_step(loop)
            seen[loop.progress.step] = {name: p.detach().clone() for name, p in loop.network.named_parameters()}

    with_callback(monkeypatch, AsOnGPU(4))
    options = [f"optimizer={optimizer}", "optimizer.fused=true", "trainer.limit_batches=12", "trainer.log_every=9"]
    with pytest.raises(DivergedError, match=r"diverged at step 5 .*the output of fc2 \(Linear\)"):
        run(tmp_path / "a", *options)
    assert max(seen) == 8
    assert unequal(seen[3], seen[4], "") != ""
    assert unequal(seen[4], seen[8], "") == ""
    assert not (tmp_path / "a" / "last.ckpt").exists()


def test_a_gradient_that_is_not_finite_is_found_though_the_loss_is(tmp_path, monkeypatch):
    """The square root's slope at 0 is infinite, its value is not."""
    from cnn_train.tasks.task import Task
    from cnn_train.training.loop import Loop

    total_loss, step = Task.total_loss, Loop.step
    loops = []

    def rooted(self, outputs, targets):
        loss = total_loss(self, outputs, targets)
        loop = loops[-1]
        return loss + (loop.network.fc1.bias * 0).sum().sqrt() if loop.progress.step == 2 else loss

    monkeypatch.setattr(Loop, "step", lambda self, batch: loops.append(self) or step(self, batch))
    monkeypatch.setattr(Task, "total_loss", rooted)
    with pytest.raises(
        DivergedError, match=r"diverged at step 3 .*loss \d.*gradient norm nan.*the gradient of fc1\.bias"
    ):
        run(tmp_path / "a")


def test_skip_leaves_out_the_update_and_nothing_else(tmp_path, monkeypatch, caplog):
    """A skipped step 3 is a run whose third update is not made: weights, optimizer and running statistics."""
    options = ["norm=bn", "trainer.on_nan=skip", "optimizer=momentum", "scheduler=constant"]
    from cnn_train.training.loop import Loop

    with monkeypatch.context() as patch:
        with_callback(patch, Poison(2, "fc2.weight"))
        with caplog.at_level(logging.WARNING):
            metrics = run(tmp_path / "a", *options)
    assert "step 3 skipped: first not finite: the output of fc2" in caplog.text
    assert math.isfinite(metrics["train/loss"]) and math.isfinite(metrics["val/loss"])

    step = Loop.step

    def without_third(self, batch):
        if self.progress.step == 2:
            self.progress.step += 1
            return torch.zeros(())
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", without_third)
        run(tmp_path / "b", *options)
    assert difference_of_weights(tmp_path / "a", tmp_path / "b") == ""


def test_rollback_goes_on_from_the_last_checkpoint_with_the_next_batch(tmp_path, monkeypatch, caplog):
    with_callback(monkeypatch, Poison(6))
    with caplog.at_level(logging.WARNING):
        metrics = run(tmp_path / "a", "trainer.on_nan=rollback", "trainer.max_epochs=3")
    assert "step 7: first not finite" in caplog.text and "going on from the state of step 4" in caplog.text
    assert math.isfinite(metrics["val/loss"])
    assert checkpoint.load(tmp_path / "a" / "last.ckpt")["progress"]["step"] == 12


def test_always_skipping_ends(tmp_path):
    with pytest.raises(DivergedError):
        run(
            tmp_path / "a",
            "trainer.on_nan=skip",
            "act=relu",
            "optimizer=sgd",
            "optimizer.lr=1e30",
            "trainer.limit_batches=15",
        )


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([2.0, 1.0, 0.5, 30.0, 40.0], "the loss explodes: 0.5 before, now 30"),
        ([2.303] * 25, "the loss stands still at 2.303"),
        ([2.3 - 0.05 * i for i in range(25)], ""),
    ],
)
def test_a_loss_that_explodes_or_stands_still_is_warned_of_once(losses, told, caplog):
    from types import SimpleNamespace

    from cnn_train.training.callbacks.finite import LossWatch

    loop = SimpleNamespace(
        curve=SimpleNamespace(losses=[]),
        progress=SimpleNamespace(step=0, epoch=2),
        trainer=SimpleNamespace(is_global_zero=True),
    )
    watch = LossWatch()
    with caplog.at_level(logging.WARNING):
        for loss in losses:
            loop.curve.losses += [loss] * 3
            watch.on_step(loop)
    assert [told in record.getMessage() for record in caplog.records] == ([True] if told else [])


# -- Memory -----------------------------------------------------------------------------------------------------------


def test_a_split_batch_has_the_gradient_of_the_whole(tmp_path):
    options = ["optimizer=sgd", "optimizer.lr=0.1"]
    run(tmp_path / "a", *options)
    run(tmp_path / "b", *options, "trainer.split_batches=3")
    a, b = (checkpoint.load(tmp_path / name / "last.ckpt") for name in "ab")
    for name, value in a["network"].items():
        torch.testing.assert_close(value, b["network"][name], rtol=1e-3, atol=2e-5)
    assert a["metrics"]["train/loss"] == pytest.approx(b["metrics"]["train/loss"], rel=1e-5)


def test_the_parts_that_fit_in_memory_are_found_beforehand(tmp_path, monkeypatch, caplog):
    """A memory for 20 images: a batch of 64 goes in 4 parts, and trains as it does when told to."""
    from cnn_train.models.classification.lenet import LeNet5

    forward = LeNet5.forward

    def small_memory(self, x):
        if self.training and len(x) > 20 and x.device.type != "meta":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return forward(self, x)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(LeNet5, "forward", small_memory)
        with pytest.raises(EnvError, match=r"asked for 1\.00 GiB.*trainer\.split_batches=2"):
            run(tmp_path / "c")
        run(tmp_path / "a", "trainer.split_batches=auto")
    assert "a batch of 64 goes in 4 parts" in caplog.text
    run(tmp_path / "b", "trainer.split_batches=4")
    assert difference_of_weights(tmp_path / "a", tmp_path / "b") == ""
