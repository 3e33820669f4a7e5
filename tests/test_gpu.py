"""Training on a GPU: `pytest -m gpu`, some minutes on one card; skipped where there is none.

With ON_CPU=1 in the environment the same tests run on a CPU, as far as they can: for whoever writes them.
"""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from kills import unequal
from PIL import Image
from torch import nn

from cnn_train.__main__ import main
from cnn_train.analysis import training_memory
from cnn_train.config.compose import compose
from cnn_train.experiment.build import Experiment, prepare
from cnn_train.experiment.callbacks import build_callbacks
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.trainer import quiet_libraries
from cnn_train.inspection.examine import optimizer_slots
from cnn_train.postprocess.nms import NMS
from cnn_train.runs import checkpoint
from cnn_train.training.loop import Callback, Loop
from cnn_train.training.optim import EMA
from cnn_train.training.recipe import Recipe
from cnn_train.training.update import Update, make_optimizer

ON_CPU = "ON_CPU" in os.environ
GPU = "cpu" if ON_CPU else "cuda"
TRAINER = "trainer=cpu" if ON_CPU else "trainer=gpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (ON_CPU or torch.cuda.is_available()), reason="torch finds no CUDA device"),
    # Of libraries, which say it of every process that trains.
    pytest.mark.filterwarnings("ignore"),
]
card = pytest.mark.skipif(ON_CPU, reason="for a GPU alone")

QUIET = ["trainer.progress=none", "logger=none", "callbacks.samples=0"]
SCENES = ["data.num_train=64", "data.num_val=8", "data.num_test=8"]
SMALL = ["data=digits", "image_size=32", "data.batch_size=32"]
FAMILIES: dict[str, list[str]] = {
    "lenet5": SMALL,
    "nin": SMALL,
    "lstm": ["data=digits", "data.batch_size=32"],
    "alexnet": ["data=digits", "image_size=96", "data.batch_size=32"],
    "vgg11": SMALL,
    "googlenet": [*SMALL, "image_size=64"],
    "inception_v3": [*SMALL, "image_size=75"],
    "resnet20": SMALL,
    "resnet18": [*SMALL, "norm=gn"],
    "preact_resnet18": SMALL,
    "resnext29_8x64d": SMALL,
    "wrn_16_8": SMALL,
    "densenet_bc_100_12": SMALL,
    "seresnet50": [*SMALL, "image_size=64"],
    "mobilenet_v2": [*SMALL, "image_size=64"],
    "mobilenet_v3_small": [*SMALL, "image_size=64"],
    "xception": [*SMALL, "image_size=75"],
    "darknet19": [*SMALL, "image_size=64"],
    "fcn8s": ["norm=gn", *SCENES],
    "unet": ["norm=gn", *SCENES],
    "segnet": SCENES,
    "refinenet": ["norm=gn", *SCENES],
    "pspnet": ["norm=gn", *SCENES],
    "gcn": ["norm=gn", *SCENES],
    "deeplabv1": ["norm=gn", *SCENES],
    "deeplabv2": ["norm=gn", *SCENES],
    "deeplabv3": ["norm=gn", *SCENES],
    "deeplabv3plus": ["norm=gn", *SCENES],
    "yolov2": ["norm=bn", *SCENES],
    "yolov3": ["norm=bn", *SCENES],
    "ssd": ["norm=gn", *SCENES],
    "retinanet": ["norm=gn", *SCENES],
    "fcos": ["norm=gn", *SCENES],
}


@pytest.fixture(autouse=True)
def usual_mode():
    """What a test that failed left on."""
    yield
    if not ON_CPU:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def on_step(self, loop: Loop) -> None:
        self.values.append(loop.curve.waiting[-1][2] if loop.curve.waiting else torch.tensor(loop.curve.losses[-1]))

    def numbers(self) -> torch.Tensor:
        return torch.stack([value.cpu() for value in self.values]).double()


def trained(folder: Path, *words: str, watch: Callback | None = None) -> Experiment:
    """An experiment after its training."""
    folder.mkdir(exist_ok=True)
    cfg = compose([TRAINER, *QUIET, *words])
    machine = Machine.of(cfg.trainer)
    with quiet_libraries():
        experiment = prepare(cfg, machine, folder, [*build_callbacks(cfg, machine), *([watch] if watch else [])])
        experiment.trainer.fit(experiment.loop)
    return experiment


def losses(folder: Path, *words: str) -> torch.Tensor:
    """Of every step of a training."""
    watch = Losses()
    trained(folder, *words, watch=watch)
    return watch.numbers()


def state(experiment: Experiment) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu() for name, value in experiment.loop.network.state_dict().items()}


def difference(run: Path, other: Path) -> str:
    """What differs in the states of two runs, bit by bit."""
    one, two = (checkpoint.load(folder / "last.ckpt") for folder in (run, other))
    return "".join(unequal(one[key], two[key], key) for key in ("network", "optimizer", "ema", "metrics", "curve"))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Mixed precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", FAMILIES)
def test_mixed_precision_follows_single(model, tmp_path):
    """The mean loss of the last 4 of 12 steps differs by less than a part of the first loss.

    In fp16 by more: the scaler leaves out the first steps, until its scale fits.
    """
    words = [f"model={model}", *FAMILIES[model], "trainer.max_epochs=3", "trainer.limit_batches=4"]
    words += ["trainer.eval_every=100", "trainer.channels_last=true", "optimizer.lr=1e-4"]
    single = losses(tmp_path / "single", *words, "trainer.precision=32-true")
    for precision in ["bf16-mixed"] if ON_CPU else ["bf16-mixed", "16-mixed"]:
        mixed = losses(tmp_path / precision, *words, f"trainer.precision={precision}")
        assert len(mixed) == len(single) == 12
        assert mixed.isfinite().all()
        apart = float((mixed[-4:].mean() - single[-4:].mean()).abs() / single[0])
        print(f"{model:20} {precision:10} first {single[0]:.4f} last {single[-4:].mean():.4f} apart {apart:.4f}")
        assert apart < (0.25 if precision == "16-mixed" else 0.05)


def problem(**options) -> tuple[nn.Module, Update, list[nn.Parameter]]:
    torch.manual_seed(0)
    network = nn.Linear(4, 2).to(GPU)
    recipe = Recipe(partial(torch.optim.AdamW, lr=0.1), lambda *_: 1.0, 1)
    parameters = list(network.parameters())
    optimizer = make_optimizer(recipe, network, torch.device(GPU))
    return network, Update(optimizer, parameters, recipe, device=torch.device(GPU), world_size=1, **options), parameters


def changed(network: nn.Module, update: Update, factor: float, scale: float = 1.0) -> bool:
    """Whether an update by a loss times `factor` changes the weights."""
    before = network.weight.detach().clone()
    loss = network(torch.ones(3, 4, device=GPU)).square().mean() * factor
    (loss * scale).backward()
    update(loss.detach())
    return not torch.equal(network.weight, before)


@card
def test_no_weight_takes_a_step_that_is_not_finite():
    network, update, _ = problem()
    assert update.poison is not None  # the test stays on the GPU
    assert changed(network, update, 1.0)
    assert not changed(network, update, float("nan"))
    assert not changed(network, update, 1.0)  # nor what comes after it, until it is told
    update.heal()
    assert changed(network, update, 1.0)
    assert network.weight.isfinite().all()


@card
def test_the_scaler_leaves_out_an_overflow_and_halves_its_scale():
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**16)
    network, update, _ = problem(scaler=scaler)
    scaler.scale(torch.ones((), device=GPU))  # it begins with the first loss
    assert changed(network, update, 1.0, scale=2.0**16)
    assert not changed(network, update, float("inf"), scale=2.0**16)
    assert scaler.get_scale() == 2.0**15
    assert changed(network, update, 1.0, scale=2.0**15)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_fused_optimizers_do_what_plain_ones_do(kind):
    torch.manual_seed(0)
    start = [torch.randn(40, 30), torch.randn(30)]
    results = []
    for fused in (True, False):
        weights = [nn.Parameter(value.clone().to(GPU)) for value in start]
        optimizer = kind(weights, lr=0.05, fused=fused)
        for _ in range(10):
            optimizer.zero_grad()
            sum((w - 1).pow(4).mean() for w in weights).backward()
            optimizer.step()
        results.append([w.detach().cpu() for w in weights])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# The step -------------------------------------------------------------------------------------------------------------


class Strict(Callback):
    """From the fourth step on, makes an error of everything that waits for the GPU, but for the epoch's last step."""

    def before_step(self, loop: Loop) -> None:
        position = loop.progress.step_in_epoch
        watched = 3 <= position < loop.progress.steps_per_epoch - 1
        torch.cuda.set_sync_debug_mode("error" if watched else "default")

    def on_epoch_end(self, loop: Loop) -> None:
        torch.cuda.set_sync_debug_mode("default")


@card
@pytest.mark.parametrize(
    "words",
    [
        ["model=lenet5", "data=digits", "augment=shift", "trainer.ema=0.9", "trainer.gradient_clip=1.0"],
        ["model=resnet20", "data=digits", "image_size=32", "augment=flip_crop", "trainer.precision=bf16-mixed"],
        ["model=resnet20", "data=digits", "image_size=32", "augment=cutmix", "norm=gn"],
        ["model=resnet20", "data=digits", "image_size=32", "augment=mixup", "loss=focal"],
        ["model=lenet5", "data=digits", "trainer.cuda_graphs=true"],
        ["model=deeplabv3", "norm=gn", "data.num_train=128", "data.num_val=8", "data.num_test=8"],
    ],
    ids=["lenet5", "resnet20", "cutmix", "mixup", "graphs", "deeplabv3"],
)
def test_a_step_never_waits_for_the_gpu(words, tmp_path):
    trained(tmp_path, *words, "trainer.max_epochs=1", "trainer.limit_batches=12", watch=Strict())


@card
def test_recorded_steps_give_the_same_bits(tmp_path):
    """Dropout, averaged weights and a smaller last batch included."""
    words = ["model=resnet20", "data=digits", "image_size=32", "data.batch_size=400", "trainer.max_epochs=2"]
    words += ["repro=strict", "trainer.ema=0.9", "trainer.precision=bf16-mixed", "norm=bn", "trainer.gradient_clip=1.0"]
    plain = trained(tmp_path / "a", *words)
    recorded = trained(tmp_path / "b", *words, "trainer.cuda_graphs=true")
    assert recorded.loop.recorded is not None
    assert plain.loop.progress.step == recorded.loop.progress.step
    assert equal(state(plain), state(recorded))
    lenet = ["model=lenet5", "data=digits", "trainer.max_epochs=1", "trainer.limit_batches=8", "model.dropout=0.3"]
    a, b = (
        losses(tmp_path / f"c{on}", *lenet, "+trainer.lightning.benchmark=false", f"trainer.cuda_graphs={on}")
        for on in (False, True)
    )
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_channels_last_learns_the_same(tmp_path):
    words = ["model=resnet18", *SMALL, "trainer.max_epochs=1", "trainer.limit_batches=6", "trainer.precision=32-true"]
    watch = Losses()
    experiment = trained(tmp_path, *words, "trainer.channels_last=true", watch=watch)
    weight = next(p for p in experiment.loop.network.parameters() if p.ndim == 4 and p.size(2) > 1 and p.size(1) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    other = losses(tmp_path / "b", *words, "trainer.channels_last=false")
    torch.testing.assert_close(watch.numbers()[:3], other[:3], rtol=0.06, atol=1e-3)  # three updates of AdamW on


@pytest.mark.parametrize(
    "words",
    [
        ["model=lenet5", "data=digits", "data.batch_size=512"],  # the last batch is smaller
        ["model=unet", "norm=gn", "model.width=8", "model.depth=2", "data.num_train=20", *SCENES[1:]],
    ],
    ids=["lenet5", "unet"],
)
def test_compiled_networks_learn_the_same(words, tmp_path):
    words = [*words, "trainer.max_epochs=2", "trainer.precision=32-true", "augment=none"]
    plain, compiled = (losses(tmp_path / str(on), *words, f"trainer.compile={on}") for on in (False, True))
    torch.testing.assert_close(plain, compiled, rtol=2e-2, atol=1e-3)


def test_averaged_weights():
    torch.manual_seed(0)
    network = nn.Linear(5, 3)
    other = nn.Linear(5, 3)
    other.load_state_dict(network.state_dict())
    other.to(GPU)
    averages = EMA(network, 0.9, False), EMA(other, 0.9, False)
    for step in range(5):
        for one, average in zip((network, other), averages, strict=True):
            with torch.no_grad():
                one.weight.add_(0.1 * (step + 1))
            average.update()
    for average, one in zip(averages, (network, other), strict=True):
        with average.swap():
            one.found = one.weight.detach().cpu().clone()
    torch.testing.assert_close(network.found, other.found, rtol=1e-6, atol=1e-7)


# Memory ---------------------------------------------------------------------------------------------------------------


@card
@pytest.mark.parametrize(
    ("words", "batch"),
    [
        (["model=resnet18", "image_size=224"], 32),
        (["model=vgg16", "image_size=224"], 16),
        (["model=densenet121", "image_size=224"], 16),
        (["model=mobilenet_v2", "image_size=224"], 32),
        (["model=resnet50", "image_size=224"], 32),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_the_estimate_of_inspect_is_what_a_step_takes(words, batch, tmp_path):
    words = [*words, "data=synthetic", f"data.batch_size={batch}", f"data.samples={5 * batch}"]
    words += ["trainer.precision=32-true", "trainer.max_epochs=1", "trainer.limit_batches=4", "augment=none"]
    words += ["trainer.channels_last=false", "trainer.eval_every=9", "+trainer.lightning.benchmark=false"]

    class Peak(Callback):
        data = 0

        def before_step(self, loop: Loop) -> None:
            if loop.progress.step == 2:
                torch.cuda.reset_peak_memory_stats()
                self.before = torch.cuda.memory_allocated()
                self.data = sum(t.nbytes for t in vars(loop.data.splits["train"]).values() if torch.is_tensor(t))

        def on_step(self, loop: Loop) -> None:
            self.peak = torch.cuda.max_memory_allocated() - self.data

    watch = Peak()
    experiment = trained(tmp_path, *words, watch=watch)
    side = experiment.loop.data.image_size[0]
    memory = training_memory(
        experiment.loop.network.cpu(), (3, side, side), optimizer_slots=optimizer_slots(experiment.cfg.optimizer)
    )
    estimate = memory.peak(batch)
    print(f"{words[0]:24} ratio {estimate / watch.peak:.3f}; MiB: estimate {estimate >> 20}, step {watch.peak >> 20}")
    print(f"   before it {(watch.before - watch.data) >> 20}, saved {memory.saved * batch >> 20}")
    torch.cuda.empty_cache()
    mixed = Peak()
    trained(tmp_path, *words, "trainer.precision=bf16-mixed", watch=mixed)
    print(f"   ratio in bf16-mixed: {mixed.peak / watch.peak:.3f} of fp32")
    assert 0.85 < estimate / watch.peak < 1.15


@card
def test_a_batch_too_large_is_told_and_split(tmp_path, capsys, caplog):
    total = torch.cuda.get_device_properties(0).total_memory
    words = ["model=resnet18", "data=synthetic", "image_size=224", "data.batch_size=128", "data.samples=256"]
    words += [TRAINER, *QUIET, "trainer.precision=32-true", "trainer.max_epochs=1", "data.eval_batch_size=8"]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2.5 * 2**30 / total)
    try:
        assert main([*words, f"output_dir={tmp_path / 'a'}"]) == 4
        told = capsys.readouterr().err
        assert "out of memory in step 1" in told
        assert "trainer.split_batches=auto finds what fits" in told
        torch.cuda.empty_cache()
        assert main([*words, f"output_dir={tmp_path / 'b'}", "trainer.split_batches=auto"]) == 0
        assert "parts, which fits" in caplog.text
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# Runs -----------------------------------------------------------------------------------------------------------------

REPEATED = [
    "model=resnet20", "data=digits", "image_size=32", "repro=strict", f"trainer.max_epochs={5 if ON_CPU else 20}",
    "augment=flip_crop", "trainer.ema=0.9", "callbacks.checkpoint.every_steps=3", *QUIET,
]  # fmt: skip


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "cnn_train", *words, TRAINER, f"output_dir={folder}"]


def only(folder: Path) -> Path:
    (run,) = (path for path in folder.glob("*/*") if path.is_dir())
    return run


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"] if ON_CPU else ["bf16-mixed", "16-mixed"])
def test_a_killed_run_resumes_to_the_same_bits(precision, tmp_path):
    words = [*REPEATED, f"trainer.precision={precision}"]
    whole = subprocess.run(command(tmp_path / "whole", *words), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.Popen(command(tmp_path / "killed", *words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and killed.poll() is None:
        if any(len(path.read_text().splitlines()) > 1 for path in (tmp_path / "killed").glob("*/*/metrics.csv")):
            time.sleep(0.05)
            killed.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert killed.wait() == -signal.SIGKILL, killed.stderr.read()
    run = only(tmp_path / "killed")
    again = subprocess.run([sys.executable, "-m", "cnn_train", "resume", f"run={run}"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert difference(only(tmp_path / "whole"), run) == ""


def test_commands_after_training(tmp_path, capsys):
    words = ["model=resnet20", "data=digits", "trainer.max_epochs=1", "trainer.progress=none", "callbacks=health"]
    assert main([*words, "callbacks.health.every=5", TRAINER, f"output_dir={tmp_path}"]) == 0
    run = only(tmp_path)
    assert list(run.glob("tensorboard/*"))
    assert list(run.glob("pictures/*"))
    assert main(["eval", f"run={run}"]) == 0
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("L", (8, 8), 60 * number).save(tmp_path / "images" / f"{number}.png")
    assert main(["predict", f"run={run}", f"input={tmp_path / 'images'}"]) == 0
    assert main(["export", f"run={run}", "format=torch_export"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("devices", [1, 2])
def test_processes(devices, tmp_path):
    if not ON_CPU and devices > torch.cuda.device_count():
        pytest.skip(f"{devices} processes need as many GPUs")
    words = ["model=lenet5", "data=digits", "trainer.max_epochs=1", *QUIET, f"trainer.devices={devices}"]
    words += ["trainer.strategy=ddp", "trainer.limit_batches=6"]
    done = subprocess.run(command(tmp_path, *words), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@card
@pytest.mark.parametrize("model", ["lenet5", "deeplabv3", "unet", "fcos"])
def test_what_strict_cannot_repeat_is_told(model, tmp_path, capsys):
    """Either the same bits twice, or one line that names the operation."""
    words = [f"model={model}", TRAINER, *QUIET, "repro=strict", "trainer.max_epochs=1", "trainer.limit_batches=4"]
    words += SCENES if model != "lenet5" else []
    codes = [main([*words, f"output_dir={tmp_path / name}"]) for name in "ab"]
    told = capsys.readouterr().err
    print(model, codes, told)
    assert codes[0] == codes[1]
    if codes[0]:
        assert codes[0] == 4
        assert "has no form on a GPU" in told
    else:
        assert difference(only(tmp_path / "a"), only(tmp_path / "b")) == ""


def test_suppression_finds_the_same_boxes():
    torch.manual_seed(0)
    corners = torch.rand(2, 300, 2) * 80
    boxes = torch.cat([corners, corners + 4 + torch.rand(2, 300, 2) * 20], 2)
    scores = torch.rand(2, 300, 5)
    suppress = NMS(score=0.3)
    torch.testing.assert_close(
        suppress(boxes.to(GPU), scores.to(GPU), (100, 100)).cpu(), suppress(boxes, scores, (100, 100))
    )
