"""What every analysis needs of a module: its leaves, a mode for a while, the tensors in its outputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def is_leaf(module: nn.Module) -> bool:
    """Has the module no modules inside?"""
    return next(module.children(), None) is None


def leaves(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each layer: what `named_modules` yields, without the modules that hold others."""
    return ((name, m) for name, m in module.named_modules() if is_leaf(m))


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the module into training or evaluation mode for the block, then each of its parts back into its own."""
    before = {m: m.training for m in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        # By `train`, from the outside in: it may do more than set a flag, as an encoder's two output strides need.
        for m, mode in before.items():
            m.train(mode)


def tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested containers, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)
