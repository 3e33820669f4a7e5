"""Train the network that a config describes, and leave a run folder that explains itself."""

from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cnn_train import atomic
from cnn_train.config import load
from cnn_train.config.targets import grants
from cnn_train.experiment import processes
from cnn_train.runs import folder as run_folder
from cnn_train.runs import secrets


def train(cfg: DictConfig, folder: Path | None = None, resume: bool = False) -> dict[str, float]:
    """Run the experiment and return its final metrics: `train/...`, `val/...` of the best epoch and `test/...`.

    `folder` is the run's own folder, which with `resume` holds the state to go on from; None makes a new one under
    `output_dir`. A resumed run may have more epochs than before: the schedule is then that of a run of this length.
    """
    from cnn_train.experiment.hardware import num_processes

    if folder is None:
        folder = run_folder.create(Path(cfg.output_dir) / cfg.name)
        run_folder.describe(folder, OmegaConf.to_yaml(cfg), run_folder.command_line())
    if resume and not processes.is_one_of_several():
        path = folder / "config.yaml"
        atomic.write_text(path, secrets.mask_settings(load.text(cfg, path)))
    if (count := num_processes(cfg)) > 1 and not processes.is_one_of_several():
        return processes.train(folder, resume, count, grants(cfg))
    from cnn_train.experiment.build import build_callbacks, build_task
    from cnn_train.experiment.failures import saved_at_errors
    from cnn_train.experiment.network import build_network_and_data
    from cnn_train.experiment.results import check_smoke, evaluate_best, record_results, show_header, show_results
    from cnn_train.experiment.state import restore, saved_state
    from cnn_train.experiment.trainer import build_trainer, quiet_libraries

    with run_folder.in_use(folder), quiet_libraries(), ExitStack() as stack:
        network, data = build_network_and_data(cfg)
        task = build_task(cfg, network, data)
        callbacks = build_callbacks(cfg, task, folder)
        saved = saved_state(folder) if resume else None
        trainer = build_trainer(cfg, folder, saved)
        start = restore(saved, folder, task, callbacks, trainer) if resume else ""
        show_header(cfg, task, trainer, folder, start)

        stack.callback(callbacks.display.close)
        with callbacks.checkpoints.signals(), saved_at_errors(task):
            trainer.fit(task)

        metrics = evaluate_best(task, trainer, folder)
        if trainer.is_global_zero:
            record_results(cfg, task, metrics, folder)
            show_results(task, metrics, folder)
        if cfg.trainer.smoke:
            check_smoke(task, folder, metrics)
    return metrics
