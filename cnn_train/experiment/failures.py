"""What becomes of an error during training."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from cnn_train.errors import EnvError, UserError
from cnn_train.tasks.task import Task


@contextmanager
def saved_at_errors(task: Task) -> Iterator[None]:
    """Within: an error keeps the state that was reached, if it is that between two updates.

    That memory is out becomes an EnvError, which says of what batch.
    """
    try:
        yield
    except Exception as error:
        if task.between_updates:
            task.leave_evaluation()
            with suppress(UserError, RuntimeError):
                for callback in task.callbacks:
                    callback.on_error(task)
        if is_out_of_memory(error):
            raise EnvError(out_of_memory(task, error)) from error
        raise


def is_out_of_memory(error: Exception) -> bool:
    allocator = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or allocator


def out_of_memory(task: Task, error: Exception) -> str:
    """What needed how much, and how the same batch fits."""
    text = " ".join(str(error).split())
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    capacity = re.search(r"total capacity of ([\d.]+ \w+)", text)
    shape = "x".join(map(str, (task.data.in_channels, *task.data.image_size)))
    return (
        f"out of memory in step {task.progress.step + 1}: a batch of {task.data.batch_size} images of {shape} in "
        f"{task.split_batches} part(s)"
        + (f" asked for {asked[1]} more" if asked else "")
        + (f" than is free of {capacity[1]}" if capacity else "")
        + f"; trainer.split_batches={2 * task.split_batches} needs less memory, "
        "trainer.split_batches=auto finds what fits"
    )
