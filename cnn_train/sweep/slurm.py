"""The engine `slurm`: submitit submits, squeue tells what waits and runs, the folders tell the rest.

Without accounting (sacct), submitit never learns that a cancelled or killed job has ended; so its states are not asked.
"""

import logging
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnn_train.config.choices import nearest
from cnn_train.errors import ConfigError, EnvError
from cnn_train.sweep import node

TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")  # what sbatch --time takes
PROGRAMS = ("sbatch", "squeue", "scancel")
SECONDS_TO_SAVE = 90  # before the time limit SLURM sends SIGUSR1


class Slurm:
    """A cluster (see `remote.Cluster`); handles are job numbers as text."""

    name = "SLURM"

    def __init__(self, settings: DictConfig, folder: Path):
        self.executor = executor(settings, folder / ".slurm")
        self.folder = folder / ".slurm"
        self.known: set[str] = set()

    def submit(self, arguments: Sequence[str], place: Mapping[str, str], token: str) -> str:
        try:
            return str(self.executor.submit(node.run_in_slurm, list(arguments), dict(place), token).job_id)
        except Exception as error:  # submitit's own and CalledProcessError
            raise EnvError(f"SLURM does not take the job: {reason(str(error))}") from error

    def alive(self, handles: Sequence[str], in_a_hurry: bool) -> set[str]:
        told = command("squeue", "--noheader", "--me", "--format=%A")
        if told.returncode == 0:  # else the controller is away: nothing is new
            self.known = set(told.stdout.split())
        else:
            self.known |= set(handles)
        return self.known

    def cancel(self, handle: str) -> None:
        command("scancel", handle)

    def close(self) -> None:
        for path in self.folder.glob("*.pkl"):
            path.unlink(missing_ok=True)


def check(settings: DictConfig) -> None:
    """Raise EnvError if there is no submitit or no cluster that answers, ConfigError for what the cluster refuses."""
    import submitit  # noqa: F401  is reported with the line that installs it

    if settings.time is not None and not TIME.fullmatch(str(settings.time)):
        raise ConfigError(
            f"sweep.time={settings.time}: a time is minutes, hours:minutes:seconds or days-hours, as sbatch takes it"
        )
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise EnvError(f"sweep.engine=slurm needs {' and '.join(missing)}, which a machine of a SLURM cluster has")
    told = command("sinfo", "--noheader", "--format=%R")
    if told.returncode != 0:
        raise EnvError(f"SLURM does not answer: {reason(told.stderr)}")
    partitions = told.stdout.split()
    if settings.partition is not None and not set(str(settings.partition).split(",")) <= set(partitions):
        guess = nearest(str(settings.partition), partitions)
        meant = f"Did you mean {guess}?" if guess else f"There are {', '.join(partitions)}"
        mended = {f"sweep.partition={settings.partition}": f"sweep.partition={guess}"} if guess else None
        raise ConfigError(f"sweep.partition={settings.partition}: SLURM has no such partition. {meant}", mended)
    asked = [f"--{name}={value}" for name, value in options(settings).items()]
    told = command("sbatch", "--test-only", *asked, "--output=/dev/null", "--wrap=true")
    if told.returncode != 0:
        raise ConfigError(f"SLURM does not take such jobs ({' '.join(asked)}): {reason(told.stderr)}")


def options(settings: DictConfig) -> dict[str, Any]:
    """What sbatch is asked for, by the names of its options."""
    found: dict[str, Any] = {"job-name": "cnn-train", "nodes": 1, "ntasks-per-node": 1}
    found["cpus-per-task"] = settings.cpus
    if settings.partition is not None:
        found["partition"] = settings.partition
    if settings.time is not None:
        found["time"] = settings.time
    if settings.gpus:
        found["gpus-per-node"] = settings.gpus
    if settings.memory is not None:
        found["mem"] = f"{round(settings.memory * 1024)}M"
    more = OmegaConf.to_container(settings.slurm) or {}
    assert isinstance(more, dict)
    return {**found, **{str(key).replace("_", "-"): value for key, value in more.items()}}


def executor(settings: DictConfig, folder: Path) -> Any:
    import submitit

    logging.getLogger("submitit").setLevel(logging.ERROR)
    asked = options(settings)
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(
        job_name=asked.pop("job-name"),
        nodes=asked.pop("nodes"),
        ntasks_per_node=asked.pop("ntasks-per-node"),
        cpus_per_task=asked.pop("cpus-per-task"),
        time=None,  # submitit's own would be five minutes
        wckey=None,
        srun_args=[f"--cpus-per-task={settings.cpus}"],  # which srun does not take from the job
        stderr_to_stdout=True,
        additional_parameters={"signal": f"USR1@{SECONDS_TO_SAVE}", **asked},
    )
    return executor


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run one of SLURM's programs; one that hangs has failed."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", f"{words[0]}: {error}")


def reason(text: str) -> str:
    """The last line that SLURM says of an error, without the program's name."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if re.search("error:|fatal:|failure:", line)), "")
    return re.sub(r"^(\w+: )?((error|fatal): )?", "", told or (lines[-1] if lines else "no message"))
