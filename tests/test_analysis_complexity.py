"""Counts against torch's flop counter, closed forms and papers."""

import subprocess
import sys
import time

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cnn_train.analysis import diagnose, trace, training_memory


def check_counts(net: nn.Module, size: tuple[int, int, int]) -> None:
    graph = trace(net, size)
    assert graph.parameters == sum(row.parameters for row in graph.rows) == sum(p.numel() for p in net.parameters())
    net = net.eval().to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, *size, device="meta"))
    assert counter.get_total_flops() == 2 * graph.multiply_adds


FAST = ["alexnet", "vgg11_bn", "resnet18", "googlenet", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
FAST += ["mnasnet0_5", "densenet121", "inception_v3", "convnext_tiny", "efficientnet_b0", "regnet_y_400mf"]
FAST += ["lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"]


def build(name: str) -> nn.Module:
    from torchvision import models

    options: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}
    if name in models.list_models(models.segmentation):
        options = {"weights_backbone": None}
    # RegNet's constructor reads numbers out of tensors.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        net: nn.Module = models.get_model(name, **options)
    return net


@pytest.mark.parametrize("name", FAST)
def test_torchvision(name: str) -> None:
    check_counts(build(name), (3, 96, 96))


@pytest.mark.slow
def test_all_of_torchvision() -> None:
    from torchvision import models

    kinds = (models.detection, models.video, models.optical_flow, models.quantization)
    other = {name for kind in kinds for name in models.list_models(kind)}
    followed = 0
    for name in models.list_models():
        if name in other or name in ("regnet_y_128gf", "regnet_y_32gf", "regnet_x_32gf", "regnet_y_16gf"):
            continue
        if name.startswith(("vit", "swin", "maxvit")):
            with pytest.raises(ValueError, match=r"cannot follow aten\.\w+ at "):
                trace(build(name), (3, 224, 224))
            continue
        check_counts(build(name), (3, 224, 224))
        followed += 1
    assert followed > 60


# Multiply-adds that the papers print for 224x224 images.
@pytest.mark.parametrize(
    ("name", "billions", "digits"),
    [("vgg16", 15.5, 1), ("mobilenet_v2", 0.30, 2), ("efficientnet_b0", 0.39, 2), ("resnet50", 4.1, 1)],
)
def test_published_figures(name: str, billions: float, digits: int) -> None:
    assert round(trace(build(name), (3, 224, 224)).multiply_adds / 1e9, digits) == billions


def test_a_deep_network_answers_at_once() -> None:
    net = build("resnet152")
    start = time.process_time()
    assert trace(net, (3, 224, 224)).parameters == 60_192_808
    assert time.process_time() - start < 3


def test_a_row_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(6, 4, (3, 5), (2, 1), (1, 2), groups=2, bias=False), nn.ConvTranspose2d(4, 2, 4, 2, 1)
    )
    conv, up = trace(net, (6, 8, 10)).rows
    assert conv.output_shape == (4, 4, 10) and conv.parameters == 4 * 3 * 15
    assert (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((3, 5), (2, 1), (1, 2), 2)
    assert conv.multiply_adds == 4 * 4 * 10 * 3 * 15
    assert conv.connections == 4 * 4 * 10 * (3 * 15 + 1)
    assert conv.activation_bytes == 4 * 4 * 4 * 10
    assert up.output_shape == (2, 8, 20) and up.multiply_adds == 4 * 10 * 4 * 2 * 16
    assert up.connections == up.multiply_adds + 2 * 8 * 20  # and a bias each


def test_lenet_connections() -> None:
    """LeCun et al. 1998, section II.B: C1 122,304, S2 5,880, C5 48,120 connections."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.AvgPool2d(2), nn.Conv2d(16, 120, 5)
    )
    rows = trace(net, (1, 32, 32)).rows
    assert [rows[i].connections for i in (0, 1, 3, 4)] == [122_304, 5_880, 2_000, 48_120]


def test_shared_and_unused_parameters_count_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3, padding=1)
            self.b = self.a
            self.aside = nn.Linear(3, 5)
            self.scale = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) * self.scale

    graph = trace(Net(), (3, 8, 8))
    assert [(row.name, row.parameters, row.used) for row in graph.rows] == [
        ("a", 84, True),
        ("a", 0, True),
        ("mul", 3, True),
        ("aside", 20, False),
    ]
    assert graph.parameters == 107 and graph.multiply_adds == 2 * 64 * 81


def test_collapse_sums_blocks() -> None:
    graph = trace(build("resnet18"), (3, 64, 64))
    rows = {row.name: row for row in graph.collapse(1)}
    assert list(rows)[-3:] == ["avgpool", "flatten", "fc"] or list(rows)[-2:] == ["avgpool", "fc"]
    assert rows["layer4"].output_shape == (512, 2, 2) and rows["layer4"].receptive_field == (435, 435)
    assert sum(row.multiply_adds for row in rows.values()) == graph.multiply_adds
    assert sum(row.parameters for row in rows.values()) == graph.parameters
    assert len(graph.collapse(2)) > len(rows)
    with pytest.raises(ValueError, match="give 1 or more"):
        graph.collapse(0)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small"])
def test_saved_activations_are_autograds(name: str) -> None:
    """Against the bytes that a real training step on the CPU saves (its kernels keep a little more or less)."""
    from torchvision import models

    estimate = training_memory(build(name), (3, 64, 64), optimizer_slots=2)
    net = models.get_model(name)
    saved: dict[int, int] = {}
    fixed = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in fixed:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = net(torch.rand(4, 3, 64, 64))
    assert output.shape[0] == 4
    assert abs(4 * estimate.saved / sum(saved.values()) - 1) < 0.02
    weights = 4 * sum(p.numel() for p in net.parameters())
    assert (estimate.parameters, estimate.gradients, estimate.optimizer) == (weights, weights, 2 * weights)
    batch = estimate.largest_batch(8 << 30)
    assert estimate.peak(batch) <= 8 << 30 < estimate.peak(batch + 1)
    assert estimate.largest_batch(0) == 0


STEP = """
import torch
from torch import nn
from torchvision.models import resnet18

def resident(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

def step(net, optimizer, images):
    net(images).square().mean().backward()
    optimizer.step()

small = nn.Conv2d(3, 1, 1)
step(small, torch.optim.AdamW(small.parameters()), torch.randn(2, 3, 8, 8))
before = resident("VmRSS")
net = resnet18()
optimizer = torch.optim.AdamW(net.parameters())
step(net, optimizer, torch.randn(16, 3, 224, 224))
step(net, optimizer, torch.randn(16, 3, 224, 224))
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_estimate_is_near_what_a_process_takes() -> None:
    """Workspaces and the allocator's rounding come on top of the estimate."""
    measured = int(subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True).stdout)
    estimate = training_memory(build("resnet18"), (3, 224, 224), optimizer_slots=2).peak(16)
    assert 0.9 < measured / estimate < 1.4


def test_recurrent_layers() -> None:
    class Rows(nn.Module):
        """Reads the image row by row."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(28, 16, batch_first=True)
            self.fc = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x.squeeze(1))[0][:, -1])

    graph = trace(Rows(), (1, 28, 28))
    rows = {row.name: row for row in graph.rows}
    assert rows["fc"].receptive_field == (28, 28)
    assert graph.intervals("lstm")[0] == [(0, i) for i in range(28)]
    check_counts(Rows(), (1, 28, 28))


def kinds(net: nn.Module, size: tuple[int, int, int]) -> list[str]:
    return [finding.kind for finding in diagnose(trace(net, size))]


def test_gridding() -> None:
    def stack(*dilations: int) -> nn.Module:
        return nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=d, dilation=d) for d in dilations])

    (found,) = diagnose(trace(stack(2, 2, 2), (1, 13, 13)))
    # 7 x 7 of 13 x 13 positions are read.
    assert found.kind == "gridding" and f"{1 - 49 / 169:.0%}" in found.message
    assert found.mask is not None and int(found.mask.sum()) == 49
    assert kinds(stack(1, 2, 5), (1, 17, 17)) == []
    assert int(trace(stack(1, 2, 5), (1, 17, 17)).reached().sum()) == 17 * 17


def test_field_smaller_and_far_larger() -> None:
    deep = nn.Sequential(*[nn.Conv2d(1, 1, 3, 2, 1) for _ in range(5)])
    assert kinds(nn.Conv2d(1, 1, 3), (1, 8, 8)) == ["small-field"]
    assert kinds(deep, (1, 16, 16)) == ["large-field"]
    assert kinds(deep, (1, 48, 48)) == []


def test_strides_that_outrun_kernels() -> None:
    main = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 1, 2), nn.Conv2d(1, 1, 3))
    (found,) = [f for f in diagnose(trace(main, (1, 8, 8))) if f.kind == "stride-outruns-kernel"]
    assert found.layer == "1" and "75%" in found.message
    # The 1x1 shortcut of a residual block skips positions that the 3x3 beside it reads.
    assert "stride-outruns-kernel" not in kinds(build("resnet18"), (3, 224, 224))


def test_norms_over_one_value() -> None:
    class PatientGroupNorm(nn.GroupNorm):
        """F.group_norm refuses one value."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    assert kinds(nn.Sequential(nn.Conv2d(1, 4, 8), PatientGroupNorm(4, 4)), (1, 8, 8)) == ["norm-over-one-value"]
    with pytest.raises(ValueError, match="at layer '1': Expected more than 1 value per channel"):
        trace(nn.Sequential(nn.Conv2d(1, 4, 8), nn.GroupNorm(4, 4)), (1, 8, 8))
    net = nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4))
    (found,) = diagnose(trace(net, (1, 8, 8)))
    assert found.layer == "1" and "one image per batch" in found.message
    assert kinds(nn.Sequential(nn.Conv2d(1, 4, 8), nn.GroupNorm(1, 4)), (1, 8, 8)) == []


def test_groups_that_never_mix() -> None:
    grouped = [nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2)]
    assert "unmixed-groups" in kinds(nn.Sequential(*grouped), (8, 5, 5))
    assert "unmixed-groups" not in kinds(nn.Sequential(grouped[0], nn.ChannelShuffle(2), grouped[3]), (8, 5, 5))
    assert "unmixed-groups" not in kinds(nn.Sequential(grouped[0], nn.Conv2d(8, 8, 1), grouped[3]), (8, 5, 5))
    assert "unmixed-groups" not in kinds(build("resnext50_32x4d"), (3, 224, 224))
