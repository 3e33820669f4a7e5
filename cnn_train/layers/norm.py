"""Normalizations, each taking `num_channels` first and any number of channels."""

import math
from typing import Any

import torch
from torch import Tensor, nn


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


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch normalization over the joint batch of all processes (Peng et al. 2018); with one process, batch norm.

    On the CPU, for which torch has no kernel, the moments are averaged through a differentiable all-reduce.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return nn.functional.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self._average_factor(),
                self.eps,
            )
        return super().forward(x) if x.is_cuda else self._forward_all_reduce(x)

    def _average_factor(self) -> float:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.momentum is not None:
            return self.momentum
        return 1.0 / max(float(self.num_batches_tracked or 0), 1.0)

    def _forward_all_reduce(self, x: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_reduce

        factor = self._average_factor()
        count = x.new_tensor([x.numel() / x.size(1)])
        sums = torch.cat([x.sum((0, 2, 3)), count])
        sums = all_reduce(sums)
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = x - mean.view(1, -1, 1, 1)
        var = all_reduce(centred.square().sum((0, 2, 3))) / total
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
                unbiased = var * total / (total - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)
        y = centred * (var + self.eps).rsqrt().view(1, -1, 1, 1)
        if self.weight is not None:
            y = y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return y


class LocalResponseNorm(nn.LocalResponseNorm):
    """Local response normalization across channels (Krizhevsky et al. 2012, section 3.3).

    `num_channels` is taken to be like the others; the norm has no parameters. torch divides `alpha` by `size`, so the
    paper's alpha = 1e-4 over n = 5 channels is alpha = 5e-4 here; k = 2, beta = 0.75.
    """

    def __init__(self, num_channels: int, size: int = 5, alpha: float = 5e-4, beta: float = 0.75, k: float = 2.0):
        super().__init__(size, alpha, beta, k)


class BatchRenorm(nn.BatchNorm2d):
    """Batch renormalization (Ioffe 2017, algorithm 1): batch statistics corrected towards the running ones.

    `r` and `d` are clipped to [1 / r_max, r_max] and [-d_max, d_max]; r_max 1 and d_max 0 is batch norm.
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-3,
        momentum: float = 0.01,
        r_max: float = 3.0,
        d_max: float = 5.0,
    ):
        super().__init__(num_channels, eps, momentum)
        self.r_max = r_max
        self.d_max = d_max

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        mean = x.mean((0, 2, 3))
        std = (x.var((0, 2, 3), unbiased=False) + self.eps).sqrt()
        running_std = (self.running_var + self.eps).sqrt()
        r = (std.detach() / running_std).clamp(1 / self.r_max, self.r_max)
        d = ((mean.detach() - self.running_mean) / running_std).clamp(-self.d_max, self.d_max)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(x.var((0, 2, 3), unbiased=x.numel() > x.size(1)), self.momentum)
        shape = (1, -1, 1, 1)
        y = (x - mean.view(shape)) / std.view(shape) * r.view(shape) + d.view(shape)
        return y * self.weight.view(shape) + self.bias.view(shape)
