"""Batch norm folded into the convolution before it, for networks that have no norms (norm=none)."""

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.layers.norm import NORMS
from cnn_train.models.network import classification_name, min_size

PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def fold_norms(
    network: nn.Module, state: dict[str, Tensor], eps: float = 1e-5
) -> tuple[dict[str, Tensor], set[str], list[str]]:
    """For a network without norms: the state of one with batch norm, each norm folded into the convolution before it.

    w' = w g / sqrt(v + eps) and b' = (b - m) g / sqrt(v + eps) + beta, with the norm's scale g, shift beta, running
    mean m and variance v. Gives the state under the network's names, the names of the tensors that changed, and the
    norms that follow no convolution.
    """
    norms = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    if not norms or any(isinstance(module, NORMS) for module in network.modules()):
        return state, set(), []
    pairs = _by_slots(network, state, norms)
    if not pairs:
        state, pairs = _by_order(network.state_dict(), state)
    folded, changed = dict(state), set()
    for conv, norm in pairs.items():
        weight, mean = state[f"{conv}.weight"], state[f"{norm}.running_mean"]
        scale = (state[f"{norm}.running_var"] + eps).rsqrt() * state.get(f"{norm}.weight", torch.ones_like(mean))
        folded[f"{conv}.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        shift = state.get(f"{norm}.bias", torch.zeros_like(mean))
        folded[f"{conv}.bias"] = (state.get(f"{conv}.bias", torch.zeros_like(mean)) - mean) * scale + shift
        changed |= {f"{conv}.weight", f"{conv}.bias"}
        for part in PARTS:
            folded.pop(f"{norm}.{part}", None)
    return folded, changed, [] if not pairs else [norm for norm in norms if f"{norm}.running_mean" in folded]


def _by_slots(network: nn.Module, state: Mapping[str, Tensor], norms: list[str]) -> dict[str, str]:
    """The file's convolutions and norms, where the network keeps an `nn.Identity` under each norm's name."""

    def in_file(name: str) -> str:
        known = any(f"{name}.{part}" in state for part in PARTS)
        return name if known else classification_name(network, f"{name}.weight").removesuffix(".weight")

    slots = {n for n, module in network.named_modules() if isinstance(module, nn.Identity) and in_file(n) in norms}
    if not slots:
        return {}
    return {in_file(conv): in_file(slot) for slot, conv in convolutions_before(network, slots).items()}


def convolutions_before(network: nn.Module, slots: set[str]) -> dict[str, str]:
    """The convolution whose output goes straight into each of these modules, found by a run on the meta device."""
    meta = copy.deepcopy(network).to("meta").eval()
    outputs: list[tuple[Tensor, str]] = []
    pairs: dict[str, str] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: outputs.append((output, name))

    def look(slot: str) -> Any:
        def found(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for output, name in outputs:
                if output is inputs[0]:
                    pairs[slot] = name

        return found

    convolutions = [(name, module) for name, module in meta.named_modules() if isinstance(module, nn.Conv2d)]
    for name, conv in convolutions:
        conv.register_forward_hook(keep(name))
    for slot in slots:
        meta.get_submodule(slot).register_forward_pre_hook(look(slot))
    side = max(min_size(network), 64)
    with torch.no_grad():
        first = convolutions[0][1]
        meta(torch.empty(2, first.in_channels, side, side, dtype=first.weight.dtype, device="meta"))
    return pairs


def _by_order(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """For numbered layers, whose numbers move where a norm is missing: the file's names become the network's.

    Gives the state under new names, and the norm that follows each convolution.
    """
    convs = [name.removesuffix(".weight") for name, weight in own.items() if weight.ndim == 4]
    theirs = [name.removesuffix(".weight") for name, weight in state.items() if weight.ndim == 4]
    windows = [[names[f"{n}.weight"].shape[2:] for n in some] for names, some in ((own, convs), (state, theirs))]
    if windows[0] != windows[1]:
        return state, {}
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    following = dict(pairwise(modules))
    new = dict(zip(theirs, convs, strict=True))
    pairs = {new[c]: f"norm of {new[c]}" for c in theirs if f"{following.get(c)}.running_mean" in state}
    new |= {following[c]: pairs[new[c]] for c in theirs if new[c] in pairs}
    renamed = {}
    for name, value in state.items():
        module, _, part = name.rpartition(".")
        renamed[f"{new.get(module, module)}.{part}"] = value
    return renamed, pairs
