"""Adapting a state_dict to a network: another head, number of channels or encoder, a dense layer as convolution."""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cnn_train.errors import ConfigError
from cnn_train.models.classification.densenet import from_old_torchvision
from cnn_train.models.network import classification_name


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load the state_dict that stands in the file `source`; layers whose shape differs (another head) keep their start.

    An encoder also takes the weights of its classification network, and a dense layer turned into a convolution those
    of the dense one. The first convolution is folded to the number of channels that the images have.
    """
    state = from_old_torchvision(dict(state))
    own = network.state_dict()
    stem = next((f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Conv2d)), "")
    fitting, told = {}, []
    for name, weight in own.items():
        given = state.get(name, state.get(classification_name(network, name)))
        if given is None:
            continue
        if given.ndim == 2 and given.numel() == weight.numel():
            given = given.view(weight.shape)
        if name == stem and given.ndim == weight.ndim and given.size(1) != weight.size(1):
            told.append(f"{name} is folded from {given.size(1)} to {weight.size(1)} channels")
            given = fold(given, weight.size(1))
        if given.shape == weight.shape:
            fitting[name] = given
    if not fitting:
        raise ConfigError(f"{source} holds no weight of this network; it begins with {next(iter(state), 'nothing')!r}")
    network.load_state_dict(fitting, strict=False)
    others = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    if others:
        some = ", ".join(others[:3])
        told.append(f"{len(others)} of {len(own)} tensors are not in it and start fresh ({some}, ...)")
    if told:
        print(f"{source}: {'; '.join(told)}", file=sys.stderr)


def fold(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A convolution's weight (out, in, h, w) for another number of input channels: (out, channels, h, w).

    Channels are dealt out in turn: fewer ones are the sums of those dealt to them, more are copies that share the
    original. To an image whose channels are all alike the convolution answers as before.
    """
    given = weight.size(1)
    share = torch.zeros(channels, given, dtype=weight.dtype)
    for i in range(max(given, channels)):
        share[i % channels, i % given] = 1
    return torch.einsum("oihw,ci->ochw", weight, share / share.sum(0))
