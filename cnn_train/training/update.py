"""One update of the weights: the gradient's norm, clipping, the test of finiteness, the optimizer, averaged weights."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.training.optim import EMA, faster_decoder, parameter_groups
from cnn_train.training.recipe import Recipe


def make_optimizer(recipe: Recipe, network: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer with its groups of parameters, fused where it can be."""
    groups = parameter_groups(network, default_of(recipe.optimizer, "weight_decay"), recipe.decay_norm_and_bias)
    if recipe.decoder_lr_ratio != 1:
        lr = default_of(recipe.optimizer, "lr")
        groups = faster_decoder(groups, network.get_submodule("backbone"), lr, recipe.decoder_lr_ratio)
    groups = recipe.finetune.groups(groups, network, default_of(recipe.optimizer, "lr"))
    fused = {"fused": True} if fuses(recipe, device) else {}
    optimizer = recipe.optimizer(groups, **fused)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def fuses(recipe: Recipe, device: torch.device) -> bool:
    """Whether the optimizer has a fused form for this device."""
    return device.type in ("cuda", "cpu") and _takes(recipe.optimizer, "fused")


class Update:
    """Called once a gradient is complete: gives its norm before clipping, and False if it was found not to be finite.

    No weight takes a gradient that is not finite, nor one after it. On a GPU with a fused optimizer the test stays on
    the device, without a synchronization, and the curve reports it later; otherwise it is tested here.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        recipe: Recipe,
        *,
        device: torch.device,
        world_size: int,
        scaler: Any = None,
        ema: EMA | None = None,
    ):
        self.optimizer = optimizer
        self.parameters = parameters
        self.recipe = recipe
        self.several = world_size > 1
        self.scaler = scaler
        self.ema = ema
        waits = device.type == "cpu" or recipe.skip_not_finite or not fuses(recipe, device) or scaler is not None
        self.waits = device.type == "cpu" or scaler is None or recipe.skip_not_finite
        self.poison = None if waits else torch.zeros((), device=device)

    def __call__(self, loss: Tensor) -> tuple[Tensor, bool]:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        limit = self.recipe.gradient_clip
        norm = gradient_norm(self.parameters) if limit is None else nn.utils.clip_grad_norm_(self.parameters, limit)
        # With a scaler, infinite gradients are no news: it leaves out the step. The norm is the same in all processes.
        decisive = loss if self.scaler is not None else norm if self.several else loss + norm
        finite = True
        if self.poison is not None:
            self.poison = self.poison.add(decisive, alpha=0)  # stays 0, or becomes and stays NaN
            self.optimizer.found_inf = (self.poison != 0).float()  # type: ignore[attr-defined]
        elif self.waits:
            finite = math.isfinite(float(decisive))
        if finite and self.scaler is None:
            self.optimizer.step()
        elif finite:
            self.scaler.step(self.optimizer)
        if self.scaler is not None:
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None and finite:
            self.ema.update()
        return norm, finite

    def heal(self) -> None:
        """Let weights change again after a step that was not finite."""
        if self.poison is not None:
            self.poison.zero_()

    def set_learning_rate(self, factor: float, epoch: int = 0) -> float:
        """Multiply each group's own rate, 0 before the epoch that it starts at; the first group's rate now."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor if epoch >= group.get("starts", 0) else 0.0
        return self.optimizer.param_groups[0]["lr"]


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients as one vector, on their device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    # Half the time of nn.utils.get_total_norm, which sorts them by device first.
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _takes(optimizer: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(getattr(optimizer, "func", optimizer)).parameters


def default_of(optimizer: Callable[..., Any], name: str) -> float:
    """The value of a keyword of a partial."""
    return getattr(optimizer, "keywords", {}).get(name, 0.0)
