"""Files of weights, whoever wrote them: fetched with a checksum, and read without running anything that is in them."""

import argparse
import hashlib
import os
import pathlib
import re
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnn_train.errors import ConfigError, DataError
from cnn_train.runs import checkpoint

# Where a checkpoint keeps its state_dict, averaged weights first: timm, torchvision's references, Lightning, tutorials.
PLACES = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "net")
TIMEOUT = 30.0  # seconds without an answer
CHUNK = 1 << 20
# How files begin that are no state_dict, and what they are.
BEGINNINGS = {
    b"\x89HDF": "an HDF5 file of Keras", b"\x93NUMPY": "a NumPy array", b"version https://git-lfs": "a pointer of Git "
    "LFS, not the file itself (git lfs pull)", b"<": "a page of HTML or XML, not the file itself",
    b"\x08": "an ONNX graph", b"GGUF": "a GGUF file",
}  # fmt: skip
# Plain values that torch's references, timm and PyTorch Lightning put beside the weights; none of them does anything.
HARMLESS: list[Any] = [
    argparse.Namespace, pathlib.PosixPath, np.dtype, np.float64, np.float32, np.int64, type(np.dtype("float64")),
    type(np.dtype("float32")), type(np.dtype("int64")),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]  # fmt: skip


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds: tensors by name, in the file's order, and what a run of ours says of itself."""

    tensors: dict[str, Tensor]
    kind: str
    preprocessing: Mapping[str, Any] | None = None
    class_names: Sequence[str] | None = None


def read(path: Path) -> WeightsFile:
    """Read a state_dict (zip, the format before torch 1.6, safetensors), a checkpoint that holds one, or a run of ours.

    Raises ConfigError that says what the file is, if it is something else or holds more than plain data.
    """
    if path.is_dir():
        path = checkpoint.best_in(path)
    if not path.is_file():
        raise ConfigError(f"no checkpoint at {path}")
    with open(path, "rb") as file:
        beginning = file.read(64)
    if path.suffix == ".safetensors" or beginning[8:9] == b"{":
        return _safetensors(path)
    state = _unpickled(path, beginning)
    if isinstance(state, Mapping) and isinstance(state.get("network"), Mapping):
        return WeightsFile(
            checkpoint.evaluated_weights(dict(state)), "a run", state.get("preprocessing"), state.get("class_names")
        )
    for place in PLACES:
        if isinstance(state, Mapping) and isinstance(state.get(place), Mapping):
            return WeightsFile(_tensors(state[place], path), f"{place} of a checkpoint")
    return WeightsFile(_tensors(state, path), "a state_dict")


def _tensors(state: Any, path: Path) -> dict[str, Tensor]:
    found = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not found:
        holds = f"a {type(state).__name__}"
        if isinstance(state, Mapping):
            holds = f"{', '.join(map(str, list(state)[:4]))}" if state else "nothing"
        raise ConfigError(
            f"{path} holds no tensors by name, but {holds}; save network.state_dict(), alone or under "
            f"{', '.join(PLACES[2:4])}"
        )
    return found


def _unpickled(path: Path, beginning: bytes) -> Any:
    """Plain data from either of torch's formats, by its restricted unpickler."""
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any("/code/" in name or name.endswith("constants.pkl") for name in names):
            raise ConfigError(f"{path} is TorchScript, which holds code; save its state_dict() instead")
        if not any(name.endswith("data.pkl") for name in names):
            kind = "an archive of NumPy arrays" if any(name.endswith(".npy") for name in names) else "another zip"
            raise ConfigError(f"{path} is {kind}, not a state_dict of torch")
    elif beginning[:1] != b"\x80":
        kind = next((text for begin, text in BEGINNINGS.items() if beginning.lstrip().startswith(begin)), "")
        raise ConfigError(f"{path} is {kind or 'damaged or not a checkpoint (neither zip nor pickle)'}")
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return checkpoint.load(path) if is_zip else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error.__cause__ or error)
        if named := re.search(r"GLOBAL `?([\w.]+)|class `?([\w.]+)", reason):
            raise ConfigError(
                f"{path} holds code ({named[1] or named[2]}), not only tensors; nothing of it was run; ask for its "
                "state_dict or for .safetensors"
            ) from error
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is damaged or holds more than plain data: {reason.splitlines()[0]}") from error


def _safetensors(path: Path) -> WeightsFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return WeightsFile({name: file.get_tensor(name) for name in file.keys()}, "safetensors")  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is no whole .safetensors file: {' '.join(str(error).split())}") from error


def hub_folder() -> Path:
    """Where torch keeps downloaded weights: checkpoints in $TORCH_HOME/hub."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(address: str, name: str, sha256: str | None = None) -> Path:
    """The file of an address, downloaded into torch's hub folder under `name` unless it is there.

    `sha256` is the checksum in hex, or its beginning; without it, the one that the server sends. Raises DataError in
    one line with address and destination.
    """
    path = hub_folder() / name
    if path.is_file():
        if sha256 and not _digest(path).startswith(sha256):
            raise DataError(f"{path} is not the file of {address}: its sha256 is not {sha256}; remove it")
        return path
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, redirects = hashlib.sha256(), Redirects()
        opener = urllib.request.build_opener(redirects)
        with opener.open(address, timeout=TIMEOUT) as answer, open(temporary, "wb") as file:
            with _progress(name, int(answer.headers.get("Content-Length") or 0)) as advance:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        wanted = sha256 or redirects.sha256
        if wanted and not digest.hexdigest().startswith(wanted):
            raise DataError(f"{address} gave another file: its sha256 is {digest.hexdigest()}, not {wanted}")
        os.replace(temporary, path)
    except (OSError, urllib.error.URLError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot fetch {address} to {path}: {' '.join(str(reason).split())}; a file put there is used"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and remembers the checksum that the Hugging Face hub sends with one."""

    sha256: str | None = None

    def redirect_request(self, request: Any, file: Any, code: int, text: str, headers: Any, address: str) -> Any:
        tag = (headers.get("X-Linked-Etag") or "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", tag):
            self.sha256 = tag
        return super().redirect_request(request, file, code, text, headers, address)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _progress(name: str, total: int) -> Iterator[Any]:
    """A bar on a terminal, a line elsewhere; gives what is called with each number of bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    if not sys.stderr.isatty():
        print(f"fetching {name}, {total / 1e6:,.0f} MB", file=sys.stderr)
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total or None)
        yield lambda count: bar.advance(task, count)
