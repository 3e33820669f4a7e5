"""The devices and precision a config asks for, checked against the machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf

from cnn_train.errors import ConfigError, EnvError

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Machine:
    """What a run trains on, and the place of this process among those that train together."""

    accelerator: str  # cpu, gpu, mps
    devices: int | list[int]  # how many of this machine's, or which
    precision: Any
    num_nodes: int = 1
    rank: int = 0  # among all processes of the run
    is_one_of_several: bool = False  # started by us, torchrun or SLURM as one of the run's processes

    @classmethod
    def of(cls, trainer: "DictConfig") -> "Machine":
        """By the config's `trainer`; EnvError for what is not there."""
        kind = accelerator(trainer.accelerator)
        several, rank = place(os.environ)
        machine = cls(kind, _devices(trainer, kind), _precision(trainer, kind), trainer.num_nodes, rank, several)
        if several and "LOCAL_RANK" not in os.environ and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ConfigError(
                f"srun was told --ntasks, which leaves open where they run; give it --nodes={machine.num_nodes} "
                f"--ntasks-per-node={machine.num_devices}"
            )
        started = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", 1))) if several else 1
        if several and started != machine.num_processes:
            raise ConfigError(
                f"the launcher started {started} processes, but trainer.devices={machine.num_devices} on "
                f"trainer.num_nodes={machine.num_nodes} makes {machine.num_processes}; start {machine.num_devices} a "
                f"machine on {machine.num_nodes}, or change these settings"
            )
        return machine

    @property
    def num_devices(self) -> int:
        return len(self.devices) if isinstance(self.devices, list) else self.devices

    @property
    def num_processes(self) -> int:
        """How many processes train, one for each device."""
        return self.num_devices * self.num_nodes

    @property
    def starts_processes(self) -> bool:
        """Whether this process has to start those that train."""
        return self.num_processes > 1 and not self.is_one_of_several

    @property
    def device(self) -> torch.device:
        """The device of a single process."""
        return torch.device("cuda" if self.accelerator == "gpu" else self.accelerator)


def place(environment: Mapping[str, str]) -> tuple[bool, int]:
    """Whether this process is one of several, and its rank among all: as our launcher, torchrun or srun tell it."""
    if "LOCAL_RANK" in environment:
        return True, int(environment.get("RANK", environment["LOCAL_RANK"]))
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        return environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"), int(environment["SLURM_PROCID"])
    return False, 0


def accelerator(wanted: str) -> str:
    """`cpu`, `gpu` or `mps`; EnvError for one that is asked for and absent."""
    found = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted in ("gpu", "mps") and wanted != found:
        built = "this torch has no CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        why = built if wanted == "gpu" else "torch finds no Apple GPU"
        raise EnvError(f"trainer.accelerator={wanted}, but {why}; use trainer=cpu, or check nvidia-smi")
    # A CPU is chosen over Apple's GPU unless asked for: float64 sums do not exist there.
    return "cpu" if wanted == "auto" and found == "mps" else found if wanted == "auto" else wanted


def _devices(trainer: "DictConfig", kind: str) -> int | list[int]:
    """How many devices, or which; one unless a strategy for several is chosen."""
    wanted = trainer.devices
    available = torch.cuda.device_count() if kind == "gpu" else os.cpu_count() or 1
    if wanted == "auto":
        return 1 if trainer.strategy == "auto" else available
    wanted = list(wanted) if OmegaConf.is_list(wanted) else int(wanted)
    count = len(wanted) if isinstance(wanted, list) else wanted
    if kind == "gpu" and count > available:
        raise EnvError(f"trainer.devices={count}, but there are {available} GPUs; set trainer.devices={available}")
    return wanted


def _precision(trainer: "DictConfig", kind: str) -> Any:
    """`auto`: mixed bf16 on a GPU that has it, else mixed fp16; fp32 elsewhere."""
    wanted = trainer.precision
    if wanted == "16-mixed" and kind == "cpu":
        raise EnvError("trainer.precision=16-mixed needs a GPU; on a CPU use trainer.precision=bf16-mixed or 32-true")
    if wanted == "64-true" and kind == "mps":
        raise EnvError("trainer.precision=64-true: Apple GPUs have no float64; use 32-true, or trainer=cpu")
    if wanted != "auto":
        return wanted
    if kind != "gpu":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
