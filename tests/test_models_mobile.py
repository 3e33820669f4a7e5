"""MobileNets and Xceptions against torchvision and timm."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from parity import check_parity, check_stages, check_swaps, count, meta
from torch import nn

from cnn_train.analysis import trace
from cnn_train.layers import LayerFactory
from cnn_train.layers.norm import GroupNorm
from cnn_train.models.classification import xception as chollet
from cnn_train.models.classification.mobilenet_v1 import mobilenet_v1
from cnn_train.models.classification.mobilenet_v2 import mobilenet_v2
from cnn_train.models.classification.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from cnn_train.models.classification.xception import xception
from cnn_train.models.classification.xception_deeplab import xception41, xception65, xception71

Build = Callable[..., nn.Module]
MOBILE = [mobilenet_v1, mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


@pytest.mark.parametrize("build", MOBILE[1:])
def test_equals_torchvision(build: Build):
    import torchvision

    check_parity(meta(build), meta(getattr(torchvision.models, build.__name__)), 224)


@pytest.mark.parametrize("width_mult", [0.35, 0.75, 1.4])
@pytest.mark.parametrize("build", MOBILE[1:])
def test_width_multiplier_rounds_like_torchvision(build: Build, width_mult: float):
    import torchvision

    theirs = meta(getattr(torchvision.models, build.__name__), width_mult=width_mult)
    assert shapes(meta(build, width_mult=width_mult)) == shapes(theirs)


@pytest.mark.parametrize(("name", "width_mult"), [("mobilenetv1_100", 1.0), ("mobilenetv1_125", 1.25)])
def test_mobilenet_v1_equals_timm(name: str, width_mult: float):
    timm = pytest.importorskip("timm")
    check_parity(meta(mobilenet_v1, width_mult=width_mult), meta(timm.create_model, name), 224)


@pytest.mark.parametrize(("width_mult", "millions"), [(1.0, 4.2), (0.75, 2.6), (0.5, 1.3), (0.25, 0.5)])
def test_mobilenet_v1_widths_are_the_papers(width_mult: float, millions: float):
    """Howard et al. 2017, Table 6."""
    assert round(count(meta(mobilenet_v1, width_mult=width_mult)) / 1e6, 1) == millions


def test_mobilenet_v1_of_full_convolutions_is_the_papers():
    """Table 4: 29.3 million parameters, 4,866 million multiply-adds without the dense layer."""
    network = meta(mobilenet_v1, separable=False)
    assert round(count(network) / 1e6, 1) == 29.3
    assert round((trace(network, (3, 224, 224)).multiply_adds - 1024 * 1000) / 1e6) == 4866


def test_a_wrong_epsilon_would_be_noticed():
    import torchvision

    for build, layers in ((mobilenet_v3_large, LayerFactory()), (mobilenet_v2, mobilenet_v3_norm())):
        with pytest.raises(AssertionError):
            check_parity(meta(build, layers=layers), meta(getattr(torchvision.models, build.__name__)), 64)


def mobilenet_v3_norm() -> LayerFactory:
    return LayerFactory(norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01))


def test_mobilenet_v3_norm_is_torchvisions():
    norms = [m for m in meta(mobilenet_v3_small).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


def test_xception_equals_timm():
    timm = pytest.importorskip("timm")
    check_parity(meta(xception), meta(timm.create_model, "legacy_xception"), 299, chollet.from_timm)


@pytest.mark.parametrize(
    "build", [xception41, *(pytest.param(b, marks=pytest.mark.slow) for b in (xception65, xception71))]
)
def test_xception_of_deeplab_equals_timm(build: Build):
    timm = pytest.importorskip("timm")
    check_parity(meta(build), meta(timm.create_model, build.__name__), 299)


@pytest.mark.parametrize("build", [*MOBILE, xception, xception41])
@pytest.mark.parametrize("norm", [GroupNorm, None])
def test_no_layer_of_another_kind_is_left(build: Build, norm: type[nn.Module] | None):
    check_swaps(build, LayerFactory(norm_layer=norm, act_layer=nn.GELU))


@pytest.mark.parametrize("build", [mobilenet_v1, mobilenet_v2, mobilenet_v3_small, xception, xception41])
def test_stages(build: Build):
    # torch has no dilated max pooling whose padding exceeds half its kernel, which Xception's last would need at 8.
    check_stages(build, output_stride=16 if build is xception else 8)


@pytest.mark.parametrize("build", [mobilenet_v1, mobilenet_v2, mobilenet_v3_small, xception, xception41])
def test_min_size_is_the_smallest_that_works(build: Build):
    network = meta(build, num_classes=7).eval()
    least = getattr(network, "min_size", 1)
    assert network(torch.empty(2, 3, least, least + 3, device="meta")).shape == (2, 7)
    if least > 1:
        with pytest.raises(RuntimeError):
            network(torch.empty(2, 3, least - 1, least - 1, device="meta"))
