"""Lightning's doors: callbacks, loggers and arguments of the Trainer that are not ours."""

import csv
import json
import sqlite3
import sys
import types
from pathlib import Path

import lightning as L
import pytest
import torch
from kills import prepare as prepared_folder
from kills import unequal
from lightning.pytorch import callbacks as lightning_callbacks

from cnn_train.config.compose import compose
from cnn_train.errors import ConfigError, EnvError
from cnn_train.experiment import callbacks
from cnn_train.experiment.build import prepare
from cnn_train.experiment.callbacks import REFUSED, build_callbacks, build_loggers
from cnn_train.experiment.hardware import Machine, place
from cnn_train.experiment.train import train
from cnn_train.experiment.trainer import OURS, further_arguments, quiet_libraries
from cnn_train.runs import checkpoint
from cnn_train.training.loop import Callback

TINY = (
    "trainer.max_epochs=2", "trainer.limit_batches=4", "trainer.progress=none", "data.batch_size=16", "norm=none",
    "data.eval_batch_size=128", "callbacks.samples=0", "trainer.log_every=2", "logger=none",
)  # fmt: skip
LIGHTNING = "lightning.pytorch.callbacks"


def run(folder: Path, *words: str) -> tuple[dict[str, float], Path]:
    metrics = train(compose([*TINY, *words, f"output_dir={folder}"]))
    (run_folder,) = folder.glob("*/*")
    return metrics, run_folder


def node(name: str, kind: str, **settings: object) -> str:
    inside = "".join(f", {key}: {json.dumps(value)}" for key, value in settings.items())
    return f"callbacks.{name}={{_target_: {LIGHTNING}.{kind}{inside}}}"


WORKING = {
    "EarlyStopping": node("a", "EarlyStopping", monitor="val/loss"),
    "LearningRateMonitor": node("b", "LearningRateMonitor", logging_interval="step"),
    "DeviceStatsMonitor": node("c", "DeviceStatsMonitor", cpu_stats=False),
    "Timer": node("d", "Timer", duration="00:01:00:00"),
    "ModelSummary": node("e", "ModelSummary"),
    "RichModelSummary": node("f", "RichModelSummary"),
}
BY_CODE = {"LambdaCallback", "ThroughputMonitor"}  # they take functions
BASES = {"Callback", "Checkpoint"}


def test_every_callback_of_lightning_is_accounted_for():
    refused = {kind.__name__ for kind in REFUSED}
    named = {
        name
        for name in lightning_callbacks.__all__
        if any(issubclass(getattr(lightning_callbacks, name), kind) for kind in REFUSED)
    }
    assert set(lightning_callbacks.__all__) == set(WORKING) | BY_CODE | BASES | named
    assert refused <= set(lightning_callbacks.__all__)


def test_those_that_work_work_together_with_several_loggers(tmp_path, capsys):
    words = [*WORKING.values(), "logger=[tensorboard,csv]", "trainer.progress=plain"]
    metrics, folder = run(tmp_path, *words)
    assert metrics["test/loss"] > 0
    shown = capsys.readouterr()
    assert "one a call, since LearningRateMonitor, DeviceStatsMonitor, Timer" in shown.err
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0])
    assert {"train/loss_step", "val/acc", "lr-AdamW/pg1", "train/images_per_second"} <= columns
    rates = [(int(row["step"]), float(row["lr-AdamW/pg1"])) for row in rows if row["lr-AdamW/pg1"]]
    assert [step for step, _ in rates] == [1, 3, 5, 7]  # every second step, counted as steps are
    assert list((folder / "tensorboard").glob("events*"))
    states = checkpoint.load(folder / "last.ckpt")["callbacks"]
    assert any(key.startswith("EarlyStopping") for key in states) and any(key.startswith("Timer") for key in states)


def test_one_step_a_call_trains_to_the_same_bits(tmp_path):
    options = ["model.dropout=0.3", "augment=shift", "trainer.ema=0.9", "trainer.accumulate=3"]
    _, many = run(tmp_path / "many", *options)
    _, one = run(tmp_path / "one", *options, node("watch", "Timer", duration="00:01:00:00"))
    a, b = (checkpoint.load(folder / "last.ckpt") for folder in (many, one))
    for part in ("network", "optimizer", "ema", "metrics", "progress"):
        assert unequal(a[part], b[part], part) == ""
    assert (many / "metrics.csv").read_bytes() == (one / "metrics.csv").read_bytes()


CONSTRUCTED = {
    "ModelCheckpoint": {}, "OnExceptionCheckpoint": {"dirpath": "x"}, "EMAWeightAveraging": {}, "WeightAveraging": {},
    "StochasticWeightAveraging": {"swa_lrs": 0.1}, "GradientAccumulationScheduler": {"scheduling": {0: 2}},
    "BatchSizeFinder": {}, "LearningRateFinder": {}, "ModelPruning": {"pruning_fn": "l1_unstructured"},
    "BackboneFinetuning": {}, "RichProgressBar": {}, "TQDMProgressBar": {}, "BasePredictionWriter": {},
    "SpikeDetection": {}, "BaseFinetuning": {}, "ProgressBar": {},
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTED)
def test_what_cannot_work_is_refused_in_one_line(name):
    settings = json.dumps(CONSTRUCTED[name]).replace('"', "")
    inside = settings[1:-1]
    cfg = compose([*TINY, f"callbacks.mine={{_target_: {LIGHTNING}.{name}{', ' if inside else ''}{inside}}}"])
    with pytest.raises(ConfigError, match=rf"callbacks\.mine: {name} does not work here; .*\w") as caught:
        build_callbacks(cfg, Machine.of(cfg.trainer))
    assert "\n" not in str(caught.value)


class Journal(L.Callback):
    """What a user of Lightning expects to see."""

    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def on_train_epoch_end(self, trainer, module):
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.seen.append(("epoch", trainer.current_epoch, trainer.global_step, metrics))

    def on_validation_end(self, trainer, module):
        self.seen.append(("validation", trainer.global_step, float(trainer.callback_metrics["val/loss"])))

    def on_exception(self, trainer, module, exception):
        self.seen.append(("exception", type(exception).__name__))

    def state_dict(self):
        return {"count": len(self.seen)}

    def load_state_dict(self, state):
        self.seen.append(("restored", state["count"]))


def with_module(monkeypatch, **content) -> str:
    module = types.ModuleType("mine_for_tests")
    for name, value in content.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "mine_for_tests", module)
    return "mine_for_tests"


@pytest.mark.parametrize("listening", [False, True])
def test_what_a_user_of_lightning_expects_is_there(tmp_path, listening):
    journal = Journal()
    batches = []
    extra = [journal]
    if listening:
        extra.append(
            lightning_callbacks.LambdaCallback(
                on_train_batch_end=lambda trainer, module, outputs, batch, index: batches.append(
                    (float(outputs["loss"]), len(batch.images), index, trainer.global_step)
                )
            )
        )
        extra.append(lightning_callbacks.ThroughputMonitor(batch_size_fn=lambda batch: len(batch.images)))
    logger = ["logger=csv"] if listening else []
    cfg = compose([*TINY, *logger, "trainer.accumulate=2"])
    machine = Machine.of(cfg.trainer)
    with quiet_libraries():
        experiment = prepare(cfg, machine, tmp_path, [*build_callbacks(cfg, machine), *extra])
        experiment.trainer.fit(experiment.loop)
    loop = experiment.loop
    epochs = [entry for entry in journal.seen if entry[0] == "epoch"]
    assert [entry[1:3] for entry in epochs] == [(0, 2), (1, 4)]  # two updates an epoch
    final = epochs[-1][3]
    for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
        assert final[name] == pytest.approx(loop.metrics[name], rel=1e-6)
    assert [entry[1] for entry in journal.seen if entry[0] == "validation"] == [2, 4]
    if listening:
        assert [entry[1:] for entry in batches[:4]] == [(16, 0, 1), (16, 1, 1), (16, 2, 2), (16, 3, 2)]
        assert len(batches) == 8


def test_an_exception_reaches_the_callbacks_and_the_state_is_saved(tmp_path):
    journal = Journal()

    class Fails(Callback):
        def on_step(self, loop):
            if loop.progress.step == 3:
                raise OSError("the disk is gone")

    cfg = compose([*TINY])
    machine = Machine.of(cfg.trainer)
    with quiet_libraries(), pytest.raises(OSError, match="the disk is gone"):
        experiment = prepare(cfg, machine, tmp_path, [*build_callbacks(cfg, machine), journal, Fails()])
        experiment.trainer.fit(experiment.loop)
    assert ("exception", "OSError") in journal.seen
    assert checkpoint.load(tmp_path / "last.ckpt")["progress"]["step"] == 3


def test_states_of_callbacks_are_restored_at_resume(tmp_path):
    stop = node("stop", "EarlyStopping", monitor="val/loss", patience=2, min_delta=100)
    options = [*TINY, "optimizer.lr=1e-12", "trainer.max_epochs=6", stop]
    options += ["scheduler=constant", "scheduler.warmup_epochs=0"]
    whole = prepared_folder(tmp_path / "whole", *options)
    train(compose(options), whole)
    short = prepared_folder(tmp_path / "short", *options)
    train(compose([*options, "trainer.max_epochs=2"]), short)
    train(compose(options), short, resume=True)
    states = [checkpoint.load(folder / "last.ckpt") for folder in (whole, short)]
    assert [state["progress"]["epoch"] for state in states] == [
        3,
        3,
    ]  # the first is the best, then two without patience
    assert unequal(states[0]["callbacks"], states[1]["callbacks"], "") == ""
    assert (whole / "metrics.csv").read_bytes() == (short / "metrics.csv").read_bytes()


def test_a_timer_that_ends_training_within_an_epoch_leaves_a_run_that_goes_on(tmp_path):
    class Ends(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            trainer.should_stop = trainer.global_step == 6

    cfg = compose([*TINY])
    machine = Machine.of(cfg.trainer)
    with quiet_libraries():
        experiment = prepare(cfg, machine, tmp_path / "a", [*build_callbacks(cfg, machine), Ends()])
        (tmp_path / "a").mkdir()
        experiment.trainer.fit(experiment.loop)
    assert checkpoint.load(tmp_path / "a" / "last.ckpt")["progress"] == {"epoch": 1, "step": 6, "images": 96}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([node("a", "EarlyStopping", monitor="val/los")], "EarlyStopping: monitor=val/los is not a metric of"),
        ([node("a", "LearningRateMonitor")], "Cannot use `LearningRateMonitor` callback"),
        (["callbacks.checkpoint=null"], "callbacks.checkpoint cannot be left out"),
        (["callbacks.a={_target_: torch.nn.ReLU}"], "callbacks.a must be a callback of Lightning's, got ReLU"),
        (["trainer.lightning={max_epochs: 3}"], "trainer.lightning.max_epochs is set by us: use trainer.max_epochs"),
        (["trainer.lightning={detect_anomaley: true}"], "Did you mean detect_anomaly?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_training(tmp_path, words, told):
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, *words)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["callbacks.stop=5"], "callbacks.stop"),
        (["callbacks.stop={patience: 3}"], "callbacks.stop must be a node, {_target_: package.Class}, or null"),
        ([node("stop", "EarlyStopping", monitr="val/loss")], "takes no 'monitr'"),
        (["logger=[tensorboard,cvs]"], "Did you mean csv?"),
    ],
)
def test_nodes_are_checked_when_composed(words, told):
    with pytest.raises(ConfigError) as caught:
        compose([*TINY, *words])
    assert told in str(caught.value)


def test_arguments_of_the_trainer_reach_it(tmp_path):
    cfg = compose([*TINY, "trainer.lightning={limit_val_batches: 1, detect_anomaly: true}"])
    with quiet_libraries():
        trainer = prepare(cfg, Machine.of(cfg.trainer), tmp_path).trainer
    assert trainer.limit_val_batches == 1 and trainer._detect_anomaly
    words = "plugins: [{_target_: lightning.pytorch.plugins.environments.LightningEnvironment}]"
    (plugin,) = further_arguments(compose([*TINY, f"trainer.lightning={{{words}}}"]).trainer.lightning)["plugins"]
    assert isinstance(plugin, lightning_environment())


def lightning_environment() -> type:
    from lightning.pytorch.plugins.environments import LightningEnvironment

    return LightningEnvironment


def test_our_names_for_the_trainers_arguments_exist():
    import inspect

    arguments = inspect.signature(L.Trainer).parameters
    assert OURS.keys() <= arguments.keys()
    given = compose().trainer
    for name in OURS.values():
        if name.startswith("trainer.") and "=" not in name:
            assert name.partition(".")[2] in given


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_logger_is_told_with_its_extra(tmp_path, name, module):
    try:
        __import__(module)
    except ImportError:
        with pytest.raises(
            EnvError, match=rf"logger={name} needs the package {module}; pip install 'cnn-train\[{name}\]'"
        ):
            build_loggers(compose([*TINY, f"logger={name}"]), tmp_path, None)
    else:
        pytest.skip(f"{module} is installed")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's own calls
def test_mlflow_keeps_its_database_in_the_run_folder(tmp_path):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    metrics, folder = run(tmp_path, "logger=mlflow")
    with sqlite3.connect(folder / "mlflow.db") as base:
        assert base.execute("select status from runs").fetchall() == [("FINISHED",)]
        rows = dict(base.execute("select key, value from latest_metrics").fetchall())
    assert rows["final/test/acc"] == pytest.approx(metrics["test/acc"]), "under our names"


def test_weights_and_biases_writes_offline_into_the_run_folder(tmp_path):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    for name in ("first", "second"):
        _, folder = run(tmp_path / name, "logger=wandb")
        (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        assert b"val/acc" in file.read_bytes(), "each training has a run of its own"


def test_a_metric_logger_gets_ours_under_our_names(tmp_path, monkeypatch):
    from lightning.pytorch.loggers import Logger

    class Mine(Logger):
        rows: list = []
        name, version = "mine", 0

        def log_metrics(self, metrics, step=None):
            self.rows.append((step, dict(metrics)))

        def log_hyperparams(self, params, *given):
            self.hyperparameters = dict(params)

    package = with_module(monkeypatch, Mine=Mine)
    monkeypatch.setattr("cnn_train.config.schema._check_open", lambda *_: None)  # the module has no source to read
    nothing = types.SimpleNamespace(parameters={})
    read = callbacks.signature
    monkeypatch.setattr(callbacks, "signature", lambda name: nothing if package in name else read(name))
    metrics, _ = run(tmp_path, f"logger.mine={{_target_: {package}.Mine}}", "logger=csv", "optimizer.lr=0.002")
    assert Mine.rows[-1] == (8, {f"final/{name}": value for name, value in metrics.items()})
    assert any("val/acc" in row for _, row in Mine.rows) and any("train/loss_step" in row for _, row in Mine.rows)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (False, 0)),
        ({"LOCAL_RANK": "1"}, (True, 1)),
        ({"LOCAL_RANK": "1", "RANK": "5"}, (True, 5)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "train"}, (True, 3)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, (False, 0)),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}, (False, 0)),
    ],
)
def test_ranks_come_from_the_environment(environment, expected):
    assert place(environment) == expected


def test_devices_are_those_of_all_machines():
    cfg = compose([*TINY, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.num_nodes=3"])
    assert Machine.of(cfg.trainer).num_processes == 6
    assert torch.device("cpu") == Machine.of(cfg.trainer).device
