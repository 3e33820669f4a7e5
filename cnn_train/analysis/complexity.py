"""What a training step costs in memory, estimated without running it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.analysis.modules import in_mode
from cnn_train.analysis.shapes import Arithmetic
from cnn_train.analysis.trace import check_size, on_meta


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a training step needs: what is always there, and what each image adds.

    `parameters`, `gradients`, `optimizer` and `buffers` do not depend on the batch. `saved` is what autograd keeps of
    one image for the backward pass, `transient` the largest output and its gradient, alive at the same time as those.
    """

    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    saved: int
    transient: int

    def peak(self, batch_size: int) -> int:
        """Bytes at the peak of a step with `batch_size` images; workspace of the convolutions comes on top."""
        return self.fixed + batch_size * (self.saved + self.transient)

    @property
    def fixed(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.buffers

    def largest_batch(self, available: int) -> int:
        """Images per batch that fit into `available` bytes; 0 if none does."""
        return max(0, (available - self.fixed) // max(1, self.saved + self.transient))


def training_memory(module: nn.Module, input_size: Sequence[int], *, optimizer_slots: int = 1) -> TrainingMemory:
    """Memory of a training step for images of `input_size` (C, H, W), from autograd's own list of saved tensors.

    `optimizer_slots`: tensors that the optimizer keeps per parameter (SGD 0, with momentum 1, Adam 2). Mixed precision,
    activation checkpointing and the allocator's rounding are not counted.
    """
    channels, height, width = check_size(input_size)
    images = 2  # one would fail in batch norm over 1x1 maps
    with on_meta(module) as originals, torch.enable_grad():
        weights = {
            t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in (*module.parameters(), *module.buffers())
        }
        saved: dict[int, int] = {}
        kept: list[Tensor] = []  # storage addresses stay unique as long as the tensors live
        largest = 0

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                saved[storage._cdata] = storage.nbytes()
                kept.append(tensor)
            return tensor

        def measure(_: nn.Module, __: Any, output: Any) -> None:
            nonlocal largest
            if isinstance(output, Tensor):
                largest = max(largest, output.numel() * output.element_size())

        hooks = [m.register_forward_hook(measure) for m in module.modules()]
        try:
            dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
            batch = torch.empty(images, channels, height, width, dtype=dtype, device="meta")
            saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
            with in_mode(module, training=True), Arithmetic(), saving:
                kept.append(batch)
                output = module(batch)
            del output
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"the network fails in training on two images of {tuple(input_size)}: {reason}") from error
        finally:
            for hook in hooks:
                hook.remove()
        trained = sum(p.numel() * p.element_size() for p in originals.values() if p.requires_grad)
        total = sum(p.numel() * p.element_size() for p in originals.values())
        return TrainingMemory(
            parameters=total,
            gradients=trained,
            optimizer=optimizer_slots * trained,
            buffers=sum(weights.values()) - total,
            saved=sum(saved.values()) // images,
            transient=2 * largest // images,
        )
