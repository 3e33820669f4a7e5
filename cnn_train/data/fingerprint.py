"""What identifies a data set: the number, names, sizes and labels of its samples, and its classes."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import torch

from cnn_train.data.data import Data


def fingerprint(data: Data) -> dict[str, Any]:
    """Plain data that differs if the samples of a split or the classes do; of files only the sizes count."""
    splits = {name: {"samples": len(source), "digest": _digest(source)} for name, source in data.splits.items()}
    return {"classes": list(data.class_names), "splits": splits}


def _digest(source: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    paths = source.paths()
    if paths:
        base = os.path.commonpath([os.path.dirname(path) for path in paths])
        for path in sorted(paths):
            size = os.path.getsize(path) if os.path.exists(path) else -1
            digest.update(f"{os.path.relpath(path, base)}\0{size}\n".encode(errors="surrogateescape"))
    for name in ("images", "targets"):
        values = getattr(source, name, None)
        if isinstance(values, torch.Tensor) and (name == "targets" or not paths):
            digest.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed between two fingerprints, in words; [] if nothing."""
    found = []
    if before["classes"] != now["classes"]:
        gone = [name for name in before["classes"] if name not in now["classes"]]
        new = [name for name in now["classes"] if name not in before["classes"]]
        told = [
            f"{word} {', '.join(map(repr, names[:3]))}" for word, names in (("without", gone), ("with", new)) if names
        ]
        found.append(f"the classes are others ({'; '.join(told) or 'in another order'})")
    for name, split in before["splits"].items():
        other = now["splits"].get(name, {"samples": 0, "digest": ""})
        if split["samples"] != other["samples"]:
            found.append(f"{name} has {other['samples']:,} samples instead of {split['samples']:,}")
        elif split["digest"] != other["digest"]:
            found.append(f"{name} has as many samples, but other ones or edited ones")
    return found
