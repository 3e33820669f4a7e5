"""One pass over a split: its loss, and what the task counts."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from cnn_train.data.data import Batch
from cnn_train.tasks.task import Measured, Task
from cnn_train.training.optim import EMA


class Evaluation:
    """Counts batches with the averaged weights, where there are some; `leave` puts back those that are trained."""

    def __init__(self, network: nn.Module, task: Task, ema: EMA | None, device: torch.device):
        self.network = network
        self.task = task
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.count = 0
        self._averaged = ExitStack()
        task.reset()
        if ema is not None:
            self._averaged.enter_context(ema.swap())

    def add(self, images: Tensor, batch: Batch) -> None:
        """Count a batch whose images are as the network takes them."""
        scores = self.task.infer(self.network, images)
        self.loss_sum += self.task.loss(scores, batch.targets) * len(images)
        self.count += len(images)
        self.task.update(scores, batch)

    def finish(self, sum_over_processes: Callable[[Tensor], Tensor]) -> Measured:
        """What was found, the mean loss per image among the metrics."""
        total = torch.stack([self.loss_sum, self.loss_sum.new_tensor(float(self.count))])
        loss, count = sum_over_processes(total).tolist()
        measured = self.task.compute()
        measured.metrics = {"loss": loss / max(count, 1), **measured.metrics}
        self.leave()
        return measured

    def leave(self) -> None:
        self._averaged.close()
