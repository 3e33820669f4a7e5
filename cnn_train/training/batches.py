"""What Lightning's loops iterate over, and who needs a call for each batch."""

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L

from cnn_train.data.data import Batch, Data

# One call of Lightning's loop costs about 0.6 ms, a step of LeNet-5 9 ms: several steps share a call.
STEPS_PER_CALL = 32
BATCH_HOOKS = (
    "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step",
)  # fmt: skip


def listens_to_batches(callback: L.Callback) -> bool:
    """Whether a callback wants to be called around every batch, so that each needs a call of its own."""
    return any(
        getattr(type(callback), hook) is not getattr(L.Callback, hook) or hook in vars(callback) for hook in BATCH_HOOKS
    )


class Calls:
    """The number of steps that each call of `training_step` does; it takes the batches itself."""

    def __init__(self, steps: int, per_call: int):
        # An epoch without a step left still has its end: Lightning leaves out epochs without calls.
        self.calls = [min(per_call, steps - first) for first in range(0, steps, per_call)] or [0]

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[int]:
        return iter(self.calls)


class Steps:
    """The batches themselves, one a call, for callbacks that listen to single batches."""

    def __init__(self, steps: int, batches: Callable[[], Iterator[Batch]]):
        self.steps, self.batches = steps, batches

    def __len__(self) -> int:
        return max(self.steps, 1)

    def __iter__(self) -> Iterator[Batch | int]:
        return iter(self.batches()) if self.steps else iter([0])


class EvalBatches:
    """The batches of a split for one process, as a loader with a length."""

    def __init__(self, data: Data, split: str, limit: int | None, **where: Any):
        self.data, self.split, self.where = data, split, where
        share = -(-(data.size(split) - where["rank"]) // where["world_size"])
        batches = -(-share // data.eval_batch_size)
        self.length = batches if limit is None else min(batches, limit)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        batches = self.data.eval_batches(self.split, **self.where)
        return (batch for batch, _ in zip(batches, range(self.length), strict=False))
