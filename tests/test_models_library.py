"""The whole of timm and torchvision, as they are."""

import sys

import pytest
import torch
from parity import meta
from torch import nn

from cnn_train.errors import EnvError
from cnn_train.layers import LayerFactory
from cnn_train.layers.init import he_normal
from cnn_train.models.classification.library import timm, torchvision


def test_timm_builds_any_of_its_networks():
    pytest.importorskip("timm")
    network = meta(timm, 7, in_channels=2, name="mobilenetv3_small_100", drop_rate=0.3)
    assert network(torch.empty(2, 2, 64, 64, device="meta")).shape == (2, 7)
    assert network.drop_rate == 0.3


@pytest.mark.parametrize(
    "name", ["googlenet", "inception_v3", "regnet_y_400mf", "convnext_tiny", "efficientnet_b0", "densenet121"]
)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_torchvision_builds_any_of_its_networks(name: str, in_channels: int):
    network = torchvision(7, in_channels=in_channels, name=name).to("meta")
    assert network(torch.empty(2, in_channels, 224, 224, device="meta")).shape == (2, 7)


def test_torchvision_keeps_its_first_convolution_for_colour_images():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    ours = torchvision(10, name="resnet18")
    torch.manual_seed(0)
    theirs = resnet18(num_classes=10)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    grey = torchvision(10, in_channels=1, name="resnet18")
    assert (grey.conv1.stride, grey.conv1.padding, grey.conv1.bias) == ((2, 2), (3, 3), None)


@pytest.mark.parametrize("build", [timm, torchvision])
@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (LayerFactory(), "norm="),
        (LayerFactory(norm_layer=None, act_layer=nn.GELU, initializer=he_normal), "act= init="),
    ],
)
def test_choices_of_layers_are_refused(build, layers: LayerFactory, words: str):
    with pytest.raises(ValueError, match=f"^model={build.__name__} takes .* but got {words}.*choose") as error:
        build(layers=layers)
    assert "\n" not in str(error.value)


def test_misspelt_names_are_answered_with_the_nearest():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"timm has no .*'resnet_50'; did you mean: .*resnet50"):
        timm(name="resnet_50")
    with pytest.raises(ValueError, match=r"torchvision has no .*'vgg61'; did you mean: .*vgg"):
        torchvision(name="vgg61")


def test_a_missing_timm_is_an_environment_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EnvError, match="pip install timm") as error:
        timm()
    assert error.value.exit_code == 4
