"""Segmentation networks against torchvision, their papers' arithmetic, and float64 references."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.norm import GroupNorm, InstanceNorm, LayerNorm
from cnn_train.layers.upsample import Bilinear, PixelShuffle, Transposed, Unpool, bilinear_kernel
from cnn_train.models.segmentation import deeplab_v3, fcn
from cnn_train.models.segmentation.deeplab_v1 import deeplabv1
from cnn_train.models.segmentation.deeplab_v2 import deeplabv2, deeplabv2_vgg16
from cnn_train.models.segmentation.deeplab_v3 import deeplabv3
from cnn_train.models.segmentation.deeplab_v3plus import deeplabv3plus
from cnn_train.models.segmentation.fcn import fcn8s, fcn16s, fcn32s
from cnn_train.models.segmentation.gcn import GlobalConv, gcn
from cnn_train.models.segmentation.pspnet import PyramidPooling, pspnet
from cnn_train.models.segmentation.refinenet import ChainedResidualPooling, refinenet
from cnn_train.models.segmentation.segnet import segnet
from cnn_train.models.segmentation.unet import MirrorPad, UNet, unet, unet_encoder

NARROW = {"encoder": "resnet18", "encoder_options": {"widths": [4, 8, 8, 8]}}
# Small forms of every network that a CPU trains a step of in a moment.
SMALL = {
    "fcn_resnet50": partial(fcn.fcn_resnet50, encoder_options={"widths": [4, 8, 8, 8]}),
    "unet": partial(unet, width=4),
    "unet_valid": partial(unet, width=2, padding="valid", depth=2),
    "unet_encoder": partial(unet_encoder, decoder_channels=(8, 8, 8, 8), **NARROW),
    "refinenet": partial(refinenet, channels=4, **NARROW),
    "pspnet": partial(pspnet, **NARROW),
    "gcn": partial(gcn, kernel_size=5, **NARROW),
    "deeplabv2": partial(deeplabv2, stride_in_1x1=False, scales=[0.5], **NARROW),
    "deeplabv3": partial(deeplabv3, encoder_widths=[4, 8, 8, 8], aspp_channels=8, output_stride=16, aux=True),
    "deeplabv3plus": partial(deeplabv3plus, channels=8, low_level_channels=4, multi_grid=None, **NARROW),
}
VGG_BASED = {
    "fcn8s": partial(fcn8s, pad_input=False, width=4),
    "fcn16s": partial(fcn16s, pad_input=False, width=4),
    "fcn32s": partial(fcn32s, pad_input=False, width=4),
    "segnet": partial(segnet, width=4),
    "deeplabv1": partial(deeplabv1, width=4, channels=16),
    "deeplabv2_vgg16": partial(deeplabv2_vgg16, width=4, channels=16),
}
ALL = SMALL | VGG_BASED
NORMS = {"bn": nn.BatchNorm2d, "gn": GroupNorm, "ln": LayerNorm, "in": InstanceNorm, "none": None}
ACTS = {"relu": nn.ReLU, "prelu": nn.PReLU, "elu": nn.ELU}
POOLED_TO_ONE_PIXEL = {"deeplabv3", "deeplabv3_mobilenet_v3_large", "deeplabv3plus", "pspnet"}


def randomize_norms(network: nn.Module) -> None:
    """Statistics that a trained network could have; scales that keep deep sums from growing."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.1, 0.5)
            nn.init.normal_(module.bias, 0, 0.1)


@pytest.mark.parametrize(
    "name",
    [
        "fcn_resnet50",
        pytest.param("fcn_resnet101", marks=pytest.mark.slow),
        "deeplabv3_resnet50",
        pytest.param("deeplabv3_resnet101", marks=pytest.mark.slow),
        "deeplabv3_mobilenet_v3_large",
    ],
)
def test_torchvisions_weights_give_its_logits(name):
    torchvision = pytest.importorskip("torchvision")
    build = getattr(fcn if name.startswith("fcn") else deeplab_v3, name)
    with torch.device("meta"):
        ours = build()
    theirs = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, aux_loss=True)
    randomize_norms(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours = ours.to_empty(device="cpu")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    reference = dict(theirs.named_modules())
    for key, module in ours.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (reference[key].eps, reference[key].momentum), key
    images = torch.randn(2, 3, 97, 61)
    with torch.no_grad():
        expected = theirs.eval()(images)
        torch.testing.assert_close(ours.eval()(images), expected["out"], atol=1e-5, rtol=1e-5)
        # Auxiliary scores come in training mode only: that of the whole, while its norms stay in evaluation.
        ours.training = True
        _, aux = ours(images)
    torch.testing.assert_close(aux, expected["aux"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        # Layers of the released prototxt files, added up: voc-fcn32s, -16s, -8s and segnet_pascal.
        (fcn32s, 136_152_917),
        (fcn16s, 134_815_994),
        (fcn8s, 134_489_759),
        (segnet, 29_455_125),
        # Parameters of public implementations, as they build.
        (partial(unet, 2, width=64, layers=LayerFactory()), 31_037_698),  # milesial/Pytorch-UNet
        (partial(refinenet, pooling_blocks=4), 118_052_437),  # DrSleep/refinenet-pytorch
        (partial(gcn, kernel_size=7, layers=LayerFactory(upsample_layer=Bilinear)), 59_369_620),  # zijundeng's
        (pspnet, 49_081_578 - (349_120 - 225_344)),  # hszhao/semseg, less what its stem and first stage have more
        (deeplabv2, 44_048_532),  # kazuto1011/deeplab-pytorch
        # bonlime/keras-deeplab-v3-plus, less running statistics and 128 of the low-level channels
        (deeplabv3plus, 41_258_213 - 2 * 101_400 - 128 * 48),
        # Layers of the papers, added up.
        (deeplabv1, 14_714_688 + 512 * 1024 * 9 + 1024 + 1024 * 1024 + 1024 + 1024 * 21 + 21),
        (deeplabv2_vgg16, 14_714_688 + 4 * (512 * 1024 * 9 + 1024 + 1024 * 1024 + 1024 + 1024 * 21 + 21)),
        (partial(unet, 2, in_channels=1, width=64), 31_030_658),
        (partial(deeplabv3, encoder_widths=None, encoder="resnet50", aspp_channels=256, aux=False), 39_638_869),
    ],
)
def test_parameter_counts(build, count):
    with torch.device("meta"):
        network = build()
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def scores_of(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


@pytest.mark.parametrize("name", ALL)
def test_output_has_the_inputs_size(name):
    with torch.device("meta"):
        network = ALL[name](num_classes=5, in_channels=2)
        for size in ((97, 61), (64, 96), (33, 47)):
            images = torch.empty(2, 2, *size)
            assert network.eval()(images).shape == (2, 5, *size)
            for scores in scores_of(network.train()(images)):
                assert scores.shape == (2, 5, *size)


SWAPS = list(product(NORMS, ACTS, (1, 2)))
SWAPPED = ALL | {"deeplabv3_mobilenet_v3_large": deeplab_v3.deeplabv3_mobilenet_v3_large}
ALL_SWAPS = [(name, *swap) for name in SWAPPED for swap in SWAPS]
# In the fast suite each network has one of these, so that each norm and act comes several times.
SAMPLED = {(name, *SWAPS[7 * i % len(SWAPS)]) for i, name in enumerate(SWAPPED)}


@pytest.mark.parametrize(
    ("name", "norm", "act", "number"),
    [swap if swap in SAMPLED else pytest.param(*swap, marks=pytest.mark.slow) for swap in ALL_SWAPS],
)
def test_a_step_at_an_odd_size_reaches_every_parameter(name, norm, act, number):
    torch.manual_seed(0)
    network = SWAPPED[name](num_classes=3, layers=LayerFactory(norm_layer=NORMS[norm], act_layer=ACTS[act]))
    assert act == "relu" or not any(isinstance(module, nn.ReLU) for module in network.modules())
    images = torch.randn(number, 3, 97, 61)
    if norm == "bn" and number == 1 and name in POOLED_TO_ONE_PIXEL:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network(images)
        return
    before = {key: parameter.clone() for key, parameter in network.named_parameters()}
    output = scores_of(network(images))
    assert all(scores.shape == (number, 3, 97, 61) for scores in output)
    targets = torch.randint(3, (number, 97, 61))
    sum(nn.functional.cross_entropy(scores, targets) for scores in output).backward()
    torch.optim.Adam(network.parameters(), 1e-3).step()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.isfinite().all(), key
    assert any(not torch.equal(before[key], parameter) for key, parameter in network.named_parameters())


@pytest.mark.parametrize("upsample", [Transposed, PixelShuffle])
@pytest.mark.parametrize("name", [*SMALL, "fcn8s", "deeplabv1"])
def test_upsampling_swaps(name, upsample):
    with torch.device("meta"):
        layers = LayerFactory(upsample_layer=upsample)
        options = {"eval_output_stride": 16} if name == "deeplabv3plus" else {}
        network = ALL[name](num_classes=3, layers=layers, **options)
        assert any(isinstance(module, upsample) for module in network.modules())
        assert network.eval()(torch.empty(1, 3, 97, 61)).shape == (1, 3, 97, 61)


def test_transposed_convolutions_start_bilinear():
    network = fcn8s_scores()
    for up, stride in ((network.upscore2, 2), (network.upscore_pool4, 2), (network.upscore, 8)):
        weight = up.weight.detach()
        kernel = bilinear_kernel(2 * stride, stride)
        for i in range(weight.size(0)):
            for j in range(weight.size(1)):
                torch.testing.assert_close(weight[i, j], kernel if i == j else torch.zeros_like(kernel))
        x = torch.randn(1, weight.size(0), 7, 9)
        expected = nn.functional.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)
        inside = slice(stride, -stride)
        torch.testing.assert_close(up(x)[..., inside, inside], expected[..., inside, inside])


def fcn8s_scores() -> fcn.FCN:
    """FCN-8s without its 134M weights, which these tests do not look at: only upsamplings have memory."""
    with torch.device("meta"):
        network = fcn8s(3)
    for name in ("upscore2", "upscore_pool4", "upscore"):
        getattr(network, name).to_empty(device="cpu").start_bilinear()
    return network


@pytest.mark.parametrize("build", [fcn8s, fcn16s, fcn32s])
def test_padded_fcn_takes_any_size(build):
    with torch.device("meta"):
        network = build(5).eval()
        for size in ((1, 1), (30, 33), (96, 96), (97, 61), (500, 333)):
            assert network(torch.empty(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_padded_fcn_is_aligned(stride):
    """Scores that tell the place they look at (a linear ramp through linear layers) tell the pixel's own place."""
    ramp = torch.arange(192, dtype=torch.float64).expand(192, 192)
    padded = (torch.arange(192 + 2 * 99, dtype=torch.float64) - 99).expand(1, 1, 390, 390)
    maps = {s: nn.functional.avg_pool2d(padded, s, ceil_mode=True) for s in (8, 16, 32)}
    deep = nn.functional.avg_pool2d(maps[32], 7, 1)

    network = object.__new__(fcn.FCN)
    nn.Module.__init__(network)
    network.pad_input, network.stride, network.scale_pool4, network.scale_pool3 = True, stride, 1.0, 1.0
    for name in (
        "pad6",
        "fc6",
        "bn6",
        "act6",
        "drop6",
        "fc7",
        "bn7",
        "act7",
        "drop7",
        "score_fr",
        "score_pool4",
        "score_pool3",
    ):
        setattr(network, name, nn.Identity())
    network.backbone = Fixed([maps[8], maps[16], deep])
    network.upscore2 = network.upscore_pool4 = Transposed(1, 2).double()
    network.upscore = Transposed(1, stride).double()
    with torch.no_grad():
        out = network(ramp[None, None])[0, 0]
    summands = {32: 1, 16: 2, 8: 3}[stride]
    middle = slice(60, 130)
    torch.testing.assert_close(out[middle, middle], summands * ramp[middle, middle], atol=1e-3, rtol=0)


class Fixed(nn.Module):
    def __init__(self, maps: list[Tensor]):
        super().__init__()
        self.maps = maps

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.maps


def test_unet_valid_is_the_papers_572_to_388():
    with torch.device("meta"):
        network = unet(2, in_channels=1, width=64, padding="valid")
        assert network._sizes(28) == (572, 388)
        assert network._border(388) == (92, 92)
        assert network(torch.empty(1, 1, 388, 388)).shape == (1, 2, 388, 388)


def test_unet_valid_convolutions_see_no_border():
    """With valid convolutions a crop of the mirrored image gives the same scores as the whole."""
    torch.manual_seed(0)
    network = UNet(2, in_channels=1, width=2, depth=2, padding="valid", dropout=0.0, layers=LayerFactory(None)).double()
    images = torch.randn(1, 1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        whole = network(images)
        network.mirror = None
        border = (network._sizes(5)[0] - network._sizes(5)[1]) // 2
        given = network._sizes(5)[0]
        # A tile of the input that begins 8 pixels, a whole cell of the lowest map, into the mirrored image.
        top, _ = network._border(96)
        mirrored = MirrorPad()(images, ((top, border), (top, border)))
        tile = network(mirrored[..., 8 : 8 + given, 8 : 8 + given])
    extent = tile.size(-1)
    torch.testing.assert_close(tile, whole[..., 8 : 8 + extent, 8 : 8 + extent], atol=1e-10, rtol=0)


def test_mirror_pad_is_torchs_reflection_and_goes_further():
    x = torch.arange(20.0).view(1, 1, 4, 5)
    torch.testing.assert_close(MirrorPad()(x, ((3, 2), (1, 4))), nn.functional.pad(x, (1, 4, 3, 2), mode="reflect"))
    far = MirrorPad()(x, ((0, 0), (0, 11)))[0, 0, 0]
    assert far.tolist() == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1]
    assert MirrorPad()(torch.ones(1, 1, 1, 1), ((2, 2), (3, 3))).shape == (1, 1, 5, 7)


def test_global_conv_is_one_wide_kernel():
    torch.manual_seed(0)
    block = GlobalConv(3, 4, 7, layers=LayerFactory()).double()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    kernel = torch.einsum("ocyx,cikl->oiyxkl", block.left2.weight, block.left1.weight)[:, :, 0, :, :, 0]
    kernel = kernel.transpose(2, 3)  # (out, in, tall, wide)
    other = torch.einsum("ocyx,cikl->oiyl", block.right2.weight, block.right1.weight)
    for part in (block.left1, block.right1):
        nn.init.zeros_(part.bias)
    bias = block.left2.bias + block.right2.bias
    expected = nn.functional.conv2d(x, kernel + other, bias, padding=3)
    torch.testing.assert_close(block(x)[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3])


@pytest.mark.parametrize(("kernel_size", "thousands"), [(3, 260), (5, 434), (7, 608), (9, 782)])
def test_global_conv_has_as_many_parameters_as_in_the_paper(kernel_size, thousands):
    """Peng et al. 2017, in the comparison with trivial convolutions: on 2048 channels, for 21 classes."""
    block = GlobalConv(2048, 21, kernel_size, layers=LayerFactory())
    assert sum(parameter.numel() for parameter in block.parameters()) // 1000 == thousands


def test_pyramid_pooling_of_a_constant_is_constant():
    module = PyramidPooling(8, (1, 2, 3, 6), layers=LayerFactory(norm_layer=None)).eval()
    out = module(torch.ones(1, 8, 7, 11))
    assert out.shape == (1, 16, 7, 11)
    torch.testing.assert_close(out, out[..., :1, :1].expand_as(out))


def test_chained_residual_pooling_is_a_chain():
    module = ChainedResidualPooling(1, blocks=2, layers=LayerFactory()).eval()
    for conv in module.convs:
        nn.init.zeros_(conv.weight)
        conv.weight.data[..., 1, 1] = 2.0
    x = torch.zeros(1, 1, 15, 15)
    x[..., 7, 7] = 1.0
    out = module(x)
    assert out[0, 0, 7, 7] == 1 + 2 + 4
    assert out[0, 0, 7, 9] == 2 + 4
    assert out[0, 0, 7, 11] == 4
    assert out[0, 0, 7, 12] == 0


def test_segnet_unpools_to_where_the_maxima_were():
    with torch.device("meta"):
        network = segnet(3)
    x = torch.randn(1, 2, 5, 7)
    small, positions = network.pools[0](x)
    assert small.shape == (1, 2, 3, 4)
    large = network.ups[0](small, size=x.shape[-2:], indices=positions)
    kept = large != 0
    torch.testing.assert_close(large[kept], x[kept])
    assert kept.sum() == small.numel()


def test_segnet_without_positions():
    with torch.device("meta"):
        for upsample in (None, Bilinear):
            network = segnet(3, layers=LayerFactory(pool_layer=nn.AvgPool2d, upsample_layer=upsample))
            assert all(isinstance(up, Bilinear) for up in network.ups)
            assert network(torch.empty(2, 3, 97, 61)).shape == (2, 3, 97, 61)
        with pytest.raises(ValueError, match="which only pool=max has"):
            segnet(3, layers=LayerFactory(pool_layer=nn.AvgPool2d, upsample_layer=Unpool))
        with pytest.raises(ValueError, match="vgg16"):
            segnet(3, encoder="resnet18")


def test_deeplab_v1_is_caffes():
    with torch.device("meta"):
        network = deeplabv1(21)
        maps = network.backbone(torch.empty(1, 3, 321, 321))
    assert [m.size(-1) for m in maps] == [161, 81, 41, 41, 41]
    pools = [layer for layer in network.backbone.modules() if isinstance(layer, nn.MaxPool2d)]
    assert [(p.kernel_size, p.stride, p.padding, p.dilation) for p in pools] == [(3, 2, 1, 1)] * 3 + [(3, 1, 1, 1)] * 2
    convs = [layer for layer in network.backbone.modules() if isinstance(layer, nn.Conv2d)]
    assert [conv.dilation[0] for conv in convs] == [1] * 10 + [2] * 3
    assert network.classifier[0].dilation == (12, 12)


def test_deeplab_v2_scales():
    torch.manual_seed(0)
    network = deeplabv2(3, encoder="resnet18", stride_in_1x1=False, output_stride=16, scales=[0.5, 0.75])
    images = torch.randn(2, 3, 97, 61)
    outputs = network(images)
    assert len(outputs) == 4 and all(o.shape == (2, 3, 97, 61) for o in outputs)
    alone = deeplabv2(3, encoder="resnet18", stride_in_1x1=False, output_stride=16)
    alone.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert (network.eval()(images) >= alone.eval()(images) - 1e-5).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        deeplabv2(3, encoder="resnet18", stride_in_1x1=False, scales=[1.0])


def test_deeplab_v2_sees_the_sizes_of_the_release():
    sizes: list[list[int]] = []
    with torch.device("meta"):
        network = deeplabv2(21, scales=[0.75, 0.5]).eval()
        network.backbone.register_forward_hook(
            lambda module, inputs, maps: sizes.append([inputs[0].size(-1), maps[-1].size(-1)])
        )
        network(torch.empty(1, 3, 321, 321))
        network(torch.empty(1, 3, 1, 64))
    assert sizes == [[321, 41], [241, 31], [161, 21], [65, 9], [49, 7], [33, 5]]


@pytest.mark.parametrize("name", ["deeplabv1", "deeplabv2", "deeplabv2_vgg16", "deeplabv3plus", "pspnet"])
def test_interpolation_between_corners_is_of_images_whose_corners_have_scores(name):
    torch.manual_seed(0)
    network = ALL[name](3).eval()
    images = torch.randn(2, 3, 64, 61)
    padded = nn.functional.pad(images, (0, 4, 0, 1))
    with torch.no_grad():
        assert torch.equal(network(images), network(padded)[..., :64, :61])


@pytest.mark.parametrize("build", [SMALL["deeplabv3plus"], partial(SMALL["deeplabv3"], eval_output_stride=8)])
def test_evaluation_at_a_finer_stride(build):
    network = build(3)
    images = torch.randn(2, 3, 65, 65)
    sizes: list[int] = []
    aspp = network.aspp if hasattr(network, "aspp") else network.classifier[0]
    aspp.register_forward_hook(lambda module, inputs, output: sizes.append(output.size(-1)))
    rates = []
    for mode in (True, False, True):
        scores = scores_of(network.train(mode)(images))[0]
        assert scores.shape == (2, 3, 65, 65)
        rates.append([branch[0].dilation[0] for branch in list(aspp.convs)[1:4]])
    assert sizes == [5, 9, 5]
    assert rates[0] == rates[2] and [2 * rate for rate in rates[0]] == rates[1]
    with pytest.raises(ValueError, match=r"model\.eval_output_stride=16"):
        build(3, layers=LayerFactory(upsample_layer=Transposed))


def test_aux_heads():
    with torch.device("meta"):
        assert pspnet(**NARROW).aux_weight == 0.4
        assert SMALL["deeplabv3"]().aux_weight == 0.5
        alone = pspnet(aux=False, **NARROW).train()
        assert isinstance(alone(torch.empty(2, 3, 64, 64)), torch.Tensor)


def test_chosen_initializer_reaches_the_heads_and_the_encoder():
    seen: list[nn.Module] = []
    layers = LayerFactory(initializer=lambda module, act: seen.extend(module.modules()))
    for name, build in SMALL.items():
        seen.clear()
        network = build(num_classes=3, layers=layers)
        missed = [
            key
            for key, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not any(module is other for other in seen)
        ]
        assert missed == [] or all("up" in key for key in missed), (name, missed)


def test_unet_starts_with_he_initialization():
    torch.manual_seed(0)
    network = unet(3, width=16)
    weight = network.downs[0][0].weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (16 * 9)), rel=0.05)


# In so few channels each is a group of its own, whose norm leaves no grey levels: enough for those with fine maps only.
WIDER = {
    "pspnet": {"encoder_options": {"widths": [16, 16, 32, 32]}},
    "deeplabv3": {"encoder_widths": [16, 16, 32, 64], "aspp_channels": 64, "output_stride": 8},
    "deeplabv3plus": {"encoder_options": {"widths": [16, 16, 32, 64]}, "channels": 64},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_overfits_four_scenes(name):
    """Mean IoU above 0.95 on four pictures of bright squares and dark discs, large for maps of stride 8 and 16."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    targets = torch.zeros(4, 96, 96, dtype=torch.long)
    for i in range(4):
        targets[i, 8 + 4 * i : 44 + 4 * i, 6:44] = 1
        targets[i][(y - 62).square() + (x - 68 + 3 * i).square() < 500] = 2
    values = torch.tensor([0.0, 1.0, -1.0])
    images = values[targets].unsqueeze(1) + 0.1 * torch.randn(4, 3, 96, 96)
    wider = WIDER.get(name, {"width": 8} if name in VGG_BASED else {})
    network = ALL[name](num_classes=3, layers=LayerFactory(norm_layer=GroupNorm), dropout=0.0, **wider)
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    iou = torch.zeros(3)
    for step in range(600):
        network.train()
        loss = sum(nn.functional.cross_entropy(scores, targets) for scores in scores_of(network(images)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            with torch.no_grad():
                predicted = network.eval()(images).argmax(1)
            hit = torch.stack([((predicted == c) & (targets == c)).sum() for c in range(3)])
            any_of = torch.stack([((predicted == c) | (targets == c)).sum() for c in range(3)])
            iou = hit / any_of
            if iou.mean() > 0.95:
                break
    assert iou.mean() > 0.95
