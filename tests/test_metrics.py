"""Metrics of classification against scikit-learn, intervals against simulated truth, calibration in closed form."""

import csv

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from cnn_train.__main__ import main
from cnn_train.config.compose import compose
from cnn_train.errors import ConfigError
from cnn_train.experiment.evaluate import check_same_classes, evaluate
from cnn_train.experiment.train import train
from cnn_train.tasks.calibration import Calibration
from cnn_train.tasks.classification import Classification
from cnn_train.tasks.intervals import OF_CONFUSION, f1, intervals, precision, recall, wilson


def sample(n: int = 400, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    true = random.integers(0, classes, n)
    return true, np.where(random.random(n) < 0.7, true, random.integers(0, classes, n))


def test_metrics_are_scikit_learns():
    true, predicted = sample()
    confusion = torch.from_numpy(sk.confusion_matrix(true, predicted)).double()
    theirs = sk.precision_recall_fscore_support(true, predicted)
    for ours, values in zip((precision(confusion), recall(confusion), f1(confusion)), theirs, strict=False):
        np.testing.assert_allclose(ours, values, atol=1e-12)
    expected = {
        "acc": sk.accuracy_score(true, predicted), "mean_class_acc": sk.balanced_accuracy_score(true, predicted),
        "f1": sk.f1_score(true, predicted, average="macro"), "kappa": sk.cohen_kappa_score(true, predicted),
    }  # fmt: skip
    for name, value in expected.items():
        assert float(OF_CONFUSION[name](confusion)) == pytest.approx(value, abs=1e-12)


def test_the_accuracy_of_360_digits():
    assert wilson(357, 360) == pytest.approx((0.9758, 0.9972), abs=1e-4)
    assert wilson(360, 360)[1] == pytest.approx(1) and wilson(0, 10)[0] == pytest.approx(0)


def test_intervals_cover_the_truth():
    """500 simulated test sets of a classifier whose accuracy, F1 and kappa are known from a million images."""
    random = np.random.default_rng(1)
    shares = np.array([[0.30, 0.03, 0.02], [0.05, 0.25, 0.05], [0.02, 0.04, 0.24]])
    truth = {name: float(metric(torch.from_numpy(shares))) for name, metric in OF_CONFUSION.items()}
    inside = dict.fromkeys(truth, 0)
    for seed in range(500):
        confusion = torch.from_numpy(random.multinomial(300, shares.flatten()).reshape(3, 3))
        for name, (low, high) in intervals(confusion, resamples=1 if seed % 10 else 200, seed=seed).items():
            if name == "acc" or seed % 10 == 0:
                inside[name] += low <= truth[name] <= high
    assert 0.93 <= inside["acc"] / 500 <= 0.97
    assert all(0.86 <= inside[name] / 50 <= 1 for name in ("f1", "mean_class_acc", "kappa"))


def test_calibration_in_closed_form_and_over_processes():
    """Half of the images at confidence 0.8 with 60 % right, half at 0.6 with 60 % right: (0.2 + 0) / 2."""
    logits = torch.tensor([[0.8, 0.2]]).log().repeat(10, 1), torch.tensor([[0.6, 0.4]]).log().repeat(10, 1)
    labels = torch.tensor([0] * 6 + [1] * 4)
    metric = Calibration()
    for scores in logits:
        metric.update(scores, labels)
    found = metric.compute()
    assert found["ece"] == pytest.approx(0.1, abs=1e-6)
    own = [0.6 * 2 * 0.2**2 + 0.4 * 2 * 0.8**2, 0.6 * 2 * 0.4**2 + 0.4 * 2 * 0.6**2]
    assert found["brier"] == pytest.approx(sum(own) / 2, abs=1e-6)


def test_brier_and_ece_of_random_scores():
    torch.manual_seed(0)
    scores, labels = torch.randn(500, 4), torch.randint(4, (500,))
    metric = Calibration()
    for part, some in zip(scores.split(64), labels.split(64), strict=True):
        metric.update(part, some)
    probabilities = scores.softmax(1)
    brier = (probabilities - torch.nn.functional.one_hot(labels, 4)).square().sum(1).mean()
    best, predicted = probabilities.max(1)
    ece = 0.0
    for i in range(15):
        chosen = (best * 15).long() == i
        if chosen.any():
            hits = (predicted == labels)[chosen].double().mean()
            ece += float(chosen.double().mean() * (best[chosen].double().mean() - hits).abs())
    assert metric.compute()["brier"] == pytest.approx(float(brier), abs=1e-6)
    assert metric.compute()["ece"] == pytest.approx(ece, abs=1e-6)


def test_other_classes_are_refused_with_both_lists():
    check_same_classes(["a", "b"], ["a", "b"], "folder")
    with pytest.raises(ConfigError, match="lacks b and adds c: the network knows a, b, the data a, c"):
        check_same_classes(["a", "c"], ["a", "b"], "folder")
    with pytest.raises(ConfigError, match="orders them otherwise"):
        check_same_classes(["b", "a"], ["a", "b"], "folder")


def test_eval_tells_intervals_and_f1_can_choose_the_best_epoch(tmp_path, capsys):
    quick = ["trainer.max_epochs=2", "trainer.limit_batches=4", "trainer.progress=none", "logger=none", "trainer=cpu"]
    metrics = train(compose(["model=lenet5", *quick, "monitor=val/f1", f"output_dir={tmp_path}"]))
    assert 0 < metrics["test/f1"] <= 1 and 0 <= metrics["test/ece"] <= 1
    (run,) = (tmp_path / "lenet5").iterdir()
    capsys.readouterr()
    assert main(["eval", f"run={run}"]) == 0
    assert f"{wilson(round(metrics['test/acc'] * 360), 360)[0]:.4f} to" in capsys.readouterr().out
    assert (run / "eval" / "test" / "intervals.json").is_file()
    rows = list(csv.DictReader((run / "eval" / "test" / "probabilities.csv").read_text().splitlines()))
    hits = [row["label"] == row["prediction"] for row in rows]
    assert len(rows) == 360 and sum(hits) / 360 == pytest.approx(metrics["test/acc"])
    assert all(float(row[row["prediction"]]) == float(row["confidence"]) for row in rows)
    on_train = evaluate(run, split="train")
    assert set(on_train) == {f"train/{name}" for name in (*Classification.metric_names, "auroc")}
    assert (run / "eval" / "train" / "per_class.csv").is_file()
