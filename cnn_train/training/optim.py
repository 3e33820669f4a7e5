"""Optimizers that torch lacks, groups of parameters for weight decay, and averaged weights."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cnn_train.layers.norm import NORMS

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


def parameter_groups(
    network: nn.Module, weight_decay: float, decay_norm_and_bias: bool = False
) -> list[dict[str, Any]]:
    """Groups for an optimizer: without decay are norms and all that has one axis or none (biases, slopes, scales).

    Frozen parameters are left out. Where there is nothing to tell apart, one group that leaves decay to the optimizer.
    """
    of_norms = {
        parameter for module in network.modules() if isinstance(module, NORMS) for parameter in module.parameters()
    }
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    spared = [parameter for parameter in learned if parameter.ndim <= 1 or parameter in of_norms]
    if decay_norm_and_bias or weight_decay == 0 or not spared:
        return [{"params": learned}]
    spared_set = set(spared)
    decayed = [parameter for parameter in learned if parameter not in spared_set]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def faster_decoder(
    groups: Iterable[dict[str, Any]], encoder: nn.Module, lr: float, ratio: float
) -> list[dict[str, Any]]:
    """The same groups, but what is not of the encoder has `ratio` times the learning rate (Chen et al. 2018: 10)."""
    inside = set(encoder.parameters())
    parts = []
    for group in groups:
        of_encoder = [p for p in group["params"] if p in inside]
        others = [p for p in group["params"] if p not in inside]
        parts += [{**group, "params": of_encoder}, {**group, "params": others, "lr": ratio * lr}]
    return [part for part in parts if part["params"]]


def _check(**values: float) -> None:
    for name, value in values.items():
        if value < 0 or (name in ("momentum", "beta1", "beta2") and value >= 1):
            rule = "at least 0" + (" and below 1" if name in ("momentum", "beta1", "beta2") else "")
            raise ValueError(f"{name} must be {rule}, got {value}")


def _with_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters that have a gradient, and their gradients plus the decay."""
    params = [p for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in params]
    if params and group["weight_decay"]:
        gradients = list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))
    return params, gradients


def _loss(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Momentum(Optimizer):
    """Gradient descent with momentum in both forms: w -= lr v, where v = m v + g or, averaging, v = m v + (1 - m) g.

    The velocity starts at 0. With `bias_correction` the average is divided by 1 - m^t. The accumulating form (Polyak
    1964) is torch.optim.SGD's; an averaging step is 1 - m as long, so it goes with a learning rate 1 / (1 - m) times as
    large. `weight_decay` is added to the gradient.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 0.01,
        momentum: float = 0.9,
        average: bool = False,
        bias_correction: bool = False,
        weight_decay: float = 0.0,
    ):
        _check(lr=lr, momentum=momentum, weight_decay=weight_decay)
        if bias_correction and not average:
            raise ValueError("bias_correction needs average=true: a sum has no bias to correct")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "average": average,
                "bias_correction": bias_correction,
                "weight_decay": weight_decay,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _loss(closure)
        for group in self.param_groups:
            params, gradients = _with_gradients(group)
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p].update(step=0, velocity=torch.zeros_like(p))
                self.state[p]["step"] += 1
            velocities = [self.state[p]["velocity"] for p in params]
            momentum = group["momentum"]
            torch._foreach_mul_(velocities, momentum)
            torch._foreach_add_(velocities, gradients, alpha=1 - momentum if group["average"] else 1.0)
            if group["bias_correction"]:
                corrections = [1 - momentum ** self.state[p]["step"] for p in params]
                velocities = list(torch._foreach_div(velocities, corrections))
            torch._foreach_add_(params, velocities, alpha=-group["lr"])
        return loss


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1) whose bias correction can be left out; with it, torch.optim.Adam.

    `weight_decay` is added to the gradient.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
    ):
        _check(lr=lr, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=weight_decay)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(betas),
                "eps": eps,
                "weight_decay": weight_decay,
                "bias_correction": bias_correction,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _loss(closure)
        for group in self.param_groups:
            params, gradients = _with_gradients(group)
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p].update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
                self.state[p]["step"] += 1
            means = [self.state[p]["mean"] for p in params]
            squares = [self.state[p]["square"] for p in params]
            beta1, beta2 = group["betas"]
            torch._foreach_lerp_(means, gradients, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
            scales = torch._foreach_sqrt(squares)
            step_sizes = [-group["lr"]] * len(params)
            if group["bias_correction"]:
                steps = [self.state[p]["step"] for p in params]
                torch._foreach_div_(scales, [(1 - beta2**t) ** 0.5 for t in steps])
                step_sizes = [-group["lr"] / (1 - beta1**t) for t in steps]
            torch._foreach_add_(scales, group["eps"])
            torch._foreach_addcdiv_(params, means, scales, step_sizes)
        return loss


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, algorithm 1): momentum with a learning rate for each tensor.

    v = m v + lr r (g + d w), w -= v, with decay d and the trust ratio r = trust |w| / (|g| + d |w|). Tensors with one
    axis or none (biases, norms), and those whose weight or gradient is 0, have r = 1.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ):
        _check(lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _loss(closure)
        for group in self.param_groups:
            params, gradients = _with_gradients(group)
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p)
            velocities = [self.state[p]["velocity"] for p in params]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, self._scaled(params, gradients, group))
            torch._foreach_sub_(params, velocities)
        return loss

    def _scaled(self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The gradients times lr times their trust ratios, which stay on the device so that nothing waits for it."""
        wide = [i for i, p in enumerate(params) if p.ndim > 1]
        rates: list[Any] = [group["lr"]] * len(params)
        if wide:
            weight = torch.stack(torch._foreach_norm([params[i] for i in wide]))
            gradient = torch.stack(torch._foreach_norm([g for i in wide if (g := params[i].grad) is not None]))
            ratio = group["trust"] * weight / (gradient + group["weight_decay"] * weight)
            ratio = torch.where((weight > 0) & (gradient > 0), ratio, 1.0)
            for i, rate in zip(wide, (group["lr"] * ratio).unbind(), strict=True):
                rates[i] = rate
        return [gradient * rate for gradient, rate in zip(gradients, rates, strict=True)]


class EMA:
    """Exponential moving average of a network's weights and running statistics: a = decay a + (1 - decay) w.

    It starts at the weights of the moment or, with `bias_correction`, at 0 and is divided by 1 - decay^t, so that the
    start does not count: the same as averaging by (1 - decay) / (1 - decay^t) instead of 1 - decay. The network must
    already be where it will be trained: its tensors are looked up once.
    """

    def __init__(self, network: nn.Module, decay: float, bias_correction: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of averaged weights must be in [0, 1), got {decay}")
        self.decay = decay
        self.bias_correction = bias_correction
        self.steps = 0
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self.tensors = {name: t.detach() for name, t in tensors.items() if t.is_floating_point()}
        self.averages = {name: t.clone() for name, t in self.tensors.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's present weights."""
        self.steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.steps if self.bias_correction else 1)
        torch._foreach_lerp_(list(self.averages.values()), list(self.tensors.values()), share)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """The network has the averaged weights inside the `with`, its own again, bit by bit, after it."""
        tensors = list(self.tensors.values())
        own = [t.clone() for t in tensors]
        with torch.no_grad():
            torch._foreach_copy_(tensors, list(self.averages.values()))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(tensors, own)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "averages": dict(self.averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; raises ValueError if it is of another network."""
        if state["averages"].keys() != self.averages.keys():
            differing = sorted(state["averages"].keys() ^ self.averages.keys())
            raise ValueError(
                f"averaged weights are of another network: {len(differing)} names differ, {differing[0]!r}"
            )
        self.steps = state["steps"]
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])
