"""The networks without residual blocks, and Inception-ResNet, against torchvision, timm and the papers' figures."""

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from parity import check_parity, close, count, meta, random_weights
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_train.analysis import trace
from cnn_train.layers import LayerFactory
from cnn_train.layers.norm import GroupNorm, LocalResponseNorm
from cnn_train.layers.pool import KeepMap
from cnn_train.models.classification.alexnet import alexnet, alexnet_2012
from cnn_train.models.classification.googlenet import googlenet
from cnn_train.models.classification.inception_resnet_v2 import inception_resnet_v2
from cnn_train.models.classification.inception_v2 import from_caffe, inception_v2
from cnn_train.models.classification.inception_v3 import inception_v3
from cnn_train.models.classification.inception_v4 import inception_v4
from cnn_train.models.classification.nin import nin
from cnn_train.models.classification.vgg import vgg11, vgg13, vgg16, vgg19

BUILDERS = [
    alexnet,
    alexnet_2012,
    vgg11,
    vgg13,
    vgg16,
    vgg19,
    nin,
    googlenet,
    inception_v2,
    inception_v3,
    inception_v4,
    inception_resnet_v2,
]
BN = LayerFactory(norm_layer=nn.BatchNorm2d)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("build", [alexnet, vgg11, vgg13, vgg16, vgg19])
def test_plain_networks_equal_torchvision(build: Callable[..., nn.Module]):
    import torchvision

    check_parity(meta(build), meta(getattr(torchvision.models, build.__name__)), 224)


@pytest.mark.parametrize("build", [vgg11, vgg13, vgg16, vgg19])
def test_vgg_with_batch_norm_equals_torchvision(build: Callable[..., nn.Module]):
    import torchvision

    reference = meta(getattr(torchvision.models, f"{build.__name__}_bn"))
    check_parity(meta(build, layers=BN), reference, 224)


def test_googlenet_equals_torchvision():
    import torchvision

    reference = meta(torchvision.models.googlenet, init_weights=False)
    check_parity(meta(googlenet), reference, 224)


def test_inception_v3_equals_torchvision():
    import torchvision

    reference = meta(torchvision.models.inception_v3, init_weights=False)
    check_parity(meta(inception_v3), reference, 299)


@pytest.mark.parametrize("build", [inception_v4, inception_resnet_v2])
def test_equals_timm(build: Callable[..., nn.Module]):
    timm = pytest.importorskip("timm")
    reference = meta(timm.create_model, model_name=build.__name__, pretrained=False)
    check_parity(meta(build), reference, 299)


def test_a_wrong_epsilon_would_be_noticed():
    import torchvision

    reference = meta(torchvision.models.googlenet, init_weights=False)
    with pytest.raises(AssertionError):
        check_parity(meta(googlenet, layers=BN), reference, 224)


@pytest.mark.parametrize(("build", "size"), [(googlenet, 96), (inception_v3, 299)])
def test_auxiliary_logits_equal_torchvisions_in_training(build: Callable[..., nn.Module], size: int):
    import torchvision

    options = {"dropout_aux": 0.0} if build is googlenet else {}
    ours = meta(build, dropout=0.0, **options)
    theirs = meta(getattr(torchvision.models, build.__name__), init_weights=False, dropout=0.0, **options)
    state = random_weights(theirs.state_dict())
    image = torch.randn(2, 3, size, size)
    outputs = []
    for network in (ours, theirs):
        # A copy each: batch norm updates its statistics in place.
        network.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
        network.train()
        with torch.no_grad():
            outputs.append(network(image))
    logits, *aux = outputs[0]
    assert len(aux) == (2 if build is googlenet else 1)
    # torchvision gives GoogLeNet's second classifier before the first.
    for a, b in zip([logits, *reversed(aux)], outputs[1], strict=True):
        close(a, b)


@pytest.mark.parametrize("build", BUILDERS)
def test_parameter_count_is_the_docstrings(build: Callable[..., nn.Module]):
    stated = re.search(r"([\d,]+) parameters", build.__doc__ or "")
    assert stated is not None
    assert count(meta(build)) == int(stated[1].replace(",", ""))


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (partial(vgg11, layers=BN), 132_868_840),  # torchvision's vgg*_bn
        (partial(vgg13, layers=BN), 133_053_736),
        (partial(vgg16, layers=BN), 138_365_992),
        (partial(vgg19, layers=BN), 143_678_248),
        (partial(googlenet, aux=False), 6_624_904),  # torchvision's metadata
        (partial(inception_v3, aux=False), 23_834_568),  # timm's inception_v3
        # The network of 2014, as released for Caffe.
        (partial(googlenet, variant="paper", aux=False, layers=LayerFactory(norm_layer=None)), 6_998_552),
        (partial(googlenet, variant="paper", layers=LayerFactory(norm_layer=None)), 13_378_280),
    ],
)
def test_parameter_count_of_variants(build: Callable[..., nn.Module], parameters: int):
    assert count(meta(build)) == parameters


def test_googlenet_variants_differ_where_the_paper_does():
    network = meta(googlenet, variant="paper")
    assert network.inception4a.branch3[1].conv.kernel_size == (5, 5)
    assert network.maxpool4.kernel_size == 3
    assert network.eval()(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)
    with pytest.raises(ValueError, match="variant must be 'torchvision' or 'paper', got 'v1'"):
        googlenet(variant="v1")


@pytest.mark.parametrize("build", BUILDERS)
def test_min_size_is_the_smallest_that_works(build: Callable[..., nn.Module]):
    network = meta(build, num_classes=7)
    # Auxiliary heads run in training only.
    network.train(hasattr(network, "aux_weight"))
    size = network.min_size
    for height, width in [(size, size), (size + 33, size + 70)]:
        output = network(torch.empty(2, 3, height, width, device="meta"))
        for logits in output if isinstance(output, tuple) else (output,):
            assert logits.shape == (2, 7)
    with pytest.raises(RuntimeError):
        network(torch.empty(2, 3, size - 1, size - 1, device="meta"))


@pytest.mark.parametrize("build", [googlenet, inception_v3])
def test_auxiliary_heads_can_be_left_out(build: Callable[..., nn.Module]):
    network = meta(build, aux=False).train()
    assert isinstance(network(torch.empty(2, 3, 75, 75, device="meta")), Tensor)
    assert 0 < network.aux_weight < 1


ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.SiLU)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LocalResponseNorm, nn.GroupNorm)
POOLS = (nn.MaxPool2d, nn.AvgPool2d)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("norm", [GroupNorm, None])
def test_no_layer_of_another_kind_is_left(build: Callable[..., nn.Module], norm: Any):
    network = meta(build, layers=LayerFactory(norm_layer=norm, act_layer=nn.GELU, pool_layer=nn.MaxPool2d))
    kinds = [type(m) for m in network.modules()]
    assert not any(issubclass(kind, ACTIVATIONS) for kind in kinds)
    assert nn.GELU in kinds
    assert {kind for kind in kinds if issubclass(kind, NORMS)} == (set() if norm is None else {norm})
    assert {kind for kind in kinds if issubclass(kind, POOLS)} == {nn.MaxPool2d}


@pytest.mark.parametrize("build", BUILDERS)
def test_each_activation_is_called_once(build: Callable[..., nn.Module]):
    network = meta(build)
    network.train(hasattr(network, "aux_weight"))
    calls: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: calls.__setitem__(name, calls.get(name, 0) + 1)

    for name, module in network.named_modules():
        if isinstance(module, ACTIVATIONS):
            calls[name] = 0
            module.register_forward_hook(note(name))
    network(torch.empty(2, 3, network.min_size, network.min_size, device="meta"))
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("build", [inception_v3, inception_v4, inception_resnet_v2])
def test_deep_networks_start_finite_without_norm(build: Callable[..., nn.Module]):
    network = build(num_classes=5, layers=LayerFactory(norm_layer=None)).eval()
    with torch.inference_mode():
        logits = network(torch.randn(1, 3, 75, 75))
    assert logits.isfinite().all()
    assert 0 < logits.abs().max() < 1e4


def test_vgg_stages_halve_the_map_and_make_up_the_features():
    network = meta(vgg16, layers=BN)
    assert [m for stage in network.stages for m in stage] == list(network.features)
    x = torch.empty(1, 3, 64, 96, device="meta")
    shapes = []
    for stage in network.stages:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(64, 64, 96), (128, 32, 48), (256, 16, 24), (512, 8, 12), (512, 4, 6), (512, 2, 3)]


@pytest.mark.parametrize("build", [googlenet, inception_v2])
def test_inception_stages_are_the_network(build: Callable[..., nn.Module]):
    network = build(num_classes=3).eval()
    image = torch.randn(1, 3, 90, 90)
    x = image
    sides = []
    with torch.inference_mode():
        for stage in network.stages:
            x = stage(x)
            sides.append(x.size(-1))
        # Half, rounded up, also of the odd 45 and 23, but for the ceil-mode pooling of GoogLeNet.
        assert sides == ([45, 22, 11, 5, 3] if build is googlenet else [45, 22, 11, 6, 3])
        assert torch.equal(network.fc(network.flatten(network.avgpool(x))), network(image))


def test_inception_v2_without_strides_keeps_the_map():
    """What an encoder does to reach an output stride: the pooling must then not round up."""
    block = meta(inception_v2).inception3c
    strided = [m for m in block.modules() if getattr(m, "stride", 1) in (2, (2, 2))]
    assert len(strided) == 3
    for layer in strided:
        layer.stride = 1 if isinstance(layer, nn.MaxPool2d) else (1, 1)
    block.branch4.pool.padding, block.branch4.pool.ceil_mode = 1, False
    assert block(torch.empty(1, 320, 45, 46, device="meta")).shape == (1, 576, 45, 46)


def test_alexnet_2012_is_the_papers():
    network = meta(alexnet_2012)
    state = random_weights(network.state_dict())
    network.load_state_dict(state, assign=True)
    assert sum(isinstance(m, LocalResponseNorm) for m in network.modules()) == 2
    image = torch.randn(1, 3, 224, 224)

    def response_norm(a: Tensor) -> Tensor:
        """Section 3.3: b_i = a_i / (k + alpha sum_{j=i-2}^{i+2} a_j^2)^beta."""
        squares = F.pad(a.square(), (0, 0, 0, 0, 2, 2))
        total = sum(squares[:, j : j + a.size(1)] for j in range(5))
        return a / (2 + 1e-4 * total) ** 0.75

    def conv(name: str, x: Tensor, padding: int, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        # Each group on its own, as on two GPUs.
        parts = zip(x.chunk(groups, 1), weight.chunk(groups), bias.chunk(groups), strict=True)
        return torch.cat([F.conv2d(a, w, b, stride, padding) for a, w, b in parts], 1).relu()

    x = F.max_pool2d(response_norm(conv("conv1", image, 2, stride=4)), 3, 2)
    assert x.shape[1:] == (96, 27, 27)
    x = F.max_pool2d(response_norm(conv("conv2", x, 2, groups=2)), 3, 2)
    x = conv("conv5", conv("conv4", conv("conv3", x, 1), 1, groups=2), 1, groups=2)
    x = F.max_pool2d(x, 3, 2).flatten(1)
    assert x.shape[1] == 256 * 6 * 6
    for name in ("fc6", "fc7"):
        x = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
    expected = F.linear(x, state["fc8.weight"], state["fc8.bias"])
    with torch.inference_mode():
        close(network.eval()(image), expected)


def test_alexnet_2012_starts_as_the_paper_says():
    network = alexnet_2012(num_classes=10, in_channels=1)
    biased = [name for name, p in network.named_parameters() if name.endswith("bias") and (p == 1).all()]
    assert biased == [f"{name}.bias" for name in ("conv2", "conv4", "conv5", "fc6", "fc7")]
    assert network.conv3.weight.std().item() == pytest.approx(0.01, rel=0.01)


def test_nin_maps_and_head():
    network = meta(nin)
    x = torch.empty(1, 3, 32, 32, device="meta")
    assert network.pool1(network.mlpconv1(x)).shape == (1, 96, 16, 16)
    assert network.pool2(network.mlpconv2(torch.empty(1, 96, 16, 16, device="meta"))).shape == (1, 192, 8, 8)
    assert not list(network.fc.parameters())
    flat = meta(nin, layers=LayerFactory(norm_layer=None, global_pool_layer=partial(KeepMap, size=8)))
    assert flat(x).shape == (1, 10)


# BN-Inception as released for Caffe: 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3, pooling and its projection.
CAFFE = {
    "3a": (192, 64, 64, 64, 64, 96, "avg", 32),
    "3b": (256, 64, 64, 96, 64, 96, "avg", 64),
    "3c": (320, 0, 128, 160, 64, 96, "pass", 0),
    "4a": (576, 224, 64, 96, 96, 128, "avg", 128),
    "4b": (576, 192, 96, 128, 96, 128, "avg", 128),
    "4c": (576, 160, 128, 160, 128, 160, "avg", 128),
    "4d": (608, 96, 128, 192, 160, 192, "avg", 128),
    "4e": (608, 0, 128, 192, 192, 256, "pass", 0),
    "5a": (1056, 352, 192, 320, 160, 224, "avg", 128),
    "5b": (1024, 352, 192, 320, 192, 224, "max", 128),
}


def caffe_layers() -> dict[str, tuple[int, int, int, int]]:
    """Name of each convolution: (in, out, kernel, stride)."""
    layers = {"conv1_7x7_s2": (3, 64, 7, 2), "conv2_3x3_reduce": (64, 64, 1, 1), "conv2_3x3": (64, 192, 3, 1)}
    for module, (inputs, one, reduce3, three, reduce, double, pool, projection) in CAFFE.items():
        name, stride = f"inception_{module}_", 2 if pool == "pass" else 1
        if one:
            layers[name + "1x1"] = (inputs, one, 1, 1)
            layers[name + "pool_proj"] = (inputs, projection, 1, 1)
        layers[name + "3x3_reduce"] = (inputs, reduce3, 1, 1)
        layers[name + "3x3"] = (reduce3, three, 3, stride)
        layers[name + "double_3x3_reduce"] = (inputs, reduce, 1, 1)
        layers[name + "double_3x3_1"] = (reduce, double, 3, 1)
        layers[name + "double_3x3_2"] = (double, double, 3, stride)
    return layers


def test_inception_v2_equals_the_caffe_release():
    convolutions = caffe_layers()
    shapes = {}
    for name, (inputs, outputs, kernel, _) in convolutions.items():
        shapes[f"{name}.weight"] = torch.empty(outputs, inputs, kernel, kernel)
        for key in ("", "_bn.weight", "_bn.bias", "_bn.running_mean", "_bn.running_var"):
            shapes[f"{name}{key or '.bias'}"] = torch.empty(outputs)
    shapes |= {"last_linear.weight": torch.empty(1000, 1024), "last_linear.bias": torch.empty(1000)}
    state = random_weights(shapes)
    learned = sum(v.numel() for k, v in state.items() if "running" not in k)
    assert learned == 11_295_240  # the release's, with a bias in each convolution
    biases = sum(outputs for _, outputs, _, _ in convolutions.values())
    assert count(meta(inception_v2)) == learned - biases

    def unit(name: str, x: Tensor) -> Tensor:
        _, _, kernel, stride = convolutions[name]
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, kernel // 2)
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *[state[f"{name}_bn.{key}"] for key in keys]).relu()

    def module(key: str, x: Tensor) -> Tensor:
        part = partial(lambda name, x: unit(f"inception_{key}_{name}", x))
        three = part("3x3", part("3x3_reduce", x))
        double = part("double_3x3_2", part("double_3x3_1", part("double_3x3_reduce", x)))
        kind = CAFFE[key][6]
        if kind == "pass":
            return torch.cat([three, double, F.max_pool2d(x, 3, 2, ceil_mode=True)], 1)
        pooled = F.avg_pool2d(x, 3, 1, 1) if kind == "avg" else F.max_pool2d(x, 3, 1, 1)
        return torch.cat([part("1x1", x), three, double, part("pool_proj", pooled)], 1)

    network = meta(inception_v2)
    translated = from_caffe(state)
    # The release is older than the batch count.
    counts = {k: torch.tensor(0) for k in network.state_dict() if k.endswith("num_batches_tracked")}
    network.load_state_dict(translated | counts, strict=True, assign=True)
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        x = F.max_pool2d(unit("conv1_7x7_s2", image), 3, 2, ceil_mode=True)
        x = F.max_pool2d(unit("conv2_3x3", unit("conv2_3x3_reduce", x)), 3, 2, ceil_mode=True)
        for key in CAFFE:
            x = module(key, x)
        expected = F.linear(x.mean((2, 3)), state["last_linear.weight"], state["last_linear.bias"])
        close(network.eval()(image), expected)


def test_pairs_as_5x5_see_as_much_by_half_the_convolutions():
    """Simonyan & Zisserman, section 4.1: one 5x5 for two 3x3, in the closed form of weights and biases."""
    plain, paired = meta(vgg13), meta(partial(vgg13, pairs_as_5x5=True))
    blocks = list(pairwise((3, 64, 128, 256, 512, 512)))
    assert count(paired.features) == sum(25 * a * b + b for a, b in blocks)
    assert count(plain.features) == sum(9 * a * b + b + 9 * b * b + b for a, b in blocks)
    assert count(paired.classifier) == count(plain.classifier)
    fields = [trace(network, (3, 224, 224)).collapse(1)[0].local_receptive_field for network in (plain, paired)]
    assert fields[0] == fields[1] is not None
