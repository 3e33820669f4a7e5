"""Continue a stopped run or sweep, or train a run for longer."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cnn_train.cli.options import OfRun, option
from cnn_train.cli.show import shown
from cnn_train.errors import ConfigError
from cnn_train.runs.find import find
from cnn_train.sweep import start
from cnn_train.sweep.folder import is_sweep

# What may change in a resumed run: a setting, or all below one that ends with a dot. Changing anything else would
# join two different experiments in one run.
CHANGEABLE = (
    "trainer.max_epochs", "trainer.progress", "trainer.accelerator", "trainer.devices", "trainer.strategy",
    "trainer.precision", "trainer.eval_every", "trainer.log_every", "trainer.profiler", "trainer.on_nan",
    "trainer.gradient_clip", "callbacks.", "data.root", "data.workers", "data.cache_dir", "data.in_memory",
    "data.cache", "data.eval_batch_size", "data.download", "logger.", "repro",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(OfRun):
    schedule: Literal["stretch", "keep", "restart"] = option(
        "of a longer run: over its new length, as it was, or anew from here", default="stretch"
    )
    changed_data: Literal["refuse", "accept"] = option(
        "samples or classes that are not what they were", default="refuse"
    )
    examples = (
        ("cnn-train resume last", "continue where the newest run was stopped"),
        ("cnn-train resume last trainer.max_epochs=80 schedule=keep", "train it for longer"),
    )


def run(options: Options) -> int:
    if is_sweep(Path(options.run)):
        return start.resume(Path(options.run), options.settings, **options.reading)
    folder = find(options.run, options.output_dir).folder
    for word in options.settings:
        key = word.partition("=")[0].lstrip("+~")
        if not any(key == name or (name.endswith(".") and key.startswith(name)) for name in CHANGEABLE):
            error = ConfigError(f"{word}: a resumed run keeps this; it would be another experiment")
            error.add_note(f"try: a new run that starts from these weights: weights={folder}/last.ckpt {word}")
            raise error
    from cnn_train.config.load import load, recorded_choices
    from cnn_train.config.overrides import leaves

    before = dict(leaves(load(folder, **options.reading)))
    config = load(folder, options.settings, **options.reading)
    if shown(config, options, recorded_choices(config)):
        return 0
    show_changes(before, dict(leaves(config)))
    if config.trainer.max_epochs != before["trainer.max_epochs"]:
        set_schedule(config, folder, options.schedule, before)
    from cnn_train.experiment.train import train

    train(config, folder, resume=True, changed_data=options.changed_data == "accept")
    return 0


def show_changes(before: dict[str, object], after: dict[str, object]) -> None:
    from cnn_train.config.overrides import text_of

    for key, value in after.items():
        if key not in before or before[key] != value:
            was = text_of(before[key]) if key in before else "not set"
            print(f"{key}  {was} -> {text_of(value)}", file=sys.stderr)


def set_schedule(config: Any, folder: Path, policy: str, before: dict[str, Any]) -> None:
    """Fit the schedule to another number of epochs.

    `stretch`: it is that of a run of the new length. `keep`: it stays, and its last value with it. `restart`: the
    epochs from here on have one of their own.
    """
    trainer = config.trainer
    if policy == "keep":
        was = before["trainer.schedule_epochs"], before["trainer.max_epochs"] - before["trainer.schedule_start"]
        trainer.schedule_epochs = was[0] or was[1]
        return
    trainer.schedule_epochs = None
    if policy == "restart":
        from cnn_train.runs import checkpoint

        state, _ = checkpoint.load_newest(folder)
        trainer.schedule_start = state["progress"]["epoch"] if state else 0
