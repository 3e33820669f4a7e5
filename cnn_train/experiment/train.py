"""Train the network that a config describes, and leave a run folder that explains itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import OmegaConf

from cnn_train import atomic
from cnn_train.cli.collector import without_collector
from cnn_train.config import load
from cnn_train.config.targets import grants
from cnn_train.experiment import processes
from cnn_train.experiment.hardware import Machine
from cnn_train.runs import folder as run_folder
from cnn_train.runs import secrets
from cnn_train.runs.find import unfinished

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(
    cfg: "DictConfig",
    folder: Path | None = None,
    resume: bool | Literal["auto"] = False,
    changed_data: bool = False,
) -> dict[str, float]:
    """Run the experiment and return its final metrics: `train/...`, `val/...` of the best epoch and `test/...`.

    `folder` is the run's own folder, which with `resume` holds the state that training continues from; None makes a new
    one under `output_dir` or, with `resume="auto"`, continues the newest unfinished run of this very config. A resumed
    run may have more epochs than before: the schedule is then that of a run of this length. Data that is not what it
    was is a DataError, unless `changed_data` accepts it.
    """
    machine = Machine.of(cfg.trainer)
    if folder is None:
        folder, resume = processes.agreed(lambda: begin(cfg, resume), machine)
    if resume and machine.rank == 0 and not processes.is_ours():
        path = folder / "config.yaml"
        atomic.write_text(path, secrets.mask_settings(load.text(cfg, path)))
    if machine.starts_processes:
        words = [*(["resume=true"] if resume else []), *(["changed_data=accept"] if changed_data else []), *grants(cfg)]
        return processes.train(folder, machine.num_processes, words)

    with without_collector():
        from cnn_train.experiment.fit import fit  # after the processes that need it first

    return fit(cfg, machine, folder, bool(resume), changed_data)


def begin(cfg: "DictConfig", resume: bool | Literal["auto"]) -> tuple[Path, bool]:
    """The run's folder, and whether it holds a state to continue from."""
    parent, text = Path(cfg.output_dir) / cfg.name, OmegaConf.to_yaml(cfg)
    if resume == "auto" and (folder := unfinished(parent, text)) is not None:
        return folder, True
    folder = run_folder.create(parent)
    run_folder.describe(folder, text, run_folder.command_line())
    return folder, False
