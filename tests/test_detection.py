"""The detection task: gradients of a batch in parts, what a run leaves, pictures, and what does not fit."""

import csv
import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from children import end
from kills import begin, difference, whole
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from cnn_train import load
from cnn_train.__main__ import main
from cnn_train.boxes import cluster_sizes
from cnn_train.config.build import build
from cnn_train.config.compose import compose
from cnn_train.config.load import load as load_config
from cnn_train.data.data import Batch, Data, DataSet
from cnn_train.data.source import InMemory
from cnn_train.errors import ConfigError
from cnn_train.experiment.build import build_task, monitored
from cnn_train.experiment.evaluate import evaluate
from cnn_train.experiment.network import build_network_and_data
from cnn_train.experiment.train import train
from cnn_train.layers import LayerFactory
from cnn_train.postprocess.nms import NMS
from cnn_train.runs import checkpoint
from cnn_train.runs import folder as run_folder
from cnn_train.runs.find import unfinished
from cnn_train.tasks.detection import Detection
from cnn_train.tasks.pictures import JUDGED, detection_panel, judge
from cnn_train.training.gradient import Gradient, Totals
from cnn_train.training.loop import Loop
from tests.test_box_losses import LOSSES, drawn_targets
from tests.test_models_detection import GN, SMALL

TINY = [
    "model=fcos", "norm=gn", "model.encoder_options.width=4", "model.channels=8", "image_size=64", "data.num_train=24",
    "data.num_val=8", "data.num_test=7", "data.batch_size=4", "data.eval_batch_size=3", "trainer.max_epochs=2",
    "trainer.accelerator=cpu", "trainer.progress=none",
]  # fmt: skip
SIZE = (64, 64)


def task_of(name: str, network: nn.Module, images: int = 8) -> Detection:
    targets = torch.zeros(images, 4, 6)
    split = InMemory(torch.zeros(images, 3, *SIZE, dtype=torch.uint8), targets)
    data_set = DataSet("none", "boxes", dict.fromkeys(("train", "val", "test"), split), "abc", 3, SIZE)
    data = Data(data_set, normalize="none", batch_size=images)
    return Detection(LOSSES[name], data, detector=network, postprocess=NMS())


# -- Gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_parts_halves_and_processes_give_the_whole_batchs_gradient(name):
    torch.manual_seed(1)
    network = SMALL[name](3, layers=GN)
    task = task_of(name, network)
    images, targets = torch.randn(7, 3, *SIZE), drawn_targets(7, 4, 3, 64.0)
    targets[:3, :, 4] = -1  # the first half has no object
    parameters = list(network.parameters())

    loss = sum(task.loss(network(images), targets, network.priors(SIZE)).values())
    wanted = torch.autograd.grad(loss, parameters)

    def close(gradients: list[Tensor]) -> None:
        for found, expected in zip(gradients, wanted, strict=True):
            assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))

    def learned(cuts: list[slice], parts: int, processes: int = 1, others: float = 0.0) -> tuple[list[Tensor], Totals]:
        gradient = Gradient(network, task)
        gradient.begin()
        for cut in cuts:
            totals = gradient.add(images[cut], targets[cut], parts, len(cuts), Tensor.backward)
        gradient.settle(parameters, lambda own: own + others, processes)
        found = [p.grad.clone() for p in parameters]
        network.zero_grad()
        return found, totals

    for parts in (1, 2):
        found, totals = learned([slice(None)], parts)
        close(found)
        torch.testing.assert_close(totals.loss, loss.detach(), rtol=1e-5, atol=1e-5)
    close(learned([slice(0, 3), slice(3, 7)], parts=1)[0])
    # Two processes average their gradients, here two of unequal shares.
    own = [float(learned([slice(start, None, 2)], parts=1)[1].weight) for start in (0, 1)]
    each = [learned([slice(start, None, 2)], 1, 2, own[1 - start])[0] for start in (0, 1)]
    close([(a + b) / 2 for a, b in zip(*each, strict=True)])


@pytest.mark.parametrize("name", SMALL)
def test_without_any_object_every_gradient_is_there_and_finite(name):
    network = SMALL[name](3, layers=GN)
    task = task_of(name, network)
    for targets in (drawn_targets(1, 1, 3, 64.0), torch.zeros(1, 0, 6), torch.tensor([[[8.0, 8, 40, 40, 1, 1]]])):
        gradient = Gradient(network, task)
        totals = gradient.add(torch.randn(1, 3, *SIZE), targets, 1, 1, Tensor.backward)
        gradient.settle(list(network.parameters()), lambda own: own, 1)
        assert torch.isfinite(totals.loss) and float(totals.count) == 0
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
        network.zero_grad()


NORMS = ("bn", "gn", "ln", "in", "none")
ACTS = ("leaky_relu", "prelu", "elu")
INITS = ("he_normal", "xavier_uniform", "orthogonal")


def check_swapped(name: str, norm: str, act: str, init: str) -> None:
    """A step of two images with objects, of one with one, of one without any and of one to ignore, at an odd size."""
    torch.manual_seed(0)
    nodes = compose([f"norm={norm}", f"act={act}", f"init={init}"])
    layers = LayerFactory(norm_layer=build(nodes.norm), act_layer=build(nodes.act), initializer=build(nodes.init))
    network = SMALL[name](3, layers=layers).train()
    task = task_of(name, network)
    many = torch.full((2, 4, 6), -1.0)  # the second image has no object
    many[0] = torch.tensor(
        [[10.0, 20, 22, 40, 1, 0], [30, 50, 50, 80, 2, 0], [30, 5, 36, 15, 0, 0], [2, 60, 30, 96, 1, 0]]
    )
    ignored = torch.tensor([[[10.0, 20, 22, 40, 1, 1]]])
    for targets, objects in ((many, 4), (many[:1, :1], 1), (torch.zeros(1, 0, 6), 0), (ignored, 0)):
        learned = task.learn(network(torch.randn(len(targets), 3, 97, 61)), targets, (97, 61))
        learned.loss.backward()
        assert bool(learned.loss.isfinite()) and (int(learned.count) > 0) == (objects > 0), (norm, act, init, objects)
    before = [p.detach().clone() for p in network.parameters()]
    torch.optim.SGD(network.parameters(), 1e-3).step()
    for (parameter, p), old in zip(network.named_parameters(), before, strict=True):
        assert p.grad is not None and bool(p.grad.isfinite().all()), (norm, act, init, parameter)
        assert bool((p.grad != 0).any()) and not torch.equal(p, old), (norm, act, init, parameter)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("norm", "act", "init"), [(n, ACTS[i % 3], INITS[i % 3]) for i, n in enumerate(NORMS)])
def test_every_part_can_be_swapped_and_every_parameter_moves(name, norm, act, init):
    check_swapped(name, norm, act, init)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_combination_of_parts_trains_a_step(name):
    for norm, act, init in itertools.product(NORMS, ACTS, INITS):
        check_swapped(name, norm, act, init)


# -- Counting --------------------------------------------------------------------------------------------------------


def test_iou_of_learned_boxes_loss_parts_and_their_sum():
    network = SMALL["fcos"](3, layers=GN).eval()
    task = task_of("fcos", network)
    images, targets = torch.randn(3, 3, *SIZE), drawn_targets(3, 3, 3, 64.0)
    outputs, priors = network(images), network.priors(SIZE)
    learned = task.learn(outputs, targets, SIZE)
    assigned = task.loss.assign(targets, priors)
    from torchvision.ops import box_iou

    boxes = priors.decode(outputs.codes).detach()
    reached = [
        float(box_iou(boxes[i, p, None], targets[i, assigned.objects[i, p], None, :4]))
        for i, p in assigned.positive.nonzero().tolist()
    ]
    assert int(learned.count) == len(reached) > 0
    assert float(learned.correct) == pytest.approx(sum(reached), rel=1e-4)
    parts = task.loss(outputs, targets, priors)
    assert task.loss_parts == tuple(parts) == ("classes", "boxes", "centerness")
    torch.testing.assert_close(learned.parts / learned.divisor, torch.stack(list(parts.values())).detach())


def test_worst_images_and_what_each_got():
    """Image 0 has one of two objects and a false detection, 1 all, 2 nothing to find, 3 misses its only one."""
    task = task_of("fcos", SMALL["fcos"](3, layers=GN))
    a, b = [0.0, 0, 10, 10, 0, 0], [20.0, 20, 40, 40, 1, 0]
    none = [0.0, 0, 0, 0, -1, 0]
    targets = torch.tensor([[a, b], [a, none], [none, none], [b, none]])
    found = torch.tensor([
        [[0, 0, 10, 10, 0, 0.9], [50, 50, 60, 60, 0, 0.85]], [[0, 0, 10, 10, 0, 0.8], none], [none, none], [none, none],
    ])  # fmt: skip
    task.detect = lambda outputs, size: found  # type: ignore[method-assign]
    judged = task.update(None, Batch(torch.zeros(4, 3, *SIZE), targets, torch.tensor([4, 0, 2, 6])))
    assert judged.shape == (4, 3) and bool(judged.isnan().all())
    measured = task.compute()
    assert {i: row[2] for i, row in measured.samples.items()} == {0: 1.0, 2: 1.0, 4: 0.5, 6: 0.0}
    assert measured.worst == [6, 4, 0, 2]
    assert measured.confusion.tolist()[3] == [1, 0, 0, 0]  # the background, once taken for class 0
    assert task.confusion_names == ["a", "b", "c", "background"]
    assert measured.per_class["threshold"][:2] == pytest.approx([0.8, 1.0])


def test_detections_are_judged_by_hand():
    objects = torch.tensor([
        [0.0, 0, 10, 10, 0, 0], [20, 20, 40, 40, 1, 0], [50, 0, 60, 10, 2, 0], [0, 50, 10, 60, 1, 0],
        [50, 50, 60, 60, 1, 1],
    ])  # fmt: skip
    found = torch.tensor([
        [0.0, 0, 10, 10, 0, 0.9], [1, 0, 10, 10, 0, 0.8], [20, 20, 40, 40, 0, 0.7], [50, 4, 60, 16, 2, 0.6],
        [30, 0, 35, 5, 1, 0.5], [50, 50, 60, 60, 1, 0.4],
    ])  # fmt: skip
    kinds, missed = judge(found, objects)
    assert kinds == ["right", "invented", "wrong class", "badly placed", "invented", ""]
    assert missed == [False, False, False, True, False]
    assert judge(found, objects[:0]) == (["invented"] * 6, [])
    assert judge(found[:0], objects) == ([], [True, True, True, True, False])


def test_panel_draws_the_boxes_in_their_colours():
    targets = torch.tensor([[[8.0, 8, 24, 24, 0, 0], [36, 36, 60, 60, 1, 0]]])
    found = torch.tensor([[[8.0, 8, 24, 24, 0, 0.9], [40, 4, 50, 14, 1, 0.5]]])
    panel = detection_panel(torch.zeros(1, 3, 64, 64), targets, found, ["cat", "dog"])
    assert panel.shape == (16 + 256 + 4, 2 * 260, 3) and panel.dtype == np.uint8
    truth, said = panel[16:272, :256], panel[16:272, 260:516]
    assert truth[32, 50].tolist() == [255, 255, 255]  # the upper side of an object, drawn at four times the size
    for kind, (y, x) in {"right": (32, 50), "invented": (55, 180), "missed": (239, 200)}.items():
        assert said[y, x].tolist() == list(JUDGED[kind]), kind


# -- A run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(compose([*TINY, f"output_dir={folder}", "callbacks.samples=2"]))
    return next((folder / "fcos").iterdir())


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_run_says_everything_of_its_detections(run):
    (_, last) = table(run / "metrics.csv")
    parts = [f"loss_{name}" for name in ("classes", "boxes", "centerness")]
    for split in ("train", "val"):
        total = sum(float(last[f"{split}/{part}"]) for part in parts)
        assert float(last[f"{split}/loss"]) == pytest.approx(total, rel=1e-5)
    assert 0 < float(last["train/iou"]) < 1 and "train/acc" not in last
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"test/map", "test/map50", "test/mar100", "test/voc07", "test/f1", "test/loss_boxes"} <= metrics.keys()
    rows = table(run / "per_class.csv")
    assert list(rows[0]) == ["class", "AP", "AP50", "objects", "f1", "precision", "recall", "threshold"]
    assert len(rows) == 10 and len(table(run / "predictions.csv")) == 7
    for name in ("samples", "worst", "confusion"):
        assert (run / "pictures" / f"{name}.png").stat().st_size > 1000
    state = checkpoint.load(run / "best.ckpt")
    assert len(state["per_class"]["val"]["threshold"]) == 10
    assert state["best"]["monitor"] == "val/map"


def test_eval_measures_the_same_and_takes_other_suppression(run, capsys):
    metrics = json.loads((run / "metrics.json").read_text())
    found = evaluate(run)
    assert found == pytest.approx({name: metrics[name] for name in found}, rel=1e-6, nan_ok=True)
    fewer = evaluate(run, ["postprocess.max_detections=1", "postprocess.score=0"], split="val")
    assert fewer["val/loss"] > 0
    assert (run / "eval" / "val-nms" / "per_class.csv").is_file()


def prepare(folder: Path, *words: str) -> Path:
    folder.mkdir(parents=True)
    settings = [*TINY, "logger=none", "callbacks.samples=0", "trainer.limit_batches=4", *words]
    run_folder.describe(folder, OmegaConf.to_yaml(compose(settings)), "cnn-train")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["augment=shift"], ["augment=mosaic", "augment.off_epochs=0", "data.multi_scale=[64,96]"]]
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, more):
    options = ["callbacks.checkpoint.every_steps=1", "trainer.ema=0.9", "trainer.accumulate=2", *more]
    reference, folder = prepare(tmp_path / "whole", *options), prepare(tmp_path / "killed", *options)
    whole(reference)

    def die_in_the_second_epoch() -> None:
        step = Loop.step
        Loop.step = lambda loop, batch: os.kill(os.getpid(), 9) if loop.progress.step == 6 else step(loop, batch)

    assert end(begin(folder, resume=False, before=die_in_the_second_epoch)) == -signal.SIGKILL
    assert checkpoint.load(folder / "last.ckpt")["progress"]["step"] == 6
    whole(folder, resume=True)
    assert difference(reference, folder) == ""


def test_anchors_of_the_training_boxes_are_written_into_the_config(tmp_path):
    words = [*TINY[1:], "model=yolov2", "model.anchors=auto", f"output_dir={tmp_path}"]
    cfg = compose(words)
    text = OmegaConf.to_yaml(cfg)
    folder = tmp_path / "yolov2" / "1"
    folder.mkdir(parents=True)
    run_folder.describe(folder, text, "cnn-train")
    network, data = build_network_and_data(cfg, folder=folder)
    boxes = data.splits["train"].targets.flatten(0, 1)
    boxes = boxes[(boxes[:, 4] >= 0) & (boxes[:, 5] == 0)]
    sizes = boxes[:, 2:4] - boxes[:, :2]
    expected, reached = cluster_sizes(sizes, 5)
    saved = load_config(folder).model.anchors
    assert len(saved) == 5 and saved == network.anchors == cfg.model.anchors
    torch.testing.assert_close(torch.tensor(list(map(list, saved))), expected, atol=0.01, rtol=0)
    assert any(f"5 anchors from {len(sizes)} objects: mean IoU {reached:.3f}" in note for note in data.notes)
    assert unfinished(tmp_path / "yolov2", text) == folder  # resume=auto knows it by the line that was typed
    assert unfinished(tmp_path / "yolov2", text.replace("seed: 0", "seed: 1")) is None


@pytest.mark.slow
def test_two_processes_learn_and_measure_what_one_does(tmp_path):
    """The first has one batch of validation more, and most of the few images no detection."""
    few = ["data.num_val=3", "data.num_test=3", "data.eval_batch_size=1", "trainer.max_epochs=1"]
    few += ["optimizer=sgd", "optimizer.lr=0.01"]  # Adam would turn rounding into steps where a gradient is 0
    one = prepare(tmp_path / "one", *few)
    two = prepare(tmp_path / "two", *few, "trainer.devices=2", "trainer.strategy=ddp")
    whole(one)
    from tests.test_processes import start

    process = start(two)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    a, b = (checkpoint.load(folder / "last.ckpt") for folder in (one, two))
    for name in a["network"]:
        torch.testing.assert_close(a["network"][name], b["network"][name], rtol=1e-4, atol=1e-5)
    assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-3, abs=1e-5, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fcos", "retinanet", "ssd", "yolov2", "yolov3"])
def test_overfits_four_scenes(tmp_path, model):
    cfg = compose([
        f"model={model}", "norm=gn", "trainer.overfit_batches=1", "data.batch_size=4", "data.num_val=1",
        "data.num_test=1", "trainer.max_epochs=300", "trainer.eval_every=300", "trainer.progress=none", "logger=none",
        "callbacks.samples=1", "scheduler.warmup_epochs=10", f"output_dir={tmp_path}",
    ])  # fmt: skip
    assert train(cfg)["val/map50"] > 0.95


# -- What does not fit -----------------------------------------------------------------------------------------------


FEW = ["data.num_train=2", "data.num_val=1", "data.num_test=1"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["model=yolov3", "data=digits"],
            "yolov3 detects objects, but data=digits is for classification; choose another model or data",
        ),
        (["data=digit_boxes", *FEW], "lenet5 classifies images, but data=digit_boxes is for detection"),
        (["model=unet", "data=digit_boxes", *FEW], "unet segments images, but data=digit_boxes is for detection"),
        (
            ["model=fcos", "loss=cross_entropy", *FEW],
            "loss=cross_entropy is not for detection, but data=digit_boxes is",
        ),
        (["loss=fcos"], "loss=fcos is for detection, but data=digits is for classification"),
        (["model=fcos", "postprocess=none", *FEW], "detection needs postprocess=nms, got postprocess=none"),
        (["postprocess=nms"], "classification has no postprocess=nms"),
        (
            ["model=fcos", "inference=sliding", *FEW],
            "inference=sliding is for segmentation, but data=digit_boxes is fo",
        ),
        (
            ["model=fcos", "monitor=val/acc", *FEW],
            "monitor=val/acc is not a metric of this task; choose one of val/los",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(words, told):
    with pytest.raises(ConfigError) as error:
        cfg = compose(words)
        network, data = build_network_and_data(cfg)
        monitored(cfg, build_task(cfg, data, network))
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(
    scope="module",
    params=["fcos", *(pytest.param(n, marks=pytest.mark.slow) for n in ("yolov2", "yolov3", "ssd", "retinanet"))],
)
def small(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    words = [f"model={request.param}", "data.num_train=16", "data.num_val=8", "data.num_test=8", "image_size=64"]
    words += ["trainer.max_epochs=1", "trainer.progress=none", "logger=none", "trainer=cpu", "callbacks.samples=0"]
    train(compose([*words, f"output_dir={place}", f"data.cache_dir={place}"]))
    return next(place.glob("*/*"))


def test_a_loaded_detector_answers_in_the_images_own_pixels_as_predict_and_as_its_exports(small, tmp_path):
    photo = tmp_path / "photo.png"
    pixels = torch.randint(256, (3, 48, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(photo)
    model = load(small)
    model.preprocessing["thresholds"] = [0.06] * 10
    found = model.predict(photo)
    assert found.boxes.shape == (len(found.labels), 4) and len(found.scores) == len(found.labels)
    assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([80, 48, 80, 48])).all()
    out = tmp_path / "predictions"
    assert main(["predict", str(small), str(photo), "score=0.06", f"output={out}"]) == 0
    rows = [row for row in csv.DictReader((out / "detections.csv").read_text().splitlines()) if row["class"]]
    assert [row["class"] for row in rows] == list(found.labels)
    assert [float(row["x1"]) for row in rows] == pytest.approx(found.boxes[:, 0].tolist(), abs=1e-6)
    pytest.importorskip("onnxruntime")
    photo = torch.randint(256, (3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = model.predict(photo)
    for form, suffix in (("onnx", ".onnx"), ("safetensors", ".safetensors")):
        file = tmp_path / f"file{suffix}"
        assert main(["export", str(small), f"format={form}", f"output={file}"]) == 0
        other = load(file)
        other.preprocessing["thresholds"] = [0.06] * 10
        again = other.predict(photo)
        assert again.labels == found.labels
        torch.testing.assert_close(again.boxes, found.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(again.scores, found.scores, atol=1e-4, rtol=0)
