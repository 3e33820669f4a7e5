"""Checkpoints: plain data, written whole or not at all."""

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnn_train.errors import ConfigError, EnvError


def save(state: dict[str, Any], path: Path) -> None:
    """Write `state` so that `path` is always either the old or the new checkpoint, also after a power cut.

    The temporary file lies in the same directory: a rename across file systems would be a copy.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer.
        temporary.unlink(missing_ok=True)
        raise EnvError(f"cannot write {path}: {_reason(error)}; the previous checkpoint is untouched") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


def _sync_directory(directory: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, running no code of it; ConfigError if missing, damaged or not plain data."""
    if not path.is_file():
        raise ConfigError(f"no checkpoint at {path}")
    try:
        if not zipfile.is_zipfile(path):
            raise ConfigError(f"{path} is damaged or not a checkpoint (not a zip archive)")
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ConfigError(f"{path} is damaged (checksum of {damaged} is wrong)")
        return torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as a checkpoint: {_reason(error)}") from error


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a run's checkpoint or a plain state_dict; layers whose shape differs (another head) keep their start."""
    state = load(path)
    state = state.get("network", state.get("state_dict", state))
    own = network.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    if not fitting:
        raise ConfigError(f"{path} holds no weight of this network; it begins with {next(iter(state), 'nothing')!r}")
    network.load_state_dict(fitting, strict=False)
    others = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    if others:
        some = ", ".join(others[:3])
        print(
            f"{path}: {len(others)} of {len(own)} tensors are not in it and start fresh ({some}, ...)", file=sys.stderr
        )
