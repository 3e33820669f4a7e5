"""Counts of pixels against loops and the papers' definitions; evaluation, search and prediction of a run."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from cnn_train.__main__ import main
from cnn_train.config.compose import compose
from cnn_train.data.masks import MaskReader
from cnn_train.errors import ConfigError, DataError
from cnn_train.experiment.build import build_task, prepare
from cnn_train.experiment.evaluate import evaluate
from cnn_train.experiment.hardware import Machine
from cnn_train.experiment.network import build_network_and_data
from cnn_train.experiment.predict import predict
from cnn_train.experiment.train import train
from cnn_train.tasks.inference import labels_of
from cnn_train.tasks.pictures import palette
from cnn_train.tasks.segmentation import PixelCounts, boundary_counts

IGNORE = 255


def blobs(seed: int, number: int = 3, classes: int = 4, size: tuple[int, int] = (60, 75)) -> Tensor:
    """Label maps (N, H, W) of smooth regions."""
    random = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(random.normal(size=(number, classes, *size)), (0, 0, 5, 5))
    return torch.from_numpy(fields.argmax(1))


def example() -> tuple[Tensor, Tensor]:
    """Predictions and targets with ignored pixels; class 3 is never there, but predicted."""
    labels, targets = blobs(0), blobs(1)
    targets[targets == 3] = 0
    targets[0, :20] = IGNORE
    targets[1, 30:33, 5:40] = IGNORE
    return labels, targets


def test_metrics_are_those_of_a_loop_over_pixels():
    labels, targets = example()
    confusion = np.zeros((4, 4), int)
    for true, predicted in zip(targets.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if true != IGNORE:
            confusion[true, predicted] += 1
    counts = PixelCounts(4, IGNORE, 3)
    counts.update(labels, targets, torch.arange(3))
    values, columns, found = counts.compute()
    assert found.tolist() == confusion.tolist()
    true, predicted, hit = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    iou = [hit[c] / (true[c] + predicted[c] - hit[c]) for c in range(4)]
    assert columns["IoU"] == pytest.approx(iou)
    assert iou[3] == 0
    assert values["miou"] == pytest.approx(np.mean(iou))
    assert values["pixel_acc"] == pytest.approx(hit.sum() / confusion.sum())
    assert values["mean_class_acc"] == pytest.approx(np.mean([hit[c] / true[c] for c in range(3)]))
    assert values["fw_iou"] == pytest.approx(sum(true[c] / confusion.sum() * iou[c] for c in range(4)))
    assert columns["true pixels"] == true.tolist() and math.isnan(columns["accuracy"][3])


@pytest.mark.parametrize("with_ignored", [False, True])
def test_boundary_iou_is_the_papers(with_ignored):
    """Mask minus its erosion by squares, the image's border being outside (Cheng et al. 2021, reference code)."""
    labels, targets = example()
    counted = targets != IGNORE if with_ignored else torch.ones_like(targets, dtype=torch.bool)
    targets = targets.clamp(max=3)
    width = round(0.02 * math.hypot(60, 75))
    assert width == 2
    expected = np.zeros((2, 4), int)
    for label, target, valid in zip(labels.numpy(), targets.numpy(), counted.numpy(), strict=True):
        for c in range(4):
            masks = [(label == c) & valid, (target == c) & valid]
            edges = [m & ~ndimage.binary_erosion(m, np.ones((3, 3)), iterations=width, border_value=0) for m in masks]
            expected[:, c] += (edges[0] & edges[1]).sum(), (edges[0] | edges[1]).sum()
    assert boundary_counts(labels, targets, counted, 4).tolist() == expected.tolist()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_same_counts_by_any_batches_and_processes(processes):
    labels, targets = blobs(0, 7), blobs(1, 7)
    targets[3, :, :30] = IGNORE
    whole = PixelCounts(4, IGNORE, 9)
    whole.update(labels, targets, torch.arange(7))
    parts = []
    for rank in range(processes):
        parts.append(PixelCounts(4, IGNORE, 9))
        for index in torch.arange(rank, 7, processes).split(2):
            parts[-1].update(labels[index], targets[index], index)
    for name in ("confusion", "boundary", "image_iou", "seen"):
        assert torch.equal(sum(getattr(part, name) for part in parts), getattr(whole, name)), name
    assert whole.confusion.dtype == whole.boundary.dtype == torch.int64
    assert int(whole.confusion.sum()) == int((targets != IGNORE).sum())


def test_the_worst_samples_come_first():
    targets = blobs(1, 4)
    labels = targets.clone()
    labels[2] = (labels[2] + 1) % 4
    labels[0, :30] = 0
    targets[3] = IGNORE
    counts = PixelCounts(4, IGNORE, 10)
    counts.update(labels, targets, torch.tensor([5, 1, 7, 8]))
    counts.compute()
    assert counts.worst == [7, 5, 1, 8]


# -- A run -------------------------------------------------------------------------------------------------

TINY = [
    "model=unet", "model.width=4", "model.depth=2", "data.num_train=32", "data.num_val=12", "data.num_test=9",
    "data.batch_size=8", "data.eval_batch_size=5", "trainer.max_epochs=2", "trainer.accelerator=cpu",
    "trainer.progress=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(compose([*TINY, f"output_dir={folder}"]))
    return next((folder / "unet").iterdir())


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_run_shows_its_classes_and_its_worst_images(run):
    rows = table(run / "per_class.csv")
    assert list(rows[0]) == ["class", "IoU", "accuracy", "true pixels", "predicted pixels", "boundary IoU"]
    assert len(rows) == 11
    for name in ("samples", "worst", "confusion"):
        assert np.asarray(picture(run / "pictures" / f"{name}.png")).std() > 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert {"test/confusion", "test/samples", "val/worst"} <= set(board.Tags()["images"])
    assert "test/per_class/text_summary" in board.Tags()["tensors"]


def test_eval_takes_other_inference_and_post_processing(run, capsys):
    plain = evaluate(run)
    whole = evaluate(run, ["inference=sliding", "inference.window=64"])  # as large as the image
    assert whole == plain | {"test/loss": pytest.approx(plain["test/loss"], rel=1e-6)}  # blending rounds
    sliding = evaluate(run, ["inference=sliding", "inference.window=40"])
    cleaned = evaluate(run, ["postprocess=morphology", "postprocess.min_region=40"])
    assert len({metrics["test/miou"] for metrics in (plain, sliding, cleaned)}) == 3
    assert cleaned["test/loss"] == plain["test/loss"]
    for folder, metrics in (("test-sliding", sliding), ("test-morphology", cleaned)):
        assert json.loads((run / "eval" / folder / "metrics.json").read_text()) == metrics
        assert (run / "eval" / folder / "worst.png").is_file()
    assert (run / "eval" / "test" / "per_class.csv").is_file()
    with pytest.raises(ConfigError, match="a run keeps its model"):
        evaluate(run, ["model=segnet"])


def test_a_search_gives_what_each_evaluation_gives_and_computes_scores_once(run, capsys, monkeypatch):
    from cnn_train.tasks.segmentation import Segmentation

    calls: list[int] = []
    infer = Segmentation.infer
    monkeypatch.setattr(Segmentation, "infer", lambda self, *given: calls.append(len(given[1])) or infer(self, *given))
    command = ["eval", str(run), "-m", "postprocess=crf", "postprocess.bi_w=0,4", "postprocess.iterations=2"]
    assert main(command) == 0
    assert calls == [5, 5, 2]
    rows = table(run / "eval" / "search.csv")
    assert {row["settings"] for row in rows} == {"postprocess.bi_w=0", "postprocess.bi_w=4"}
    assert float(rows[0]["val/miou"]) >= float(rows[1]["val/miou"])
    for row in rows:
        alone = evaluate(run, ["postprocess=crf", "postprocess.iterations=2", row["settings"]], "val")
        del alone["val/loss"]  # of the scores
        assert {name: float(row[name]) for name in alone} == pytest.approx(alone, rel=1e-12)
    assert main(["eval", str(run), "-m", "inference.flip=true,false"]) == 2
    assert "searches postprocess" in capsys.readouterr().err


def test_predictions_are_masks_of_the_images_own_size(run, tmp_path):
    network, data = build_network_and_data(compose(TINY))
    from cnn_train.runs import checkpoint

    network.load_state_dict(checkpoint.weights(run / "best.ckpt"))
    images, _ = data.samples("test", range(2), device=torch.device("cpu"))
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(folder / "a.png")
    Image.fromarray(images[1].permute(1, 2, 0).numpy()).convert("L").resize((97, 61)).save(folder / "more" / "b.png")
    results = predict(run, folder, tmp_path / "out")
    assert results == tmp_path / "out"
    mask = picture(results / "masks" / "a.png")
    with torch.no_grad():
        expected = network.eval()(data.to_input(images[:1])).argmax(1)[0]
    assert torch.equal(torch.from_numpy(np.array(mask)).long(), expected)
    assert np.array_equal(np.asarray(mask.convert("RGB")), palette(11)[expected])
    assert picture(results / "masks" / "more" / "b.png").size == (97, 61)
    shown = np.asarray(picture(results / "overlays" / "a.png"))
    seen, ground = images[0].permute(1, 2, 0).numpy(), (expected == 0).numpy()
    assert np.array_equal(shown[:64][ground], seen[ground])  # as bright as it was
    half = (seen * 0.5 + palette(11)[expected] * 0.5).astype(np.uint8)
    assert np.array_equal(shown[:64][~ground], half[~ground]) and shown.shape[1] == 64
    legend = shown[64:].reshape(-1, 3)
    for label in (1, 2, 3, 4, 5, 6, 8, 9, 10):  # 7 has the grey of the frames
        assert ((legend == palette(11)[label]).all(1).sum() >= 81) == (label in expected), label
    # What is written is a mask that training can read again.
    reader = MaskReader([str(number) for number in range(11)], None, None, 255, None, 10**6)
    assert torch.equal(reader(str(results / "masks" / "a.png")).long(), expected)
    rows = table(results / "classes.csv")
    assert [row["name"] for row in rows] == data.class_names

    cleaned = predict(run, folder / "a.png", tmp_path / "clean", ["postprocess=morphology", "postprocess.opening=2"])
    with torch.no_grad():
        scores = network(data.to_input(images[:1]))
    from cnn_train.postprocess import Morphology

    labels = labels_of(scores, images[:1], Morphology(opening=2, min_region=20, fill_holes=20))[0]
    found = torch.from_numpy(np.array(picture(cleaned / "masks" / "a.png"))).long()
    assert torch.equal(found, labels) and not torch.equal(found, expected)


def test_predictions_of_a_classifier_are_a_table(tmp_path):
    settings = ["trainer.max_epochs=1", "trainer.limit_batches=2", "trainer.progress=none", "logger=none"]
    train(compose([*settings, "trainer.ema=0.5", f"output_dir={tmp_path / 'runs'}"]))
    (run,) = (tmp_path / "runs" / "lenet5").iterdir()
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for name, size in (("a.png", (8, 8)), ("a.jpg", (30, 20)), ("c.bmp", (32, 32))):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    assert main(["predict", str(run), str(tmp_path / "images"), "top=3"]) == 0
    rows = table(run / "predictions" / "predictions.csv")
    assert [Path(row["image"]).name for row in rows] == ["a.jpg", "a.png", "c.bmp"]
    for row in rows:
        values = [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)]
        assert values == sorted(values, reverse=True) and sum(values) <= 1
        assert len({row[f"class_{rank}"] for rank in (1, 2, 3)}) == 3
    with pytest.raises(ConfigError, match="postprocess=crf is for segmentation"):
        evaluate(run, ["postprocess=crf"])
    with pytest.raises(ConfigError, match="postprocess=crf is for segmentation"):
        predict(run, tmp_path / "images", overrides=["postprocess=crf"])


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["predict"], 2, "predict needs run=RUN and input=PATH"),
        (["predict", "run=nowhere", "input=x"], 2, "no run at "),
        (["predict", "run=tests", "input=x", "top=0"], 2, "top must be a whole number"),
        (["predict", "run={run}", "input=nowhere"], 3, "no image or folder nowhere"),
        (["predict", "run={run}", "input={run}/tensorboard"], 3, "holds no images, but"),
        (["eval", "run={run}", "postprocess=crff"], 2, "Did you mean crf?"),
        (["eval", "run={run}", "postprocess=crf", "postprocess.bi_wx=2"], 2, "postprocess.bi_w"),
        (["eval", "run={run}", "inference.train_size=[3,4]"], 2, "it comes from the data"),
        (["eval", "run={run}", "-m", "postprocess=crf"], 2, "searches lists of values"),
    ],
)
def test_what_is_wrong_is_told(run, capsys, words, code, text):
    assert main([word.replace("{run}", str(run)) for word in words]) == code
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error


def test_a_damaged_image_is_named(run, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png: not an image"):
        predict(run, tmp_path)


@pytest.mark.slow
def test_two_processes_measure_the_same_integers(tmp_path):
    settings = [*TINY, "logger=none", "trainer.max_epochs=1", f"output_dir={tmp_path}"]
    train(compose(settings))
    (run,) = (tmp_path / "unet").iterdir()
    command = [sys.executable, "-m", "cnn_train", "eval", f"run={run}", "trainer.devices=2", "trainer.strategy=ddp"]
    evaluate(run)
    alone = (run / "eval" / "test" / "per_class.csv").read_text()
    (run / "eval" / "test" / "per_class.csv").unlink()
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert (run / "eval" / "test" / "per_class.csv").read_text() == alone


# -- The ignore label ------------------------------------------------------------------------------------------


def test_the_ignore_label_is_followed_everywhere(tmp_path, monkeypatch):
    """What masks mark with 9 reaches augmentation, loss, metrics, padding, post-processing and pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    random = np.random.default_rng(0)
    marked = 0
    for i in range(8):
        mask = blobs(i, 1, 3, (20, 26))[0].numpy().astype(np.uint8)
        mask[2:6, 3:9] = 9
        marked += int((mask == 9).sum())
        Image.fromarray(random.integers(1, 256, (20, 26, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    settings = [
        "model=unet", "model.width=4", "model.depth=2", "data=segmentation_folder", f"data.root={tmp_path}",
        "data.classes=[a,b,c]", "data.ignore_index=9", "image_size=32", "data.workers=0", "data.batch_size=4",
        "data.val_fraction=0.25", "data.test_fraction=0.25", "augment=shift", "augment.degrees=40", "loss=ce_dice",
        "postprocess=crf",
    ]  # fmt: skip
    cfg = compose(settings)
    network, data = build_network_and_data(cfg)
    task = build_task(cfg, data)
    cpu = torch.device("cpu")

    # Marked pixels and the padding of 20x26 to 32x32 are ignored; so are, in training, corners that turning brings in.
    for batch in data.eval_batches("val", device=cpu):
        outside = torch.ones(32, 32, dtype=torch.bool)
        outside[:20, :26] = False
        outside[2:6, 3:9] = True
        assert torch.equal(batch.targets == data.ignore_index, outside.expand_as(batch.targets))
    batch = next(data.train_batches(0, device=cpu))
    ignored = batch.targets == data.ignore_index
    turned = (data.denormalize(batch.images) == 0).all(1)  # no pixel of the images is black
    assert turned[:, :20, :26].any() and ignored[turned].all()

    # The loss: no gradient there.
    scores = network(batch.images).detach().requires_grad_()
    task.loss(scores, batch.targets).backward()
    assert (scores.grad.abs().sum(1)[ignored] == 0).all() and (scores.grad.abs().sum(1)[~ignored] > 0).all()

    # The metrics: the pixels that count are those that are neither marked nor padding, whatever is predicted there.
    seen = []
    (crf,) = task.postprocesses
    task.postprocesses = (
        lambda images, probabilities: seen.append(tuple(images.shape[2:])) or crf(images, probabilities),
    )
    with torch.no_grad():
        for batch in data.eval_batches("val", device=cpu):
            scores = task.infer(network, batch.images)
            task.update(scores, batch)
            before = task.counts[0].confusion.clone()
            task.reset()
            wrong = torch.where((batch.targets == data.ignore_index)[:, None], scores.roll(1, 1), scores)
            task.postprocesses = (None,)
            task.update(wrong, batch)
            plain = task.counts[0].confusion.clone()
            task.reset()
            task.update(scores, batch)
            assert torch.equal(plain, task.counts[0].confusion)
    assert int(before.sum()) == 2 * (20 * 26 - 4 * 6)
    # The CRF sees the image without its padding.
    assert seen == [(20, 26)] * 2
    assert task.panel(data.denormalize(batch.images), batch.targets, scores).shape[2] == 3


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["data.num_train=17"], "the last training batch is 1 image and a map of deeplabv3 is 1x1"),
        (["data.batch_size=1"], "a training batch is 1 image and a map of deeplabv3 is 1x1"),
        (["trainer.split_batches=9"], "a part of a training batch is 1 image"),
        (
            ["data.num_train=19", "trainer.devices=2", "trainer.accelerator=cpu"],
            "a part of the last training batch is 1",
        ),
    ],
)
def test_a_single_image_with_batch_norm_is_told_before_training(settings, told):
    small = ["model=deeplabv3", "model.encoder_widths=[4,4,4,4]", "model.aspp_channels=4", "data.num_val=2"]
    small += ["data.num_train=16", "data.num_test=2", *settings]
    cfg = compose(small)
    with pytest.raises(ConfigError) as error:
        build_network_and_data(cfg, Machine.of(cfg.trainer).num_processes)
    for words in (told, "data.drop_last=true", "norm=gn", "norm=frozen_bn"):
        assert words in str(error.value)
    for choice in ("norm=gn", "norm=frozen_bn", "model.image_pooling=false"):
        build_network_and_data(compose([*small, choice]))
    if "data.num_train=17" in settings:
        build_network_and_data(compose([*small, "data.drop_last=true"]))


def test_the_decoder_needs_an_encoder_to_be_faster_than(tmp_path):
    cfg = compose([*TINY, "trainer.decoder_lr_ratio=10"])
    with pytest.raises(ConfigError, match="unet has no encoder apart"):
        prepare(cfg, Machine.of(cfg.trainer), tmp_path)
