"""Several labels an image: metrics against scikit-learn, thresholds, and a run from the table to the test."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from cnn_train.config.build import build
from cnn_train.config.compose import compose
from cnn_train.data.csv_file import csv_file
from cnn_train.data.data import Batch
from cnn_train.errors import ConfigError
from cnn_train.experiment.evaluate import evaluate
from cnn_train.experiment.export import export
from cnn_train.experiment.predict import predict
from cnn_train.experiment.train import train
from cnn_train.runs import checkpoint
from cnn_train.tasks.losses import BCE, CrossEntropy, Sum
from cnn_train.tasks.multilabel import MultiLabel, average_precision, best_thresholds, f1_scores

K = 3


def drawn(samples: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with many equal ones, and targets of which a class may have none."""
    random = np.random.default_rng(seed)
    scores = torch.from_numpy(random.integers(-4, 5, (samples, classes)) / 2.0)
    targets = torch.from_numpy((random.random((samples, classes)) < random.random(classes)).astype(np.int64))
    return scores, targets


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_and_f1_are_those_of_scikit_learn(seed):
    scores, targets = drawn(60, 7, seed)
    targets[:, 0] = 0
    ours = average_precision(scores, targets)
    assert ours[0].isnan()
    for k in range(1, 7):
        assert float(ours[k]) == pytest.approx(average_precision_score(targets[:, k], scores[:, k]), abs=1e-12)
    predicted = scores > 0.5
    predicted[:, 0] = False
    each, micro = f1_scores(predicted, targets)
    options = {"zero_division": np.nan}
    assert np.allclose(each, f1_score(targets, predicted, average=None, **options), atol=1e-12, equal_nan=True)
    assert float(each.nanmean()) == pytest.approx(f1_score(targets, predicted, average="macro", **options), abs=1e-12)
    assert float(micro) == pytest.approx(f1_score(targets, predicted, average="micro"), abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_no_threshold_has_a_higher_f1_than_the_chosen_one(seed):
    scores, targets = drawn(40, 5, seed)
    targets[:, 4] = 0
    probabilities = scores.sigmoid()
    chosen = best_thresholds(probabilities, targets)
    assert float(chosen[4]) == 0.5
    found, _ = f1_scores(probabilities >= chosen, targets)
    for k in range(4):
        every = [f1_score(targets[:, k], probabilities[:, k] >= t, zero_division=0.0) for t in np.linspace(0, 1, 81)]
        assert float(found[k]) == pytest.approx(max(every), abs=1e-12)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Images of 16x16 of which class k is shown by a bright square in a corner of its own; "none" is in the table."""
    root = tmp_path_factory.mktemp("several")
    random = np.random.default_rng(0)
    rows = ["path,north,east,south"]
    for i in range(120):
        image, shown = random.integers(0, 60, (16, 16), dtype=np.uint8), random.random(K) < (0.5, 0.3, 0.2)
        for k, (y, x) in enumerate([(0, 4), (6, 10), (10, 2)]):
            if shown[k]:
                image[y : y + 6, x : x + 6] += 150
        Image.fromarray(image).save(root / f"{i}.png")
        rows.append(f"{i}.png,{','.join(str(int(flag)) for flag in shown)}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root / "labels.csv"


def test_what_a_task_measures_is_what_scikit_learn_says(table):
    data = csv_file(str(table), task="multilabel", workers=0)
    task = MultiLabel(BCE(num_classes=K), data)
    torch.manual_seed(0)
    every = [(b, torch.randn(len(b.indices), K)) for b in data.eval_batches("val", device=torch.device("cpu"))]
    task.reset()
    for batch, scores in every:
        task.update(scores, batch)
    task.choose()
    measured = task.compute()
    scores, targets = torch.cat([s for _, s in every]), torch.cat([b.targets for b, _ in every])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert measured.metrics["map"] == pytest.approx(average_precision_score(targets, scores), abs=1e-6)
    predicted = task.predicted(scores)
    assert measured.metrics["macro_f1"] == pytest.approx(f1_score(targets, predicted, average="macro"), abs=1e-6)
    assert measured.metrics["micro_f1"] == pytest.approx(f1_score(targets, predicted, average="micro"), abs=1e-6)
    assert measured.per_class["threshold"] == task.thresholds.tolist() != [0.5] * K
    assert measured.confusion[1, 2] == sum(bool(t[1]) and bool(p[2]) for t, p in zip(targets, predicted, strict=True))
    other = MultiLabel(BCE(num_classes=K), data)
    other.restore(task.chosen())
    assert torch.equal(other.thresholds, task.thresholds)


def test_a_loss_of_one_label_is_refused(table):
    data = csv_file(str(table), task="multilabel", workers=0)
    for loss in (CrossEntropy(num_classes=K), Sum([BCE, CrossEntropy], num_classes=K)):
        with pytest.raises(ConfigError, match=r"CrossEntropy is a loss for one label an image, .* loss=bce"):
            MultiLabel(loss, data)


def test_a_run_learns_chooses_thresholds_and_is_evaluated_alike(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = [
        "model=lenet5", "image_size=32", "data=csv", f"data.file={table}", "data.task=multilabel", "data.workers=0",
        "loss=bce", "loss.positive_weights=auto", "optimizer=adam", "optimizer.lr=0.005", "trainer.max_epochs=15",
        "data.batch_size=16", "callbacks.samples=4", "logger=none",
    ]  # fmt: skip
    (tmp_path / "run").mkdir()
    metrics = train(compose(settings), tmp_path / "run")
    assert metrics["test/map"] > 0.9 and metrics["test/macro_f1"] > 0.8
    shown = "".join(capsys.readouterr())
    data = csv_file(str(table), task="multilabel", workers=0)
    counts = [int(n) for n in data.class_counts("train")]
    assert f"positive weights north {(data.size('train') - counts[0]) / counts[0]:.3g}" in " ".join(shown.split())
    thresholds = checkpoint.load(tmp_path / "run" / "best.ckpt")["chosen"]["thresholds"]
    with open(tmp_path / "run" / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["threshold"]) for row in rows] == thresholds
    from omegaconf import OmegaConf

    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(compose(settings)))
    again = evaluate(tmp_path / "run")
    assert again == {name: value for name, value in metrics.items() if name.startswith("test/")}

    data = build(compose(settings).data)
    images, targets = data.samples("test", range(data.size("test")), device=torch.device("cpu"))
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(tmp_path / "photos" / f"{number:03}.png")
    exported = export(tmp_path / "run", "onnx", preprocessing="inside")
    for run in (tmp_path / "run", exported):  # both with the thresholds of validation
        with open(predict(run, tmp_path / "photos", tmp_path / "found") / "predictions.csv", newline="") as file:
            shown = [row["classes"].split(";") for row in csv.DictReader(file)]
        predicted = [[name in names for name in data.class_names] for names in shown]
        found = f1_score(targets > 0.5, predicted, average="macro", zero_division=0)
        assert metrics["test/macro_f1"] == pytest.approx(found, abs=1e-6), run


def test_mixed_images_have_soft_targets_of_several_labels(table):
    from cnn_train.data.augment import CutMix

    data = csv_file(str(table), task="multilabel", workers=0, augment=CutMix())
    batch = next(data.train_batches(0, device=torch.device("cpu")))
    assert isinstance(batch, Batch) and batch.targets.shape == (64, K) and float(batch.targets.max()) == 1
    assert bool(((batch.targets > 0) & (batch.targets < 1)).any())
