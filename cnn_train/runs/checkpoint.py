"""Checkpoints: plain data, written whole or not at all."""

import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from cnn_train.atomic import create, temporary_name
from cnn_train.errors import ConfigError, EnvError

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"


def save(state: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write `state` so that `path` is always either the old or the new checkpoint, also after a power cut.

    The temporary file lies in the same directory: a rename across file systems would be a copy. Each record of the
    archive has its checksum. What `path` held before is kept as `previous`, if given, once the new one is on disk.
    """
    temporary, aside = temporary_name(path), temporary_name(path)
    try:
        needed, free = _bytes(state), shutil.disk_usage(path.parent).free
        if free < needed:
            raise EnvError(
                f"cannot write {path}: it needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; the "
                "checkpoint before is untouched, resume when there is room"
            )
        with create(temporary) as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _set_aside(path, aside, previous)
        os.replace(temporary, path)
        _sync_directory(path.parent)
        if aside.exists():
            os.replace(aside, previous or path)
    except (OSError, RuntimeError) as error:
        if "DataLoader worker" in str(error):  # one that died meanwhile: its signal interrupts whatever is done
            raise
        # torch reports a full disk as a RuntimeError of its zip writer.
        raise EnvError(
            f"cannot write {path}: {_reason(error)}; the checkpoint before is untouched, resume when there is room"
        ) from error
    finally:
        for leftover in (temporary, aside):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)


def _set_aside(path: Path, aside: Path, previous: Path) -> None:
    """Give the file a second name, so that it outlives its replacement; where names cannot be added, rename it."""
    aside.unlink(missing_ok=True)
    try:
        os.link(path, aside)
    except (OSError, NotImplementedError):
        os.replace(path, previous)


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)


def _bytes(state: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(state))


def _reason(error: BaseException | None) -> str:
    """What the operating system said, wherever in the chain of errors, or the first line of the message."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return text


def _sync_directory(directory: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, running no code of it; ConfigError if missing, damaged or not plain data.

    Its records must be stored as they are, as `torch.save` does, so that reading takes as long as the file is large.
    """
    if not path.is_file():
        raise ConfigError(f"no checkpoint at {path}")
    try:
        if not zipfile.is_zipfile(path):
            raise ConfigError(f"{path} is damaged or not a checkpoint (not a zip archive)")
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise ConfigError(
                    f"{path} has compressed records, which no checkpoint has; save it again with torch.save"
                )
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise ConfigError(f"{path} is damaged or no checkpoint (its records are larger than the file)")
            damaged = archive.testzip()
        if damaged:
            raise ConfigError(f"{path} is damaged (checksum of {damaged} is wrong)")
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_sizes(path, state)
        return state
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path} is damaged or holds more than plain data: {_reason(error)}") from error


def _check_sizes(path: Path, state: Any) -> None:
    """Refuse tensors that repeat their memory: a few bytes could claim to be terabytes, which a copy would need."""
    waiting, seen = [state], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.layout == torch.strided and value.nbytes > value.untyped_storage().nbytes():
                raise ConfigError(f"{path} has a tensor of shape {tuple(value.shape)} that the file does not hold")
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The state that a run continues from, None if it has saved none; and a remark if it is not that of last.ckpt."""
    problems = []
    for path in (folder / LAST, folder / PREVIOUS):
        if path.exists():
            try:
                state = load(path)
            except ConfigError as error:
                problems.append(str(error))
                continue
            if not (isinstance(state, dict) and isinstance(state.get("progress"), dict)):
                raise ConfigError(f"{path} holds no state of training; to start from its weights: weights={path}")
            told = f"{problems[0]}; going on from {path.name}, step {state['progress']['step']:,}" if problems else ""
            return state, told
    if problems:
        raise ConfigError(f"{'; '.join(problems)}; for a new run that starts from the best: weights={folder}/best.ckpt")
    return None, ""


def best_in(folder: Path) -> Path:
    """The checkpoint that a run is judged by: best.ckpt, or last.ckpt where no validation gave a number."""
    for name in (BEST, LAST):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{folder} holds no {BEST} or {LAST}; train it first, or name a checkpoint file")


def evaluated_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that a run evaluates: the averaged ones where there are some."""
    return {**state["network"], **(state.get("ema") or {}).get("averages", {})}


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The network's weights in a file: those that a run evaluates, or a plain state_dict. Raises ConfigError."""
    state = load(path)
    return evaluated_weights(state) if "network" in state else state.get("state_dict", state)
