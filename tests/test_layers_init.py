"""Each initializer against its variance, LSUV against its promise."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers import init as I
from cnn_train.layers.norm import NORMS, FrozenBatchNorm, GroupNorm, GroupNormWS, SwitchableNorm, SyncBatchNorm
from cnn_train.layers.upsample import Transposed
from cnn_train.models.classification import builder

# (layer, fan-in, fan-out) with enough weights for a sharp variance.
CASES = {
    "dense": (lambda: nn.Linear(300, 200), 300, 200),
    "conv": (lambda: nn.Conv2d(32, 64, 5), 32 * 25, 64 * 25),
    "oblong": (lambda: nn.Conv2d(64, 64, (1, 7)), 64 * 7, 64 * 7),
    "grouped": (lambda: nn.Conv2d(64, 128, 3, groups=4), 16 * 9, 32 * 9),
    "depthwise": (lambda: nn.Conv2d(2048, 2048, 5, groups=2048), 25, 25),
    "strided": (lambda: nn.Conv2d(32, 64, 5, stride=2, dilation=2), 32 * 25, 64 * 25),
    "transposed": (lambda: nn.ConvTranspose2d(64, 32, 4, stride=2), 64 * 4, 32 * 16),
}


def moments(layer: nn.Module) -> tuple[float, float, float]:
    weight = layer.weight.detach().double()
    return weight.mean().item(), weight.var().item(), weight.abs().max().item()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("initializer", "variance", "uniform"),
    [
        (I.xavier_uniform, lambda i, o: 2 / (i + o), True),
        (I.xavier_normal, lambda i, o: 2 / (i + o), False),
        (I.he_uniform, lambda i, o: 2 / i, True),
        (I.he_normal, lambda i, o: 2 / i, False),
        (partial(I.he_normal, mode="fan_out"), lambda i, o: 2 / o, False),
        (partial(I.he_uniform, mode="fan_out", act=partial(nn.LeakyReLU, 0.5)), lambda i, o: 2 / (1.25 * o), True),
        (partial(I.he_normal, act=nn.Identity), lambda i, o: 1 / i, False),
        (I.lecun_normal, lambda i, o: 1 / i, False),
        (I.normal, lambda i, o: 0.01**2, False),
        (partial(I.normal, std=0.3), lambda i, o: 0.3**2, False),
    ],
)
def test_variance_is_the_formulas(case, initializer, variance, uniform):
    torch.manual_seed(0)
    make, fan_in, fan_out = CASES[case]
    layer = make()
    initializer(layer)
    wanted = variance(fan_in, fan_out)
    mean, var, largest = moments(layer)
    number = layer.weight.numel()
    assert abs(mean) < 4 * math.sqrt(wanted / number)
    assert var == pytest.approx(wanted, rel=6 * math.sqrt(2 / number))
    assert (largest <= math.sqrt(3 * wanted) * (1 + 1e-6)) == uniform
    assert layer.bias.abs().max() == 0


def test_fans_of_dense_and_plain_convolutions_are_torchs():
    for layer in (nn.Linear(3, 5), nn.Conv2d(3, 5, 3), nn.Conv2d(4, 6, (1, 5))):
        assert I.fans(layer) == nn.init._calculate_fan_in_and_fan_out(layer.weight)
        assert I.fans(layer) == (I.fan(layer.weight, "fan_in"), I.fan(layer.weight, "fan_out"))


@pytest.mark.parametrize(
    ("act", "wanted"),
    [
        (nn.ReLU, math.sqrt(2)),
        (partial(nn.ReLU, inplace=True), math.sqrt(2)),
        (nn.Identity, 1.0),
        (nn.LeakyReLU, math.sqrt(2 / (1 + 0.01**2))),
        (partial(nn.LeakyReLU, 0.2), math.sqrt(2 / 1.04)),
        (nn.PReLU, math.sqrt(2 / (1 + 0.25**2))),
        (nn.SELU, 1.0),  # what its constants were chosen for (Klambauer et al. 2017)
    ],
)
def test_gain_closed_forms(act, wanted):
    assert I.gain(act) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("act", [nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish])
def test_gain_keeps_the_second_moment(act):
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (I.gain(act) * act()(z)).square().mean().item() == pytest.approx(1, abs=0.01)


def deep(act, depth=20, width=256) -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), act())))


@pytest.mark.parametrize("act", [nn.ReLU, nn.ELU, nn.Tanh])
def test_he_keeps_the_signal_through_twenty_layers(act):
    torch.manual_seed(0)
    network = deep(act)
    I.he_normal(network, act=act)
    with torch.no_grad():
        out = network(torch.randn(512, 256))
    second_moment = out.square().mean().item() * I.gain(act) ** 2
    assert 0.4 < second_moment < 2.5


def test_orthogonal_rows_times_the_gain():
    for layer in (nn.Linear(40, 20), nn.Linear(20, 40), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3, groups=4)):
        I.orthogonal(layer)
        rows = layer.weight.detach().flatten(1).double()
        gram = rows @ rows.T if rows.size(0) <= rows.size(1) else rows.T @ rows
        torch.testing.assert_close(gram, 2 * torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-5)


def test_lstm_gates_are_initialized_one_by_one():
    torch.manual_seed(0)
    lstm = nn.LSTM(200, 100, num_layers=2)
    I.xavier_normal(lstm)
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias"):
            assert parameter.abs().max() == 0
        else:
            inputs = parameter.size(1)
            for gate in parameter.detach().chunk(4):
                assert gate.var().item() == pytest.approx(2 / (inputs + 100), rel=0.1)
    I.orthogonal(lstm, act=nn.Identity)
    first = lstm.weight_hh_l0.detach()[:100]
    torch.testing.assert_close(first @ first.T, torch.eye(100), rtol=0, atol=1e-5)


INITIALIZERS = [
    I.xavier_uniform,
    I.xavier_normal,
    I.he_uniform,
    I.he_normal,
    I.lecun_normal,
    I.orthogonal,
    I.normal,
    I.lsuv,
]


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_norms_become_neutral_and_those_without_weights_pass(initializer):
    norms = [
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        SyncBatchNorm(4),
        FrozenBatchNorm(4),
        GroupNorm(4),
        GroupNorm(4, affine=False),
        nn.LayerNorm((4, 5, 5)),
        nn.InstanceNorm2d(4),
        nn.LocalResponseNorm(3),
        SwitchableNorm(4),
    ]
    assert all(isinstance(norm, NORMS) for norm in norms)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *norms, nn.PReLU(init=0.3))
    for tensor in [*network.parameters(), *(norms[3].weight, norms[3].bias)]:
        tensor.data.fill_(0.3)
    initializer(network, act=nn.ReLU)
    for norm in norms:
        for name, neutral in (("weight", 1.0), ("bias", 0.0)):
            value = getattr(norm, name, None)
            assert value is None or (value == neutral).all(), norm
    assert network[-1].weight.item() == pytest.approx(0.3)
    assert network[0].weight.std() > 0 and (network[0].bias == 0).all()


def test_factory_passes_the_activation_and_prefers_the_chosen_initializer():
    seen = []
    layers = LayerFactory(act_layer=nn.Tanh, initializer=lambda module, act: seen.append(type(act())))
    layers.init(nn.Linear(2, 2), paper=lambda module: seen.append("paper"))
    LayerFactory(initializer=lambda module, act: seen.append(type(act()))).init(nn.Linear(2, 2))
    LayerFactory().init(nn.Linear(2, 2), paper=lambda module: seen.append("paper"))
    LayerFactory().init(nn.Linear(2, 2))
    assert seen == [nn.Tanh, nn.ReLU, "paper"]


def test_wrong_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be fan_in"):
        I.he_normal(nn.Linear(2, 2), mode="fan")


class Branched(nn.Module):
    """Layers registered in another order than they run, one used twice, one in training only, one not at all."""

    def __init__(self, norm):
        super().__init__()
        layers = LayerFactory(norm_layer=norm)
        self.last = nn.Linear(8, 5)
        self.shortcut = layers.conv(3, 8, 1, stride=2)
        self.conv = layers.conv(3, 8, 3, stride=2, bias=True)
        self.bn = layers.norm(8)
        self.act = nn.ReLU()
        self.twice = layers.conv(8, 8, 3)
        self.up = Transposed(8, 2)
        self.aux = nn.Linear(8, 5)
        self.unused = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        x = self.act(self.bn(self.conv(x))) + self.shortcut(x)
        x = self.up(self.act(self.twice(self.act(self.twice(x)))))
        x = x.mean((2, 3))
        return (self.last(x), self.aux(x)) if self.training else self.last(x)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, None, GroupNorm, GroupNormWS])
def test_lsuv_brings_every_output_to_variance_one(norm):
    torch.manual_seed(0)
    network = Branched(norm).eval()
    images = torch.randn(16, 3, 12, 12) * 3 + 1
    I.lsuv(network)
    with torch.no_grad():
        network.last.bias.fill_(0.7)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    I.lsuv_calibrate(network, images)
    assert not network.training and network.conv.training is False
    for name, value in network.named_buffers():
        assert torch.equal(value, state[name]), name
    variances: dict[str, list[float]] = {}
    for name in ("conv", "shortcut", "twice", "up", "last", "aux"):
        hook = lambda _, __, out, name=name: variances.setdefault(name, []).append(out.var().item())  # noqa: E731
        network.get_submodule(name).register_forward_hook(hook)
    network.train()(images)
    standardized = {"conv", "shortcut", "twice"} if norm is GroupNormWS else set()
    for name, found in variances.items():
        if name not in standardized:
            assert found[0] == pytest.approx(1, rel=1e-3), name
        else:
            assert torch.equal(network.state_dict()[f"{name}.weight"], state[f"{name}.weight"])
    assert torch.equal(network.unused.weight, state["unused.weight"])


@pytest.mark.parametrize(
    ("name", "block", "options"),
    [
        ("resnet20", "layer1.1", {}),
        ("seresnet50", "layer1.1", {"widths": (16, 16, 16, 16)}),
        ("mobilenet_v2", "features.3", {"width_mult": 0.35}),
        ("mobilenet_v3_small", "features.3", {}),
        ("xception", "block4", {}),
        ("xception41", "blocks.3", {}),
    ],
)
def test_residual_branches_can_start_at_zero(name, block, options):
    torch.manual_seed(0)
    network = builder(name)(4, zero_init_residual=True, **options)
    unit, shapes = network.get_submodule(block), []
    unit.register_forward_hook(lambda _, inputs, output: shapes.append(inputs[0].shape))
    network.eval()(torch.zeros(2, 3, 64, 64))
    x = torch.rand(shapes[0])
    assert torch.equal(unit(x), x)  # not negative, as behind a rectifier
    network.train()(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert unit.last_norm.weight.grad.any()  # and goes on from there


@pytest.mark.parametrize("norm", [None, FrozenBatchNorm])
def test_branches_without_a_learned_scale_cannot_start_at_zero(norm):
    with pytest.raises(ValueError, match="no residual branch here ends in a norm that learns its scale; choose"):
        builder("resnet20")(4, zero_init_residual=True, layers=LayerFactory(norm_layer=norm))


def test_lsuv_leaves_a_layer_with_constant_output():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    I.lsuv(network)
    nn.init.zeros_(network[0].weight)
    I.lsuv_calibrate(network, torch.randn(2, 3, 4, 4))
    assert all(parameter.isfinite().all() for parameter in network.parameters())
