"""The engine `ray`: each job is a task of Ray Core that runs our worker as a process. Ray Tune is not used."""

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig

from cnn_train.errors import ConfigError, EnvError
from cnn_train.sweep import node
from cnn_train.sweep.local import say

ONLY_SLURM = ("partition", "time")


class Ray:
    """A cluster (see `remote.Cluster`); handles are Ray's references."""

    name = "Ray"

    def __init__(self, settings: DictConfig):
        import ray

        wanted: dict[str, Any] = {"num_cpus": settings.cpus, "num_gpus": settings.gpus or 0, "max_retries": 0}
        if settings.memory is not None:
            wanted["memory"] = int(settings.memory * 2**30)
        self.ray = ray
        self.task = ray.remote(node.run).options(**wanted)

    def submit(self, arguments: Sequence[str], place: Mapping[str, str], token: str) -> Any:
        return self.task.remote(list(arguments), dict(place), token)

    def alive(self, handles: Sequence[Any], in_a_hurry: bool) -> set[Any]:
        return set(self.ray.wait(list(handles), num_returns=len(handles), timeout=0)[1]) if handles else set()

    def cancel(self, handle: Any) -> None:
        with suppress(ValueError):
            self.ray.cancel(handle, force=True)

    def close(self) -> None:
        self.ray.shutdown()


def knock(address: str, patience: float = 5.0) -> None:
    """Raise OSError if nobody listens there; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), patience).close()


def check(settings: DictConfig) -> None:
    """Join the cluster at RAY_ADDRESS, or start one here. Raises EnvError and ConfigError."""
    import ray

    for name in ONLY_SLURM:
        if settings[name] is not None:
            raise ConfigError(f"sweep.{name}={settings[name]}: Ray has none; it is for sweep.engine=slurm")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without GPUs leaves the variable alone
    address = os.environ.get("RAY_ADDRESS")
    here: dict[str, Any] = {"address": "local", "include_dashboard": False}
    try:
        if address:
            knock(address)
        if not ray.is_initialized():
            ray.init(**({"address": address} if address else here), log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # OSError, RuntimeError, ValueError, and Ray's own
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        lines = str(error).strip().splitlines() or ["no message"]
        raise EnvError(f"Ray does not answer {where}: {lines[0]}") from error
    if address is None:
        say(
            "Ray runs on this machine until the sweep ends: it listens on all network interfaces, with a token in "
            "~/.ray/auth_token; RAY_ADDRESS joins a cluster instead"
        )
    total = ray.cluster_resources()
    for name, wanted in (("CPU", settings.cpus), ("GPU", settings.gpus or 0)):
        if wanted > max((each["Resources"].get(name, 0) for each in ray.nodes() if each["Alive"]), default=0):
            raise ConfigError(
                f"sweep.{name.lower()}s={wanted}: no machine of this Ray cluster has so many, it has "
                f"{total.get(name, 0):g} in all"
            )
