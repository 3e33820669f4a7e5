"""Effective receptive fields and statistics of layers."""

import pytest
import torch
from torch import nn

from cnn_train.analysis import dead_units, effective_receptive_field, layer_statistics


def test_effective_field_of_uniform_kernels() -> None:
    """n linear 3x3 layers of equal weights: the gradient is a trinomial distribution (Luo et al. 2016, section 2.1)."""
    n = 5
    net = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(n)])
    for p in net.parameters():
        nn.init.ones_(p)
    field = effective_receptive_field(net, (1, 31, 31), samples=2)
    line = torch.ones(1)
    for _ in range(n):
        line = torch.nn.functional.conv1d(line.view(1, 1, -1), torch.ones(1, 1, 3), padding=2).flatten()
    exact = torch.outer(line, line) / line.max() ** 2
    torch.testing.assert_close(field.map[10:21, 10:21], exact)
    assert field.centre == pytest.approx((15, 15)) and field.deviation[0] == pytest.approx(field.deviation[1])
    assert field.width == pytest.approx(float((exact > 1 - 0.9545).sum()) ** 0.5)
    assert field.width < 2 * n + 1


def test_effective_field_of_several_networks_is_their_average() -> None:
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(nn.Conv2d(1, 1, 3, padding=1))
    mean = sum(net.weight.detach()[0, 0].square() for net in nets)
    field = effective_receptive_field(iter(nets), (1, 7, 7), samples=4)
    torch.testing.assert_close(field.map[2:5, 2:5], (mean / mean.max()).sqrt())


def test_effective_field_grows_like_the_root_of_depth() -> None:
    """Luo et al. 2016, figure 2: far slower than the theoretical field."""
    torch.manual_seed(0)

    def width(depth: int) -> float:
        net = nn.Sequential(*[nn.Conv2d(8 if i else 1, 8, 3, padding=1, bias=False) for i in range(depth)])
        return effective_receptive_field(net, (1, 49, 49), samples=4).deviation[0]

    assert 1.4 < width(20) / width(5) < 2.6


def test_effective_field_errors() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3))
    nn.init.zeros_(net[0].weight)
    with pytest.raises(ValueError, match="no gradient"):
        effective_receptive_field(net, (1, 8, 8), "0", samples=1)
    with pytest.raises(ValueError, match="no layer 'x'"):
        effective_receptive_field(net, (1, 8, 8), "x")


def test_statistics_of_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 2)
    )
    with torch.no_grad():
        net[1].bias[0] = -100.0  # this channel never fires
        net[1].bias[1] = 100.0  # and this one's sigmoid is saturated
    images = torch.randn(8, 1, 2, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rows = {row.kind: row for row in layer_statistics(net, images, lambda y: y.square().mean())}
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    with torch.no_grad():
        y = net[0](images)
    assert rows["Conv2d"].mean == pytest.approx(float(y.mean()), abs=1e-6)
    assert rows["Conv2d"].deviation == pytest.approx(float(y.std(correction=0)), rel=1e-5)
    assert rows["ReLU"].dead == 0.25 and 0.25 <= rows["ReLU"].sparsity < 1
    assert rows["Sigmoid"].saturated is not None and rows["Sigmoid"].saturated >= 0.25
    assert rows["Conv2d"].saturated is None and rows["Conv2d"].dead is None
    net.zero_grad()
    net(images).square().mean().backward()
    gradient = net[5].weight.grad
    bias = net[5].bias.grad
    assert gradient is not None and bias is not None
    expected = float(torch.stack([gradient.norm(), bias.norm()]).norm())
    assert rows["Linear"].weight_gradient == pytest.approx(expected, rel=1e-5)
    assert all(row.gradient_deviation is not None for row in rows.values())
    assert layer_statistics(net, images)[0].gradient_mean is None


def test_dead_units_over_batches() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1, 1))
        net[0].bias.zero_()
    positive = torch.rand(2, 1, 4, 4) + 0.1
    assert dead_units(net, [positive])["1"].tolist() == [False, True, True]
    assert dead_units(net, [positive, -positive])["1"].tolist() == [False, False, True]
