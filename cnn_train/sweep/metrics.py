"""Which metrics jobs will have, read from the sources of the tasks: a wrong name is reported before any job starts."""

import ast
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from cnn_train.config.choices import nearest
from cnn_train.config.signatures import NoSuchTarget, signature
from cnn_train.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
TASKS = {"boxes": "detection", "maps": "segmentation", "labels": "classification"}  # by the word for the targets


def check_metric(config: DictConfig) -> None:
    """Raise ConfigError if `sweep.metric` or `monitor` is no metric of the config's task."""
    names = metric_names(task_of(config))
    for key, wanted in (("sweep.metric", config.sweep.metric), ("monitor", config.monitor)):
        if wanted is None or not names:
            continue
        known = [f"{split}/{name}" for split in ("val", "test") for name in names]
        if wanted not in known and not wanted.startswith("train/"):
            guess = nearest(wanted, known)
            meant = f"Did you mean {guess}?" if guess else f"There are {', '.join(known)}"
            raise ConfigError(f"{key}={wanted}: no job of this sweep has such a metric. {meant}")


def known_metrics(config: DictConfig) -> set[str]:
    """The metrics of validation that the jobs will have; empty where their task is not known."""
    task = task_of(config)
    return {f"val/{name}" for name in metric_names(task)} if task else set()


def task_of(config: DictConfig) -> str | None:
    """The kind of task by the targets that the data's module names; None if that cannot be read."""
    target = (config.data or {}).get("_target_")
    try:
        module = signature(str(target)).module
    except (NoSuchTarget, SyntaxError):
        return None
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    if not module.startswith("cnn_train.") or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    return next((task for targets, task in TASKS.items() if f'"{targets}"' in text), None)


@cache
def metric_names(task: str | None) -> tuple[str, ...]:
    """What a task measures, by its class's `metric_names`; of all tasks where `task` is None."""
    names: dict[str, None] = {}
    for path in sorted((PACKAGE / "tasks").glob("*.py")):
        if task is not None and path.stem != task:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and any(ast.unparse(t) == "metric_names" for t in node.targets):
                names |= dict.fromkeys(ast.literal_eval(node.value))
    return tuple(names)
