"""The gradient of one update, from the batches of its group and the parts of each batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnn_train.tasks.task import Learned, Task


@dataclass(frozen=True)
class Totals:
    """What a batch adds to an epoch, without a gradient: `loss` is its own, `total` / `weight` with those of others."""

    loss: Tensor
    total: Tensor
    weight: Tensor | int
    correct: Tensor
    count: Tensor
    parts: Tensor | None  # (P), as `total`


def totals(learned: Learned, images: int) -> Totals:
    """Those of a batch, or of a part of one, with so many images."""
    loss, parts = learned.loss.detach(), learned.parts
    if learned.divisor is None:
        parts = None if parts is None else parts * images
        return Totals(loss, loss * images, images, learned.correct, learned.count, parts)
    mean = loss / learned.divisor.clamp(min=1)
    return Totals(mean, loss, learned.divisor, learned.correct, learned.count, parts)


class Gradient:
    """Adds the gradients of batches up; `settle` makes them that of the mean over all.

    A batch's loss is a mean over its images, and batches of a group count alike; losses that are sums
    (`Learned.divisor`) are divided by the total of the group and of all processes, once that is known.
    """

    def __init__(self, network: nn.Module, task: Task):
        self.network = network
        self.task = task
        self.divisor: Tensor | None = None

    def begin(self) -> None:
        """A group begins."""
        self.divisor = None

    def add(
        self, images: Tensor, targets: Tensor, parts: int, group_size: int, backward: Callable[[Tensor], None]
    ) -> Totals:
        """Add a batch's share, in the memory that one of its parts takes; the batch's totals."""
        parts = min(parts, len(images))
        if parts == 1:
            learned = self._add(images, targets, 1 / group_size, backward)
            return totals(learned, len(images))
        found = []
        for part, labels in zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True):
            share = len(part) / len(images)
            found.append(totals(self._add(part, labels, share / group_size, backward), len(part)))
        total, correct, count = (
            torch.stack(values).sum(0) for values in zip(*((t.total, t.correct, t.count) for t in found), strict=True)
        )
        weight = torch.stack([torch.as_tensor(t.weight) for t in found]).sum(0)
        parts_of_loss = [t.parts for t in found if t.parts is not None]
        summed = torch.stack(parts_of_loss).sum(0) if parts_of_loss else None
        return Totals(total / weight.clamp(min=1), total, weight, correct, count, summed)

    def _add(self, images: Tensor, targets: Tensor, weight: float, backward: Callable[[Tensor], None]) -> Learned:
        learned = self.task.learn(self.network(images), targets, images.shape[-2:])
        if learned.divisor is not None:
            self.divisor = learned.divisor if self.divisor is None else self.divisor + learned.divisor
            weight = 1
        backward(learned.loss * weight if weight != 1 else learned.loss)
        return learned

    def settle(self, parameters: Sequence[nn.Parameter], total: Callable[[Tensor], Tensor], processes: int) -> None:
        """Divide gradients, averaged over processes, of sums by the divisor of all; `total` sums it over processes."""
        if self.divisor is None:
            return
        factor = processes / total(self.divisor.clone()).clamp(min=1)  # a copy, which may be summed in place
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)
        self.divisor = None
