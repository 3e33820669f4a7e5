"""What a config asks for of a machine, and what is there."""

import os
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cnn_train.errors import EnvError


def rank() -> int:
    """This process's number among those that train together."""
    return int(os.environ.get("LOCAL_RANK", 0))


def accelerator(cfg: DictConfig) -> str:
    """`cpu`, `gpu` or `mps`; EnvError for one that is asked for and absent."""
    wanted = cfg.trainer.accelerator
    found = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted in ("gpu", "mps") and wanted != found:
        built = "this torch has no CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        why = built if wanted == "gpu" else "torch finds no Apple GPU"
        raise EnvError(f"trainer.accelerator={wanted}, but {why}; use trainer=cpu, or check nvidia-smi")
    # A CPU is chosen over Apple's GPU unless asked for: float64 sums do not exist there.
    return "cpu" if wanted == "auto" and found == "mps" else found if wanted == "auto" else wanted


def devices(cfg: DictConfig) -> int | list[int]:
    """How many devices, or which; one unless a strategy for several is chosen."""
    wanted = cfg.trainer.devices
    available = torch.cuda.device_count() if accelerator(cfg) == "gpu" else os.cpu_count() or 1
    if wanted == "auto":
        return 1 if cfg.trainer.strategy == "auto" else available
    wanted = list(wanted) if OmegaConf.is_list(wanted) else int(wanted)
    count = len(wanted) if isinstance(wanted, list) else wanted
    if accelerator(cfg) == "gpu" and count > available:
        raise EnvError(f"trainer.devices={count}, but there are {available} GPUs; set trainer.devices={available}")
    return wanted


def precision(cfg: DictConfig) -> Any:
    """`auto`: mixed bf16 on a GPU that has it, else mixed fp16; fp32 elsewhere."""
    wanted = cfg.trainer.precision
    if wanted == "16-mixed" and accelerator(cfg) == "cpu":
        raise EnvError("trainer.precision=16-mixed needs a GPU; on a CPU use trainer.precision=bf16-mixed or 32-true")
    if wanted == "64-true" and accelerator(cfg) == "mps":
        raise EnvError("trainer.precision=64-true is not to be had on an Apple GPU; use 32-true, or trainer=cpu")
    if wanted != "auto":
        return wanted
    if accelerator(cfg) != "gpu":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def num_processes(cfg: DictConfig) -> int:
    """How many processes train, one for each device."""
    found = devices(cfg)
    return len(found) if isinstance(found, list) else found
