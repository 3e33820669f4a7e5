"""Receptive fields against published figures, closed forms and the numerical probe."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, reject, settings
from hypothesis import strategies as st
from probe import probe, probe_places
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_train.analysis import Graph, LayerRow, diagnose, receptive_field, trace


def torchvision_net(name: str) -> nn.Module:
    from torchvision import models

    options: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}
    if name in models.list_models(models.segmentation):
        options = {"weights_backbone": None}
    with torch.device("meta"):
        net: nn.Module = models.get_model(name, **options)
    return net


def row_of(module: nn.Module, name: str, size: int = 224) -> LayerRow:
    return next(row for row in reversed(trace(module, (3, size, size)).rows) if row.name == name)


# Araujo, Norris & Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019, and the table of
# their library (RECEPTIVE_FIELD_TABLE.md): the architectures that torchvision has alike.
@pytest.mark.parametrize(
    ("net", "layer", "field", "jump"),
    [
        ("alexnet", "features.0", 11, 4),
        ("alexnet", "features.2", 19, 8),
        ("alexnet", "features.3", 51, 8),
        ("alexnet", "features.6", 99, 16),
        ("alexnet", "features.8", 131, 16),
        ("alexnet", "features.10", 163, 16),
        ("alexnet", "features.12", 195, 32),
        ("vgg16", "features.30", 212, 32),
        ("inception_v3", "Mixed_7c.cat", 1311, 32),
    ],
)
def test_published_figures(net: str, layer: str, field: int, jump: int) -> None:
    row = row_of(torchvision_net(net), layer)
    assert row.receptive_field == (field, field)
    assert row.jump == (jump, jump)


class SlimBottleneck(nn.Module):
    """TF-Slim's ResNet v1 unit: the 3x3 strides, the shortcut pools with kernel 1."""

    def __init__(self, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 1, 1)
        self.conv2 = nn.Conv2d(1, 1, 3, stride, 1)
        self.shortcut = nn.MaxPool2d(1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + self.shortcut(x)


def slim_resnet(*depths: int) -> nn.Sequential:
    """Strides stand in the *last* unit of a block there."""
    units: list[nn.Module] = [nn.Conv2d(3, 1, 7, 2, 3), nn.MaxPool2d(3, 2, 1)]
    for place, depth in enumerate(depths):
        units += [SlimBottleneck(2 if i == depth - 1 and place < 3 else 1) for i in range(depth)]
    return nn.Sequential(*units)


@pytest.mark.parametrize(
    ("depths", "field"), [((3, 4, 6, 3), 483), ((3, 4, 23, 3), 1027), ((3, 8, 36, 3), 1507), ((3, 24, 36, 3), 1763)]
)
def test_published_resnets(depths: tuple[int, ...], field: int) -> None:
    row = receptive_field(slim_resnet(*depths), (3, 224, 224))[-1]
    assert (row.receptive_field, row.jump) == ((field, field), (32, 32))


def test_published_mobilenet_v1() -> None:
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, 2, 1)]
    for stride in strides:
        layers += [nn.Conv2d(4, 4, 3, stride, 1, groups=4), nn.Conv2d(4, 4, 1)]
    assert receptive_field(nn.Sequential(*layers), (3, 224, 224))[-1].receptive_field == (315, 315)


# Values that the probe also measures (below), here for images smaller than the field.
@pytest.mark.parametrize(
    ("net", "layer", "field"),
    [
        ("resnet50", "layer4", 427),
        ("resnet18", "layer4", 435),
        ("googlenet", "inception5b", 379),
        ("vgg19", "features", 268),
    ],
)
def test_torchvision_variants(net: str, layer: str, field: int) -> None:
    graph = trace(torchvision_net(net), (3, 224, 224))
    assert [sight.local.size for sight in graph.node_of(layer).sights] == [field, field]


def test_recurrences_with_start() -> None:
    """The four recurrences, by hand, for kernel 5, stride 2, padding 1, dilation 3 twice."""
    layer = [nn.Conv2d(1, 1, 5, 2, 1, dilation=3) for _ in range(2)]
    rows = receptive_field(nn.Sequential(*layer), (1, 101, 101))
    assert rows[0].output_shape == (1, (101 + 2 - 13) // 2 + 1, 46)
    assert [r.receptive_field for r in rows] == [(13, 13), (13 + 12 * 2, 37)]
    assert [r.jump for r in rows] == [(2, 2), (4, 4)]
    assert [r.start for r in rows] == [(5.0, 5.0), (5.0 + 5 * 2, 15.0)]


def test_asymmetric_kernels_are_told_apart() -> None:
    row = receptive_field(nn.Sequential(nn.Conv2d(3, 4, (1, 7)), nn.Conv2d(4, 4, (3, 1), (2, 1))), (3, 32, 32))[-1]
    assert (row.receptive_field, row.jump, row.start) == ((3, 7), (2, 1), (1.0, 3.0))


def test_stacked_transposed_convolutions_are_exact() -> None:
    """Neighbouring units do not shift alike: the recurrence would give 16 here."""
    net = nn.Sequential(
        nn.Conv2d(1, 1, 5, 4, 2),
        nn.Conv2d(1, 1, 3, 1, 1),
        nn.ConvTranspose2d(1, 1, 4, 2, 1),
        nn.ConvTranspose2d(1, 1, 4, 2, 1),
    )
    graph = trace(net, (1, 96, 96))
    row = graph.rows[-1]
    assert row.varies and row.jump == (1, 1)
    measured = [probe(net, (1, 96, 96), "3", (40 + i, 40)).rows for i in range(8)]
    assert graph.intervals("3")[0][40:48] == measured
    assert row.receptive_field is not None
    assert row.receptive_field[0] == max(high - low + 1 for low, high in (m for m in measured if m))


def test_bicubic_reads_four() -> None:
    net = nn.Upsample(scale_factor=3, mode="bicubic")
    for unit in range(6, 12):
        measured = probe(net, (1, 8, 8), None, (unit, 0))
        assert torch.equal(trace(net, (1, 8, 8)).reached(None, (unit, 0)), measured.mask)
    assert trace(net, (1, 8, 8)).rows[-1].receptive_field == (4, 4)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


def test_squeeze_and_excitation_gives_two_figures() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Gate(), nn.Conv2d(4, 4, 3))
    rows = {row.name: row for row in receptive_field(net, (3, 20, 30))}
    assert rows["0"].receptive_field == (3, 3)
    assert rows["1.mul"].receptive_field == (20, 30) and rows["1.mul"].local_receptive_field == (3, 3)
    assert rows["2"].receptive_field == (20, 30) and rows["2"].local_receptive_field == (5, 5)


def test_dense_and_global_pooling_see_the_image() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 2))
    assert receptive_field(net, (3, 16, 16))[-1].receptive_field == (16, 16)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert receptive_field(net, (3, 16, 20))[-1].receptive_field == (16, 20)


class Functional(nn.Module):
    """Functional calls of every sort on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.a(x), inplace=True)
        left, right = x.chunk(2, 1)
        y = F.max_pool2d(torch.cat([right, left], 1), 3, 2, 1)
        y = F.avg_pool2d(F.pad(y, (1, 0, 1, 0), mode="reflect"), 2, 1)
        y = y.permute(0, 2, 3, 1).reshape(1, y.shape[2], y.shape[3], 8).permute(0, 3, 1, 2)
        y = F.interpolate(self.b(y), size=x.shape[2:], mode="bilinear", align_corners=False)
        y = F.pixel_shuffle(torch.cat([y] * 4, 1), 2)[:, :, 1:-1:2, ::2].flip(3)
        return {"out": y * self.scale, "pooled": F.adaptive_avg_pool2d(y, 1).flatten(1)}


def test_functional_calls_are_followed() -> None:
    net = Functional()
    graph = trace(net, (3, 24, 24))
    assert torch.equal(graph.reached("b"), probe(net, (3, 24, 24), "b").mask)
    assert torch.equal(graph.reached(), probe(net, (3, 24, 24)).mask)


class Unfollowed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.grid_sample(x, x.permute(0, 2, 3, 1)[..., :2], align_corners=False)


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (nn.Sequential(Unfollowed()), "aten.grid_sampler_2d at layer '0'"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Unfold(2)), "aten.im2col at layer '1'"),
    ],
)
def test_unknown_operations_are_named(net: nn.Module, what: str) -> None:
    with pytest.raises(ValueError, match=what) as error:
        trace(net, (3, 8, 8))
    assert "\n" not in str(error.value)


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"give e.g. \(3, 224, 224\)"):
        trace(nn.Conv2d(3, 4, 3), (224, 224))
    with pytest.raises(ValueError, match="fails on an input of"):
        trace(nn.Sequential(nn.Conv2d(1, 4, 3)), (3, 8, 8))
    with pytest.raises(ValueError, match="layers are named like modules"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8)).node_of("conv9")


def test_the_module_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    net[1].eval()
    before = {name: (id(p), p.clone()) for name, p in net.state_dict(keep_vars=True).items()}
    trace(net, (3, 8, 8))
    probe(net, (3, 8, 8))
    after = net.state_dict(keep_vars=True)
    assert all(id(after[name]) == i and torch.equal(after[name], value) for name, (i, value) in before.items())
    assert net[0].training and not net[1].training
    assert not net[0]._forward_hooks and not net[0]._forward_pre_hooks


def test_misaligned_branches_are_found() -> None:
    class Branches(nn.Module):
        def __init__(self, padding: int):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 2, 5, padding=padding)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.a(x), F.pad(self.b(x), (0, 4 - 2 * self.b.padding[0]) * 2)], 1)

    kinds = [[f.kind for f in diagnose(trace(Branches(p), (3, 5, 5)))] for p in (2, 1)]
    assert kinds == [[], ["misaligned"]]


def compare(graph: Graph, net: nn.Module, names: list[str], *, gates: bool) -> None:
    measured = probe_places(net, graph.input_size, [(name, None) for name in names], gates=gates)
    for name in names:
        node = graph.node_of(name)
        if not gates and any(sight.collapsed for sight in node.sights):
            continue
        assert torch.equal(graph.reached(name, gates=gates), measured[name, None].mask), name
        rows, columns = graph.intervals(name, gates=gates)
        row, column = node.units[0] // 2, node.units[1] // 2
        assert (rows[row], columns[column]) == (measured[name, None].rows, measured[name, None].columns), name


FAST = ["alexnet", "vgg11_bn", "resnet18", "googlenet", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
FAST += ["mnasnet0_5", "densenet121", "inception_v3", "lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50"]
SLOW = ["convnext_tiny", "efficientnet_b0", "efficientnet_v2_s", "mobilenet_v2", "resnet50", "resnext50_32x4d", "vgg16"]
SLOW += ["wide_resnet50_2", "deeplabv3_mobilenet_v3_large", "squeezenet1_0"]


def check_by_probe(name: str) -> None:
    net = torchvision_net(name)
    graph = trace(net, (3, 96, 112))
    blocks = [s.name for s in graph.spans if s.name and s.name.count(".") < 2 and s.node is not None]
    names = list(dict.fromkeys([*blocks[:: max(1, len(blocks) // 10)], blocks[-1]]))
    compare(graph, net, names, gates=True)
    if any(s.whole and not s.collapsed for n in graph.nodes for s in n.sights):
        compare(graph, net, names, gates=False)


@pytest.mark.parametrize("name", FAST)
def test_torchvision_by_probe(name: str) -> None:
    check_by_probe(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_of_torchvision_by_probe(name: str) -> None:
    check_by_probe(name)


class PoolAndUnpool(nn.Module):
    def __init__(self, kernel: int, stride: int, padding: int):
        super().__init__()
        self.pool = nn.MaxPool2d(kernel, stride, padding, return_indices=True)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.unpool = nn.MaxUnpool2d(kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        y, indices = self.pool(x)
        return self.unpool(self.conv(y), indices, output_size=x.shape[2:])


class Parallel(nn.Module):
    def __init__(self, a: nn.Module, b: nn.Module):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        height, width = (min(a.shape[d], b.shape[d]) for d in (2, 3))
        return a[:, :, :height, :width] + b[:, :, :height, :width]


# Shrinking would take minutes; the networks are small as drawn.
DRAWN = settings(
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@st.composite
def layer(draw: st.DrawFn, *, nested: bool = True) -> nn.Module:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kinds = ["conv", "conv", "dilated", "transposed", "max", "avg", "up", "unpool"] + ["branch"] * nested
    match draw(st.sampled_from(kinds)):
        case "conv":
            return nn.Conv2d(1, 1, pair(1, 5), pair(1, 3), pair(0, 3))
        case "dilated":
            return nn.Conv2d(1, 1, pair(1, 3), 1, pair(0, 4), dilation=pair(1, 4))
        case "transposed":
            return nn.ConvTranspose2d(1, 1, pair(1, 4), pair(1, 3), pair(0, 1), dilation=pair(1, 2))
        case "max":
            kernel = draw(st.integers(2, 3))
            return nn.MaxPool2d(kernel, pair(1, 3), draw(st.integers(0, 1)), ceil_mode=draw(st.booleans()))
        case "avg":
            kernel = draw(st.integers(2, 3))
            return nn.AvgPool2d(kernel, pair(1, 3), draw(st.integers(0, 1)), ceil_mode=draw(st.booleans()))
        case "up":
            mode = draw(st.sampled_from(["nearest", "bilinear"]))
            corners = draw(st.booleans()) if mode != "nearest" else None
            return nn.Upsample(scale_factor=draw(st.sampled_from([2, 3])), mode=mode, align_corners=corners)
        case "unpool":
            stride = draw(st.integers(1, 3))
            kernel = draw(st.integers(max(2, stride), 3))
            return PoolAndUnpool(kernel, stride, draw(st.integers(0, kernel // 2)))
        case _:
            return Parallel(draw(layer(nested=False)), draw(layer(nested=False)))


@settings(DRAWN, max_examples=500)
@given(
    layers=st.lists(layer(), min_size=1, max_size=5),
    size=st.tuples(st.integers(9, 21), st.integers(9, 21)),
    corner=st.booleans(),
)
def test_drawn_stacks_by_probe(layers: list[nn.Module], size: tuple[int, int], corner: bool) -> None:
    net = nn.Sequential(*layers)
    try:
        graph = trace(net, (1, *size))
    except ValueError as error:
        # The drawn windows do not fit the map.
        assert "the network fails on an input" in str(error) or "give a larger image" in str(error)
        reject()
    node = graph.node_of()
    assume(max(node.units) <= 64)
    branches = any(isinstance(m, Parallel) for m in layers)
    unit = (0, node.units[1] - 1) if corner else (node.units[0] // 2, node.units[1] // 2)
    measured = probe(net, (1, *size), None, unit)
    assert torch.equal(graph.reached(None, unit), measured.mask)
    if measured.rows and measured.columns:
        rows, columns = graph.intervals()
        for seen, exact in ((rows[unit[0]], measured.rows), (columns[unit[1]], measured.columns)):
            # Where one of two branches ends at the border, the other axis of its units shows the longer one.
            assert seen == exact or (branches and seen and seen[0] <= exact[0] and seen[1] >= exact[1])


@settings(DRAWN, max_examples=150)
@given(layers=st.lists(layer(nested=False).filter(lambda m: not isinstance(m, nn.Upsample)), min_size=1, max_size=3))
def test_unbounded_figures_hold_inside(layers: list[nn.Module]) -> None:
    """Away from the borders, the unbounded intervals (whose longest is the receptive field) are the measured ones."""
    graph = trace(nn.Sequential(*layers), (1, 120, 16))
    node = graph.node_of()
    sight = node.sights[0]
    for unit in range(node.units[0] // 3, 2 * node.units[0] // 3):
        low, high = sight.local.at(unit)
        if low >= 0 and high < 120 and sight.clipped[unit]:
            assert sight.clipped[unit] == (low, high)
