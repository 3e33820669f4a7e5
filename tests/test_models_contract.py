"""What every network in conf/model promises. A new file there is covered without an edit here.

Structure is checked on the meta device, where building and running cost no arithmetic.
"""

import importlib
import inspect
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from cnn_train.config.build import build, build_layers
from cnn_train.config.compose import compose
from cnn_train.layers import LayerFactory
from cnn_train.layers.norm import NORMS, WSConv2d

CONF = Path(__file__).parents[1] / "conf"


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


LIBRARIES = {"timm", "torchvision"}  # whole libraries, whose networks come as they are
# Detection networks have outputs of another kind: tests/test_models_detection.py.
DETECT = {path.stem for path in (CONF / "model").glob("*.yaml") if "models.detection." in path.read_text()}
MODELS = [model for model in choices("model") if model not in LIBRARIES | DETECT]
SWAPS = {
    "norm_layer": choices("norm"),
    "act_layer": [act for act in choices("act") if act != "paper"],
    "pool_layer": [pool for pool in choices("pool") if pool != "paper"],
    "initializer": [init for init in choices("init") if init != "paper"],
}
GROUPS = {"norm_layer": "norm", "act_layer": "act", "pool_layer": "pool", "initializer": "init"}
# In the fast suite each network has one of these, in turn.
SAMPLED = [
    {"norm_layer": "gn", "act_layer": "prelu", "pool_layer": "max"},
    {"norm_layer": "none", "act_layer": "prelu", "pool_layer": "avg"},
]

ACT_KINDS = (nn.ReLU, nn.ReLU6, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.PReLU, nn.Mish)
POOL_KINDS = (nn.MaxPool2d, nn.AvgPool2d)


@cache
def config(model: str) -> DictConfig:
    """The network as in its paper; lenet5.yaml brings an activation that trains better."""
    return compose([f"model={model}", "act=paper", "init=paper"])


@cache
def choice(slot: str, name: str):
    """What LayerFactory takes for one choice of a group."""
    return build(compose([f"{GROUPS[slot]}={name}"])[GROUPS[slot]])


def network(model: str, *, num_classes: int = 7, in_channels: int = 3, device: str = "meta", **swaps: str) -> nn.Module:
    layers = replace(build_layers(config(model)), **{slot: choice(slot, name) for slot, name in swaps.items()})
    with torch.device(device):
        options = dict(num_classes=num_classes, in_channels=in_channels, layers=layers)
        return build(config(model).model, **options, **(narrow(model) if device == "cpu" else {}))


def narrow(model: str) -> dict[str, Any]:
    """VGG's dense layers of 4096 on 25,088 inputs take minutes; narrow ones have the same layers."""
    return {"width": 16} if model.startswith("vgg") or config(model).model.get("width") == 64 else {}


@cache
def default_network(model: str) -> nn.Module:
    """The network of the YAML, shared by the tests that do not change it."""
    default = inspect.signature(builder(model)).parameters
    return network(model, num_classes=default["num_classes"].default, in_channels=in_channels(model))


def in_channels(model: str) -> int:
    parameter = inspect.signature(builder(model)).parameters.get("in_channels")
    return 3 if parameter is None else parameter.default


def builder(model: str):
    module, _, name = config(model).model._target_.rpartition(".")
    return getattr(importlib.import_module(module), name)


def size(net: nn.Module) -> int:
    return max(getattr(net, "min_size", 1), 32)


def segments(model: str) -> bool:
    return ".segmentation." in config(model).model._target_


def parts(net: nn.Module, of: tuple[type, ...]) -> dict[str, nn.Module]:
    return {name: module for name, module in net.named_modules() if isinstance(module, of)}


def kinds(net: nn.Module, of: tuple[type, ...]) -> set[type]:
    return {type(module) for module in parts(net, of).values()}


@pytest.mark.parametrize("model", MODELS)
def test_yaml_name_is_the_builders_and_it_is_exported(model):
    module, _, name = config(model).model._target_.rpartition(".")
    assert name == model
    assert name in importlib.import_module(module).__all__


@pytest.mark.parametrize("model", MODELS)
def test_python_default_is_the_yamls_and_has_the_parameters_that_its_docstring_names(model):
    function = builder(model)
    with torch.device("meta"):
        ours = function()
    told = re.search(r"([\d,]+) parameters", function.__doc__ or "")
    assert told, f"{model}: the docstring must name the number of parameters at the default arguments"
    assert sum(p.numel() for p in ours.parameters()) == int(told[1].replace(",", ""))

    def leaves(net: nn.Module) -> list[tuple[str, str]]:
        return [(name, repr(module)) for name, module in net.named_modules() if not list(module.children())]

    theirs = default_network(model)
    if not segments(model):  # the YAML of a segmentation network may bring a smaller one that learns on a CPU
        assert leaves(ours) == leaves(theirs)
    else:
        assert kinds(ours, NORMS + ACT_KINDS) == kinds(theirs, NORMS + ACT_KINDS)


@pytest.mark.parametrize("model", MODELS)
def test_outputs(model):
    """Shapes in training and evaluation, and no layer that runs twice: it would share parameters, and fool hooks."""
    net, channels = default_network(model), in_channels(model)
    calls: dict[str, int] = {}
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1))
        for name, module in net.named_modules()
        if isinstance(module, ACT_KINDS + NORMS)
    ]
    side = size(net)
    height, width = (side + 33, side + 1) if segments(model) else (side, side)
    scores = net.eval()(torch.empty(1, channels, height, width, device="meta"))
    for handle in handles:
        handle.remove()
    assert not {name for name, count in calls.items() if count > 1}
    expected = (1, scores.size(1), height, width) if segments(model) else (1, scores.size(1))
    assert scores.shape == expected
    outputs = net.train()(torch.empty(2, channels, height, width, device="meta"))
    if isinstance(outputs, tuple):
        assert all(output.shape == (2, *expected[1:]) for output in outputs)
        assert 0 < net.aux_weight <= 1


def assert_swapped(model: str, net: nn.Module, swaps: dict[str, str]) -> None:
    """Every slot has the chosen kind and none another, and the state_dict keys that are there are named alike."""
    paper = default_network(model)
    standardized = swaps.get("norm_layer") == "gn_ws" and model != "lstm"
    assert (WSConv2d in kinds(net, (nn.Conv2d,))) == standardized
    for slot, name in swaps.items():
        if slot == "initializer":
            continue
        of = {"norm_layer": NORMS, "act_layer": ACT_KINDS, "pool_layer": POOL_KINDS}[slot]
        layers = LayerFactory(**{slot: choice(slot, name)})
        made = type({"norm_layer": layers.norm, "act_layer": layers.act, "pool_layer": layers.pool}[slot](2))
        assert kinds(net, of) <= {made}
        slots = paper if slot != "norm_layer" or config(model).norm is not None else network(model, norm_layer="bn")
        # Gates may have the chosen activation too; without norms, numbered networks have not even an identity.
        assert name == "none" or sum(type(module) is made for module in net.modules()) >= len(parts(slots, of))
    norms, default = swaps.get("norm_layer", "bn") != "none", config(model).norm is not None
    same = norms == default or "norm_layer" not in swaps
    assert key_names(net, numbered=same) == key_names(paper, numbered=same)


def key_names(net: nn.Module, numbered: bool) -> list[str]:
    """Keys outside the parts that are swapped; to compare a network that has norms with one that has none, without the
    biases that replace them and the numbers that they move."""
    swapped = parts(net, NORMS + ACT_KINDS)
    keys = [key for key in net.state_dict() if key.rpartition(".")[0] not in swapped]
    return keys if numbered else [re.sub(r"\d+", "", key) for key in keys if not key.endswith(".bias")]


@pytest.mark.parametrize("model", MODELS)
def test_swaps_reach_every_layer(model):
    swaps = SAMPLED[MODELS.index(model) % len(SAMPLED)]
    net = network(model, in_channels=4, **swaps)
    assert_swapped(model, net, swaps)
    net.eval()(torch.empty(1, 4, size(net), size(net), device="meta"))  # slopes are as many as the channels


def assert_trains(model: str, **swaps: str) -> None:
    """Forward, backward and a step: everything is finite, and every parameter has moved.

    Where a layer's weights start at zero (FCN's scores), a gradient passes it from the second step on.
    """
    torch.manual_seed(0)
    net = network(model, device="cpu", **swaps).train()
    assert_swapped(model, net, swaps)
    for layer in parts(net, (nn.Conv2d, nn.Linear)).values():
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)  # AlexNet's of 1 leave no negative value, from which alone slopes learn
    side = max(size(net) + 32, 64)  # so that the last map has several pixels, which norms per sample need
    x, labels = torch.randn(2, 3, side, side), torch.randint(0, 7, (2, side, side) if segments(model) else (2,))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    still = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for _ in range(2 if any(not weight.any() for name, weight in still.items() if weight.dim() > 1) else 1):
        outputs = net(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum(nn.functional.cross_entropy(scores, labels) for scores in outputs)
        optimizer.zero_grad()
        loss.backward()
        assert torch.isfinite(loss)
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            parameter.grad.sign_()  # a step in spite of how small a gradient is
        optimizer.step()
        still = {name: old for name, old in still.items() if torch.equal(net.get_parameter(name), old)}
    assert not still


# Every choice of every group, and each time one of each at once: what goes alone goes together, too. Only where a deep
# network's gradients would vanish without a norm, weights of 0.01 and saturating activations, is the order changed.
SWAPS["initializer"].sort(key=lambda name: name != "normal")
SWAPS["act_layer"].sort(key=lambda name: name != "tanh")
TOGETHER = [
    {slot: names[index % len(names)] for slot, names in SWAPS.items()} for index in range(max(map(len, SWAPS.values())))
]


@pytest.mark.slow
@pytest.mark.parametrize("swaps", TOGETHER, ids=lambda swaps: "-".join(swaps.values()))
@pytest.mark.parametrize("model", MODELS)
def test_every_swap_trains(model, swaps):
    assert_trains(model, **swaps)


@pytest.mark.parametrize("swaps", [{"norm_layer": "gn"}, {"act_layer": "mish"}], ids=str)
@pytest.mark.parametrize("model", ["lenet5", "resnet20"])
def test_sampled_swaps_train(model, swaps):
    assert_trains(model, **swaps)
