"""First steps of every optimizer against the written formula; groups; averaged weights."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from cnn_train.config.compose import compose
from cnn_train.layers.norm import FrozenBatchNorm, GroupNorm, LocalResponseNorm, SwitchableNorm
from cnn_train.training.optim import EMA, LARS, Adam, Momentum, faster_decoder, parameter_groups
from cnn_train.training.recipe import Recipe

LR, M, WD = 0.1, 0.9, 0.01
GRADIENTS = ([0.5, -2.0, 1e-3], [0.25, 1.0, -4.0], [-1.0, 0.0, 2.0])
START = [1.0, -0.5, 2.0]


def steps(make) -> list[list[float]]:
    """Weights after each of three steps with fixed gradients."""
    w = nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer = make([w])
    path = []
    for gradient in GRADIENTS:
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        path.append(w.tolist())
    return path


def by_hand(rule) -> list[list[float]]:
    """The same for a rule (weight, gradient, step from 1, its memory) -> weight, number by number."""
    path, w, memory = [], list(START), [{} for _ in START]
    for t, gradient in enumerate(GRADIENTS, start=1):
        w = [rule(wi, gi, t, state) for wi, gi, state in zip(w, gradient, memory, strict=True)]
        path.append(list(w))
    return path


def sgd(w, g, t, s):
    return w - LR * (g + WD * w)


def accumulating(w, g, t, s):
    s["v"] = M * s.get("v", 0.0) + (g + WD * w)
    return w - LR * s["v"]


def averaging(w, g, t, s):
    s["v"] = M * s.get("v", 0.0) + (1 - M) * (g + WD * w)
    return w - LR * s["v"]


def averaging_corrected(w, g, t, s):
    s["v"] = M * s.get("v", 0.0) + (1 - M) * (g + WD * w)
    return w - LR * s["v"] / (1 - M**t)


def nesterov(w, g, t, s):
    g = g + WD * w
    s["v"] = M * s.get("v", 0.0) + g
    return w - LR * (g + M * s["v"])


def rmsprop(w, g, t, s):
    g = g + WD * w
    s["s"] = 0.99 * s.get("s", 0.0) + 0.01 * g * g
    return w - LR * g / (math.sqrt(s["s"]) + 1e-8)


def adam(w, g, t, s, corrected=True, decoupled=False):
    if decoupled:
        w = w - LR * WD * w
    else:
        g = g + WD * w
    s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * g
    s["s"] = 0.999 * s.get("s", 0.0) + 0.001 * g * g
    mean, square = s["m"], s["s"]
    if corrected:
        mean, square = mean / (1 - 0.9**t), square / (1 - 0.999**t)
    return w - LR * mean / (math.sqrt(square) + 1e-8)


def adagrad(w, g, t, s):
    g = g + WD * w
    s["s"] = s.get("s", 0.0) + g * g
    return w - LR * g / (math.sqrt(s["s"]) + 1e-10)


def lars_of_one_axis(w, g, t, s):
    s["v"] = M * s.get("v", 0.0) + LR * (g + WD * w)
    return w - s["v"]


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (torch.optim.SGD, sgd),
        (partial(torch.optim.SGD, momentum=M), accumulating),
        (partial(Momentum, momentum=0.0), sgd),
        (partial(Momentum, momentum=M), accumulating),
        (partial(Momentum, momentum=M, average=True), averaging),
        (partial(Momentum, momentum=M, average=True, bias_correction=True), averaging_corrected),
        (partial(torch.optim.SGD, momentum=M, nesterov=True), nesterov),
        (torch.optim.RMSprop, rmsprop),
        (torch.optim.Adam, adam),
        (Adam, adam),
        (partial(Adam, bias_correction=False), partial(adam, corrected=False)),
        (torch.optim.AdamW, partial(adam, decoupled=True)),
        (torch.optim.Adagrad, adagrad),
        (partial(LARS, momentum=M), lars_of_one_axis),
    ],
)
def test_steps_are_the_formulas(make, rule):
    for path, wanted in zip(steps(partial(make, lr=LR, weight_decay=WD)), by_hand(rule), strict=True):
        assert path == pytest.approx(wanted, rel=1e-12)


def norm(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values))


def test_lars_scales_each_tensor_by_its_trust_ratio():
    torch.manual_seed(0)
    tensors = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 2), (4, 1, 2, 2), (5,))]
    velocity = [[0.0] * p.numel() for p in tensors]
    optimizer = LARS(tensors, lr=LR, momentum=M, weight_decay=WD, trust=0.02)
    for _ in range(3):
        wanted = []
        for i, p in enumerate(tensors):
            p.grad = torch.randn_like(p)
            w, g = p.flatten().tolist(), p.grad.flatten().tolist()
            ratio = 1.0 if p.ndim == 1 else 0.02 * norm(w) / (norm(g) + WD * norm(w))
            velocity[i] = [M * v + LR * ratio * (b + WD * a) for v, a, b in zip(velocity[i], w, g, strict=True)]
            wanted.append([a - v for a, v in zip(w, velocity[i], strict=True)])
        optimizer.step()
        for p, values in zip(tensors, wanted, strict=True):
            assert p.flatten().tolist() == pytest.approx(values, rel=1e-12)


def test_lars_moves_a_zero_weight_and_stays_finite():
    zero, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    LARS([zero, still], lr=LR, momentum=0.0).step()
    assert torch.equal(zero, torch.full((2, 2), -LR)) and torch.equal(still, torch.ones(2, 2))


OURS = [
    partial(Momentum, average=True, bias_correction=True, weight_decay=WD),
    partial(Adam, bias_correction=True, weight_decay=WD),
    partial(LARS, weight_decay=WD),
]


@pytest.mark.parametrize("make", OURS)
def test_state_continues_bit_by_bit_and_loads_as_plain_data(make, tmp_path):
    def gradients(network: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=generator)

    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = make(network.parameters(), lr=LR)
    for seed in range(3):
        gradients(network, seed)
        optimizer.step()
    torch.save({"w": network.state_dict(), "o": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other = copy.deepcopy(network)
    other.load_state_dict(saved["w"])
    continued = make(other.parameters(), lr=0.5)
    continued.load_state_dict(saved["o"])
    for seed in range(3, 6):
        for net, opt in ((network, optimizer), (other, continued)):
            gradients(net, seed)
            opt.step()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("make", OURS)
def test_parameters_without_gradient_stay_and_a_closure_is_called(make):
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
    optimizer = make([a, b], lr=LR)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (a**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert torch.equal(b, torch.ones(3)) and not torch.equal(a, torch.ones(2, 2))


def test_wrong_settings_are_refused():
    w = [nn.Parameter(torch.ones(2))]
    for make in (
        partial(Momentum, lr=-1.0),
        partial(Momentum, momentum=1.0),
        partial(Adam, betas=(1.0, 0.9)),
        partial(LARS, weight_decay=-0.1),
    ):
        with pytest.raises(ValueError, match="must be at least 0"):
            make(w)
    with pytest.raises(ValueError, match="bias_correction needs average=true"):
        Momentum(w, bias_correction=True)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.PReLU(),
        nn.Conv2d(4, 4, 3, bias=False),
        GroupNorm(4),
        nn.LayerNorm((4, 4, 4)),
        FrozenBatchNorm(4),
        LocalResponseNorm(4),
        SwitchableNorm(4),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def names(net: nn.Module, group: dict) -> set[str]:
    return {name for name, p in net.named_parameters() if any(p is q for q in group["params"])}


def test_norms_and_biases_get_no_decay():
    net = network()
    decayed, spared = parameter_groups(net, 5e-4)
    assert names(net, decayed) == {"0.weight", "3.weight", "10.weight"}
    assert "5.weight" in names(net, spared)  # three axes, but of a norm
    assert len(decayed["params"]) + len(spared["params"]) == len(list(net.parameters()))
    assert (decayed["weight_decay"], spared["weight_decay"]) == (5e-4, 0.0)
    optimizer = torch.optim.SGD([decayed, spared], lr=LR, weight_decay=5e-4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0.0]


def test_one_group_where_there_is_nothing_to_tell_apart():
    net = network()
    for groups in (parameter_groups(net, 0.0), parameter_groups(net, 5e-4, True)):
        assert len(groups) == 1 and len(groups[0]["params"]) == len(list(net.parameters()))
        assert torch.optim.SGD(groups, lr=LR, weight_decay=1e-4).param_groups[0]["weight_decay"] == 1e-4
    only_weights = nn.Sequential(nn.Linear(2, 2, bias=False))
    assert len(parameter_groups(only_weights, 5e-4)) == 1


def test_frozen_parameters_are_left_out_and_shared_ones_counted_once():
    net = network()
    net[0].requires_grad_(False)
    net[10].weight.requires_grad_(False)
    groups = parameter_groups(net, 5e-4)
    assert names(net, groups[0]) == {"3.weight"} and "0.bias" not in names(net, groups[1])
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert [len(group["params"]) for group in parameter_groups(tied, 5e-4)] == [1, 2]


@pytest.mark.parametrize("bias_correction", [False, True])
def test_average_is_the_formula(bias_correction):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    ema = EMA(net, 0.8, bias_correction)
    path = [copy.deepcopy(net.state_dict())]
    for _ in range(4):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        net(torch.randn(5, 2, dtype=torch.float64))
        ema.update()
        path.append(copy.deepcopy(net.state_dict()))
    with ema.swap():
        averaged = copy.deepcopy(net.state_dict())
    for name, value in path[-1].items():
        assert torch.equal(net.state_dict()[name], value)
        if not value.is_floating_point():
            assert torch.equal(averaged[name], value)
            continue
        wanted = torch.zeros_like(value) if bias_correction else path[0][name]
        for state in path[1:]:
            wanted = 0.8 * wanted + 0.2 * state[name]
        if bias_correction:
            wanted = wanted / (1 - 0.8**4)
        torch.testing.assert_close(averaged[name], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_average_before_the_first_update_and_of_constant_weights_is_the_network(bias_correction):
    net = nn.Linear(3, 2)
    before = net.weight.detach().clone()
    ema = EMA(net, 0.99, bias_correction)
    with ema.swap():
        assert torch.equal(net.weight, before)
    for _ in range(3):
        ema.update()
    with ema.swap():
        torch.testing.assert_close(net.weight.detach(), before)
    assert torch.equal(net.weight, before)


def test_swap_puts_back_the_weights_after_an_error():
    net = nn.Linear(3, 2)
    before = net.weight.detach().clone()
    ema = EMA(net, 0.5, bias_correction=True)
    with torch.no_grad():
        ema.update()
        ema.averages["weight"].zero_()
    with pytest.raises(RuntimeError, match="inside"), ema.swap():
        assert (net.weight == 0).all()
        raise RuntimeError("inside")
    assert torch.equal(net.weight, before) and net.weight.requires_grad


def test_average_continues_from_its_state(tmp_path):
    net = nn.Linear(3, 2)
    ema = EMA(net, 0.9, bias_correction=True)
    ema.update()
    torch.save(ema.state_dict(), tmp_path / "ema.pt")
    other = EMA(copy.deepcopy(net), 0.9, bias_correction=True)
    other.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    for average in (ema, other):
        average.update()
    assert other.steps == 2
    assert all(torch.equal(other.averages[name], value) for name, value in ema.averages.items())
    with pytest.raises(ValueError, match="of another network"):
        EMA(nn.Linear(3, 2, bias=False), 0.9).load_state_dict(ema.state_dict())
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        EMA(net, 1.0)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_what_is_not_the_encoder_learns_faster(weight_decay):
    from cnn_train.models.segmentation.pspnet import pspnet

    network = pspnet(3, encoder="resnet18", encoder_options={"widths": [4, 4, 8, 8]}, aux=False)
    groups = faster_decoder(parameter_groups(network, weight_decay), network.backbone, 0.1, 10.0)
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=weight_decay)
    rates = {p: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in network.named_parameters():
        decay = weight_decay if parameter.ndim > 1 else 0.0
        assert rates[parameter] == (pytest.approx(0.1 if name.startswith("backbone.") else 1.0), decay), name


def test_the_configs_settings_reach_the_groups():
    from cnn_train.config.compose import compose
    from cnn_train.experiment.network import build_network_and_data
    from cnn_train.training.recipe import Recipe
    from cnn_train.training.update import make_optimizer

    settings = ["model=pspnet", "model.encoder=resnet18", "model.encoder_options={widths:[4,4,8,8]}", "model.aux=false"]
    settings += ["data.num_train=16", "data.num_val=2", "data.num_test=2", "optimizer=momentum", "optimizer.lr=0.1"]
    cfg = compose([*settings, "optimizer.weight_decay=0.01", "trainer.decoder_lr_ratio=10"])
    network, _ = build_network_and_data(cfg)
    groups = make_optimizer(Recipe.of(cfg), network, torch.device("cpu")).param_groups
    of = {p: (group["base_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        expected = (pytest.approx(0.1 if name.startswith("backbone.") else 1.0), 0.01 if parameter.ndim > 1 else 0.0)
        assert of[parameter] == expected, name


@pytest.mark.parametrize(
    ("words", "rate", "said"),
    [
        ([], 0.005, "64 images an update"),
        (["optimizer.scale_lr=linear", "data.batch_size=256"], 0.02, "rate 0.02 = 0.005 x 256 / 64"),
        (["optimizer.scale_lr=sqrt", "data.batch_size=256"], 0.01, "rate 0.01 = 0.005 x root of 256 / 64"),
        (
            ["optimizer.scale_lr=linear", "data.batch_size=16", "trainer.accumulate=2"],
            0.0025,
            "32 images an update (16 x 2 accumulated); rate 0.0025",
        ),
        (["optimizer.scale_lr=linear", "optimizer.base_batch_size=32"], 0.01, "rate 0.01 = 0.005 x 64 / 32"),
        (
            ["experiment=resnet20_cifar10", "data.batch_size=512", "optimizer.scale_lr=linear", "trainer=cpu"],
            0.4,
            "512 images an update; rate 0.4 = 0.1 x 512 / 128",
        ),
        (["model=fcos", "data.batch_size=16", "optimizer.scale_lr=linear"], 0.008, "0.004 x 16 / 8"),
    ],
)
def test_the_rate_is_scaled_to_the_images_of_an_update(words, rate, said):
    recipe = Recipe.of(compose(words))
    assert recipe.optimizer.keywords["lr"] == pytest.approx(rate)
    assert said in recipe.scaling.describe()
