"""Where a sweep's jobs run: on this machine, on a SLURM cluster or by Ray."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cnn_train.errors import ConfigError
from cnn_train.sweep import places as local
from cnn_train.sweep import system
from cnn_train.sweep.folder import Sweep
from cnn_train.sweep.workers import Fresh, Starter, Warm

if TYPE_CHECKING:
    from cnn_train.sweep.remote import Cluster

OF_CLUSTERS: dict[str, Any] = {"partition": None, "time": None, "memory": None, "gpus": None, "cpus": 1, "slurm": {}}


def check(settings: DictConfig, worker: Sequence[str] | None = None) -> None:
    """Raise EnvError if the engine does not answer, ConfigError if it has not what is asked for."""
    sweep = settings.sweep
    if sweep.engine == "local" or worker is not None:
        for name, usual in OF_CLUSTERS.items():
            if sweep.engine == "local" and sweep[name] != usual:
                raise ConfigError(
                    f"sweep.{name}={sweep[name]} asks a cluster, and this sweep runs here; add sweep.engine=slurm or "
                    "sweep.engine=ray, or leave it out"
                )
        return
    if sweep.engine == "slurm":
        from cnn_train.sweep import slurm

        slurm.check(resources(settings))
    else:
        from cnn_train.sweep import ray

        ray.check(resources(settings))


def resources(settings: DictConfig) -> DictConfig:
    """What a job asks of a cluster: the settings of the sweep, with the GPUs that its trainer needs."""
    sweep, trainer = settings.sweep.copy(), settings.trainer
    if sweep.gpus is None and trainer.accelerator in ("gpu", "cuda"):
        sweep.gpus = int(trainer.devices) if str(trainer.devices).isdecimal() else 1
    return sweep


def places(
    settings: DictConfig, configs: Sequence[DictConfig], jobs: int, threads: int | None
) -> Sequence[Mapping[str, str]]:
    """The environment of each place where a job can run, all at once."""
    sweep = settings.sweep
    if sweep.engine == "local":
        return local.places([settings, *configs], sweep.jobs, jobs, threads)
    from cnn_train.sweep import remote

    several = any(local.on_several_devices(config.trainer) for config in (settings, *configs))
    return remote.places(sweep.jobs, jobs, sweep.sampler == "tpe", threads or sweep.cpus, several)


def starter(sweep: Sweep, settings: DictConfig, worker: Sequence[str] | None) -> Starter:
    if worker is not None:
        return Fresh(worker)
    if settings.sweep.engine != "local":
        from cnn_train.sweep.remote import Remote

        return Remote(cluster(settings, sweep), sweep.folder)
    if settings.sweep.fresh or not system.can_fork():
        return Fresh()
    return Warm(sweep.folder)


def cluster(settings: DictConfig, sweep: Sweep) -> "Cluster":
    if settings.sweep.engine == "slurm":
        from cnn_train.sweep.slurm import Slurm

        return Slurm(resources(settings), sweep.folder)
    from cnn_train.sweep.ray import Ray

    return Ray(resources(settings))
