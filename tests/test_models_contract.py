"""What every network in conf/model promises. A new file there is covered without an edit here.

Structure is checked on the meta device, where building and running cost no arithmetic.
"""

import importlib
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from cnn_train.config import build, build_layers, compose

CONF = Path(__file__).parents[1] / "conf"
LIBRARIES = {"timm", "torchvision"}  # whole libraries, whose networks come as they are
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem not in LIBRARIES)
NORMS = sorted(path.stem for path in (CONF / "norm").glob("*.yaml"))
ACTS = sorted(path.stem for path in (CONF / "act").glob("*.yaml"))

NORM_KINDS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.modules.instancenorm._InstanceNorm,
)
ACT_KINDS = (nn.ReLU, nn.ReLU6, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.PReLU, nn.Mish)


def network(*overrides: str, num_classes: int = 7, device: str = "meta", **options) -> nn.Module:
    config = compose(overrides)
    with torch.device(device):
        return build(config.model, num_classes=num_classes, layers=build_layers(config), **options)


def builder(model: str):
    module, _, name = compose([f"model={model}"]).model._target_.rpartition(".")
    return getattr(importlib.import_module(module), name)


def size(net: nn.Module) -> int:
    return max(getattr(net, "min_size", 1), 32)


def segments(model: str) -> bool:
    return ".segmentation." in compose([f"model={model}"]).model._target_


def kinds(net: nn.Module, of: tuple[type, ...]) -> set[type]:
    return {type(module) for module in net.modules() if isinstance(module, of)}


@pytest.mark.parametrize("model", MODELS)
def test_yaml_name_is_the_builders_and_it_is_exported(model):
    target = compose([f"model={model}"]).model._target_
    module, _, name = target.rpartition(".")
    assert name == model
    assert name in importlib.import_module(module).__all__


@pytest.mark.parametrize("model", MODELS)
def test_yaml_and_python_defaults_are_the_same_network(model):
    function = builder(model)
    with torch.device("meta"):
        ours = function(num_classes=7)
    theirs = network(f"model={model}", in_channels=_in_channels(function))
    assert [(n, repr(m)) for n, m in ours.named_modules() if not list(m.children())] == [
        (n, repr(m)) for n, m in theirs.named_modules() if not list(m.children())
    ]


def _in_channels(function) -> int:
    import inspect

    parameter = inspect.signature(function).parameters.get("in_channels")
    return 3 if parameter is None else parameter.default


@pytest.mark.parametrize("model", MODELS)
def test_docstring_names_the_parameter_count(model):
    function = builder(model)
    told = re.search(r"([\d,]+) parameters", function.__doc__ or "")
    assert told, f"{model}: the docstring must name the number of parameters at the default arguments"
    with torch.device("meta"):
        net = function()
    assert sum(p.numel() for p in net.parameters()) == int(told[1].replace(",", ""))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("in_channels", [1, 4])
def test_output_shapes(model, in_channels):
    net = network(f"model={model}", in_channels=in_channels).eval()
    side = size(net)
    images = torch.empty(2, in_channels, side, side, device="meta")
    expected = (2, 7, side, side) if segments(model) else (2, 7)
    assert net(images).shape == expected
    outputs = net.train()(images)
    if isinstance(outputs, tuple):
        assert all(scores.shape == expected for scores in outputs)
        assert 0 < net.aux_weight < 1
    if segments(model):
        odd = torch.empty(1, in_channels, side + 33, side + 1, device="meta")
        assert net.eval()(odd).shape == (1, 7, side + 33, side + 1)


@pytest.mark.parametrize("model", MODELS)
def test_norm_swaps_reach_every_layer(model):
    for norm in NORMS:
        config = compose([f"norm={norm}"])
        net = network(f"model={model}", f"norm={norm}", in_channels=3)
        made = build_layers(config).norm(8)
        assert kinds(net, NORM_KINDS) <= {type(made)}, norm


@pytest.mark.parametrize("model", MODELS)
def test_act_swaps_reach_every_layer(model):
    for act in ACTS:
        if act == "paper":
            continue
        net = network(f"model={model}", f"act={act}", in_channels=3)
        made = build_layers(compose([f"act={act}"])).act()
        assert kinds(net, ACT_KINDS) <= {type(made)}, act
        modules = [m for m in net.modules() if type(m) is type(made)]
        assert len({id(m) for m in modules}) == len(modules)


@pytest.mark.parametrize("model", MODELS)
def test_no_module_runs_twice(model):
    """Two calls of one activation would share its parameters, and hooks would see a layer twice."""
    net = network(f"model={model}", in_channels=3).eval()
    calls: dict[str, int] = {}
    for name, module in net.named_modules():
        if isinstance(module, ACT_KINDS + NORM_KINDS):
            module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1))
    net(torch.empty(1, 3, size(net), size(net), device="meta"))
    assert not {name for name, count in calls.items() if count > 1}
