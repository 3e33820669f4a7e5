"""Exported files: the numbers of their network, dynamic axes, metadata, and the refusal of other numbers."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_train.__main__ import main
from cnn_train.config.choices import Choices
from cnn_train.config.compose import compose
from cnn_train.errors import ConfigError
from cnn_train.experiment import export as exporting
from cnn_train.experiment.export import Deployed, DiffersError, export, exported
from cnn_train.experiment.train import train
from cnn_train.experiment.trained import Trained, load
from cnn_train.models.network import min_size, task_of

QUICK = ["trainer.max_epochs=1", "trainer.limit_batches=2", "trainer.progress=none", "logger=none", "trainer=cpu"]
NETWORKS = {
    "lenet5": ["model=lenet5"],
    "resnet18": ["model=resnet18", "+model.widths=[4,4,8,8]", "model.stem=small", "norm=gn"],
}


@pytest.fixture(scope="module", params=["lenet5", pytest.param("resnet18", marks=pytest.mark.slow)])
def run(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(compose([*NETWORKS[request.param], *QUICK, "name=it", f"output_dir={folder}"]))
    (path,) = (folder / "it").iterdir()
    return path


def test_torch_export_computes_the_networks_numbers_at_any_batch(run, capsys):
    path = export(run, "torch_export", count=50)
    assert path == run / "export" / "it.pt2"
    told = capsys.readouterr().out
    assert "checked on   50 images of the test split" in told and "0.0e+00 at most, 0 of 50 labels changed" in told
    extra = {exporting.METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    model = load(run)
    images = torch.randn(7, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(program.module()(images), model(images))
    metadata = json.loads(extra[exporting.METADATA])
    assert (
        metadata["class_names"] == model.class_names
        and metadata["preprocessing"]["mean"] == model.preprocessing["mean"]
    )
    assert metadata["metrics"]["test/acc"] == json.loads((run / "metrics.json").read_text())["test/acc"]
    assert [p.name for p in path.parent.iterdir()] == ["it.pt2"]


def test_onnx_with_preprocessing_inside_takes_bytes_and_gives_probabilities(run):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export(run, "onnx", count=20, preprocessing="inside")
    session = onnxruntime.InferenceSession(str(path))
    images = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
    (found,) = session.run(["probabilities"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), load(run).probabilities(images), atol=1e-5, rtol=0)
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["class_names"]) == [str(digit) for digit in range(10)]
    assert json.loads(properties["preprocessing"])["where"] == "inside"


@pytest.mark.parametrize("form", ["torch_export", "onnx"])
def test_half_precision_is_half_as_large_and_as_good(form, run, tmp_path, capsys):
    """Against the network in fp32: probabilities within 2e-2, and the file says what it takes."""
    whole, half = (
        export(run, form, tmp_path / f"{precision}{exporting.SUFFIXES[form]}", count=20, precision=precision)
        for precision in ("fp32", "fp16")
    )
    saved = whole.stat().st_size - half.stat().st_size  # two bytes a weight; the program itself stays as long
    assert saved > 1.5 * sum(parameter.numel() for parameter in load(run).parameters())
    assert "of 20 labels changed" in capsys.readouterr().out
    model, images = load(run), torch.randn(6, 1, 32, 32)
    if form == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(half))
        (found,) = session.run(None, {"images": images.numpy()})
        scores = torch.from_numpy(found).float()
    else:
        with torch.no_grad():
            scores = torch.export.load(half).module()(images).float()
    with torch.no_grad():
        expected = model(images).softmax(1)
    difference = (scores.softmax(1) - expected).abs().max()
    assert 0 < difference < 2e-2


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_safetensors_start_another_run_and_torchscript_runs(run, tmp_path):
    from cnn_train.experiment.network import build_network_and_data

    path = export(run, "safetensors")
    cfg = compose(
        [
            f"weights={path}",
            *(NETWORKS["lenet5"] if "lenet5" in (run / "config.yaml").read_text() else NETWORKS["resnet18"]),
        ]
    )
    network, _ = build_network_and_data(cfg)
    expected = load(run).network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    script = torch.jit.load(str(export(run, "torchscript", tmp_path / "a.pt", count=20)))
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(script(images), load(run)(images))


@pytest.mark.parametrize(
    ("form", "options"),
    [("safetensors", {}), ("onnx", {}), ("onnx", {"preprocessing": "inside"})],
    ids=["st", "out", "in"],
)
def test_predictions_of_an_exported_file_are_those_of_the_run(form, options, run, tmp_path):
    from cnn_train.experiment.predict import predict

    file = export(run, form, tmp_path / f"a{exporting.SUFFIXES[form]}", count=20, **options)
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "a.png")
    rows = [
        list(
            csv.DictReader(
                (predict(each, tmp_path / "a.png", tmp_path / "out") / "predictions.csv").read_text().splitlines()
            )
        )
        for each in (run, file)
    ]
    assert rows[0][0]["class_1"] == rows[1][0]["class_1"]
    assert float(rows[0][0]["probability_1"]) == pytest.approx(float(rows[1][0]["probability_1"]), abs=1e-5)
    assert load(file).class_names == load(run).class_names


def test_a_file_with_other_numbers_gets_no_name(run, monkeypatch, tmp_path):
    def wrong(path: Path, module: Deployed):
        return lambda images: module(images) * 1.01 + 0.01

    monkeypatch.setitem(exporting.READERS, "torch_export", wrong)
    with pytest.raises(DiffersError, match=r"differs from the network by .*e-.* was not written") as error:
        export(run, output=tmp_path / "a.pt2", count=20)
    assert error.value.exit_code == 1 and not list(tmp_path.iterdir())


def test_the_command(run, tmp_path, capsys):
    assert main(["export", f"run={run}", f"output={tmp_path / 'a.pt2'}", "images=20"]) == 0
    assert "exported     " in capsys.readouterr().out and (tmp_path / "a.pt2").is_file()
    assert main(["export", f"run={run}", "format=onxx"]) == 2
    assert "format must be one of torch_export, onnx, safetensors, torchscript" in capsys.readouterr().err
    assert main(["export"]) == 2
    assert main(["export", f"run={run}", "format=safetensors", "preprocessing=inside"]) == 2


@pytest.mark.parametrize(
    ("line", "norm"),
    [
        (["model=unet", "model.width=4"], "bn"),
        pytest.param(["model=deeplabv3"], "gn", marks=pytest.mark.slow),
        pytest.param(["model=unet", "model.width=4"], "gn", marks=pytest.mark.slow),
        pytest.param(["model=deeplabv3"], "bn", marks=pytest.mark.slow),
    ],
)
def test_segmentation_networks_are_free_in_batch_and_size(line, norm):
    from cnn_train.config.build import build, build_layers

    cfg = compose([*line, f"norm={norm}"])
    torch.manual_seed(0)
    network = build(cfg.model, num_classes=3, in_channels=1, layers=build_layers(cfg)).eval()
    how = {
        "task": "segmentation",
        "image_size": [32, 32],
        "resize": "own",
        "in_channels": 1,
        "mean": [0.5],
        "std": [0.25],
    }
    model = Trained(network, ["a", "b", "c"], how)
    module = Deployed(model, inside=True, half=False)
    images = torch.randint(256, (2, 1, 32, 32), dtype=torch.uint8)
    program, free = exported(module, images)
    assert free == ("batch", "height", "width")
    for size in ((32, 32), (48, 80)):
        images = torch.randint(256, (3, 1, *size), dtype=torch.uint8)
        with torch.no_grad():
            scores = network(model.normalized(images))
            assert torch.equal(program.module()(images), scores.argmax(1))


@pytest.mark.slow
@pytest.mark.parametrize("line", [["model=unet", "model.width=4"], ["model=deeplabv3", "norm=gn"]])
def test_segmentation_by_onnxruntime_at_two_sizes(line, tmp_path):
    from cnn_train.config.build import build, build_layers

    cfg = compose(line)
    torch.manual_seed(0)
    network = build(cfg.model, num_classes=3, in_channels=1, layers=build_layers(cfg)).eval()
    how = {
        "task": "segmentation",
        "image_size": [32, 32],
        "resize": "own",
        "in_channels": 1,
        "mean": [0.5],
        "std": [0.25],
    }
    module = Deployed(Trained(network, ["a", "b", "c"], how), inside=False, half=False)
    exporting.write_onnx(module, torch.randn(2, 1, 32, 32), tmp_path / "a.onnx", {"class_names": ["a"]})
    answer = exporting.read_onnx(tmp_path / "a.onnx", module)
    for size in ((32, 32), (48, 80)):
        images = torch.randn(3, 1, *size)
        with torch.no_grad():
            torch.testing.assert_close(answer(images), network(images), atol=1e-4, rtol=0)


def test_what_cannot_be_exported_names_the_layer():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x * float(x.sum().item() > 0 and len(str(x.sum().item())))

    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), Odd(), torch.nn.Flatten(), torch.nn.Linear(72, 2))
    how = {
        "task": "classification",
        "image_size": [8, 8],
        "resize": "own",
        "in_channels": 1,
        "mean": [0.5],
        "std": [0.25],
    }
    module = Deployed(Trained(network, ["a", "b"], how), inside=False, half=False)
    with pytest.raises(ConfigError, match=r"torch.export cannot take 1 \(Odd\): ") as error:
        exported(module, torch.randn(2, 1, 8, 8))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in Choices.find().options("model") if name not in ("timm", "torchvision")]
)
def test_every_network_of_the_zoo_exports_with_a_free_batch(name):
    """On the meta device, so that the largest take no memory; what the program computes is tested on small ones."""
    from cnn_train.config.build import build, build_layers

    cfg = compose([f"model={name}"])
    channels = 1 if name in ("lenet5", "lstm") else 3
    with torch.device("meta"):
        network = build(cfg.model, num_classes=10, in_channels=channels, layers=build_layers(cfg)).eval()
    side = {"lenet5": 32, "lstm": 28}.get(name, max(min_size(network), 64))
    how = {"task": task_of(network), "image_size": [side, side], "resize": "own", "in_channels": channels,
           "mean": [0.5] * channels, "std": [0.25] * channels}  # fmt: skip
    module = Deployed(Trained(network, list("0123456789"), how), inside=False, half=False)
    program, free = exported(module, torch.empty(2, channels, side, side, device="meta"))
    assert "batch" in free
    found = program.module()(torch.empty(5, channels, side, side, device="meta"))
    assert (found[0] if isinstance(found, tuple) else found).size(0) == 5
