"""Normalizations, each taking `num_channels` first and any number of channels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.layers.protocols import Norm, says


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu & He 2018, eq. 7); the number of groups is fitted to divide any `num_channels`."""

    def __init__(self, num_channels: int, num_groups: int = 32, eps: float = 1e-5, affine: bool = True):
        super().__init__(math.gcd(num_groups, num_channels), num_channels, eps, affine)

    def forward(self, x: Tensor) -> Tensor:
        # Not F.group_norm: it refuses one value per group, where the normalized value is simply the shift.
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class LayerNorm(GroupNorm):
    """Layer normalization (Ba et al. 2016) over (C, H, W) of each sample, with a scale and shift per channel."""

    def __init__(self, num_channels: int, eps: float = 1e-5, affine: bool = True):
        super().__init__(num_channels, 1, eps, affine)


class InstanceNorm(GroupNorm):
    """Instance normalization (Ulyanov et al. 2016) over (H, W) of each channel of each sample.

    Unlike `nn.InstanceNorm2d` it takes maps of 1x1, where every value becomes the shift.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, affine: bool = True):
        super().__init__(num_channels, num_channels, eps, affine)


class FrozenBatchNorm(nn.Module):
    """Batch normalization with fixed statistics, scale and shift (He et al. 2015, section 4.2: detection fine-tuning).

    State-dict keys are those of `nn.BatchNorm2d`, whose checkpoints it loads.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, eps: float = 1e-5):
        super().__init__()
        self.num_features = num_channels
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_channels))
        self.register_buffer("bias", torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype).view(-1, 1, 1) + shift.to(x.dtype).view(-1, 1, 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Files of PyTorch before 0.4.1 have no batch count.
        state_dict.setdefault(prefix + "num_batches_tracked", torch.tensor(0))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class _SumOverProcesses(torch.autograd.Function):
    """Each process gets the sum of all, and its gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, gradient)


def sum_over_processes(x: Tensor) -> Tensor:
    """Differentiable sum of a tensor that every process of the default group gives."""
    return _SumOverProcesses.apply(x)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the joint batch of all processes (Peng et al. 2018); with one process, batch norm.

    Sums over the batch pass through a differentiable all-reduce, which every backend has: `nn.SyncBatchNorm` is for
    CUDA alone, and DDP refuses it on the CPU.
    """

    synchronized = True

    def forward(self, x: Tensor) -> Tensor:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed and torch.distributed.get_world_size() > 1):
            return super().forward(x)
        wide = _at_least_float32(x)
        count = wide.new_tensor([x.numel() / x.size(1)])
        sums = sum_over_processes(torch.cat([wide.sum((0, 2, 3)), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = wide - mean.view(1, -1, 1, 1)
        var = sum_over_processes(centred.square().sum((0, 2, 3))) / total
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
                unbiased = var * total / (total - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)
        y = centred * (var + self.eps).rsqrt().view(1, -1, 1, 1)
        if self.weight is not None:
            y = y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return y.to(x.dtype)


class LocalResponseNorm(nn.LocalResponseNorm):
    """Local response normalization across channels (Krizhevsky et al. 2012, section 3.3).

    `num_channels` is unused; it keeps the signature of the other norms. torch divides `alpha` by `size`, so the
    paper's alpha = 1e-4 over n = 5 channels is alpha = 5e-4 here; k = 2, beta = 0.75.
    """

    def __init__(self, num_channels: int, size: int = 5, alpha: float = 5e-4, beta: float = 0.75, k: float = 2.0):
        super().__init__(size, alpha, beta, k)

    def forward(self, x: Tensor) -> Tensor:
        # torch has no kernel for half precision on the CPU.
        return super().forward(_at_least_float32(x)).to(x.dtype)


class BatchRenorm(nn.BatchNorm2d):
    """Batch renormalization (Ioffe 2017, algorithm 1): batch statistics corrected towards the running ones.

    The correction is x * r + d, r clipped to [1 / r_max, r_max] and d to [-d_max, d_max]; r_max 1 and d_max 0 is batch
    norm. As in section 4 both bounds start there and, from the step `ramp[0]` on, grow linearly until d_max is reached
    at `ramp[1]` and r_max at `ramp[2]`, while the running statistics settle.
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-3,
        momentum: float = 0.01,
        r_max: float = 3.0,
        d_max: float = 5.0,
        ramp: Sequence[int] = (5000, 25000, 40000),
    ):
        super().__init__(num_channels, eps, momentum)
        if r_max < 1 or d_max < 0:
            raise ValueError(f"batch_renorm needs r_max >= 1 and d_max >= 0, got {r_max:g} and {d_max:g}")
        if len(ramp) != 3 or not 0 <= ramp[0] <= min(ramp[1:]):
            raise ValueError(f"ramp must be three steps [start, d_max reached, r_max reached], got {list(ramp)}")
        self.r_max = r_max
        self.d_max = d_max
        self.ramp = tuple(ramp)

    def _reached(self, end: int) -> Tensor:
        """Share of the way to a bound, in [0, 1], as a tensor so that nothing waits for the device."""
        assert self.num_batches_tracked is not None
        past = (self.num_batches_tracked - self.ramp[0]).float()
        return (past / max(end - self.ramp[0], 1)).clamp(0, 1) if end else torch.ones_like(past)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        wide = _at_least_float32(x)
        var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        std = (var + self.eps).sqrt()
        with torch.no_grad():
            d_max = self.d_max * self._reached(self.ramp[1])
            r_max = 1 + (self.r_max - 1) * self._reached(self.ramp[2])
            running_std = (self.running_var + self.eps).sqrt()
            r = torch.clamp(std / running_std, 1 / r_max, r_max)
            d = torch.clamp((mean - self.running_mean) / running_std, -d_max, d_max)
            count = x.numel() / x.size(1)
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = var * (count / max(count - 1, 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        shape = (1, -1, 1, 1)
        y = (wide - mean.view(shape)) / std.view(shape) * r.view(shape) + d.view(shape)
        return (y * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


class SwitchableNorm(nn.Module):
    """Switchable normalization (Luo et al. 2019, eq. 3-5): a learned mixture of instance, layer and batch statistics.

    Means and variances have mixing weights of their own, each a softmax over (instance, layer, batch).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.mean_mix = nn.Parameter(torch.zeros(3))
        self.var_mix = nn.Parameter(torch.zeros(3))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = _at_least_float32(x)
        instance_var, instance_mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
        second_moment = instance_var + instance_mean.square()
        layer_mean = instance_mean.mean(1, keepdim=True)
        layer_var = second_moment.mean(1, keepdim=True) - layer_mean.square()
        if self.training:
            batch_mean = instance_mean.mean(0, keepdim=True)
            batch_var = second_moment.mean(0, keepdim=True) - batch_mean.square()
            with torch.no_grad():
                self.running_mean.lerp_(batch_mean.flatten().to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(batch_var.flatten().to(self.running_var.dtype), self.momentum)
        else:
            batch_mean, batch_var = self.running_mean.view(1, -1, 1, 1), self.running_var.view(1, -1, 1, 1)
        a, b = self.mean_mix.softmax(0), self.var_mix.softmax(0)
        mean = a[0] * instance_mean + a[1] * layer_mean + a[2] * batch_mean
        var = b[0] * instance_var + b[1] * layer_var + b[2] * batch_var
        y = (wide - mean) * (var.clamp(min=0) + self.eps).rsqrt()
        return (y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}, momentum={self.momentum}"


class GroupNormWS(GroupNorm):
    """Group normalization after convolutions with standardized weights (Qiao et al. 2019)."""

    standardize_weights = True


class WSConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and one variance (Qiao et al. 2019, eq. 5), whatever is learned.

    The variance is 1 / fan-in (Brock et al. 2021, arXiv:2101.08692, eq. 1, without the gain): a norm behind it makes no
    difference between that and the first paper's 1, and where none follows the signal does not grow. A filter of a
    single weight, which would be 0, is left as it is.
    """

    eps = 1e-5

    def standardized(self) -> Tensor:
        """The weight that is convolved with, (out_channels, in_channels / groups, height, width)."""
        if self.weight[0].numel() == 1:
            return self.weight
        var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return (self.weight - mean) * (self.weight[0].numel() * (var + self.eps)).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardized(), self.bias)


# What `nn.Module.modules()` may hold that normalizes: their scales and shifts are neither initialized nor decayed like
# weights.
NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    FrozenBatchNorm,
    SwitchableNorm,
)


def synchronizes(network: nn.Module) -> bool:
    """Does a norm of the network average over the joint batch of all processes in training?"""
    return any(isinstance(m, nn.SyncBatchNorm) or says(m, Norm, "synchronized") for m in network.modules())


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
