"""Going on with a run: what may change, what becomes of the schedule, preemptible machines, the same bits."""

import csv
from pathlib import Path

import pytest
import torch
from kills import OPTIONS, difference, prepare

from cnn_train.__main__ import main
from cnn_train.config.compose import compose
from cnn_train.config.load import load
from cnn_train.experiment.callbacks import build_callbacks
from cnn_train.experiment.train import train
from cnn_train.runs import checkpoint
from cnn_train.training.loop import Callback

SHORT = ["trainer.max_epochs=2", "trainer.limit_batches=4", "trainer.progress=none", "trainer.log_every=1"]


def started(folder: Path, *overrides: str) -> Path:
    prepare(folder, *SHORT, *overrides)
    train(load(folder), folder)
    return folder


def learning_rates(folder: Path) -> list[float]:
    with open(folder / "metrics.csv", newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    return started(tmp_path_factory.mktemp("runs") / "a", "scheduler=cosine")


def copy(folder: Path, to: Path) -> Path:
    import shutil

    shutil.copytree(folder, to)
    return to


def test_the_schedule_of_a_longer_run(two_epochs, tmp_path, capsys):
    """Cosine over n epochs of 4 steps: lr at the last step of epoch e is base (1 + cos(pi (4 e - 1) / 4 n)) / 2."""
    import math

    base = load(two_epochs).optimizer.lr

    def cosine(step: int, steps: int) -> float:
        return base * (1 + math.cos(math.pi * step / steps)) / 2

    first = [cosine(3, 8), cosine(7, 8)]
    expected = {
        "stretch": [*first, cosine(11, 16), cosine(15, 16)],
        "keep": [*first, cosine(7, 8), cosine(7, 8)],
        "restart": [*first, cosine(3, 8), cosine(7, 8)],
    }
    for policy, rates in expected.items():
        folder = copy(two_epochs, tmp_path / policy)
        assert main(["resume", str(folder), "trainer.max_epochs=4", f"schedule={policy}"]) == 0
        assert learning_rates(folder) == pytest.approx(rates)
        assert "trainer.max_epochs  2 -> 4\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "code", "says"),
    [
        ("optimizer.lr=1", 2, "a resumed run keeps this"),
        ("seed=1", 2, "weights="),
        ("data.batch_size=8", 2, "another experiment"),
        ("schedule=short", 2, "stretch, keep, restart"),
        ("trainer.max_epochs=x", 2, "whole number"),
        ("trainer.log_every=3", 2, "has done all its 2 epochs"),
    ],
)
def test_what_may_not_change(two_epochs, tmp_path, capsys, word, code, says):
    assert main(["resume", str(copy(two_epochs, tmp_path / "a")), word]) == code
    assert says in capsys.readouterr().err


class Kill(BaseException):
    """Stands for a process that is killed."""


class Killer(Callback):
    def __init__(self, step: int):
        self.step = step

    def on_step(self, loop):
        if loop.progress.step == self.step:
            raise Kill


def killed(patch: pytest.MonkeyPatch, step: int) -> None:
    build = build_callbacks

    def with_killer(cfg, machine):
        return [*build(cfg, machine), Killer(step)]

    patch.setattr("cnn_train.experiment.fit.build_callbacks", with_killer)


def test_resume_auto_goes_on_with_the_same_config_or_begins(tmp_path, monkeypatch):
    words = [*OPTIONS, *SHORT, f"output_dir={tmp_path}", "resume=auto"]
    with monkeypatch.context() as patch:
        killed(patch, 5)
        with pytest.raises(Kill):
            main(words)
    assert main([*words, "seed=1"]) == 0, "another config is another run"
    assert len(list(tmp_path.glob("lenet5/*"))) == 2
    assert main(words) == 0
    assert len(list(tmp_path.glob("lenet5/*"))) == 2, "the killed run went on"
    assert main(words) == 0
    assert len(list(tmp_path.glob("lenet5/*"))) == 3, "a finished run is not gone on with"


def test_a_run_killed_in_its_last_evaluation_gets_its_results(tmp_path, monkeypatch):
    undisturbed = started(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr("cnn_train.experiment.fit.evaluate_best", lambda *arguments: (_ for _ in ()).throw(Kill()))
        with pytest.raises(Kill):
            started(tmp_path / "b")
    assert main(["resume", str(tmp_path / "b")]) == 0
    assert difference(tmp_path / "b", undisturbed) == ""


def test_early_stopping_counts_on_after_a_resume(tmp_path, monkeypatch):
    options = ["optimizer.lr=1e-12", "trainer.max_epochs=30", "callbacks.early_stopping.patience=3"]
    undisturbed = started(tmp_path / "a", *options)
    with monkeypatch.context() as patch:
        killed(patch, 10)
        with pytest.raises(Kill):
            started(tmp_path / "b", *options)
    assert main(["resume", str(tmp_path / "b")]) == 0
    assert difference(tmp_path / "b", undisturbed) == ""
    assert len(learning_rates(tmp_path / "b")) == 4


def test_the_curve_of_a_resumed_run_is_that_of_one_run(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["logger=tensorboard", "trainer.log_every=2", "callbacks.checkpoint.every_steps=3", "callbacks.samples=0"]

    def curve(folder: Path) -> list[tuple[int, float]]:
        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        return [(point.step, point.value) for point in events.Scalars("train/loss_step")]

    undisturbed = started(tmp_path / "a", *options)
    with monkeypatch.context() as patch:
        killed(patch, 5)
        with pytest.raises(Kill):
            started(tmp_path / "b", *options)
    assert checkpoint.load(tmp_path / "b" / "last.ckpt")["progress"]["step"] == 4
    assert main(["resume", str(tmp_path / "b")]) == 0
    assert curve(tmp_path / "b") == curve(undisturbed)


# -- The same bits ----------------------------------------------------------------------------------------------------


def test_verify_repro_finds_nothing_in_a_run_of_ours(two_epochs, capsys):
    assert main(["verify-repro", str(two_epochs), "steps=6"]) == 0
    assert "the same bits: 6 steps twice, and from a checkpoint after 3" in capsys.readouterr().out


def test_verify_repro_names_the_layer_and_step_that_differ(two_epochs, capsys, monkeypatch):
    from cnn_train.models.classification.lenet import LeNet5

    forward, calls = LeNet5.forward, iter(range(10**6))

    def noisy(self, x):
        if self.training and x.device.type != "meta" and next(calls) == 8:
            with torch.no_grad():
                self.conv2.bias += 1e-3
        return forward(self, x)

    monkeypatch.setattr(LeNet5, "forward", noisy)
    assert main(["verify-repro", str(two_epochs), "steps=6"]) == 1
    out = capsys.readouterr().out
    assert "step 3 the second time: the output of conv2 differs" in out
    assert "repro=strict" in out


def test_strict_means_deterministic_algorithms(tmp_path):
    seen = []

    class Look(Callback):
        def on_step(self, loop):
            seen.append(torch.are_deterministic_algorithms_enabled())

    try:
        with pytest.MonkeyPatch.context() as patch:
            build = build_callbacks

            def with_look(cfg, machine):
                return [*build(cfg, machine), Look()]

            patch.setattr("cnn_train.experiment.fit.build_callbacks", with_look)
            train(compose([*OPTIONS, *SHORT, "trainer.max_epochs=1", "repro=strict"]), prepare(tmp_path / "a"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen and all(seen)
