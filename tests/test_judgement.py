"""What eval says beyond metrics, against scikit-learn, closed forms, simulated truth and PIL."""

import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk
from torch import nn

from cnn_train import load
from cnn_train.__main__ import main
from cnn_train.config.compose import compose
from cnn_train.data import corruptions
from cnn_train.errors import ConfigError
from cnn_train.experiment import calibration
from cnn_train.experiment.evaluate import evaluate
from cnn_train.experiment.train import train
from cnn_train.tasks.calibration import Calibration
from cnn_train.tasks.inference import Inference, zoomed
from cnn_train.tasks.probabilities import Kept, auroc, macro_auroc, resampled, temperature


def drawn(n: int = 300, classes: int = 4, seed: int = 0) -> Kept:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, classes, generator=generator) * 2
    labels = scores.softmax(1).multinomial(1, generator=generator).squeeze(1)
    return Kept(torch.arange(n), labels, scores)


def test_auroc_is_scikit_learns_with_ties_and_weights():
    kept = drawn()
    values, positive = kept.scores[:, 0].mul(2).round().double(), kept.labels == 0
    assert float(auroc(values, positive)) == pytest.approx(sk.roc_auc_score(positive, values), abs=1e-12)
    weights = torch.randint(0, 4, (2, len(values)), generator=torch.Generator().manual_seed(1))
    expected = [sk.roc_auc_score(positive, values, sample_weight=row) for row in weights]
    assert auroc(values, positive, weights).tolist() == pytest.approx(expected, abs=1e-12)
    probabilities = kept.scores.double().softmax(1)
    theirs = sk.roc_auc_score(kept.labels, probabilities / probabilities.sum(1, keepdim=True), multi_class="ovr")
    assert float(macro_auroc(probabilities, kept.labels)) == pytest.approx(theirs, abs=1e-12)
    assert math.isnan(float(auroc(values, torch.zeros(len(values), dtype=torch.bool))))


@pytest.mark.parametrize(("share", "gap"), [(0.9, 5.0), (0.6, 0.2), (0.75, 1.0)])
def test_the_temperature_of_two_classes_in_closed_form(share, gap):
    """Scores (gap, 0) that are right in a share q of the cases: sigmoid(gap / T) = q."""
    labels = torch.zeros(1000, dtype=torch.int64)
    labels[round(1000 * share) :] = 1
    scores = torch.tensor([[gap, 0.0]]).expand(1000, 2)
    assert temperature(scores, labels) == pytest.approx(gap / math.log(share / (1 - share)), rel=1e-6)


def test_intervals_over_groups_cover_the_truth_where_those_over_images_do_not():
    """Twenty images of each of thirty groups, all right or all wrong: as sure as thirty images, not six hundred."""
    random, covered = np.random.default_rng(0), [0, 0]
    for trial in range(200):
        right = np.repeat(random.random(30) < 0.7, 20)
        scores = torch.zeros(600, 2)
        scores[:, 0] = 1.0
        kept = Kept(torch.arange(600), torch.from_numpy(~right).long(), scores)
        for k, groups in enumerate((None, list(np.repeat(np.arange(30), 20)))):
            low, high = resampled(kept, groups, resamples=200, seed=trial)["acc"]
            covered[k] += low <= 0.7 <= high
    assert covered[0] < 0.5 * 200 and 0.9 * 200 <= covered[1] <= 0.98 * 200


def test_corruptions_are_what_they_say():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 48, generator=generator) * 0.2 + 0.4
    for strength in range(5):
        made = {kind: make(images, strength, generator) for kind, make in corruptions.CORRUPTIONS.items()}
        assert float((made["noise"] - images).std()) == pytest.approx(corruptions.NOISE[strength], rel=0.02)
        torch.testing.assert_close(made["brightness"], images + corruptions.LIGHT[strength])
        mean = images.mean((2, 3), keepdim=True)
        torch.testing.assert_close(made["contrast"] - mean, (images - mean) * corruptions.CONTRAST[strength])
        flat = corruptions.blur(torch.full_like(images, 0.3), strength, generator)
        torch.testing.assert_close(flat, torch.full_like(images, 0.3))
        content, pixels = io.BytesIO(), (images[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(content, "JPEG", quality=corruptions.JPEG[strength])
        expected = torch.from_numpy(np.array(Image.open(content))).permute(2, 0, 1) / 255
        torch.testing.assert_close(made["jpeg"][0], expected)
    assert corruptions.jpeg(torch.rand(2, 4, 8, 8), 0, generator).shape == (2, 4, 8, 8)


def test_blur_is_the_gaussian_of_scipy():
    from scipy.ndimage import gaussian_filter

    image = torch.rand(1, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(image[0, 0].numpy(), corruptions.BLUR[1], mode="mirror", truncate=4.0)
    found = corruptions.blur(image, 1, torch.Generator())[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_views_of_a_classifier_are_averaged():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 16, 5))
    images = torch.rand(2, 3, 20, 16)
    found = Inference(flip=True).classify(network, images)
    expected = (network(images).softmax(1) + network(images.flip(-1)).softmax(1)) / 2
    torch.testing.assert_close(found.softmax(1), expected)
    assert (Inference().classify(network, images) == network(images)).all(), "one view: the network's own scores"
    for scale in (0.5, 0.9, 1.3):
        assert zoomed(images, scale).shape == images.shape
    assert Inference(scales=[0.9, 1.0, 1.1]).classify(network, images).shape == (2, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    quick = ["trainer.max_epochs=1", "trainer.limit_batches=6", "trainer.progress=none", "logger=none", "trainer=cpu"]
    train(compose(["model=lenet5", *quick, f"output_dir={place}"]))
    return next(place.glob("*/*"))


def test_everything_at_once_and_a_page(folder, capsys):
    line = ["eval", str(folder), "calibrate=true", "tta=flip", "robustness=true", "trainer.limit_batches=1"]
    assert main(line) == 0
    out = capsys.readouterr().out
    results = folder / "eval" / "test-flip"
    assert str(results / "index.html") in out and "resume" not in out
    page = (results / "index.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    for name in ("jpeg", "Most confident of the wrong answers", "How confident", "test/auroc", "95 %"):
        assert name in page
    rows = (results / "robustness.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["corruption", *corruptions.CORRUPTIONS]
    assert json.loads((folder / calibration.FILE).read_text())["inference"] == "flip"


def test_a_temperature_reaches_predictions_and_exports(folder, tmp_path):
    before = load(folder)
    assert main(["eval", str(folder), "calibrate=true"]) == 0
    after = load(folder)
    image = torch.randint(256, (1, 32, 32), dtype=torch.uint8)
    scores = before(before.preprocess(image)[None])
    assert (after(after.preprocess(image)[None]) == scores).all(), "scores stay"
    wanted = (scores / after.temperature).softmax(1)[0]
    assert after.temperature != 1
    torch.testing.assert_close(after.predict(image).probabilities, wanted.detach())
    pytest.importorskip("onnxruntime")
    for where in ("inside", "outside"):
        path = tmp_path / f"{where}.onnx"
        assert main(["export", str(folder), "format=onnx", f"preprocessing={where}", f"output={path}"]) == 0
        torch.testing.assert_close(load(path).predict(image).probabilities, wanted.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", ["{", "{}", '{"temperature": 0, "step": 1}', '{"temperature": "a", "step": 1}', "[]"])
def test_a_damaged_temperature_is_told(text, tmp_path):
    (tmp_path / calibration.FILE).write_text(text)
    with pytest.raises(ConfigError, match="calibrate=true"):
        calibration.read(tmp_path, {"progress": {"step": 1}}, "whole")


def test_several_runs_in_one_table(folder, capsys):
    assert main(["eval", str(folder), str(folder)]) == 0
    out = capsys.readouterr().out
    assert "all runs" in out and out.count(str(folder)) >= 2
    assert main(["eval", str(folder), "tta=flip", "inference=zoom"]) == 2
    assert main(["eval", str(folder), "inference=sliding"]) == 2


def test_other_images_of_the_same_classes_all_count(tmp_path, capsys):
    """A folder without splits, and a table: each image once, read as the run's own."""
    random = np.random.default_rng(0)
    for place, count in (("own", 30), ("other", 10)):
        for label in ("dark", "light"):
            (tmp_path / place / label).mkdir(parents=True)
            for i in range(count):
                level = 60 if label == "dark" else 190
                pixels = (level + random.normal(0, 20, (16, 16))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / place / label / f"{i}.png")
    quick = ["trainer.max_epochs=1", "trainer.progress=none", "logger=none", "trainer=cpu", "data.workers=0"]
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    own = f"data.root={tmp_path / 'own'}"
    train(compose(["model=lenet5", "data=folder", own, *quick, cache, f"output_dir={tmp_path / 'runs'}"]))
    folder = next((tmp_path / "runs").glob("*/*"))
    whole = evaluate(folder, [f"data.root={tmp_path / 'other'}"])
    rows = (folder / "eval" / "all-other" / "predictions.csv").read_text().splitlines()[1:]
    assert len(rows) == 20 and len({row.split(",")[0] for row in rows}) == 20
    right = load(folder).predict([row.split(",")[0] for row in rows])
    hits = [found.label == row.split(",")[1] for found, row in zip(right, rows, strict=True)]
    assert whole["all/acc"] == pytest.approx(sum(hits) / 20)
    table = tmp_path / "list.csv"
    table.write_text("path,label\n" + "".join(f"other/{k}/{i}.png,{k}\n" for k in ("dark", "light") for i in range(10)))
    by_table = evaluate(folder, ["data=csv", f"data.file={table}", "data.workers=0", cache])
    assert by_table["all/acc"] == whole["all/acc"] and by_table["all/loss"] == pytest.approx(whole["all/loss"])
    table.write_text("path,label\n" + "".join(f"other/{k}/{i}.png,{k}\n" for k, i in (("dark", 0), ("light", 1))))
    assert "all/acc" in evaluate(folder, ["data=csv", f"data.file={table}", "data.workers=0", cache])
    rows = (next((folder / "eval").glob("all-list*")) / "predictions.csv").read_text().splitlines()[1:]
    assert len(rows) == 2  # too few to cut splits from
    (tmp_path / "other" / "light").rename(tmp_path / "other" / "bright")
    assert main(["eval", str(folder), f"data.root={tmp_path / 'other'}"]) == 2
    assert "lacks light and adds bright" in capsys.readouterr().err


def test_scores_that_are_not_finite_make_the_calibration_error_nan():
    calibration = Calibration()
    scores = torch.tensor([[1.0, 2.0], [math.nan, 1.0], [math.inf, 0.0]])
    calibration.update(scores, torch.tensor([1, 0, 0]))
    assert all(math.isnan(value) for value in calibration.compute().values())
