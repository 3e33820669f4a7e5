"""Train the network that a config describes, and leave a run folder that explains itself."""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from cnn_train import atomic
from cnn_train.config import load
from cnn_train.config.targets import grants
from cnn_train.experiment import processes
from cnn_train.experiment.hardware import Machine
from cnn_train.runs import folder as run_folder
from cnn_train.runs import secrets

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(cfg: "DictConfig", folder: Path | None = None, resume: bool = False) -> dict[str, float]:
    """Run the experiment and return its final metrics: `train/...`, `val/...` of the best epoch and `test/...`.

    `folder` is the run's own folder, which with `resume` holds the state that training continues from; None makes a new
    one under `output_dir`. A resumed run may have more epochs than before: the schedule is then that of a run of this
    length.
    """
    machine = Machine.of(cfg.trainer)
    if folder is None:
        folder = run_folder.create(Path(cfg.output_dir) / cfg.name)
        run_folder.describe(folder, OmegaConf.to_yaml(cfg), run_folder.command_line())
    if resume and not machine.is_one_of_several:
        path = folder / "config.yaml"
        atomic.write_text(path, secrets.mask_settings(load.text(cfg, path)))
    if machine.starts_processes:
        return processes.train(folder, resume, machine.num_processes, grants(cfg))

    from cnn_train.experiment.fit import fit  # after the processes that need it first

    return fit(cfg, machine, folder, resume)
