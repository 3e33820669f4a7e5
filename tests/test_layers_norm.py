"""Every norm against a float64 loop written from its formula, and the identities between them."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.norm import (
    BatchRenorm,
    FrozenBatchNorm,
    GroupNorm,
    GroupNormWS,
    InstanceNorm,
    LayerNorm,
    LocalResponseNorm,
    SwitchableNorm,
    SyncBatchNorm,
    WSConv2d,
    synchronizes,
)

EPS = 1e-5
NORMS = {
    "bn": nn.BatchNorm2d,
    "syncbn": SyncBatchNorm,
    "frozen_bn": FrozenBatchNorm,
    "ln": LayerNorm,
    "in": InstanceNorm,
    "gn": GroupNorm,
    "gn_ws": GroupNormWS,
    "lrn": LocalResponseNorm,
    "batch_renorm": BatchRenorm,
    "switchable": SwitchableNorm,
}


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 + 0.7


def give_scale_and_shift(norm: nn.Module) -> nn.Module:
    """Distinct scales and shifts, so that a mistaken channel shows."""
    norm.double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, norm.weight.numel()))
        norm.bias.copy_(torch.linspace(-1, 1, norm.bias.numel()))
    return norm


def normalized_over(groups: list[Tensor], x: Tensor, eps: float = EPS) -> Tensor:
    """Each group (an index mask of x) to mean 0 and variance 1, value by value."""
    y = torch.full_like(x, math.nan)
    for mask in groups:
        values = x[mask].tolist()
        mean = sum(values) / len(values)
        var = sum((value - mean) ** 2 for value in values) / len(values)
        y[mask] = torch.tensor([(value - mean) / math.sqrt(var + eps) for value in values], dtype=x.dtype)
    return y


def masks(x: Tensor, per_sample: bool, channel_groups: int) -> list[Tensor]:
    n, c = x.shape[:2]
    found = []
    for sample in range(n) if per_sample else [slice(None)]:
        for group in range(channel_groups):
            mask = torch.zeros_like(x, dtype=torch.bool)
            size = c // channel_groups
            mask[sample, group * size : (group + 1) * size] = True
            found.append(mask)
    return found


@pytest.mark.parametrize(
    ("make", "channels", "per_sample", "groups"),
    [
        (LayerNorm, 6, True, 1),
        (InstanceNorm, 6, True, 6),
        (partial(GroupNorm, num_groups=4), 6, True, 2),
        (partial(GroupNormWS, num_groups=3), 6, True, 3),
        (GroupNorm, 7, True, 1),
        (nn.BatchNorm2d, 6, False, 6),
        (SyncBatchNorm, 6, False, 6),
        (partial(BatchRenorm, eps=EPS, r_max=1.0, d_max=0.0), 6, False, 6),
    ],
)
def test_equals_the_loop(make, channels, per_sample, groups):
    x = images(3, channels, 4, 5)
    norm = give_scale_and_shift(make(channels))
    wanted = normalized_over(masks(x, per_sample, groups), x)
    wanted = wanted * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(norm(x), wanted, rtol=1e-10, atol=1e-10)


def test_group_norm_with_one_group_is_layer_norm_and_with_c_groups_instance_norm():
    x = images(2, 8, 5, 3)
    assert torch.equal(GroupNorm(8, 1).double()(x), LayerNorm(8).double()(x))
    assert torch.equal(GroupNorm(8, 8).double()(x), InstanceNorm(8).double()(x))
    torch.testing.assert_close(LayerNorm(8).double()(x), nn.functional.layer_norm(x, x.shape[1:]))
    torch.testing.assert_close(InstanceNorm(8).double()(x), nn.InstanceNorm2d(8).double()(x))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (24, 8), (7, 1), (1, 1), (32, 32), (96, 32)])
def test_groups_are_fitted_to_any_number_of_channels(channels, groups):
    assert GroupNorm(channels).num_groups == groups


@pytest.mark.parametrize("make", [nn.BatchNorm2d, SyncBatchNorm, BatchRenorm, FrozenBatchNorm])
def test_batch_statistics_in_evaluation_are_the_running_ones(make):
    norm = give_scale_and_shift(make(3, eps=1e-3)).eval()
    norm.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
    norm.running_var.copy_(torch.tensor([0.3, 1.0, 4.0]))
    x = images(2, 3, 2, 2)
    y = norm(x)
    for c in range(3):
        mean, var = norm.running_mean[c].item(), norm.running_var[c].item()
        wanted = norm.weight[c].item() * (x[:, c] - mean) / math.sqrt(var + 1e-3) + norm.bias[c].item()
        torch.testing.assert_close(y[:, c], wanted, rtol=1e-10, atol=1e-10)


def test_frozen_batch_norm_never_moves_and_loads_batch_norm():
    source = give_scale_and_shift(nn.BatchNorm2d(4))
    source(images(8, 4, 3, 3))
    frozen = FrozenBatchNorm(4).double()
    frozen.load_state_dict(source.state_dict(), strict=True)
    assert list(frozen.state_dict()) == list(source.state_dict())
    assert not list(frozen.parameters())
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    x = images(2, 4, 3, 3, seed=1)
    torch.testing.assert_close(frozen.train()(x), source.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    old_file = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    frozen.load_state_dict(old_file, strict=True)


def test_local_response_norm_is_the_papers():
    x = images(2, 7, 2, 2)
    y = LocalResponseNorm(7)(x)
    for i in range(7):  # Krizhevsky et al. 2012: k = 2, n = 5, alpha = 1e-4, beta = 0.75
        window = x[:, max(0, i - 2) : min(6, i + 2) + 1]
        wanted = x[:, i] / (2 + 1e-4 * window.square().sum(1)) ** 0.75
        torch.testing.assert_close(y[:, i], wanted, rtol=1e-10, atol=0)


def test_batch_renorm_follows_algorithm_1():
    norm = give_scale_and_shift(BatchRenorm(2, eps=1e-3, momentum=0.01, r_max=3.0, d_max=5.0, ramp=(0, 0, 0)))
    norm.running_mean.copy_(torch.tensor([0.1, 30.0]))
    norm.running_var.copy_(torch.tensor([2.0, 0.01]))
    x = images(4, 2, 3, 3)
    mean_before, var_before = norm.running_mean.clone(), norm.running_var.clone()
    y = norm(x)
    for c in range(2):
        values = x[:, c].flatten().tolist()
        mean = sum(values) / len(values)
        var = sum((v - mean) ** 2 for v in values) / len(values)
        std, running = math.sqrt(var + 1e-3), math.sqrt(var_before[c].item() + 1e-3)
        r = min(max(std / running, 1 / 3), 3)
        d = min(max((mean - mean_before[c].item()) / running, -5), 5)
        wanted = ((x[:, c] - mean) / std * r + d) * norm.weight[c] + norm.bias[c]
        torch.testing.assert_close(y[:, c], wanted, rtol=1e-9, atol=1e-9)
        unbiased = var * len(values) / (len(values) - 1)
        assert norm.running_mean[c].item() == pytest.approx(0.99 * mean_before[c].item() + 0.01 * mean)
        assert norm.running_var[c].item() == pytest.approx(0.99 * var_before[c].item() + 0.01 * unbiased)


def test_batch_renorm_gradient_does_not_pass_through_the_correction():
    norm = BatchRenorm(3, ramp=(0, 0, 0)).double()
    norm.running_mean.fill_(0.3)
    x = images(4, 3, 2, 2).requires_grad_()
    norm(x).square().sum().backward()
    z = x.detach().clone().requires_grad_()
    mean, std = z.mean((0, 2, 3)), (z.var((0, 2, 3), unbiased=False) + 1e-3).sqrt()
    running = math.sqrt(1 + 1e-3)
    r, d = (std / running).detach(), ((mean - 0.3) / running).detach()
    by_hand = (z - mean.view(-1, 1, 1)) / std.view(-1, 1, 1) * r.view(-1, 1, 1) + d.view(-1, 1, 1)
    by_hand.square().sum().backward()
    torch.testing.assert_close(x.grad, z.grad)


def test_batch_renorm_starts_as_batch_norm_and_widens():
    norm, reference = BatchRenorm(3, ramp=(2, 4, 6)).double(), nn.BatchNorm2d(3, 1e-3, 0.01).double()
    reached = []
    for step in range(8):
        x = images(4, 3, 2, 2, seed=step)
        reached.append((norm._reached(4).item(), norm._reached(6).item()))
        y, wanted = norm(x), reference(x)
        assert torch.allclose(y, wanted) == (step <= 2)
    assert reached == [(0, 0)] * 3 + [(0.5, 0.25), (1, 0.5), (1, 0.75), (1, 1), (1, 1)]


@pytest.mark.parametrize("options", [{"r_max": 0.5}, {"d_max": -1.0}, {"ramp": (1, 2)}, {"ramp": (5, 3, 9)}])
def test_batch_renorm_refuses_senseless_bounds(options):
    with pytest.raises(ValueError, match=r"r_max|ramp"):
        BatchRenorm(3, **options)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_switchable_norm_becomes_each_of_its_norms(which):
    x = images(3, 6, 4, 5)
    norm = give_scale_and_shift(SwitchableNorm(6))
    with torch.no_grad():
        norm.mean_mix[which] = norm.var_mix[which] = 60.0
    other = give_scale_and_shift((InstanceNorm, LayerNorm, nn.BatchNorm2d)[which](6))
    torch.testing.assert_close(norm(x), other(x), rtol=1e-9, atol=1e-9)
    n = x.numel() / 6
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var((0, 2, 3)) * (n - 1) / n)


def test_switchable_norm_mixes_by_softmax():
    x = images(2, 2, 2, 2)
    norm = SwitchableNorm(2).double()
    with torch.no_grad():
        norm.mean_mix.copy_(torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64))
        norm.var_mix.copy_(torch.tensor([-1.0, 0.4, 0.1], dtype=torch.float64))
    a = [math.exp(v) / sum(map(math.exp, [0.3, -0.2, 1.0])) for v in [0.3, -0.2, 1.0]]
    b = [math.exp(v) / sum(map(math.exp, [-1.0, 0.4, 0.1])) for v in [-1.0, 0.4, 0.1]]
    y = norm(x)
    for n in range(2):
        for c in range(2):
            parts = [x[n, c], x[n], x[:, c]]
            mean = sum(w * part.mean().item() for w, part in zip(a, parts, strict=True))
            var = sum(w * part.var(unbiased=False).item() for w, part in zip(b, parts, strict=True))
            torch.testing.assert_close(y[n, c], (x[n, c] - mean) / math.sqrt(var + EPS), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_standardized_filters_have_mean_0_and_one_variance(kernel_size, groups):
    conv = WSConv2d(8, 8, kernel_size, groups=groups).double()
    weight = conv.standardized()
    assert weight.shape == conv.weight.shape
    if weight[0].numel() == 1:
        assert torch.equal(weight, conv.weight)
        return
    for filter_, raw in zip(weight, conv.weight, strict=True):
        values = raw.flatten().tolist()
        mean = sum(values) / len(values)
        var = sum((v - mean) ** 2 for v in values) / len(values)
        wanted = [(v - mean) / math.sqrt(len(values) * (var + 1e-5)) for v in values]
        torch.testing.assert_close(filter_.flatten(), torch.tensor(wanted, dtype=torch.float64))


def test_the_factory_standardizes_weights_where_the_norm_says_so():
    for norm in (GroupNormWS, partial(GroupNormWS, num_groups=8)):
        layers = LayerFactory(norm_layer=norm)
        conv = layers.conv(4, 6, 3, stride=2, dilation=2, groups=2, bias=True).double()
        assert isinstance(conv, WSConv2d)
        x = images(2, 4, 9, 9)
        wanted = nn.functional.conv2d(x, conv.standardized(), conv.bias, 2, 2, 2, 2)
        torch.testing.assert_close(conv(x), wanted)
        assert list(conv.state_dict()) == ["weight", "bias"]
    for norm in (GroupNorm, nn.BatchNorm2d, None):
        assert type(LayerFactory(norm_layer=norm).conv(4, 6, 3)) is nn.Conv2d


@pytest.mark.parametrize("name", NORMS)
def test_any_channels_half_precision_and_finite_gradients(name):
    for channels in (1, 3, 10, 33):
        norm = NORMS[name](channels)
        x = torch.randn(4, channels, 3, 3, requires_grad=True)
        norm(x).square().sum().backward()
        assert x.grad.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in norm.parameters())
        y = norm.bfloat16()(torch.randn(4, channels, 3, 3, dtype=torch.bfloat16))
        assert y.dtype == torch.bfloat16 and y.isfinite().all()


@pytest.mark.parametrize("name", ["ln", "in", "gn", "gn_ws", "lrn", "frozen_bn", "switchable"])
def test_single_pixel_of_a_single_sample(name):
    norm = NORMS[name](4)
    assert norm(torch.randn(1, 4, 1, 1)).isfinite().all()


def test_float32_statistics_survive_autocast():
    for name in ("batch_renorm", "switchable", "syncbn"):
        norm = NORMS[name](3)
        with torch.autocast("cpu", torch.bfloat16):
            norm(torch.randn(64, 3, 40, 40).bfloat16() + 5)
        torch.testing.assert_close(norm.running_mean, torch.full((3,), 5.0 * norm.momentum), rtol=0.02, atol=0)


def test_a_norm_says_that_it_is_synchronized():
    class Own(nn.BatchNorm2d):
        synchronized = True

    def inside(norm: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), norm))

    assert all(synchronizes(inside(norm)) for norm in (SyncBatchNorm(4), nn.SyncBatchNorm(4), Own(4)))
    assert not any(synchronizes(inside(norm)) for norm in (nn.BatchNorm2d(4), FrozenBatchNorm(4), nn.Identity()))


def test_sync_batch_norm_in_one_process_is_batch_norm():
    for momentum in (0.1, None):
        sync, plain = SyncBatchNorm(5, momentum=momentum), nn.BatchNorm2d(5, momentum=momentum)
        for seed in range(3):
            x = images(4, 5, 3, 3, seed=seed).float()
            assert torch.equal(sync(x), plain(x))
        for name, value in plain.state_dict().items():
            assert torch.equal(sync.state_dict()[name], value)
        assert torch.equal(sync.eval()(x), plain.eval()(x))


def _work(rank: int, folder: str) -> None:
    """One of two processes, with 3 and 5 of 8 samples."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm = give_scale_and_shift(SyncBatchNorm(6))
    results = []
    for step in range(2):
        x = images(8, 6, 4, 5, seed=step).split([3, 5])[rank].clone().requires_grad_()
        y = norm(x)
        (y.sin() * y).sum().backward()
        results.append({"y": y.detach(), "x_grad": x.grad})
    gradients = {name: p.grad for name, p in norm.named_parameters()}
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    narrow = SyncBatchNorm(6).bfloat16()(torch.ones(2, 6, 3, 3, dtype=torch.bfloat16))
    assert narrow.dtype == torch.bfloat16 and torch.equal(narrow, torch.zeros_like(narrow))
    torch.save({"steps": results, "gradients": gradients, "state": state}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_sync_batch_norm_of_two_processes_is_batch_norm_of_the_joint_batch(tmp_path: Path):
    torch.multiprocessing.start_processes(_work, (str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    norm = give_scale_and_shift(nn.BatchNorm2d(6))
    for step in range(2):
        x = images(8, 6, 4, 5, seed=step).requires_grad_()
        y = norm(x)
        (y.sin() * y).sum().backward()
        for name, wanted in (("y", y.detach()), ("x_grad", x.grad)):
            joint = torch.cat([first["steps"][step][name], second["steps"][step][name]])
            torch.testing.assert_close(joint, wanted, rtol=1e-10, atol=1e-10)
    for name, parameter in norm.named_parameters():
        # Each process has its samples' share, which DistributedDataParallel then averages.
        joint = first["gradients"][name] + second["gradients"][name]
        torch.testing.assert_close(joint, parameter.grad, rtol=1e-10, atol=1e-10)
    for name, wanted in norm.state_dict().items():
        for state in (first["state"], second["state"]):
            torch.testing.assert_close(state[name], wanted, rtol=1e-10, atol=1e-10)
