"""What the factory hands out, and the blocks that papers share."""

import pytest
import torch
from torch import nn

from cnn_train.config.build import build_layers
from cnn_train.config.compose import compose
from cnn_train.layers import LayerFactory
from cnn_train.layers.blocks import BasicConv2d, ConvNormAct, SeparableConv2d, SqueezeExcitation
from cnn_train.layers.norm import GroupNorm, WSConv2d

PLAIN = LayerFactory(norm_layer=None)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, (1, 7), (7, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolutions_keep_the_size_by_default(kernel_size, dilation):
    x = torch.randn(1, 4, 15, 16)
    assert LayerFactory().conv(4, 6, kernel_size, dilation=dilation)(x).shape == (1, 6, 15, 16)
    assert LayerFactory().conv(4, 6, kernel_size, dilation=dilation, stride=2)(x).shape == (1, 6, 8, 8)


@pytest.mark.parametrize(("layers", "default"), [(LayerFactory(), False), (PLAIN, True)])
def test_bias_stands_in_for_the_norm_unless_the_paper_says(layers, default):
    assert (layers.conv(3, 4, 3).bias is not None) == default
    assert layers.conv(3, 4, 3, bias=True).bias is not None
    assert layers.conv(3, 4, 3, bias=False).bias is None
    assert layers.has_norm != default
    assert isinstance(layers.norm(4), nn.Identity) == default


def test_every_slot_gets_a_module_of_its_own_of_the_chosen_kind():
    layers = LayerFactory(norm_layer=GroupNorm, act_layer=nn.PReLU)
    assert isinstance(layers.act(6, nn.Tanh), nn.PReLU) and layers.act(6) is not layers.act(6)
    assert isinstance(layers.norm(6), GroupNorm)
    assert isinstance(LayerFactory().act(6), nn.ReLU) and isinstance(LayerFactory().act(6, nn.Tanh), nn.Tanh)


@pytest.mark.parametrize("shared", [False, True])
def test_prelu_has_a_slope_per_channel_or_one_for_all(shared):
    act = build_layers(compose(["act=prelu", f"act.shared={str(shared).lower()}"])).act(5).double()
    assert act.weight.shape == ((1,) if shared else (5,)) and (act.weight == 0.25).all()
    with torch.no_grad():
        act.weight += torch.arange(len(act.weight))
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    slopes = act.weight.detach().expand(5).view(5, 1, 1)
    torch.testing.assert_close(act(x), x.clamp(min=0) + slopes * x.clamp(max=0))
    assert act(x[:, :, 0, 0]).shape == (2, 5)  # behind a dense layer


@pytest.mark.parametrize(("norm", "init"), [("gn_ws", "lsuv"), ("gn", "orthogonal")])
def test_choices_of_the_config_that_reach_beyond_their_slot(norm, init):
    layers = build_layers(compose([f"norm={norm}", f"init={init}"]))
    assert isinstance(layers.conv(4, 6, 3), WSConv2d) == (norm == "gn_ws")
    assert layers.needs_images == (init == "lsuv")


def test_separable_convolution_is_depthwise_then_pointwise():
    block = SeparableConv2d(4, 6, 3, stride=2, layers=LayerFactory()).double()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    maps = [
        nn.functional.conv2d(x[:, c : c + 1], block.depthwise.weight[c : c + 1], stride=2, padding=1) for c in range(4)
    ]
    wanted = torch.einsum("nchw,oc->nohw", torch.cat(maps, 1), block.pointwise.weight[:, :, 0, 0])
    torch.testing.assert_close(block(x), wanted)
    assert sum(p.numel() for p in block.parameters()) == 4 * 9 + 4 * 6


def test_squeeze_excitation_gates_each_channel():
    block = SqueezeExcitation(6, 3, layers=LayerFactory()).double()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    hidden = (x.mean((2, 3)) @ block.fc1.weight[:, :, 0, 0].T + block.fc1.bias).clamp(min=0)
    gates = torch.sigmoid(hidden @ block.fc2.weight[:, :, 0, 0].T + block.fc2.bias)
    torch.testing.assert_close(block(x), x * gates[:, :, None, None])


def test_convolution_blocks_are_convolution_norm_activation():
    x = torch.randn(2, 3, 7, 7)
    for block, parts in (
        (ConvNormAct(3, 5, 3, layers=LayerFactory(), stride=2), ("0", "1", "2")),
        (BasicConv2d(3, 5, 3, layers=LayerFactory(), padding=1, stride=2), ("conv", "bn", "act")),
    ):
        conv, norm, act = (block.get_submodule(name) for name in parts)
        y = block.eval()(x)
        assert y.shape == (2, 5, 4, 4)
        torch.testing.assert_close(y, act(norm(conv(x))))
    assert len(ConvNormAct(3, 5, 3, layers=LayerFactory(), act=None)) == 2
    assert ConvNormAct(3, 5, 1, layers=PLAIN)[0].bias is not None
