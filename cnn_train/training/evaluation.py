"""One pass over a split: its loss, and what the task counts."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from cnn_train.data.data import Batch
from cnn_train.tasks.task import Measured, Task
from cnn_train.training.gradient import totals
from cnn_train.training.optim import EMA
from cnn_train.training.progress import Sums


class Evaluation:
    """Counts batches with the averaged weights, where there are some; `leave` puts back those that are trained.

    What the task says of each sample is kept if there are at most `samples` of them (0: not kept).
    """

    def __init__(self, network: nn.Module, task: Task, ema: EMA | None, device: torch.device, samples: int = 0):
        self.network = network
        self.task = task
        self.sums = Sums.zero(device, len(task.loss_parts))
        self.samples = torch.zeros(samples, 4, dtype=torch.float64, device=device)
        self._averaged = ExitStack()
        task.reset()
        if ema is not None:
            self._averaged.enter_context(ema.swap())

    def add(self, images: Tensor, batch: Batch) -> None:
        """Count a batch whose images are as the network takes them."""
        scores = self.task.infer(self.network, images)
        self.sums.add(totals(self.task.learn(scores, batch.targets, images.shape[-2:]), len(images)))
        judged = self.task.update(scores, batch)
        if len(self.samples):
            self.samples[batch.indices] = torch.cat([torch.ones_like(judged[:, :1]), judged], 1)

    def finish(self, sum_over_processes: Callable[[Tensor], Tensor], choose: bool = False) -> Measured:
        """What was found, the mean loss among the metrics; the task may `choose` by it before it judges."""
        loss, _, _, weight, *parts = sum_over_processes(torch.cat(self.sums.values())).tolist()
        if choose:
            self.task.choose()
        measured = self.task.compute()
        names = [f"loss_{name}" for name in self.task.loss_parts]
        measured.metrics = {"loss": loss / max(weight, 1), **measured.metrics}
        measured.metrics |= {name: part / max(weight, 1) for name, part in zip(names, parts, strict=True)}
        if len(self.samples) and not measured.samples:
            rows = sum_over_processes(self.samples).tolist()
            measured.samples = {index: row for index, (seen, *row) in enumerate(rows) if seen}
        self.leave()
        return measured

    def leave(self) -> None:
        self._averaged.close()
