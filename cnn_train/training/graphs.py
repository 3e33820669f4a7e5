"""CUDA graphs: the kernels of a batch, to its gradient, recorded once and from then on launched together.

The step of a small network on a GPU waits for the launches, one for every operation and its way back (CUDA C++
Programming Guide, "CUDA Graphs"). What is launched is the same, so the weights are too, bit by bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.errors import ConfigError
from cnn_train.training.gradient import Totals

WARM_UP = 3  # batches before the recording: libraries choose algorithms and take memory in the first ones


class Recorded:
    """`add`, which takes images and targets and leaves gradients, for batches of the shape of one batch.

    Buffers are left as they were. Raises RuntimeError if `add` waits for the GPU or moves data to it.
    """

    def __init__(
        self,
        add: Callable[[Tensor, Tensor], Totals],
        images: Tensor,
        targets: Tensor,
        parameters: Sequence[nn.Parameter],
        buffers: Sequence[Tensor],
    ):
        self.images, self.targets, self.parameters = images.clone(), targets.clone(), parameters
        before = [buffer.clone() for buffer in buffers]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                add(self.images, self.targets)
                self._without_gradients()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.totals = add(self.images, self.targets)
        self.gradients = [parameter.grad for parameter in parameters]
        self._without_gradients()
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)

    def takes(self, images: Tensor, targets: Tensor) -> bool:
        """Whether a batch has the recorded shape."""
        return images.shape == self.images.shape and targets.shape == self.targets.shape

    def __call__(self, images: Tensor, targets: Tensor) -> Totals:
        self.images.copy_(images)
        self.targets.copy_(targets)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        # The next batch writes into the same memory, and the curve keeps the loss.
        return replace(self.totals, loss=self.totals.loss.clone())

    def _without_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def record(loop: Any) -> Recorded:
    """Record the gradient of a loop's whole batches; ConfigError if a step of its network cannot be recorded."""
    batch = next(loop.train_batches())
    loop.network.train()

    def add(images: Tensor, targets: Tensor) -> Totals:
        with loop.trainer.precision_plugin.forward_context():
            return loop.add_gradient(images, targets, 1)

    try:
        return Recorded(add, loop.to_network(batch.images), batch.targets, loop.parameters_in_order, loop.running)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"trainer.cuda_graphs=true: a step of this network cannot be recorded ({reason}); use false"
        ) from error
