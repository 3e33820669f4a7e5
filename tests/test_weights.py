"""Files of weights in the forms that others write, names of public weights, and how a state is adapted to a network."""

import argparse
import csv
import hashlib
import http.server
import os
import pickle
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models as torchvision_models

from cnn_train.config.compose import compose
from cnn_train.errors import ConfigError, DataError
from cnn_train.experiment.network import build_network_and_data
from cnn_train.experiment.train import train
from cnn_train.layers import LayerFactory
from cnn_train.models import pretrained
from cnn_train.models.classification import builder
from cnn_train.models.pretrained import resolve, torchvision_enums
from cnn_train.models.weights import load_weights, looks_like
from cnn_train.runs import weights_file

QUICK = ["trainer.max_epochs=1", "trainer.limit_batches=2", "trainer.progress=none", "logger=none", "trainer=cpu"]
NARROW = {"widths": [4, 8, 8, 8], "num_classes": 5}
NO_NORM = LayerFactory(norm_layer=None)


def with_statistics(network: nn.Module, seed: int = 1) -> nn.Module:
    """Norms as after training, so that folding and dropping them would show."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return with_statistics(builder("resnet18")(**NARROW))


def legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


ARGS = argparse.Namespace(lr=0.1, model="resnet18")
EMA_OF = {"n_averaged": torch.tensor(3)}
FORMS = {
    "zip": lambda s, p: torch.save(s, p),
    "legacy": lambda s, p: legacy(s, p),
    "ordered_dict_legacy": lambda s, p: legacy(OrderedDict(s), p),
    "safetensors": lambda s, p: save_file(s, p),
    "torchvision_reference": lambda s, p: torch.save({"model": s, "optimizer": {}, "epoch": 3, "args": ARGS}, p),
    "torchvision_averaged": lambda s, p: torch.save(
        {
            "model": prefixed({k: v * 0 for k, v in s.items()}, "module."),
            "model_ema": prefixed(s, "module.") | EMA_OF,
            "args": ARGS,
        },
        p,
    ),
    "lightning": lambda s, p: torch.save(
        {"state_dict": prefixed(s, "model.") | {"loss.weight": torch.ones(5)}, "hyper_parameters": {"lr": 0.1}}, p
    ),
    "timm": lambda s, p: torch.save({"arch": "resnet18", "state_dict": s, "args": ARGS, "metric": 0.7}, p),
    "timm_averaged": lambda s, p: legacy({"state_dict": {k: v * 0 for k, v in s.items()}, "state_dict_ema": s}, p),
    "data_parallel": lambda s, p: torch.save(prefixed(s, "module."), p),
    "compiled_in_a_module": lambda s, p: torch.save({"state_dict": prefixed(s, "model._orig_mod.")}, p),
    "of_a_segmentation_network": lambda s, p: torch.save(prefixed(s, "backbone."), p),
    "run_file": lambda s, p: torch.save({"network": s, "ema": None, "progress": {}}, p),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_gives_the_same_weights(form, resnet, tmp_path):
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    FORMS[form](dict(resnet.state_dict()), path)
    network = builder("resnet18")(**NARROW)
    report = load_weights(network, weights_file.read(path).tensors, path)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), resnet.state_dict().values(), strict=True)
    )
    assert len(report.of("loaded")) == len(network.state_dict()) and not report.of("fresh")


def test_a_run_folder_gives_the_weights_that_it_is_judged_by_and_its_normalization(tmp_path, capsys):
    train(compose(["model=lenet5", *QUICK, f"output_dir={tmp_path}"]))
    (run,) = (tmp_path / "lenet5").iterdir()
    state = torch.load(run / "best.ckpt", weights_only=True)
    cfg = compose(["model=lenet5", f"weights={run}", *QUICK, f"output_dir={tmp_path / 'second'}"])
    network, data = build_network_and_data(cfg)
    assert all(torch.equal(value, state["network"][name]) for name, value in network.state_dict().items())
    assert data.mean == state["preprocessing"]["mean"]
    capsys.readouterr()
    train(cfg)
    assert "10 of 10 tensors" in capsys.readouterr().err
    (second,) = (tmp_path / "second" / "lenet5").iterdir()
    rows = list(csv.DictReader((second / "weights.csv").read_text().splitlines()))
    assert [(row["tensor"], row["status"]) for row in rows] == [(name, "loaded") for name in network.state_dict()]


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_malicious_file_runs_nothing(how, tmp_path):
    content = {"weight": torch.zeros(2), "evil": Evil(tmp_path / "pwned")}
    path = tmp_path / "evil.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"evil": Evil(tmp_path / "pwned")}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ConfigError, match=r"holds code|more than plain data") as error:
        weights_file.read(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"x")


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda p: p.write_bytes(b"<html><body>404</body></html>"), "a page of HTML"),
        (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90)), "HDF5"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda p: p.write_bytes(b""), "damaged or not a checkpoint"),
        (lambda p: p.write_bytes(b"\x80\x02broken"), "damaged or holds more"),
        (a_zip, "archive of NumPy arrays"),
        (lambda p: torch.save([torch.zeros(2)], p), "holds no tensors by name, but a list"),
        (lambda p: torch.save({"epoch": 3, "best": 0.5}, p), "holds no tensors by name, but epoch, best"),
        (lambda p: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(p)), "TorchScript"),
    ],
    ids=["html", "hdf5", "lfs", "empty", "broken", "npz", "list", "no_tensors", "torchscript"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_other_files_are_refused_by_what_they_are(write, text, tmp_path):
    write(tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=text) as error:
        weights_file.read(tmp_path / "weights.pth")
    assert str(tmp_path) in str(error.value)


# -- Adapting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_batch_norm_is_folded_where_the_network_has_no_norms(name):
    options = NARROW if name == "resnet18" else {"width": 4, "num_classes": 5}
    normed = with_statistics(builder(name)(layers=LayerFactory(), **options)).double()
    plain = builder(name)(layers=NO_NORM, **options).double().eval()
    report = load_weights(plain, normed.state_dict(), "a file")
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), normed(images), atol=1e-10, rtol=1e-10)
    assert not report.of("fresh") and {row.how for row in report.of("adapted")} == {
        "batch norm folded into the convolution"
    }


def test_what_becomes_of_each_tensor_is_told(resnet):
    group_norm = builder("resnet18")(
        **(NARROW | {"num_classes": 3}), in_channels=1, layers=LayerFactory(norm_layer=lambda c: nn.GroupNorm(2, c))
    )
    report = load_weights(group_norm, resnet.state_dict(), "a file")
    assert [(row.name, row.how) for row in report.of("adapted")] == [("conv1.weight", "folded from 3 to 1 channels")]
    assert {row.name: row.how for row in report.of("fresh")} == {
        "fc.weight": "5x8 in the file",
        "fc.bias": "5 in the file",
    }
    assert len(report.of("unused")) == 3 * 20  # mean, variance and count of 20 norms
    assert "statistics of 20 batch norms are dropped" in report.notes[0]
    lines = "\n".join(report.lines())
    assert "folded from 3 to 1 channels" in lines and "fc.weight, fc.bias" in lines
    assert report.as_csv().count("\n") == 1 + len(report.rows)


def test_weights_of_another_network_are_refused_with_its_name(monkeypatch):
    known = ["lenet5", "vgg11", "resnet18", "resnet34", "resnet50", "mobilenet_v2"]  # the others for time's sake not
    monkeypatch.setattr("cnn_train.models.weights.builder_names", lambda: known)
    with torch.device("meta"):
        other = builder("resnet50")(num_classes=7)
        assert looks_like(builder("vgg11")().state_dict()) == "vgg11"
        assert looks_like({"weight": torch.zeros(3, 3)}) is None
        with pytest.raises(ConfigError, match=r"9 of .* 21 .*, fewer than half; it looks like resnet50"):
            load_weights(builder("resnet18")(), other.state_dict(), "a.pth")


def test_the_head_of_a_run_on_other_classes_is_taken_class_by_class(resnet):
    network = builder("resnet18")(**NARROW)
    before = network.fc.weight.clone()
    names = ["cat", "dog", "cow", "hen", "pig"]
    report = load_weights(network, resnet.state_dict(), "a run", classes=(names, ["owl", "cow", "cat", "fox", "bee"]))
    assert torch.equal(network.fc.weight[[1, 2]], resnet.fc.weight[[2, 0]])
    assert torch.equal(network.fc.weight[[0, 3, 4]], before[[0, 3, 4]])
    assert {row.how for row in report.of("adapted")} == {"2 of 5 classes by name, the others fresh"}
    network = builder("resnet18")(**NARROW)
    before = network.fc.weight.clone()
    report = load_weights(network, resnet.state_dict(), "a run", classes=(names, list("abcde")))
    assert torch.equal(network.fc.weight, before) and [row.name for row in report.of("fresh")] == [
        "fc.weight",
        "fc.bias",
    ]


# -- Names -----------------------------------------------------------------------------------------------

OURS = (
    "alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "googlenet",
    "inception_v3", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
    "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2", "densenet121", "densenet161", "densenet169",
    "densenet201", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "fcn_resnet50", "fcn_resnet101",
    "deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large",
)  # fmt: skip


def test_every_weight_of_torchvision_resolves_to_an_address_and_a_hash():
    enums = torchvision_enums()
    assert set(OURS) <= enums.keys()
    checked = 0
    for name in enums:
        for member in enums[name].__members__:
            found = resolve(f"torchvision:{member}", [name])
            assert found.address.startswith("https://download.pytorch.org/models/"), name
            assert found.sha256 is not None and 8 <= len(found.sha256) <= 10, found
            assert found.mean is not None and found.std is not None and len(found.mean) == len(found.std) == 3
            checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    ("text", "names", "title", "mean"),
    [
        ("torchvision", ["resnet50"], "torchvision:ResNet50_Weights.IMAGENET1K_V2", 0.485),
        ("torchvision:IMAGENET1K_V1", ["pspnet", "resnet50"], "torchvision:ResNet50_Weights.IMAGENET1K_V1", 0.485),
        ("torchvision:VGG16_BN_Weights.DEFAULT", ["fcn8s"], "torchvision:VGG16_BN_Weights.IMAGENET1K_V1", 0.485),
        ("torchvision", ["googlenet"], "torchvision:GoogLeNet_Weights.IMAGENET1K_V1", 0.5),
        ("timm:resnet50.a1_in1k", [], "timm:resnet50.a1_in1k", 0.485),
        ("timm", ["mobilenetv3_small_100"], "timm:mobilenetv3_small_100.lamb_in1k", 0.485),
    ],
)
def test_names_resolve_with_their_preprocessing(text, names, title, mean):
    found = resolve(text, names)
    assert found.title == title and found.mean[0] == mean
    assert found.image_size == (224, 224) or "SegWeights" in title


def test_the_inceptions_of_torchvision_want_the_normalization_that_transform_input_undoes():
    from torchvision.models import inception_v3

    network = inception_v3(init_weights=False, aux_logits=False, num_classes=2, transform_input=True)
    images = torch.rand(1, 3, 4, 4)
    how = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(network._transform_input((images - how[0]) / how[1]), (images - 0.5) / 0.5)


def test_what_a_network_is_called_elsewhere():
    def names(*line: str) -> list[str]:
        cfg = compose(list(line))
        return pretrained.names_of(cfg.model, cfg.choices.model, cfg.norm is not None)

    assert names("model=resnet50")[0] == "resnet50"
    assert names("model=vgg16")[0] == "vgg16" and names("model=vgg16", "norm=bn")[0] == "vgg16_bn"
    assert names("model=pspnet")[-1] == "resnet18"
    assert names("model=torchvision", "model.name=regnet_y_400mf") == ["regnet_y_400mf"]


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("torchvision:IMAGENET1K_V9", ["resnet50"], "ResNet50_Weights has IMAGENET1K_V1, IMAGENET1K_V2"),
        ("torchvision", ["lenet5"], "torchvision has no weights of lenet5"),
        ("torchvision:ResNet5_Weights.DEFAULT", ["lenet5"], "no weights ResNet5_Weights.DEFAULT"),
        ("timm:resnet50.a1_in2k", [], "timm has no weights 'resnet50.a1_in2k'; there are resnet50"),
        ("hf:resnet50", [], "hf:ORG/NAME"),
        ("https://x.org/a.pth", [], "needs #sha256="),
        ("ftp://x.org/a.pth", [], "https://HOST/FILE#sha256="),
    ],
)
def test_wrong_names_are_answered(text, names, message):
    with pytest.raises(ConfigError, match=message):
        resolve(text, names)


def test_addresses():
    found = resolve("hf:timm/resnet50.a1_in1k@v1/weights/model.bin", [])
    assert found.address == "https://huggingface.co/timm/resnet50.a1_in1k/resolve/v1/weights/model.bin"
    assert resolve("hf:a/b", []).file == "a--b--model.safetensors"
    found = resolve("https://x.org/d/a.pth#sha256=00112233445566778899", [])
    assert (found.address, found.sha256) == ("https://x.org/d/a.pth", "00112233445566778899")


@pytest.mark.parametrize("save", [torch.save, legacy])
def test_a_file_in_torchvisions_format_is_read_from_the_hub_folder(save, tmp_path, monkeypatch, capsys):
    """Random values in the published format, of a DenseNet's old names and of a head that must be fresh."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    given = resolve("torchvision", ["resnet18"])
    theirs = builder("resnet18")(num_classes=1000)
    (tmp_path / "checkpoints").mkdir()
    save(theirs.state_dict(), tmp_path / "checkpoints" / given.file)
    monkeypatch.setattr(weights_file, "_digest", lambda path: given.sha256 + "0" * 56)
    monkeypatch.setattr(weights_file.urllib.request, "build_opener", lambda *_: pytest.fail("went to the network"))
    network, data = build_network_and_data(compose(["model=resnet18", "weights=torchvision", "trainer=cpu"]))
    assert torch.equal(network.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    torch.testing.assert_close(network.conv1.weight[:, 0], theirs.conv1.weight.sum(1))
    assert data.image_size == (224, 224) and data.mean == [pytest.approx(0.449, abs=1e-3)]
    told = capsys.readouterr().err
    assert "ResNet18_Weights.IMAGENET1K_V1" in told and "fc.weight, fc.bias" in told and "224x224" in told
    _, data = build_network_and_data(
        compose(["model=resnet18", "weights=torchvision", "trainer=cpu", "image_size=32", "data.normalize=minmax"])
    )
    assert data.image_size == (32, 32) and data.mean == [0.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_every_network_reads_a_file_of_random_values_in_torchvisions_format(name, tmp_path, monkeypatch):
    """In zip and in the format of before 1.6: each tensor arrives with the same bits."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weights_file, "_digest", lambda path: given.sha256 + "0" * 56)
    given = resolve("torchvision", [name])
    segments = hasattr(torchvision_models.segmentation, name)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    theirs = getattr(torchvision_models.segmentation if segments else torchvision_models, name)(
        weights=None, **({"weights_backbone": None, "aux_loss": True} if segments else extra)
    ).state_dict()
    line = [f"model={name.removesuffix('_bn')}", "data=synthetic", "trainer=cpu", "weights=torchvision"]
    line += ["norm=bn"] if name.endswith("_bn") else []
    line += ["data.task=segmentation", "data.num_classes=21"] if segments else ["data.num_classes=1000"]
    (tmp_path / "checkpoints").mkdir()
    for save in (torch.save, legacy):
        save(theirs, tmp_path / "checkpoints" / given.file)
        network, _ = build_network_and_data(compose(line))
        ours = network.state_dict()
        different = [key for key, value in theirs.items() if not (key in ours and torch.equal(ours[key], value))]
        assert not [key for key in different if not key.endswith("num_batches_tracked")], different


@pytest.fixture
def server(tmp_path):
    content = tmp_path / "served"
    content.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object):
            super().__init__(*args, directory=str(content))

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            if not self.path.startswith("/hub/"):
                return super().do_GET()
            # As the Hugging Face hub: the checksum comes with the redirect to the file.
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/hub"))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(b"some weights").hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield content, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_downloads_are_checked_and_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder, address = server
    (folder / "a.pth").write_bytes(b"some weights")
    digest = hashlib.sha256(b"some weights").hexdigest()
    with pytest.raises(DataError, match="gave another file"):
        weights_file.fetch(f"{address}/a.pth", "a.pth", "0" * 64)
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())
    path = weights_file.fetch(f"{address}/a.pth", "a.pth", digest)
    assert path.read_bytes() == b"some weights"
    (folder / "a.pth").unlink()
    assert weights_file.fetch(f"{address}/a.pth", "a.pth", digest[:8]) == path  # no second download
    path.write_bytes(b"changed")
    with pytest.raises(DataError, match=r"is not the file of .*; remove it"):
        weights_file.fetch(f"{address}/a.pth", "a.pth", digest)
    with pytest.raises(DataError, match=r"cannot fetch .*/b.pth to .*b.pth: ") as error:
        weights_file.fetch(f"{address}/b.pth", "b.pth", digest)
    assert "\n" not in str(error.value) and error.value.exit_code == 3


def test_the_hubs_own_checksum_counts(server, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder, address = server
    (folder / "a").write_bytes(b"some weights")
    (folder / "b").write_bytes(b"other weights")
    assert weights_file.fetch(f"{address}/hub/a", "a").read_bytes() == b"some weights"
    with pytest.raises(DataError, match="gave another file"):
        weights_file.fetch(f"{address}/hub/b", "b")


def test_without_network_there_is_one_line_with_address_and_destination(tmp_path, monkeypatch):
    from urllib.error import URLError

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_: object, **__: object) -> None:
        raise URLError(OSError(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(weights_file.urllib.request.OpenerDirector, "open", offline)
    with pytest.raises(DataError) as error:
        build_network_and_data(compose(["model=resnet18", "weights=torchvision", "trainer=cpu"]))
    message = str(error.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message and str(tmp_path) in message
    assert "name resolution" in message and "\n" not in message


def test_pretrained_of_timm_is_weights_here():
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="weights=timm"):
        build_network_and_data(compose(["model=timm", "model.pretrained=true", "trainer=cpu"]))


def test_a_librarys_refusal_is_a_line(capsys):
    with pytest.raises(ConfigError, match="vit_b_16 cannot take images of 64x64: Wrong image height"):
        build_network_and_data(compose(["model=torchvision", "model.name=vit_b_16", "image_size=64", "trainer=cpu"]))


def test_options_go_through_to_the_librarys_builder():
    pytest.importorskip("timm")
    cfg = compose(["model=timm", "model.name=resnet18", "model.drop_rate=0.2", "trainer=cpu"])
    assert cfg.name == "resnet18"
    assert build_network_and_data(cfg)[0].drop_rate == 0.2
    with pytest.raises(ConfigError, match=r"Did you mean model\.name"):
        compose(["model=timm", "model.nam=resnet18"])
    with pytest.raises(ConfigError, match="unexpected keyword argument 'colour'"):
        build_network_and_data(compose(["model=timm", "model.colour=2", "trainer=cpu"]))
