"""Training as a user runs it, on the real digits."""

import csv
import io
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from cnn_train.config.compose import compose
from cnn_train.errors import ConfigError, DivergedError, EnvError
from cnn_train.experiment.evaluate import evaluate
from cnn_train.experiment.train import train
from cnn_train.runs import checkpoint
from cnn_train.runs import folder as run_folder
from cnn_train.training.loop import Callback

SHORT = ["trainer.max_epochs=2", "trainer.limit_batches=4", "trainer.progress=none"]


class Kill(BaseException):
    """Stands for a process that is killed: nothing of ours handles it."""


def run(folder: Path, *overrides: str, resume: bool = False) -> dict[str, float]:
    folder.mkdir(exist_ok=True)
    return train(compose([*SHORT, *overrides]), folder, resume)


def describe(folder: Path, *overrides: str) -> None:
    from omegaconf import OmegaConf

    folder.mkdir()
    run_folder.describe(folder, OmegaConf.to_yaml(compose([*SHORT, *overrides])), "cnn-train")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "last.ckpt")["network"]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_run_folder_explains_itself(tmp_path, capsys):
    metrics = train(compose([*SHORT, f"output_dir={tmp_path}", "trainer.log_every=2", "norm=gn"]))
    (folder,) = (tmp_path / "lenet5").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.yaml", "command.txt", "environment.json", "metrics.csv", "metrics.json", "per_class.csv",
        "best.ckpt", "last.ckpt", "tensorboard", "pictures",
    }  # fmt: skip
    assert not [name for name in names if name.endswith(".tmp")]
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["4", "8"]
    assert float(rows[-1]["val/loss"]) > 0
    state = checkpoint.load(folder / "best.ckpt")
    assert state["class_names"] == [str(digit) for digit in range(10)]
    assert state["preprocessing"]["image_size"] == [32, 32]
    assert state["config"]["choices"]["norm"] == "gn"
    out, err = capsys.readouterr()
    assert "test/acc" in out and str(folder) in out and "resume" in out
    assert err == ""


def test_tensorboard_holds_curves_pictures_and_final_metrics(tmp_path):
    metrics = run(tmp_path / "a", "trainer.log_every=2", "optimizer.weight_decay=0.02")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(tmp_path / "a" / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars >= {
        "train/loss_step", "train/lr", "train/gradient_norm", "train/images_per_second",
        "train/loss", "train/acc", "val/loss", "val/acc", "with best weights/test/acc",
    }  # fmt: skip
    assert [point.step for point in events.Scalars("train/lr")] == [2, 4, 6, 8]
    assert events.Scalars("with best weights/test/acc")[-1].value == pytest.approx(metrics["test/acc"])
    # Charts are sorted by name: the curves come before the single points of the end.
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in sorted(scalars)))
    assert groups == ["train", "val", "with best weights"]
    assert all(len(events.Scalars(tag)) > 1 for tag in scalars if tag in ("train/loss", "val/loss", "train/epoch"))
    panel = Image.open(io.BytesIO(events.Images("test/samples")[-1].encoded_image_string))
    assert panel.width >= 8 * 64 and panel.height >= 64 + 12
    assert set(events.Tags()["images"]) == {"val/samples", "test/samples", "test/confusion"}
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    table = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert table["optimizer.weight_decay"].number_value == pytest.approx(0.02) and table["norm"].string_value == "none"
    assert {key for key in table if "=" in key or " " in table[key].string_value} == set()


def test_same_seed_same_weights_other_seed_other_weights(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tmp_path / name, f"seed={seed}", "logger=none")
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not torch.equal(weights(tmp_path / "a")["fc3.weight"], weights(tmp_path / "c")["fc3.weight"])


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7])
def test_resume_from_any_step_is_exact(tmp_path, monkeypatch, step):
    options = ["model.dropout=0.5", "augment=shift", "trainer.ema=0.9", "callbacks.checkpoint.every_steps=1"]
    undisturbed = run(tmp_path / "a", *options)

    class Killer(Callback):
        def on_step(self, loop):
            if loop.progress.step == step:
                raise Kill

    from cnn_train.experiment.callbacks import build_callbacks

    build = build_callbacks

    def with_killer(cfg, machine):
        return [*build(cfg, machine), Killer()]

    with monkeypatch.context() as patch:
        patch.setattr("cnn_train.experiment.fit.build_callbacks", with_killer)
        with pytest.raises(Kill):
            run(tmp_path / "b", *options)
    # The state after an epoch's last step is kept with its validation; killed between, that epoch's end is run again.
    if step == 4:
        assert checkpoint.load(tmp_path / "b" / "last.ckpt")["progress"]["step"] == 3
    resumed = run(tmp_path / "b", *options, resume=True)
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert (tmp_path / "a" / "metrics.csv").read_text() == (tmp_path / "b" / "metrics.csv").read_text()
    assert undisturbed == resumed


def test_accumulation_equals_the_large_batch(tmp_path):
    # Without kinks, where two orders of summation could fall on two sides.
    options = ["act=tanh", "optimizer=sgd", "optimizer.lr=0.1", "logger=none"]
    run(tmp_path / "a", *options, "data.batch_size=64")
    run(tmp_path / "b", *options, "data.batch_size=32", "trainer.accumulate=2", "trainer.limit_batches=8")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


def test_accumulation_longer_than_the_epoch_still_steps(tmp_path):
    run(tmp_path / "a", "trainer.accumulate=100", "trainer.max_epochs=1", "logger=none")
    start = weights_at_start(tmp_path)
    assert not torch.equal(start["fc3.weight"], weights(tmp_path / "a")["fc3.weight"])


def weights_at_start(tmp_path: Path) -> dict[str, torch.Tensor]:
    from cnn_train.experiment.network import build_network_and_data

    return build_network_and_data(compose())[0].state_dict()


def test_first_sgd_step_is_the_formula(tmp_path):
    """One step of w - lr * gradient, gradient by hand from the same batch."""
    from cnn_train.experiment.network import build_network_and_data

    options = ["optimizer=sgd", "optimizer.lr=0.1", "scheduler=constant", "optimizer.weight_decay=0"]
    run(tmp_path / "a", *options, "trainer.max_epochs=1", "trainer.limit_batches=1")
    network, data = build_network_and_data(compose(options))
    batch = next(data.train_batches(0, device=torch.device("cpu")))
    torch.nn.functional.cross_entropy(network(batch.images), batch.targets).backward()
    after = weights(tmp_path / "a")
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(after[name], parameter.detach() - 0.1 * parameter.grad)


def test_ema_weights_are_evaluated(tmp_path):
    """With a decay of almost 1 the averaged weights are still the initial ones: chance, whatever training did."""
    plain = run(tmp_path / "a", "trainer.limit_batches=16", "logger=none")
    averaged = run(tmp_path / "b", "trainer.limit_batches=16", "trainer.ema=0.999999", "logger=none")
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert averaged["val/loss"] > plain["val/loss"] + 0.5
    corrected = ["trainer.ema=0.999999", "trainer.ema_bias_correction=true"]
    corrected = run(tmp_path / "c", "trainer.limit_batches=16", *corrected, "logger=none")
    assert corrected["val/loss"] < averaged["val/loss"] - 0.2


def test_best_checkpoint_is_the_best_epochs(tmp_path):
    run(tmp_path / "a", "trainer.max_epochs=5", "optimizer.lr=0.05", "monitor=val/acc", "logger=none")
    with open(tmp_path / "a" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(float(row["val/acc"]) for row in rows)
    state = checkpoint.load(tmp_path / "a" / "best.ckpt")
    assert state["best"]["value"] == best
    assert [float(row["val/acc"]) for row in rows].index(best) + 1 == state["best"]["epoch"]


def test_early_stopping(tmp_path):
    """A learning rate of next to nothing never improves on the first epoch."""
    options = ["optimizer.lr=1e-12", "trainer.max_epochs=30", "callbacks.early_stopping.patience=3", "logger=none"]
    run(tmp_path / "a", *options)
    assert len((tmp_path / "a" / "metrics.csv").read_text().splitlines()) == 1 + 4


def test_evaluate_gives_the_runs_own_numbers(tmp_path, capsys):
    describe(tmp_path / "a")
    metrics = run(tmp_path / "a")
    again = evaluate(tmp_path / "a")
    assert 0 <= again.pop("test/auroc") <= 1, "only eval keeps what it takes"
    assert again == {name: value for name, value in metrics.items() if name.startswith("test/")}
    validation = evaluate(tmp_path / "a", split="val")
    assert validation["val/acc"] == metrics["val/acc"]
    with pytest.raises(ConfigError, match="no run at"):
        evaluate(tmp_path / "nowhere")


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions_train(tmp_path, precision):
    metrics = run(tmp_path / "a", f"trainer.precision={precision}", "trainer.max_epochs=1", "logger=none")
    assert math.isfinite(metrics["test/loss"])


def test_frequent_options_train(tmp_path):
    metrics = run(
        tmp_path / "a", "trainer.gradient_clip=1.0", "trainer.channels_last=true", "trainer.eval_every=2",
        "repro=strict", "loss.class_weights=auto", "loss.label_smoothing=0.1", "init=lsuv", "norm=bn",
    )  # fmt: skip
    assert math.isfinite(metrics["test/loss"])
    with open(tmp_path / "a" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["val/loss"] == "" and float(rows[1]["val/loss"]) > 0


def test_a_run_shorter_than_the_epochs_between_validations_is_validated_at_its_end(tmp_path):
    metrics = run(tmp_path / "a", "trainer.eval_every=9", "logger=none")
    assert math.isfinite(metrics["val/loss"]) and (tmp_path / "a" / "best.ckpt").is_file()


def test_overfitting_two_batches(tmp_path):
    options = ["debug=overfit", "trainer.progress=none", "logger=none", "trainer.limit_batches=null"]
    metrics = train(compose([*options, "trainer.max_epochs=40"]), _made(tmp_path / "a"))
    assert metrics["train/acc"] > 0.95


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_divergence_is_told(tmp_path):
    with pytest.raises(DivergedError, match=r"diverged at step \d+ .* loss .*optimizer\.lr"):
        run(tmp_path / "a", "act=relu", "optimizer=sgd", "optimizer.lr=1e30", "trainer.log_every=1")


@pytest.mark.parametrize(
    ("overrides", "error", "text"),
    [
        (["model=fcn_resnet50", "data=digits"], ConfigError, "fcn_resnet50 segments images, but data=digits"),
        (["image_size=8"], ConfigError, "needs images of at least 12x12, got 8x8"),
        (["monitor=val/iou"], ConfigError, "choose one of val/loss, val/acc"),
        (["model=resnet18", "data.batch_size=1", "trainer.limit_batches=2"], ConfigError, "norm=gn"),
        (["weights=nowhere.ckpt"], ConfigError, "no checkpoint at nowhere.ckpt"),
        (["data.normalize=zca"], ConfigError, "standardize, minmax, none"),
        (["trainer=gpu"], EnvError, "use trainer=cpu"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_training(tmp_path, overrides, error, text):
    with pytest.raises(error) as caught:
        run(tmp_path / "a", *overrides)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_start_from_another_run(tmp_path):
    run(tmp_path / "a", "logger=none")
    from cnn_train.experiment.network import build_network_and_data

    network, _ = build_network_and_data(compose([f"weights={tmp_path / 'a' / 'last.ckpt'}"]))
    assert_same(network.state_dict(), weights(tmp_path / "a"))


def test_smoke_passes_and_notices_a_loss_that_does_not_fall(tmp_path, capsys):
    smoke = ["trainer=smoke", "trainer.progress=none"]
    train(compose(smoke), _made(tmp_path / "a"))
    assert "smoke passed" in capsys.readouterr().err
    with pytest.raises(DivergedError, match="did not fall"):
        train(compose([*smoke, "optimizer=sgd", "optimizer.lr=1e-9", "scheduler=constant"]), _made(tmp_path / "b"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_exit_honestly(tmp_path, number, code):
    command = [sys.executable, "-m", "cnn_train", f"output_dir={tmp_path}", "trainer.max_epochs=500", "logger=none"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 90
        while not list(tmp_path.glob("lenet5/*/metrics.csv")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    (folder,) = tmp_path.glob("lenet5/*")
    state = checkpoint.load(folder / "last.ckpt")
    assert f"stopped at step {state['progress']['step']}" in err
    assert f"cnn-train resume {folder}" in err
    assert "Traceback" not in err


def test_a_finished_run_takes_more_epochs(tmp_path):
    describe(tmp_path / "a", "scheduler=constant")
    run(tmp_path / "a", "scheduler=constant")
    with pytest.raises(ConfigError, match=r"has done all its 2 epochs.*trainer\.max_epochs=4"):
        run(tmp_path / "a", "scheduler=constant", resume=True)
    run(tmp_path / "a", "scheduler=constant", "trainer.max_epochs=3", resume=True)
    run(tmp_path / "b", "scheduler=constant", "trainer.max_epochs=3")
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_training_again_and_again_in_one_process_keeps_nothing_alive(tmp_path):
    import gc

    from cnn_train.training.loop import Loop

    def loops(objects):
        return {id(thing) for thing in objects if type(thing) is Loop}

    gc.collect()
    before = loops(gc.get_objects())  # of runs that failed in other tests, whose errors are kept
    counts = []
    for number in range(4):
        run(tmp_path / str(number), "trainer.max_epochs=1", "logger=tensorboard")
        gc.collect()
        objects = gc.get_objects()
        assert loops(objects) <= before
        counts.append(len(objects))
    assert counts[3] - counts[2] < 200, counts


def test_names_from_files_are_text_on_the_terminal(capsys):
    from cnn_train.training.callbacks import display

    display.results("test", {"test/acc": 0.5}, {"[red]x": 0.25, "[/b]": 0.5, "a\x1b[31mb": 0.75}, "accuracy")
    shown = capsys.readouterr().out
    assert "accuracy [red]x" in shown and "accuracy [/b]" in shown and "accuracy ab" in shown and "\x1b" not in shown
    display.header({"data": "\x1b]0;title\x07photos [bold]"})
    assert "photos [bold]" in capsys.readouterr().err


def test_advice_to_resume_is_left_out_where_it_would_fail(tmp_path, capsys):
    run(tmp_path / "whole")
    assert "longer       cnn-train resume" in capsys.readouterr().out
    run(tmp_path / "once", "trainer.fast_dev_run=true")
    shown = capsys.readouterr().out
    assert "again        cnn-train eval" in shown and "cnn-train resume" not in shown
