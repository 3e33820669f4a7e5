"""`trainer.split_batches=auto`: as few parts of a batch as memory allows."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def fit_batch(loop: Any) -> int:
    """How many parts of a loop's batch fit in the memory of every process."""
    batch = next(loop.train_batches())
    loop.network.train()

    def attempt(parts: int) -> None:
        loop.split_batches = parts
        with loop.trainer.precision_plugin.forward_context():
            loop.add_gradient(loop.to_network(batch.images), batch.targets, 1)

    weights, clean = loop.parameters_in_order, loop.optimizer.zero_grad
    parts = parts_that_fit(attempt, clean, len(batch.images), weights, loop.running)
    parts = int(loop.over_processes(torch.tensor(parts, device=loop.device), "max"))
    if loop.trainer.is_global_zero and parts > 1:
        log.warning("a batch of %d goes in %d parts, which fits", loop.data.batch_size, parts)
    return parts


def parts_that_fit(
    attempt: Callable[[int], None],
    clean: Callable[[], None],
    largest: int,
    parameters: Sequence[nn.Parameter],
    buffers: Sequence[Tensor],
) -> int:
    """Double the parts until `attempt`, a batch through the network and back, fits in memory; `clean` drops gradients.

    Two tensors as large as the weights stand for the state that an optimizer will have. Buffers are left as they were.
    Raises OutOfMemoryError if not even `largest` parts, single images, fit.
    """
    before = [buffer.clone() for buffer in buffers]
    ballast: list[Tensor] = []
    parts = 1
    while True:
        try:
            ballast = [torch.empty_like(p) for p in parameters for _ in range(2)]
            attempt(parts)
            break
        except torch.OutOfMemoryError:
            if parts >= largest:
                raise
            parts = min(2 * parts, largest)
        finally:
            ballast.clear()
            clean()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(old)
    return parts
