"""ResNet, pre-activation ResNet, ResNeXt, Wide ResNet, DenseNet, SENet against torchvision, timm and formulas."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from parity import check_parity, check_stages, check_swaps, close, count, meta, random_weights
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_train.layers import LayerFactory
from cnn_train.layers.norm import GroupNorm
from cnn_train.models.classification import densenet, preact_resnet, resnet, resnext, senet, wide_resnet
from cnn_train.models.classification.densenet import densenet121, densenet_bc_100_12, densenet_bc_190_40
from cnn_train.models.classification.preact_resnet import preact_resnet50, preact_resnet110, preact_resnet164
from cnn_train.models.classification.resnext import resnext29_8x64d, resnext50_32x4d
from cnn_train.models.classification.senet import senet154, seresnet50, seresnext50_32x4d
from cnn_train.models.classification.wide_resnet import wide_resnet50_2, wrn_16_8, wrn_28_10, wrn_40_4

Build = Callable[..., nn.Module]
slow = partial(pytest.param, marks=pytest.mark.slow)  # deeper twins of what runs always


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "build",
    [
        resnet.resnet18,
        slow(resnet.resnet34),
        resnet.resnet50,
        slow(resnet.resnet101),
        slow(resnet.resnet152),
        resnext.resnext50_32x4d,
        slow(resnext.resnext101_32x8d),
        wide_resnet.wide_resnet50_2,
        slow(wide_resnet.wide_resnet101_2),
        densenet.densenet121,
        slow(densenet.densenet161),
        slow(densenet.densenet169),
        slow(densenet.densenet201),
    ],
)
def test_equals_torchvision(build: Build):
    import torchvision

    check_parity(meta(build), meta(getattr(torchvision.models, build.__name__)), 224)


def test_a_shallow_resnet18_equals_torchvisions_blocks():
    from torchvision.models.resnet import BasicBlock, ResNet

    check_parity(meta(resnet.resnet18, depths=[1, 1, 1, 1]), meta(ResNet, BasicBlock, [1, 1, 1, 1]), 64)


@pytest.mark.parametrize("depth", [18, slow(34), 50, slow(101), slow(152)])
def test_preact_resnet_equals_timm(depth: int):
    timm = pytest.importorskip("timm")
    reference = meta(timm.create_model, f"resnetv2_{depth}")
    check_parity(meta(getattr(preact_resnet, f"preact_resnet{depth}")), reference, 224, preact_resnet.from_timm)


@pytest.mark.parametrize("build", [seresnet50, seresnext50_32x4d])
def test_senet_equals_timm(build: Build):
    timm = pytest.importorskip("timm")
    check_parity(meta(build), meta(timm.create_model, build.__name__), 224)


@pytest.mark.parametrize("build", [seresnet50, seresnext50_32x4d, slow(senet154)])
def test_senet_equals_the_release(build: Build):
    timm = pytest.importorskip("timm")
    ours = meta(build) if build is senet154 else meta(build, variant="release")
    check_parity(ours, meta(timm.create_model, f"legacy_{build.__name__}"), 224, senet.from_release)


def timm_preact(depths: list[int], widths: list[int], basic: bool) -> nn.Module:
    """A pre-activation network of timm with the stem of CIFAR."""
    timm_resnet = pytest.importorskip("timm.models.resnetv2")
    from timm.layers import BatchNormAct2d, create_conv2d

    network = timm_resnet.ResNetV2(
        depths,
        widths,
        num_classes=10,
        stem_chs=16,
        basic=basic,
        bottle_ratio=1.0 if basic else 0.25,
        norm_layer=BatchNormAct2d,
        conv_layer=create_conv2d,
    )
    network.stem.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    network.stem.pool = nn.Identity()
    return network


@pytest.mark.parametrize(("build", "depth", "k"), [(wrn_16_8, 2, 8), (wrn_28_10, 4, 10), (wrn_40_4, 6, 4)])
def test_wrn_equals_timms_blocks(build: Build, depth: int, k: int):
    reference = meta(timm_preact, [depth] * 3, [16 * k, 32 * k, 64 * k], True)
    check_parity(meta(build), reference, 32, preact_resnet.from_timm)


def test_preact_resnet164_equals_timms_blocks():
    reference = meta(timm_preact, [18] * 3, [64, 128, 256], False)
    ours = meta(preact_resnet164, stride_in_1x1=False)
    check_parity(ours, reference, 32, preact_resnet.from_timm)
    strided = [name for name, m in meta(preact_resnet164).named_modules() if getattr(m, "stride", 1) == (2, 2)]
    assert strided == [f"layer{i}.0.{name}" for i in (2, 3) for name in ("conv1", "downsample")]


def test_preact_resnet110_is_the_papers():
    """x + F(norm, act, conv, norm, act, conv); the activation comes before the split in the first unit of all."""
    network = meta(preact_resnet110)
    state = {key: value.double() for key, value in random_weights(network.state_dict()).items()}
    network.load_state_dict(state, assign=True)
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)

    def activate(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{key}"].view(-1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    x = F.conv2d(image, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for unit in range(18):
            name = f"layer{stage}.{unit}"
            stride = 2 if stage > 1 and unit == 0 else 1
            activated = activate(f"{name}.bn1", x)
            out = F.conv2d(activated, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(activate(f"{name}.bn2", out), state[f"{name}.conv2.weight"], padding=1)
            shortcut = activated if unit == 0 else x
            if stride == 2:
                channels = shortcut.size(1)
                shortcut = F.pad(shortcut[..., ::2, ::2], (0, 0, 0, 0, channels // 2, channels // 2))
            x = out + shortcut
    expected = F.linear(activate("bn", x).mean((2, 3)), state["fc.weight"], state["fc.bias"])
    with torch.inference_mode():
        close(network.eval()(image), expected)


def test_resnext29_equals_torchvisions_blocks():
    from torchvision.models.resnet import Bottleneck, ResNet

    reference = meta(ResNet, Bottleneck, [3, 3, 3, 1], num_classes=10, groups=8, width_per_group=64)
    reference.conv1 = meta(nn.Conv2d, 3, 64, 3, padding=1, bias=False)
    reference.maxpool = reference.layer4 = nn.Identity()
    reference.fc = meta(nn.Linear, 1024, 10)
    check_parity(meta(resnext29_8x64d), reference, 32)


def test_densenet_for_cifar_equals_torchvisions_blocks():
    from torchvision.models import DenseNet

    reference = meta(DenseNet, 12, (16, 16, 16), 24, num_classes=10)
    reference.features.conv0 = meta(nn.Conv2d, 3, 24, 3, padding=1, bias=False)
    reference.features.norm0 = reference.features.relu0 = reference.features.pool0 = nn.Identity()
    check_parity(meta(densenet_bc_100_12), reference, 32)


def test_densenet_reads_torchvisions_published_keys():
    state = meta(densenet121).state_dict()
    for name in ("norm", "conv"):
        for i in "12":
            state = {key.replace(f".{name}{i}.", f".{name}.{i}."): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    assert list(densenet.from_old_torchvision(state)) == list(meta(densenet121).state_dict())


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        (resnet.resnet20, "0.27"),  # He et al. 2016, Table 6
        (resnet.resnet32, "0.46"),
        (resnet.resnet44, "0.66"),
        (resnet.resnet56, "0.85"),
        (resnet.resnet110, "1.7"),
        (preact_resnet110, "1.7"),  # He et al. 2016, "Identity mappings", Table 3
        (preact_resnet164, "1.7"),
        (resnext29_8x64d, "34.4"),  # Xie et al. 2017, Table 7
        (wrn_16_8, "11.0"),  # Zagoruyko & Komodakis 2016, Table 5
        (wrn_28_10, "36.5"),
        (wrn_40_4, "8.9"),  # 8.7 in an early version of the table
        (densenet_bc_100_12, "0.8"),  # Huang et al. 2017, Table 2
        (densenet_bc_190_40, "25.6"),
    ],
)
def test_parameter_count_is_the_papers(build: Build, millions: str):
    decimals = len(millions.partition(".")[2])
    assert f"{count(meta(build)) / 1e6:.{decimals}f}" == millions


@pytest.mark.parametrize("build", [preact_resnet50, resnext29_8x64d, wrn_16_8, densenet121, seresnet50, senet154])
@pytest.mark.parametrize("norm", [GroupNorm, None])
def test_no_layer_of_another_kind_is_left(build: Build, norm: type[nn.Module] | None):
    check_swaps(build, LayerFactory(norm_layer=norm, act_layer=nn.GELU))


@pytest.mark.parametrize("build", [preact_resnet50, densenet121, seresnet50])
def test_stages_of_imagenet_networks(build: Build):
    check_stages(build)


@pytest.mark.parametrize("build", [preact_resnet110, preact_resnet164, resnext29_8x64d, wrn_16_8])
def test_stages_of_cifar_networks_start_at_full_resolution(build: Build):
    network = meta(build)
    x = torch.empty(1, 3, 32, 32, device="meta")
    sizes = []
    for stage in network.stages:
        x = stage(x)
        sizes.append(x.size(-1))
    assert sizes == [32, 16, 8]


@pytest.mark.parametrize(
    ("build", "least"),
    [
        (preact_resnet50, 1),
        (seresnet50, 1),
        (partial(seresnet50, variant="release"), 3),
        (densenet121, 29),
        (densenet_bc_100_12, 4),
    ],
)
def test_min_size_is_the_smallest_that_works(build: Build, least: int):
    network = meta(build, num_classes=7).eval()
    assert getattr(network, "min_size", 1) == least
    assert network(torch.empty(2, 3, least, least + 3, device="meta")).shape == (2, 7)
    if least > 1:
        with pytest.raises(RuntimeError):
            network(torch.empty(2, 3, least - 1, least - 1, device="meta"))


@pytest.mark.parametrize("build", [preact_resnet50, resnext50_32x4d, wide_resnet50_2, wrn_16_8, densenet121, senet154])
def test_the_small_stem_keeps_the_resolution(build: Build):
    network = meta(build, stem="small").eval()
    first = network.stages[0]
    stem = first[0] if isinstance(first, nn.Sequential) else first
    assert stem(torch.empty(1, 3, 8, 8, device="meta")).shape[2:] == (8, 8)
    assert [getattr(m, "stride", 1) for m in first.modules() if isinstance(m, nn.MaxPool2d)] == []
    with pytest.raises(ValueError, match="stem must be 'imagenet' or 'small', got 'tiny'"):
        meta(build, stem="tiny")


def test_wrong_words_are_refused():
    with pytest.raises(ValueError, match="shortcut must be 'projection' or 'pad', got 'none'"):
        meta(preact_resnet110, shortcut="none")
    with pytest.raises(ValueError, match="variant must be 'timm' or 'release', got 'caffe'"):
        meta(seresnet50, variant="caffe")


def test_dropout_stands_where_the_papers_have_it():
    dropouts = {n: m.p for n, m in meta(wrn_16_8, dropout=0.3).named_modules() if isinstance(m, nn.Dropout)}
    assert [name for name, p in dropouts.items() if p == 0.3] == [
        f"layer{i}.{j}.dropout" for i in (1, 2, 3) for j in (0, 1)
    ]
    dense = [m.p for m in meta(densenet_bc_100_12, dropout=0.2).modules() if isinstance(m, nn.Dropout)]
    convolutions = sum(isinstance(m, nn.Conv2d) for m in meta(densenet_bc_100_12).modules())
    assert dense == [0.2] * (convolutions - 1)


@pytest.mark.parametrize(
    "build",
    [partial(preact_resnet164, num_classes=5), partial(wrn_40_4, num_classes=5), partial(seresnet50, num_classes=5)],
)
def test_deep_networks_start_finite_without_norm(build: Build):
    network = build(layers=LayerFactory(norm_layer=None)).train()
    loss = F.cross_entropy(network(torch.randn(2, 3, 16, 16)), torch.tensor([0, 1]))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("build", [seresnet50, senet154])
def test_se_networks_without_shortcuts_end_where_a_branch_is_zero(build: Build):
    """Without shortcuts no weights of a shortcut are left, and zeros of a branch reach the classifier."""
    plain, whole = meta(build, residual=False), meta(build)
    shortcuts = sum(p.numel() for name, p in whole.named_parameters() if ".downsample." in name)
    assert count(plain) == count(whole) - shortcuts and shortcuts > 0
    for residual in (False, True):
        network = build(layers=LayerFactory(), num_classes=5, stem="small", residual=residual).eval()
        nn.init.zeros_(network.layer4[-1].bn3.weight)
        nn.init.zeros_(network.fc.bias)
        assert bool((network(torch.randn(1, 3, 16, 16)) == 0).all()) is not residual


def test_a_thin_wide_resnet_is_the_papers_of_40_layers():
    """WRN-40-1 and WRN-40-2 (Zagoruyko & Komodakis 2016, Table 4): 0.6 and 2.2 million parameters."""
    for k, millions in ((1, 0.6), (2, 2.2)):
        network = meta(partial(wrn_40_4, widths=(16 * k, 32 * k, 64 * k)))
        assert round(count(network) / 1e6, 1) == millions
