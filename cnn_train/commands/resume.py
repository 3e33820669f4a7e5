"""cnn-train resume: continue a stopped run, or train it for longer."""

import sys
from pathlib import Path
from typing import Any

from cnn_train.cli.line import Line
from cnn_train.errors import ConfigError
from cnn_train.runs.find import found_runs
from cnn_train.sweep import start
from cnn_train.sweep.folder import is_sweep

# What may change in a run that goes on: a setting, or all below one that ends with a dot. All else would make the
# steps before and after those of two experiments.
CHANGEABLE = (
    "trainer.max_epochs", "trainer.progress", "trainer.accelerator", "trainer.devices", "trainer.strategy",
    "trainer.precision", "trainer.eval_every", "trainer.log_every", "trainer.profiler", "trainer.on_nan",
    "trainer.gradient_clip", "callbacks.", "data.root", "data.workers", "data.cache_dir", "data.in_memory",
    "data.eval_batch_size", "repro",
)  # fmt: skip


SCHEDULES = ("stretch", "keep", "restart")


def run(line: Line) -> int:
    own = [word for word in line.overrides if word.startswith(("run=", "schedule="))]
    options = dict(word.split("=", 1) for word in own)
    run = options.get("run") or (line.words[0] if line.words else None)
    if run is None:
        error = ConfigError("resume needs a run folder")
        error.add_note("try: cnn-train resume outputs/MODEL/DATE_TIME_N")
        raise error
    folder = Path(run)
    if not folder.is_dir():
        raise ConfigError(f"no run at {folder.absolute()}; {found_runs()}")
    if is_sweep(folder):
        return start.resume(folder, [word for word in line.overrides if word not in own], line.config_dir)
    changes = [word for word in line.overrides if word not in own]
    for word in changes:
        key = word.partition("=")[0].lstrip("+~")
        if not any(key == name or (name.endswith(".") and key.startswith(name)) for name in CHANGEABLE):
            error = ConfigError(f"{word}: a run that goes on keeps this; it would be another experiment")
            error.add_note(f"try: a new run that starts from these weights: weights={folder}/last.ckpt {word}")
            raise error
    policy = options.get("schedule", "stretch")
    if policy not in SCHEDULES:
        raise ConfigError(f"schedule must be one of {', '.join(SCHEDULES)}, got {policy!r}")
    from cnn_train.config.load import load
    from cnn_train.config.overrides import leaves

    before, config = dict(leaves(load(folder))), load(folder, changes)
    show_changes(before, dict(leaves(config)))
    return go_on(config, folder, policy if config.trainer.max_epochs != before["trainer.max_epochs"] else None)


def show_changes(before: dict[str, object], after: dict[str, object]) -> None:
    for key, value in after.items():
        if key not in before or before[key] != value:
            print(f"{key}  {before.get(key, 'not set')} -> {value}", file=sys.stderr)


def go_on(config: Any, folder: Path, policy: str | None = None) -> int:
    """Resume the run in `folder`; `policy` says what becomes of the schedule if the run is longer now.

    `stretch`: it is that of a run of the new length. `keep`: it stays, and its last value with it. `restart`: the
    epochs from here on have one of their own.
    """
    from cnn_train.config.load import load

    if policy in ("keep", "restart"):
        trainer, was = config.trainer, load(folder).trainer
        if policy == "keep":
            trainer.schedule_epochs = was.schedule_epochs or was.max_epochs - was.schedule_start
        else:
            from cnn_train.runs import checkpoint

            state, _ = checkpoint.load_newest(folder)
            trainer.schedule_start = state["progress"]["epoch"] if state else 0
            trainer.schedule_epochs = None
    elif policy == "stretch":
        config.trainer.schedule_epochs = None
    from cnn_train.experiment.train import train

    train(config, folder, resume=True)
    return 0
