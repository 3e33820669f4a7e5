"""`trainer.split_batches=auto`: as few parts of a batch as memory allows."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


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
