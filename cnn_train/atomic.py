"""Files that appear under their name only when they are whole and on disk."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_train.errors import EnvError


def write_text(path: Path, text: str) -> None:
    """Write a file that appears under its name only when it is whole and on disk."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EnvError(f"cannot write {path}: {error.strerror}; free some space or set another output_dir") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
