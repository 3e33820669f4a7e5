"""Evaluate a run again: its best weights on a split of its data."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from cnn_train import checkpoint
from cnn_train import config as configuration
from cnn_train.errors import ConfigError


def evaluate(run: str | Path, overrides: Sequence[str] = (), split: str = "test") -> dict[str, float]:
    """Metrics of a run folder's best.ckpt (or of the checkpoint file `run`) on `split`, by the run's own config."""
    from cnn_train import experiment

    path = Path(run)
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise ConfigError(f"no run folder or checkpoint at {path}; runs are in outputs/<model>/<date>_<time>_<n>")
    if split not in ("val", "test"):
        raise ConfigError(f"split must be val or test, got {split!r}")
    cfg = configuration.load(folder, overrides)
    OmegaConf.update(cfg, "weights", None)
    file = path if path.is_file() else folder / "best.ckpt"
    state = checkpoint.load(file)
    with experiment.quiet_libraries():
        network, data = experiment.build_network_and_data(cfg)
        task = experiment.build_task(cfg, network, data)
        cfg.logger = None
        trainer = experiment.build_trainer(cfg, folder)
        task.load_for_evaluation(state)
        loop = trainer.test if split == "test" else trainer.validate
        loop(task, verbose=False)
    metrics = {name: value for name, value in task.metrics.items() if name.startswith(f"{split}/")}
    experiment.show_results(task, metrics, folder)
    return metrics
