"""Train the network that a config describes, and leave a run folder that explains itself."""

from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cnn_train import processes, run_folder


def train(cfg: DictConfig, folder: Path | None = None, resume: bool = False) -> dict[str, float]:
    """Run the experiment and return its final metrics: `train/...`, `val/...` of the best epoch and `test/...`.

    `folder` is the run's own folder, which with `resume` holds the state to go on from; None makes a new one under
    `output_dir`. A resumed run may have more epochs than before: the schedule is then that of a run of this length.
    """
    from cnn_train.hardware import num_processes

    if folder is None:
        folder = run_folder.create(Path(cfg.output_dir) / cfg.name)
        run_folder.describe(folder, OmegaConf.to_yaml(cfg), run_folder.command_line())
    if resume and not processes.is_one_of_several():
        run_folder.write_text(folder / "config.yaml", run_folder.mask(OmegaConf.to_yaml(cfg)))
    if (count := num_processes(cfg)) > 1 and not processes.is_one_of_several():
        return processes.train(folder, resume, count)
    from cnn_train import experiment

    with run_folder.in_use(folder), experiment.quiet_libraries(), ExitStack() as stack:
        network, data = experiment.build_network_and_data(cfg)
        task = experiment.build_task(cfg, network, data)
        callbacks = experiment.build_callbacks(cfg, task, folder)
        saved = experiment.saved_state(folder) if resume else None
        trainer = experiment.build_trainer(cfg, folder, saved)
        start = experiment.restore(saved, folder, task, callbacks, trainer) if resume else ""
        experiment.show_header(cfg, task, trainer, folder, start)

        stack.callback(callbacks.display.close)
        with callbacks.checkpoints.signals(), experiment.saved_at_errors(task):
            trainer.fit(task)

        metrics = experiment.evaluate_best(task, trainer, folder)
        if trainer.is_global_zero:
            experiment.record_results(cfg, task, metrics, folder)
            experiment.show_results(task, metrics, folder)
        if cfg.trainer.smoke:
            experiment.check_smoke(task, folder, metrics)
    return metrics
