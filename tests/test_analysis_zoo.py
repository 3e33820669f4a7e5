"""Every network of conf/model, as `cnn-train inspect` builds it: the trace against a measurement, stage by stage.

Fields larger than the image would hide behind its borders, so networks get images longer than their fields: a tall
one, whose rows are measured, and a wide one for the columns.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from probe import Measured, probe, probe_places
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cnn_train.analysis import Graph, trace
from cnn_train.config.compose import compose
from cnn_train.inspection.examine import Stage, stages
from cnn_train.inspection.levels import levels
from cnn_train.inspection.subject import Subject, describe

CONF = Path(__file__).parents[1] / "conf"
MODELS = sorted(p.stem for p in (CONF / "model").glob("*.yaml"))
# Dense layers behind the map, a cell per row: their images have one size.
ONE_SIZE = {"alexnet_2012", "lenet5", "lstm"}
# The bins of its pyramid grow with the image, and its field with them.
NEVER_INSIDE = {"pspnet"}


@cache
def subject(model: str) -> Subject:
    return describe(compose([f"model={model}"]))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_counts_are_torchs(model: str) -> None:
    net, size = subject(model).network.eval(), subject(model).input_size
    graph = trace(net, size)
    assert graph.parameters == sum(row.parameters for row in graph.rows) == sum(p.numel() for p in net.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:  # on meta an LSTM is products of matrices, too
        net(torch.empty(1, *size, device="meta"))
    assert counter.get_total_flops() == 2 * graph.multiply_adds > 0


@pytest.mark.slow
def test_multiply_adds_are_those_that_torchvision_publishes() -> None:
    from torchvision import models

    checked = 0
    for model in sorted({*MODELS} & {*models.list_models(models)}):
        published = models.get_model_weights(model)["IMAGENET1K_V1"]
        side = published.transforms.keywords["crop_size"]
        graph = trace(subject(model).network, (3, side, side))
        assert round(graph.multiply_adds / 1e9, 3) == pytest.approx(published.meta["_ops"], abs=0.0011), model
        checked += 1
    assert checked > 20


# Araujo, Norris & Sim, Distill 2019, and the table of their library; its ResNets stride elsewhere.
@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("alexnet", 195),
        ("vgg11", 150),
        ("vgg16", 212),
        ("mobilenet_v1", 315),
        ("inception_v2", 699),
        ("inception_v3", 1311),
        ("inception_v4", 2071),
        ("inception_resnet_v2", 3039),
    ],
)
def test_receptive_fields_are_those_that_araujo_publishes(model: str, field: int) -> None:
    last = stages(trace(subject(model).network, subject(model).input_size))[-1]
    assert (last.receptive_field, last.stride) == ((field, field), 32)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_receptive_fields_are_what_a_gradient_reaches(model: str) -> None:
    net, (channels, height, width) = subject(model).network, subject(model).input_size
    found = stages(trace(net, (channels, height, width)))
    least = max(getattr(net, "min_size", 1), 64)
    long = max(max(stage.receptive_field) for stage in found) + 4 * max(int(stage.stride) for stage in found)
    long = max(-(-long // 64) * 64, least)
    net.to_empty(device="cpu")  # the probe puts ones in the place of weights
    for buffer in net.buffers():
        buffer.fill_(1)
    if model in ONE_SIZE:
        check(net, (channels, height, width))
    else:
        for size in ((channels, long, least), (channels, least, long)):
            inside = check(net, size)
            assert inside or model in NEVER_INSIDE


class LevelOf(nn.Module):
    """The codes of one level of a detector as a map (N, 4 A, H, W)."""

    def __init__(self, net: nn.Module, number: int):
        super().__init__()
        self.net, self.number = net, number

    def forward(self, x: Tensor) -> Tensor:
        with torch.device("cpu"):
            priors = self.net.priors(x.shape[-2:])
        mine = priors.boxes[priors.levels == self.number]
        rows, columns = len(mine[:, 1].unique()), len(mine[:, 0].unique())
        codes = self.net(x).codes[:, priors.levels == self.number]
        return codes.reshape(len(x), rows, columns, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("model", ["fcos", "yolov2", "yolov3", "ssd", "retinanet"])
def test_a_detectors_levels_see_what_a_gradient_reaches(model: str) -> None:
    net = subject(model).network
    found = levels(net, trace(net, (3, 512, 64)))
    net = net.to_empty(device="cpu").requires_grad_(False)
    for buffer in net.buffers():
        buffer.fill_(1)
    assert len(found) == len(net.priors((512, 64)).levels.unique())
    for number, level in enumerate(found):
        rows = probe(LevelOf(net, number), (3, 512, 64)).rows
        assert rows and rows[0] > 0 and rows[1] < 511
        assert level.places == (512 // level.stride, 64 // level.stride)
        assert rows[1] - rows[0] + 1 <= level.receptive_field[0] < rows[1] - rows[0] + 1 + level.stride, level


def check(net: nn.Module, size: tuple[int, int, int]) -> bool:
    """Every stage's middle unit and, behind upsampling, its neighbours; was the longer axis of every field inside?"""
    graph = trace(net, size)
    found = {stage.layer: stage for stage in stages(graph)}
    places = [(name, middle(graph, name)) for name in found]
    name, (row, column) = places[-1]
    if any(sight.local.low[1:] for sight in graph.node_of(name).sights):  # neighbours see fields of other sizes
        rows, columns = graph.node_of(name).units
        for down, right in ((1, 0), (0, 1), (2, 3)):
            places.append((name, (min(row + down, rows - 1), min(column + right, columns - 1))))
    gated = any(s.whole and not s.collapsed for node in graph.nodes for s in node.sights)
    inside = True
    for gates in (True, False) if gated else (True,):
        for (name, unit), measured in probe_places(net, size, places, gates=gates).items():
            assert torch.equal(graph.reached(name, unit, gates=gates), measured.mask), (name, unit)
            rows, columns = graph.intervals(name, gates=gates)
            assert (rows[unit[0]], columns[unit[1]]) == (measured.rows, measured.columns), (name, unit)
            if gates == (not gated) and unit == middle(graph, name):
                inside &= is_the_tables_field(graph, found[name], measured)
    return inside


def middle(graph: Graph, name: str) -> tuple[int, int]:
    rows, columns = graph.node_of(name).units
    return rows // 2, columns // 2


def is_the_tables_field(graph: Graph, stage: Stage, measured: Measured) -> bool:
    """On the longer axis: is the measured extent inside the image, and then the field that the table shows?"""
    axis = 0 if graph.input_size[1] >= graph.input_size[2] else 1
    pixels, sight = graph.input_size[1 + axis], graph.node_of(stage.layer).sights[axis]
    low, high = sight.local.at(middle(graph, stage.layer)[axis])
    if low < 0 or high >= pixels:
        return False
    assert (measured.rows, measured.columns)[axis] == (low, high), stage
    assert high - low + 1 == stage.receptive_field[axis] or sight.local.low[1:], stage
    return True


def test_an_encoder_is_followed_at_its_output_stride_of_evaluation_and_left_at_that_of_training() -> None:
    words = ["model=deeplabv3plus", "model.output_stride=8", "model.eval_output_stride=4"]
    net = describe(compose(words)).network
    strided = {name: m.stride for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    coarsest = max(stage.stride for stage in stages(trace(net, (3, 129, 129))))
    assert net.training and coarsest == 4
    assert strided == {name: m.stride for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
