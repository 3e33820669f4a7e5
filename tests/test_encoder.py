"""The encoder: what it keeps of a classification network, and that dilation computes what strides did."""

import copy
import pickle
import re

import pytest
import torch
from torch import Tensor, nn

from cnn_train.errors import ConfigError
from cnn_train.layers import LayerFactory
from cnn_train.layers.norm import FrozenBatchNorm
from cnn_train.models.classification import builder
from cnn_train.models.encoder import Encoder, make_encoder
from cnn_train.models.segmentation.deeplab_v3 import deeplabv3
from cnn_train.models.segmentation.fcn import fcn16s
from cnn_train.models.segmentation.unet import unet, unet_encoder
from cnn_train.models.weights import fold, load_weights
from cnn_train.runs.checkpoint import weights


class Plain(nn.Module):
    """Convolutions and poolings in stages, for dilation without borders in the way."""

    def __init__(self, *stages: nn.Module):
        super().__init__()
        self.features = nn.Sequential(*stages)
        self.fc = nn.Linear(1, 1)

    @property
    def stages(self) -> list[nn.Module]:
        return list(self.features)


def conv(channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(4, channels, kernel_size, stride, dilation * (kernel_size // 2), dilation).double()


def plain(pool: type[nn.Module] = nn.MaxPool2d) -> Plain:
    torch.manual_seed(0)
    return Plain(
        nn.Sequential(conv(4, 3, 2), conv(4)),
        nn.Sequential(pool(3, 2, 1), conv(4)),
        nn.Sequential(conv(4), conv(4, 3, 2), conv(4, 1), conv(4)),
        nn.Sequential(conv(4, 5, 2), conv(4, 3, dilation=2)),
    )


def interior(x: Tensor, cells: int) -> Tensor:
    return x[..., cells:-cells, cells:-cells]


@pytest.mark.parametrize("output_stride", [2, 4, 8])
def test_dilated_network_on_the_coarse_grid_is_the_original(output_stride):
    original = plain().eval()
    dilated = Encoder(copy.deepcopy(original), output_stride=output_stride).eval()
    images = torch.randn(1, 4, 256, 256, dtype=torch.float64)
    with torch.no_grad():
        expected = original.features(images)
        every = dilated(images)
    assert [m.size(-1) for m in every] == [256 // min(s, output_stride) for s in (2, 4, 8, 16)]
    step = 16 // output_stride
    torch.testing.assert_close(interior(every[-1][..., ::step, ::step], 5), interior(expected, 5), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilated_resnet_on_the_coarse_grid_is_the_original(name):
    torch.manual_seed(0)
    network = builder(name)(num_classes=2, widths=[4, 4, 4, 4]).double().eval()
    stride_in_first = builder(name)(num_classes=2, widths=[4, 4, 4, 4]).double().eval()
    stride_in_first.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, 640, 640, dtype=torch.float64)
    with torch.no_grad():
        expected = nn.Sequential(*network.stages)(images)
        dilated = Encoder(stride_in_first, output_stride=8).eval()(images)[-1]
    torch.testing.assert_close(interior(dilated[..., ::4, ::4], 8), interior(expected, 8), atol=1e-10, rtol=1e-9)


def test_torchvisions_replace_stride_with_dilation_is_the_same():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
        ours = Encoder(builder("resnet50")(), output_stride=8)
    reference = dict(theirs.named_modules())
    for name, layer in ours.named_modules():
        if isinstance(layer, nn.Conv2d):
            other = reference[name]
            assert (layer.stride, layer.dilation, layer.padding) == (other.stride, other.dilation, other.padding), name


def test_head_is_dropped_and_names_are_kept():
    with torch.device("meta"):
        network = builder("resnet18")()
        encoder = Encoder(network)
    assert set(encoder.state_dict()) == {name for name in network.state_dict() if not name.startswith("fc.")}
    assert encoder.channels == [64, 64, 128, 256, 512]
    assert encoder.strides == [2, 4, 8, 16, 32]
    assert encoder.training


def test_unused_parts_of_sequences_are_dropped():
    network = plain()
    encoder = Encoder(network, stages=network.stages[:2])
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"0", "1"}
    assert encoder.prefix == "features."
    assert encoder.strides == [2, 4]


def test_strides_are_exact_where_convolutions_do_not_pad():
    network = Plain(nn.Sequential(nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 3), nn.MaxPool2d(3, 2)), nn.Conv2d(4, 6, 3, 2))
    encoder = Encoder(network)
    assert encoder.strides == [4, 8]
    assert encoder.channels == [4, 6]


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_any_number_of_input_channels(channels):
    with torch.device("meta"):
        encoder = make_encoder("resnet18", in_channels=channels, layers=LayerFactory(), output_stride=16)
        assert encoder(torch.empty(1, channels, 64, 64))[-1].shape == (1, 512, 4, 4)


def test_multi_grid_multiplies_the_last_stage():
    with torch.device("meta"):
        encoder = Encoder(builder("resnet50")(), output_stride=16, multi_grid=(1, 2, 4), dilate_strided=True)
    rates = [encoder.get_submodule(f"layer4.{i}.conv2").dilation for i in range(3)]
    assert rates == [(2, 2), (4, 4), (8, 8)]
    assert encoder.get_submodule("layer3.5.conv2").dilation == (1, 1)


def test_hybrid_rates_have_no_common_divisor():
    with torch.device("meta"):
        encoder = Encoder(builder("resnet50")(), output_stride=8, hybrid=(1, 2, 5))
        assert encoder(torch.empty(1, 3, 97, 61))[-1].shape[-2:] == (13, 8)
    rates = [encoder.get_submodule(f"layer3.{i}.conv2").dilation[0] for i in range(6)]
    assert rates == [1, 2, 5, 1, 2, 5]
    assert [encoder.get_submodule(f"layer4.{i}.conv2").dilation[0] for i in range(3)] == [1, 2, 5]
    assert encoder.get_submodule("layer2.1.conv2").dilation == (1, 1)


def test_even_poolings_become_odd():
    encoder = Encoder(Plain(conv(4), nn.Sequential(nn.AvgPool2d(2), conv(4))), output_stride=1)
    pool = encoder.get_submodule("1.0")
    assert (pool.kernel_size, pool.stride, pool.padding, pool.count_include_pad) == (3, 1, 1, False)
    assert encoder.get_submodule("1.1").dilation == (2, 2)
    ones = encoder.stages[1][0](torch.ones(1, 4, 9, 9, dtype=torch.float64))
    torch.testing.assert_close(ones, torch.ones_like(ones))


def test_evaluation_has_its_own_stride():
    with torch.device("meta"):
        encoder = Encoder(builder("resnet18")(), output_stride=16, eval_output_stride=8)
        images = torch.empty(1, 3, 96, 96)
        for _ in range(2):
            assert encoder.eval()(images)[-1].shape[-1] == 12
            assert encoder.train()(images)[-1].shape[-1] == 6
        alone = Encoder(builder("resnet18")(), output_stride=8)
    for ours, theirs in zip(encoder.eval().modules(), alone.modules(), strict=True):
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))])
def test_copies_do_not_share_parameters(clone):
    encoder = Encoder(builder("resnet18")(widths=[4, 4, 4, 4]), output_stride=16, eval_output_stride=8).eval()
    images = torch.randn(1, 3, 64, 64)
    other = clone(encoder)
    with torch.no_grad():
        torch.testing.assert_close(other(images)[-1], encoder(images)[-1])
        for parameter in other.parameters():
            parameter.zero_()
        assert other(images)[-1].abs().max() == 0
        assert encoder(images)[-1].abs().max() > 0
        assert other.train()(images)[-1].shape[-1] == 4


def test_each_parameter_is_registered_once_and_used():
    encoder = Encoder(builder("resnet18")(widths=[4, 4, 4, 4]))
    names = [name for name, _ in encoder.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(encoder.parameters()))
    encoder(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_messages():
    with torch.device("meta"):
        with pytest.raises(ValueError, match=r"output_stride must be one of .*\[2, 4, 8, 16, 32\], got 6"):
            Encoder(builder("resnet18")(), output_stride=6)
        with pytest.raises(ValueError, match="multi_grid needs one rate for each of the 2 blocks"):
            Encoder(builder("resnet18")(), output_stride=8, multi_grid=(1, 2, 4))
        with pytest.raises(ValueError, match="LeNet5 has no feature maps by stride"):
            make_encoder("lenet5", in_channels=1, layers=LayerFactory())
        with pytest.raises(ValueError, match=r"mobilenet_v2 does not take all of widths, stem; .*encoder_options=null"):
            deeplabv3(encoder="mobilenet_v2", encoder_options={"stem": "small"})
        with pytest.raises(ValueError, match="resnet50"):
            make_encoder("resnet5", in_channels=1, layers=LayerFactory())


@pytest.mark.parametrize(
    "name",
    [
        *(
            "vgg11",
            "googlenet",
            "inception_v2",
            "xception",
            "xception65",
            "resnext50_32x4d",
            "wide_resnet50_2",
            "preact_resnet50",
        ),
        *("seresnet50", "densenet121", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"),
    ],
)
def test_encoders_of_the_zoo(name):
    """Every family gives maps at each output stride, on odd sizes, and nothing of its head is left over."""
    with torch.device("meta"):
        for output_stride in (8, 16, 32):
            encoder = Encoder(builder(name)(), output_stride=output_stride)
            assert encoder.strides[-1] == output_stride
            maps = encoder(torch.empty(1, 3, 97, 129))
            assert [m.size(1) for m in maps] == encoder.channels
            for (height, width), stride in zip([m.shape[-2:] for m in maps], encoder.strides, strict=True):
                assert abs(height - 97 / stride) <= 4 and abs(width - 129 / stride) <= 4
    used: set[str] = set()
    for key, module in encoder.named_modules():
        module.register_forward_hook(lambda *_, key=key: used.add(key))
    encoder(torch.empty(1, 3, 97, 129, device="meta"))
    assert {key.rpartition(".")[0] for key, _ in encoder.named_parameters()} <= used


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
def test_a_folded_stem_answers_to_grey_as_before(channels):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 4, 5).double()
    grey = torch.randn(1, 1, 9, 9, dtype=torch.float64)
    expected = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), stem.weight)
    folded = fold(stem.weight, channels)
    assert folded.shape == (4, channels, 5, 5)
    torch.testing.assert_close(nn.functional.conv2d(grey.expand(-1, channels, -1, -1), folded), expected)
    if channels == 6:  # each of two pictures has half a say
        torch.testing.assert_close(folded, torch.cat([stem.weight, stem.weight], 1) / 2)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_an_encoder_takes_the_weights_of_its_network(tmp_path, channels, norm):
    torch.manual_seed(0)
    pretrained = builder("resnet18")(widths=[4, 8, 8, 8]).double()
    for module in pretrained.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_()
    torch.save(pretrained.state_dict(), tmp_path / "resnet18.pth")
    layers = LayerFactory(norm_layer=norm)
    network = deeplabv3(5, in_channels=channels, encoder_widths=[4, 8, 8, 8], aspp_channels=8, layers=layers).double()
    report = load_weights(network, weights(tmp_path / "resnet18.pth"), tmp_path / "resnet18.pth")
    assert [row.name for row in report.of("adapted")] == (["backbone.conv1.weight"] if channels != 3 else [])
    assert {row.name.split(".")[0] for row in report.of("fresh")} == {"classifier"}
    grey = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = Encoder(pretrained, output_stride=8).eval()(grey.expand(-1, 3, -1, -1))[-1]
        found = network.backbone.eval()(grey.expand(-1, channels, -1, -1))[-1]
    torch.testing.assert_close(found, expected)


def test_vggs_dense_layers_become_convolutions(tmp_path):
    torch.manual_seed(0)
    vgg = builder("vgg16")(7, width=2).eval()
    torch.save(vgg.state_dict(), tmp_path / "vgg16.pth")
    network = fcn16s(7, width=2, pad_input=False).eval()
    load_weights(network, weights(tmp_path / "vgg16.pth"), tmp_path / "vgg16.pth")
    images = torch.randn(2, 3, 224, 224)
    seen: list[Tensor] = []
    network.act7.register_forward_hook(lambda module, inputs, output: seen.append(output[..., 3, 3]))
    with torch.no_grad():
        network(images)
        expected = vgg.classifier[:5](vgg.features(images).flatten(1))  # seen from the middle of the 7x7 map
    torch.testing.assert_close(seen[0], expected)


def test_densenets_published_names_are_understood_and_strangers_refused(tmp_path):
    network = builder("densenet_bc_100_12")(in_channels=3)
    encoder = {f"features.{name}": value for name, value in Encoder(network).state_dict().items()}
    published = {re.sub(r"(denselayer\d+\.(?:norm|conv))", r"\1.", name): value for name, value in encoder.items()}
    assert any("denselayer1.norm.1.weight" in name for name in published)
    torch.save(published, tmp_path / "densenet.pth")
    other = unet_encoder(3, encoder="densenet_bc_100_12", decoder_channels=(4, 4, 4))
    load_weights(other, weights(tmp_path / "densenet.pth"), tmp_path / "densenet.pth")
    for name, value in other.backbone.state_dict().items():
        assert torch.equal(value, encoder[f"features.{name}"]), name
    with pytest.raises(ConfigError, match="holds no weight of this network; it begins with 'features"):
        load_weights(unet(3, width=2), weights(tmp_path / "densenet.pth"), tmp_path / "densenet.pth")


def test_weights_of_a_run_are_those_that_it_evaluates(tmp_path):
    network = nn.Linear(2, 2)
    raw = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    torch.save({"network": raw, "ema": {"steps": 1, "averages": {"weight": torch.ones(2, 2)}}}, tmp_path / "averaged")
    load_weights(network, weights(tmp_path / "averaged"), tmp_path / "averaged")
    assert torch.equal(network.weight, torch.ones(2, 2)) and not network.bias.any()
    torch.save({"network": raw, "ema": None}, tmp_path / "raw")
    load_weights(network, weights(tmp_path / "raw"), tmp_path / "raw")
    assert not network.weight.any()
