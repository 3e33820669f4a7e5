"""Where jobs run: one on each GPU, or on a share of the cores."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from omegaconf import DictConfig

from cnn_train.sweep import system

GIBIBYTES = 1.0  # of memory for each job that `sweep.jobs=auto` runs at once


def places(configs: Sequence[DictConfig], wanted: int | str, jobs: int, threads: int | None) -> list[dict[str, str]]:
    """The environment of each place where a job can run, all at once: one per GPU, or one per core.

    A job gets one core while there are more jobs than cores: several threads of one job spend more than they gain.
    `threads` are those that the sweep began with, if it did.
    """
    gpus = [] if all(config.trainer.accelerator in ("cpu", "mps") for config in configs) else visible_gpus()
    trainers = [config.trainer for config in configs]
    if any(map(on_several_devices, trainers)):
        return [{} for _ in range(1 if wanted == "auto" else int(wanted))]  # each job takes several devices
    if gpus:
        count = len(gpus) if wanted == "auto" else int(wanted)
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]
    cores = system.cores()
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = threads or (int(given) if given.isdecimal() and int(given) else None)
    if wanted == "auto":
        count = max(min(cores // (threads or 1), jobs, int(system.gibibytes() / GIBIBYTES)), 1)
    else:
        count = int(wanted)
    number = str(threads or max(cores // count, 1))
    return [{"OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number} for _ in range(count)]


def on_several_devices(trainer: DictConfig) -> bool:
    return trainer.devices not in ("auto", 1, "1") or trainer.strategy != "auto"


def visible_gpus() -> list[str]:
    """NVIDIA GPUs by the names that CUDA_VISIBLE_DEVICES takes, found without torch."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU (\d+):", listed.stdout, re.MULTILINE)
