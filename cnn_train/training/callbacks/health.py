"""Per layer and every so many steps: are units dead or saturated, do gradients and updates have a sane size?

Curves in TensorBoard under `watch/`. Hooks exist during such steps only.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from cnn_train.analysis.modules import leaves
from cnn_train.analysis.statistics import ENDS, RECTIFIERS, firing, moments, saturation, silent
from cnn_train.training.loop import Callback, Loop

_TINY = 1e-12


class Health(Callback):
    """Logs, of one step in `every` (None: never), per layer: share of dead channels (rectifiers), of saturated values
    (sigmoid, tanh) and of zeros, norms of the gradient and (by the weight's) of the update; per epoch the drift.

    Drift compares the means over an epoch's sampled steps with the epoch before: how far an activation's mean moved, in
    standard deviations, and by what fraction its deviation changed (the internal covariate shift of Ioffe & Szegedy
    2015).
    Of accumulated gradients the last batch's is shown. Training does not change by a bit.
    """

    def __init__(self, every: int | None = None):
        self.every = every
        self.activations = True
        self._values: dict[str, Tensor] = {}
        self._moments: dict[str, list[Tensor]] = defaultdict(list)
        self._before: dict[str, tuple[float, float]] = {}
        self._handles: list[Any] = []
        self._weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, loop: Any) -> None:
        # Hooks would compile a compiled network anew.
        self.activations = loop.network._compiled_call_impl is None

    def on_step(self, loop: Loop) -> None:
        if self.every is None:
            return
        if self._handles:
            self._detach()
            self._log(loop)
        if self._is_next(loop) and loop.loggers and loop.trainer.is_global_zero:
            self._attach(loop)

    def on_epoch_end(self, loop: Loop) -> None:
        if not loop.loggers or not self._moments:
            return
        names = list(self._moments)
        averages = torch.stack([torch.stack(self._moments[name]).mean(0) for name in names]).tolist()
        drift = {}
        for name, (mean, deviation) in zip(names, averages, strict=True):
            if name in self._before:
                old_mean, old_deviation = self._before[name]
                drift[f"watch/drift_of_mean/{name}"] = (mean - old_mean) / max(old_deviation, _TINY)
                drift[f"watch/drift_of_deviation/{name}"] = deviation / max(old_deviation, _TINY) - 1
            self._before[name] = (mean, deviation)
        self._moments.clear()
        if drift:
            loop.record(drift)

    def on_fit_end(self, trainer: L.Trainer, loop: Any) -> None:
        self._detach()
        self._weights.clear()

    def _is_next(self, loop: Loop) -> bool:
        """Is the next step to be looked at: the first update after `every` steps?"""
        progress, accumulate = loop.progress, loop.recipe.accumulate
        position = progress.step_in_epoch % max(progress.steps_per_epoch, 1)
        if (position + 1) % accumulate and position + 1 != progress.steps_per_epoch:
            return False
        assert self.every is not None
        return (progress.step + 1) % self.every < accumulate or self.every <= accumulate

    def _attach(self, loop: Loop) -> None:
        self._weights = {name: p.detach().clone() for name, p in _weights(loop.network)}
        scale = 1.0 if loop.scaler is None else float(loop.scaler.get_scale())
        for name, parameter in _weights(loop.network):
            self._handles.append(parameter.register_hook(self._gradient(name, scale)))
        if self.activations:
            for name, module in leaves(loop.network):
                self._handles.append(module.register_forward_hook(self._activation(name)))
        if not self._handles:
            self._weights.clear()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _gradient(self, name: str, scale: float) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            self._values[f"watch/gradient_norm/{name}"] = gradient.detach().norm().float() / scale

        return hook

    def _activation(self, name: str) -> Callable[..., None]:
        @torch.no_grad()
        def hook(module: nn.Module, inputs: Any, y: Any) -> None:
            if not module.training or not isinstance(y, Tensor) or not y.is_floating_point() or y.dim() < 2:
                return
            y = y.detach()
            if isinstance(module, RECTIFIERS):
                fires = firing(y)
                self._values[f"watch/dead/{name}"] = silent(fires).float().mean()
                self._values[f"watch/sparsity/{name}"] = 1 - fires.mean()
            if isinstance(module, tuple(ENDS)):
                self._values[f"watch/saturated/{name}"] = saturation(module, y)
            if _has_weights(module) or isinstance(module, nn.modules.batchnorm._NormBase):
                self._moments[name].append(torch.stack(moments(y)))

        return hook

    def _log(self, loop: Loop) -> None:
        with torch.no_grad():
            for name, parameter in _weights(loop.network):
                if name in self._weights:
                    old = self._weights[name]
                    ratio = (parameter.detach() - old).norm() / old.norm().clamp(min=_TINY)
                    self._values[f"watch/update_to_weight/{name}"] = ratio.float()
        self._weights.clear()
        if self._values and loop.loggers:
            names = list(self._values)
            values = torch.stack([self._values[name].reshape(()) for name in names]).tolist()
            loop.record(dict(zip(names, values, strict=True)))
        self._values.clear()


def _weights(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trained weights of two dimensions and more, by layer; biases and norms are left out."""
    named = ((name, p) for name, p in network.named_parameters() if p.requires_grad and p.dim() > 1)
    return [(name.removesuffix(".weight").removeprefix("_orig_mod."), p) for name, p in named]


def _has_weights(module: nn.Module) -> bool:
    return any(p.dim() > 1 for p in module.parameters(recurse=False))
