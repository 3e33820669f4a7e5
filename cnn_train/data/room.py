"""Whether there is room: in shared memory, through which workers hand over batches, in memory, and on disk."""

import os
import shutil
from pathlib import Path
from typing import Literal

from cnn_train.errors import EnvError

SHARED = Path("/dev/shm")
# Where decoded images are kept: what `data.cache` may say.
Cache = Literal["auto", "none", "ram", "disk"]
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


def free_memory() -> int:
    """Bytes that the system, or the container, has available for a new process; 0 where that is unknown."""
    known = "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {})  # not on macOS and Windows
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")] if known else []
    try:
        text = Path("/proc/meminfo").read_text()
        free = [int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable")] or free
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdecimal():  # a container's own limit
            free.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except OSError:
        pass
    return max(0, min(free, default=0))


def memory_for_images() -> int:
    """Bytes that one process may fill with images unasked: its part of a quarter of what is free."""
    counts = (os.environ.get(name, "") for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_NTASKS"))
    return free_memory() // 4 // next((int(count) for count in counts if count.isdecimal() and int(count)), 1)


def check_disk(folder: Path, needed: int) -> None:
    """EnvError if a folder's disk has less than `needed` bytes free."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise EnvError(
            f"data.cache=disk needs {needed / 2**30:,.1f} GiB, but {folder} has {free / 2**30:,.1f} GiB free; set "
            "data.cache_dir=DIR on another disk, or data.cache=none"
        )
