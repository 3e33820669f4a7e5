"""What becomes of an error during training."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cnn_train.errors import ConfigError, EnvError
from cnn_train.training.loop import Loop


@contextmanager
def failures_explained(loop: Loop) -> Iterator[None]:
    """Turn lack of memory into an EnvError that names the batch, and what Lightning refuses into a ConfigError."""
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    except Exception as error:
        if "DataLoader worker" in str(error):  # raised wherever the program is when the worker dies
            raise EnvError(
                f"a data worker was killed, usually for memory, after step {loop.progress.step}; the state is saved: "
                "resume with fewer data.workers"
            ) from error
        if operation := without_repeating_form(error):
            raise EnvError(
                f"repro=strict: {operation} has no form on a GPU that gives the same bits each time; use repro=fast "
                "or trainer=cpu"
            ) from error
        if is_out_of_memory(error):
            raise EnvError(out_of_memory(loop, error)) from error
        raise


def without_repeating_form(error: Exception) -> str | None:
    """The operation for which torch has no deterministic algorithm, if that is the error."""
    found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
    return found[1] if found else None


def is_out_of_memory(error: Exception) -> bool:
    allocator = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or allocator


def out_of_memory(loop: Loop, error: Exception) -> str:
    """What needed how much, and how the same batch fits."""
    text = " ".join(str(error).split())
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    capacity = re.search(r"total capacity of ([\d.]+ \w+)", text)
    shape = "x".join(map(str, (loop.data.in_channels, *loop.data.image_size)))
    return (
        f"out of memory in step {loop.progress.step + 1}: a batch of {loop.data.batch_size} images of {shape} in "
        f"{loop.split_batches} part(s)"
        + (f" asked for {asked[1]} more" if asked else "")
        + (f" than is free of {capacity[1]}" if capacity else "")
        + f"; trainer.split_batches={2 * loop.split_batches} needs less memory, "
        "trainer.split_batches=auto finds what fits"
    )
