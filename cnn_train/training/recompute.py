"""Activations that are computed again on the way back instead of being kept: less memory, about a third more time.

Chen, Xu, Zhang & Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016, https://arxiv.org/abs/1604.06174.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SMALL = 8  # weighty layers of a block that is not cut further


def recompute(network: nn.Module) -> list[str]:
    """Let the network's blocks keep their inputs alone in training; the names of the blocks.

    A block is a module of several weighty layers, the network's own child or in a list or sequence of modules. A
    sequence of single layers is cut into about as many parts as a part has layers. The network computes the same bits,
    statistics of norms included.
    """
    blocks = dict(_blocks(network, "")) or {"": network}
    for module in blocks.values():
        run = _run_parts if _is_plain(module) else _run_whole
        # A method, which a copy binds to itself.
        module.forward = MethodType(run, module)
    return list(blocks)


def _blocks(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        inner = list(_blocks(child, path))
        listed = not prefix or isinstance(module, nn.Sequential | nn.ModuleList)
        if _is_plain(child) or (listed and _weighty(child) > 1 and (not inner or _weighty(child) <= SMALL)):
            yield path, child
        else:
            yield from inner


def _is_plain(module: nn.Module) -> bool:
    """Is this a sequence of several layers, one after the other?"""
    if type(module).forward is not nn.Sequential.forward:
        return False
    counts = [_weighty(child) for child in module.children()]
    return sum(counts) > 1 and max(counts) == 1


def _weighty(module: nn.Module) -> int:
    """Layers with weights that are no norms."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)
    return sum(isinstance(inner, kinds) for inner in module.modules())


def _run_whole(module: nn.Module, *inputs: Any, **named: Any) -> Any:
    return _checkpointed(module, lambda *x: type(module).forward(module, *x, **named), *inputs)


def _run_parts(module: nn.Module, x: Tensor) -> Tensor:
    """As `nn.Sequential`, in parts of about the root of its number of weighty layers."""
    most = max(round(math.sqrt(_weighty(module))), 1)
    parts: list[list[nn.Module]] = [[]]
    for child in module.children():
        if _weighty(child) and sum(map(_weighty, parts[-1])) == most:
            parts.append([])
        parts[-1].append(child)
    for part in parts:
        layers = nn.Sequential(*part)
        layers.training = module.training
        x = _checkpointed(layers, layers.forward, x)
    return x


def _checkpointed(module: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    learns = any(p.requires_grad for p in module.parameters())
    if not (module.training and (learns or any(isinstance(x, Tensor) and x.requires_grad for x in inputs))):
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _statistics_kept(module)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Put back running statistics after the block: they were updated the first time."""
    before = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
