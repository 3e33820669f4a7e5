"""`cnn-train inspect` and the health callback: the published numbers, every format, the pictures."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from cnn_train.__main__ import main
from cnn_train.analysis import trace
from cnn_train.analysis.attribution import deconvnet, excitations, grad_cam
from cnn_train.analysis.shapes import Arithmetic
from cnn_train.cli.line import split
from cnn_train.cli.options import read
from cnn_train.commands.inspect import Options, run
from cnn_train.config.compose import compose
from cnn_train.config.load import load
from cnn_train.data.digit_boxes import cached_boxes
from cnn_train.errors import ConfigError
from cnn_train.inspection.examine import optimizer_slots, stages
from cnn_train.inspection.images import trained
from cnn_train.inspection.subject import describe
from cnn_train.training.callbacks.health import Health
from cnn_train.training.recipe import Recipe

CONF = Path(__file__).parent.parent / "conf"


def inspect(capsys: pytest.CaptureFixture, *words: str) -> str:
    code = main(["inspect", *words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def facts(capsys: pytest.CaptureFixture, *words: str) -> dict:
    return json.loads(inspect(capsys, *words, "format=json"))


# Parameters and multiply-adds as torchvision's table of weights gives them. Receptive fields of Araujo et al. 2019,
# whose ResNets stride in the last block of a stage instead of the first: by 56 pixels larger (483 and 1507).
@pytest.mark.parametrize(
    ("model", "parameters", "giga", "field"),
    [
        ("vgg16", 138_357_544, 15.47, 212),
        ("resnet50", 25_557_032, 4.09, 427),
        ("resnet152", 60_192_808, 11.51, 1451),
        ("alexnet", 61_100_840, 0.71, 195),
    ],
)
def test_published_figures(capsys, model, parameters, giga, field):
    found = facts(capsys, f"model={model}")
    assert found["input_size"] == [3, 224, 224]
    assert found["parameters"] == parameters == sum(layer["parameters"] for layer in found["layers"])
    assert found["multiply_adds"] / 1e9 == pytest.approx(giga, abs=0.005)
    assert found["stages"][-1]["receptive_field"] == [field, field]


def test_lenet_has_the_papers_connections(capsys):
    layers = {layer["name"]: layer for layer in facts(capsys, "model=lenet5")["layers"]}
    assert layers["conv1"]["connections"] == 122_304  # LeCun et al. 1998, section II.B
    assert layers["conv1"]["parameters"] == 156


def test_the_networks_own_classes_channels_and_size_or_the_datas(capsys):
    assert facts(capsys, "model=lenet5")["input_size"] == [1, 32, 32]
    assert facts(capsys, "model=inception_v3")["input_size"] == [3, 299, 299]
    own = facts(capsys, "model=resnet18", "image_size=[64,96]")
    assert own["input_size"] == [3, 64, 96] and own["num_classes"] == 1000
    given = facts(capsys, "model=resnet18", "data=digits")
    assert given["input_size"] == [1, 32, 32] and given["num_classes"] == 10


# Krizhevsky 2009; Russakovsky et al. 2015; Everingham et al. 2010: 20 classes and the background.
@pytest.mark.parametrize(
    ("data", "num_classes", "size"),
    [("cifar100", 100, [3, 32, 32]), ("imagenet", 1000, [3, 224, 224]), ("voc", 21, [3, 513, 513])],
)
def test_public_data_need_not_be_on_disk(capsys, data, num_classes, size):
    found = facts(capsys, "model=nin", f"data={data}", "data.root=nowhere")
    assert (found["num_classes"], found["input_size"]) == (num_classes, size)


def test_facts_of_ones_own_yaml_are_read(tmp_path, capsys):
    for group in ("data", "model"):
        (tmp_path / group).mkdir()
    numbers = "{num_classes: 7, in_channels: 2, image_size: 48}"
    (tmp_path / "data" / "mine.yaml").write_text(f"_target_: cnn_train.data.folder.folder\npublished: {numbers}\n")
    own = ("--config-dir", str(tmp_path))
    found = facts(capsys, "model=resnet18", "data=mine", *own)
    assert (found["num_classes"], found["input_size"]) == (7, [2, 48, 48])
    mine, target = tmp_path / "model" / "mine.yaml", "_target_: cnn_train.models.classification.resnet.resnet18\n"
    mine.write_text(f"# facts: image_size=96\n{target}")
    assert facts(capsys, "model=mine", *own)["input_size"] == [3, 96, 96]
    mine.write_text(f"# facts: image_size=large\n{target}")
    assert main(["inspect", "model=mine", *own]) == 2
    assert "facts are whole numbers" in capsys.readouterr().err


def test_formats_hold_the_same_rows(capsys):
    wanted = facts(capsys, "model=lenet5")["layers"]
    rows = list(csv.DictReader(io.StringIO(inspect(capsys, "model=lenet5", "format=csv"))))
    assert [row["name"] for row in rows] == [layer["name"] for layer in wanted]
    assert [int(row["parameters"]) for row in rows] == [layer["parameters"] for layer in wanted]
    table = [line for line in inspect(capsys, "lenet5", "format=markdown").splitlines() if line.startswith("| ")]
    assert len(table) == 2 + len(wanted) and len({line.count("|") for line in table}) == 1
    plain = inspect(capsys, "lenet5")
    assert all(layer["name"] in plain for layer in wanted) and "61,706" in plain and "\x1b" not in plain


def test_depth_sums_up_blocks(capsys):
    whole, short = facts(capsys, "model=resnet18"), facts(capsys, "model=resnet18", "depth=1")
    assert len(short["layers"]) < 13 < len(whole["layers"])
    for total in ("parameters", "multiply_adds", "connections"):
        assert sum(layer[total] for layer in short["layers"]) == sum(layer[total] for layer in whole["layers"])
    layers = {layer["name"]: layer for layer in short["layers"]}
    assert layers["layer3"]["output_shape"] == [256, 14, 14] and layers["layer3"]["receptive_field"] == [211, 211]
    assert layers["conv1"] == whole["layers"][0] and layers["conv1"]["kernel_size"] == [7, 7]
    assert [stage["layer"] for stage in whole["stages"]] == ["act1", "layer1", "layer2", "layer3", "layer4"]


def test_two_side_by_side(capsys):
    text = inspect(capsys, "model=resnet50", "versus=vgg16")
    lines = {line[:18].strip(): line.split() for line in text.splitlines()}
    assert "25,557,032" in lines["parameters"] and "138,357,544" in lines["parameters"]
    assert lines["field at stride 32"][-3:] == ["427", "212", "2.01"]
    first, second = json.loads(inspect(capsys, "resnet50", "vgg16", "format=json"))
    assert (first["model"], second["model"]) == ("resnet50", "vgg16")


def test_findings_are_printed(capsys):
    found = {finding["kind"] for finding in facts(capsys, "model=nin")["findings"]}
    assert found == {"small-field"}
    assert "warning: mlpconv3.0.0: the largest receptive field is 27" in inspect(capsys, "nin")


def test_a_small_field_before_dense_layers_is_no_fault(capsys):
    """vgg16 sees 212 of 224 pixels before its dense layers, lenet5 16 of 32; they see all."""
    for name in ("vgg16", "lenet5"):
        assert facts(capsys, f"model={name}")["findings"] == []


def test_memory_and_largest_batch(capsys):
    found = facts(capsys, "model=resnet18", "batch_size=7")
    memory = found["training_memory"]
    fixed = memory["parameters"] + memory["gradients"] + memory["optimizer"] + memory["buffers"]
    assert memory["optimizer"] == 2 * memory["parameters"]  # AdamW
    assert memory["peak"] == fixed + 7 * (memory["saved"] + memory["transient"])
    largest, free = found["largest_batch"], found["device"]["free_bytes"]
    assert fixed + largest * (memory["saved"] + memory["transient"]) <= free


@pytest.mark.parametrize("optimizer", sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml")))
def test_optimizer_slots_are_those_of_the_optimizer(optimizer):
    cfg = compose(["model=resnet18", f"optimizer={optimizer}"])
    weight = nn.Parameter(torch.ones(5, 4))
    made = Recipe.of(cfg).optimizer([weight])
    weight.sum().backward()
    made.step()
    kept = sum(value.shape == weight.shape for value in made.state[weight].values() if torch.is_tensor(value))
    assert optimizer_slots(cfg.optimizer) == kept


@pytest.mark.parametrize("init", ["he_normal", "xavier_uniform", "orthogonal", "lecun_normal", "normal", "lsuv"])
def test_no_weights_are_allocated(init):
    subject = describe(compose(["model=lenet5", f"init={init}", "act=prelu"]))
    assert all(tensor.is_meta for tensor in (*subject.network.parameters(), *subject.network.buffers()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b", "c"], "no command 'c'"),
        (["depth=0"], "depth must be"),
        (["format=xml"], "format must be"),
        (["run=nowhere"], "no run at"),
        (["picture=maybe"], "picture must be"),
        (["versus="], "versus= is empty"),
        (["dept=1"], "Did you mean depth?"),
        (["-m", "norm=bn,gn"], "takes no --multirun"),
    ],
)
def test_options_are_checked(words, message):
    with pytest.raises(ConfigError, match=message):
        run(read(Options, split(["inspect", *words], ["inspect"]), ["inspect"]))


def test_advice_is_a_command_of_this_verb(capsys):
    assert main(["inspect", "vgg166", "norm=gn"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "  try: cnn-train inspect vgg16 norm=gn"


def test_too_small_images_are_one_line(capsys):
    assert main(["inspect", "vgg16", "input_size=8"]) == 2
    assert "features.23" in capsys.readouterr().err


def test_starts_without_the_heavy_libraries():
    code = (
        "import sys; from cnn_train.__main__ import main; main(['inspect', 'resnet18', 'depth=1']); "
        "print([m for m in ('lightning', 'torchvision', 'torch._dynamo', 'sympy', 'sklearn') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def operations(x: torch.Tensor) -> list[torch.Tensor]:
    """Everything that `analysis.shapes` knows, in many geometries."""
    device = x.device
    found = []
    for kernel, stride, padding, dilation in [(3, 1, 1, 1), (3, 2, 0, 1), (2, 2, 1, 1), (3, 1, 4, 4)]:
        found.append(nn.Conv2d(8, 6, kernel, stride, padding, dilation, groups=2, device=device)(x))
        found.append(
            nn.ConvTranspose2d(8, 6, kernel, stride, padding, stride - 1, 1, False, dilation, device=device)(x)
        )
        for ceil in (False, True):
            if padding * 2 <= kernel:
                found.append(nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)(x))
                found.append(nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil)(x))
    found += [nn.BatchNorm2d(8, device=device)(x), nn.BatchNorm2d(8, device=device).eval()(x)]
    found += [nn.GroupNorm(2, 8, device=device)(x), nn.Linear(13, 3, device=device)(x[0, 0]), x.mean((2, 3), True)]
    found += [act()(x) for act in (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.SiLU, nn.GELU, nn.ELU, nn.Dropout)]
    found += [x + x, x * x.mean((2, 3), keepdim=True), x.mean((2, 3)), torch.cat([x, x], 1), torch.cat([x, x], -1)]
    found += [nn.AdaptiveAvgPool2d(3)(x), nn.Upsample(scale_factor=2, mode="bilinear")(x), nn.Upsample((5, 9))(x)]
    return found


def test_shapes_by_arithmetic_are_pytorchs():
    real = operations(torch.randn(2, 8, 11, 13))
    with Arithmetic():
        meta = operations(torch.empty(2, 8, 11, 13, device="meta"))
    assert all(y.is_meta for y in meta)
    assert [(y.shape, y.dtype) for y in meta] == [(y.shape, y.dtype) for y in real]


# -- Pictures ----------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(3 * 16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.act(self.conv(x))).flatten(1))


def test_deconvnet_is_unpooling_rectification_and_transposed_filters():
    torch.manual_seed(0)
    net, image = Small(), torch.randn(1, 1, 8, 8)
    maps = torch.relu(net.conv(image))
    pooled, switches = nn.functional.max_pool2d(maps, 2, return_indices=True)
    for channel, picture in excitations(net, image, "pool", 3):
        only = torch.zeros_like(pooled)
        only[0, channel].view(-1)[pooled[0, channel].argmax()] = 1
        unpooled = nn.functional.max_unpool2d(only, switches, 2, output_size=maps.shape)
        expected = nn.functional.conv_transpose2d(torch.relu(unpooled), net.conv.weight, padding=1)[0]
        torch.testing.assert_close(picture, expected)
    with deconvnet(net):
        pass
    assert "forward" not in net.act.__dict__


def test_grad_cam_by_hand():
    torch.manual_seed(1)
    net, image = Small(), torch.randn(1, 1, 8, 8)
    cam, target = grad_cam(net, image, "pool", 1)
    maps = net.pool(torch.relu(net.conv(image)))[0].detach()
    weights = net.fc.weight.detach()[1].view(3, 4, 4).mean((1, 2))
    coarse = (weights[:, None, None] * maps).sum(0).clamp(min=0)[None, None]
    expected = nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")[0, 0]
    assert target == 1
    torch.testing.assert_close(cam, expected / expected.max())


def test_pictures_and_page(tmp_path, capsys):
    folder, image = tmp_path / "pictures", tmp_path / "<b>.png"
    Image.new("RGB", (40, 30), "red").save(image)
    inspect(capsys, "model=lenet5", "init=lsuv", f"pictures={folder}", "samples=1", f"image={image}")
    page = (folder / "index.html").read_text()
    names = {path.name for path in folder.glob("*.png")}
    assert {"fields.png", "effective.png", "statistics.png", "filters.png", "grad_cam.png"} <= names
    assert {"maps_0.png", "excited_0.png"} <= names and all(f'src="{name}"' for name in names)
    assert "left out" not in page and "<b>" not in page and "61,706" in page
    rows = list(csv.DictReader((folder / "statistics.csv").read_text().splitlines()))
    weighted = [row for row in rows if row["kind"] in ("Conv2d", "Linear")]
    assert [row["name"] for row in weighted] == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    assert [float(row["deviation"]) for row in weighted] == pytest.approx([1] * 5, rel=1e-2)  # what lsuv is for
    assert all(float(row["gradient_deviation"]) > 0 for row in weighted)


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """A folder of configs with a network of the user's own, whose dilations leave a grid and whose names are HTML."""
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "def gridded(num_classes=2, *, in_channels=1, layers=None):\n"
        "    net = nn.Sequential(*[nn.Conv2d(in_channels, in_channels, 3, padding=2, dilation=2) for _ in range(3)])\n"
        "    net.add_module('<i>head', nn.Flatten())\n"
        "    net.add_module('fc', nn.Linear(in_channels * 13 * 13, num_classes))\n"
        "    return net\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gridded.yaml").write_text("_target_: own_networks.gridded\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_gridding_of_ones_own_network_is_a_percentage_and_a_picture(own_model, capsys):
    folder = own_model / "pictures"
    words = ("model=gridded", "--config-dir", str(own_model), "input_size=13", f"pictures={folder}", "samples=1")
    # Three 3x3 with dilation 2 read 7 x 7 of 13 x 13 positions.
    assert f"gridding: {1 - 49 / 169:.0%} of the positions inside its 13x13" in inspect(capsys, *words)
    with Image.open(folder / "gridding_0.png") as picture:
        width, height = picture.size
    page = (folder / "index.html").read_text()
    assert width > 100 < height and "gridding_0.png" in page
    assert "&lt;i&gt;head" in page and "<i>" not in page


def test_pictures_are_whole_or_not_there(tmp_path, capsys, monkeypatch):

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main(["inspect", "lenet5", f"pictures={tmp_path / 'pictures'}", "samples=1"]) == 4
    assert "No space left" in capsys.readouterr().err and not list((tmp_path / "pictures").iterdir())
    (tmp_path / "file").touch()
    assert main(["inspect", "lenet5", f"pictures={tmp_path / 'file'}"]) == 4


def test_a_decoders_stages_go_up_again():
    subject = describe(compose(["model=unet"]))
    strides = [stage.stride for stage in stages(trace(subject.network, (3, 96, 96)))]
    assert strides == [1, 2, 4, 8, 16, 8, 4, 2, 1]


# -- Health ------------------------------------------------------------------------------------------------------------


class Logger:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))


def small_loop(network: nn.Module, accumulate: int = 1) -> SimpleNamespace:
    logger = Logger()
    loop = SimpleNamespace(
        network=network,
        logger=logger,
        loggers=[logger],
        scaler=None,
        trainer=SimpleNamespace(is_global_zero=True),
        recipe=SimpleNamespace(accumulate=accumulate),
        progress=SimpleNamespace(step=0, step_in_epoch=0, steps_per_epoch=10),
    )
    loop.record = lambda values: logger.log_metrics(values, loop.progress.step)
    return loop


def test_health_measures_one_step_in_so_many():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2), nn.Sigmoid())
    with torch.no_grad():
        net[0].bias[:2] = -100  # two dead channels
        net[3].bias.fill_(50)  # saturated
    loop, health = small_loop(net), Health(4)
    for step in range(10):
        before = net[0].weight.detach().clone()
        net.zero_grad()
        (net(torch.randn(8, 1, 8, 8)).mean() + net[0].weight.square().sum()).backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.01 * p.grad
        if step == 3:
            gradient = net[0].weight.grad.norm()
            update = (net[0].weight.detach() - before).norm() / before.norm()
        loop.progress.step = loop.progress.step_in_epoch = step + 1
        health.on_step(loop)
        assert bool(net[0]._forward_hooks) == (step in (2, 6))
    steps = [step for step, _ in loop.logger.rows]
    assert steps == [4, 8]
    values = loop.logger.rows[0][1]
    assert values["watch/dead/1"] == 0.5
    assert values["watch/sparsity/1"] >= 0.5
    assert values["watch/saturated/4"] == 1.0
    assert values["watch/gradient_norm/0"] == pytest.approx(float(gradient), rel=1e-5)
    assert values["watch/update_to_weight/0"] == pytest.approx(float(update), rel=1e-4)


def test_health_tells_the_drift_between_epochs():
    net = nn.Sequential(nn.Conv2d(1, 1, 1))
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    loop, health = small_loop(net), Health(1)
    image = torch.randn(4, 1, 8, 8)
    image = (image - image.mean()) / image.std(correction=0)
    for _ in range(2):
        health.on_step(loop)
        net(image).sum().backward()
        loop.progress.step += 1
        health.on_step(loop)
        health.on_epoch_end(loop)
        with torch.no_grad():
            net[0].weight.fill_(3.0)
            net[0].bias.fill_(0.5)
    drift = loop.logger.rows[-1][1]
    assert drift["watch/drift_of_mean/0"] == pytest.approx(0.5, abs=1e-4)
    assert drift["watch/drift_of_deviation/0"] == pytest.approx(2.0, abs=1e-4)
    health.on_fit_end(None, loop)
    assert not net[0]._forward_hooks


def test_training_is_the_same_with_health_and_its_weights_are_looked_at(tmp_path: Path, capsys):
    from cnn_train.experiment.train import train

    weights = []
    for every in ("null", "2"):
        common = ["model=lenet5", "trainer.max_epochs=1", "trainer.limit_batches=6", "trainer.progress=none"]
        cfg = compose(
            [*common, "callbacks=health", f"callbacks.health.every={every}", f"output_dir={tmp_path / every}"]
        )
        train(cfg)
        checkpoint = next((tmp_path / every).glob("*/*/last.ckpt"))
        weights.append(torch.load(checkpoint, weights_only=True)["network"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    run = checkpoint.parent
    inspect(capsys, f"run={run}", f"pictures={tmp_path / 'pictures'}", "samples=1")
    assert f"weights of {run}" in (tmp_path / "pictures" / "index.html").read_text()
    best = torch.load(run / "best.ckpt", weights_only=True)["network"]
    given = describe(compose(["model=lenet5", f"weights={run / 'best.ckpt'}"]))
    for network in (trained(describe(load(run)), run), trained(given, None)):
        assert all(torch.equal(best[name], value) for name, value in network.state_dict().items())


def test_a_detectors_levels_and_the_objects_that_its_priors_reach(capsys, tmp_path):
    words = ("model=yolov2", "data=digit_boxes", "data.num_train=12", "data.num_val=2", "data.num_test=2")
    words = (*words, f"data.cache_dir={tmp_path}", "model.anchors=[[20,30],[60,150]]")
    found = facts(capsys, *words)
    (level,) = found["levels"]
    assert (level["layer"], level["stride"], level["places"], level["sizes"]) == (
        "predict", 8, [16, 16], [[20, 30], [60, 150]],
    )  # fmt: skip
    warnings = [f["message"] for f in found["findings"] if f["kind"] == "prior"]
    assert (
        len(warnings) == 1
        and "60x150 pixels (width x height) is larger than the receptive field, 110x110" in warnings[0]
    )
    _, targets = cached_boxes("train", 12, (128, 128), 0, tmp_path)
    real = [box for image in targets for box in image.tolist() if box[4] >= 0 and not box[5]]
    near = sum(any(overlap(box, x, y, w, h) >= 0.5 for x in range(4, 128, 8) for y in range(4, 128, 8)
                   for w, h in ((20, 30), (60, 150))) for box in real)  # fmt: skip
    assert 0 < near < len(real)
    assert found["reach"]["images"] == 12
    assert (found["reach"]["objects"]["all"], found["reach"]["reached"]["all"]) == (len(real), near)
    assert f"{near / len(real):.1%} of {len(real)} objects in 12 training images" in inspect(capsys, *words)
    assert "60x150" in inspect(capsys, *words, "format=markdown")


def overlap(box: list[float], x: float, y: float, w: float, h: float) -> float:
    across = max(min(box[2], x + w / 2) - max(box[0], x - w / 2), 0)
    along = max(min(box[3], y + h / 2) - max(box[1], y - h / 2), 0)
    common = across * along
    return common / ((box[2] - box[0]) * (box[3] - box[1]) + w * h - common)
