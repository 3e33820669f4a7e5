"""Shared memory, through which data workers hand over their batches."""

import shutil
from pathlib import Path

from cnn_train.errors import EnvError

SHARED = Path("/dev/shm")
AHEAD = 2  # batches that a worker makes ahead


def check_shared_memory(workers: int, batch_bytes: int, shared: Path = SHARED) -> None:
    """EnvError if the batches that workers make ahead do not fit: a worker would then die, or wait for ever."""
    if workers == 0 or not shared.is_dir():
        return
    needed, free = workers * AHEAD * batch_bytes, shutil.disk_usage(shared).free
    if free < needed:
        raise EnvError(
            f"{shared} has {free / 2**20:,.0f} MiB free, but {workers} data workers need {needed / 2**20:,.0f} MiB for "
            f"their batches; data.workers=0 needs none, docker's --shm-size={max(2 * needed // 2**20, 64)}m gives more"
        )
