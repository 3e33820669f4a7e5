"""What a run's config may hold, and the check of it: keys, types, bounds, and the code that it may name.

A config has two kinds of node. The closed ones (RunConfig and its parts) are typed here. The open ones (model, norm,
optimizer, ...) name a builder by `_target_` and are checked against its signature, which is read from its source, so
that nothing here imports torch. Every error is a ConfigError of one line.
"""

import math
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnn_train.config.choices import nearest, typed
from cnn_train.config.frozen import CODE
from cnn_train.config.signatures import Kinds, NoSuchTarget, kinds, signature
from cnn_train.errors import ConfigError
from cnn_train.text import is_secret


@dataclass
class TrainerConfig:
    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    devices: int | Literal["auto"] | list[int] = field(metadata={"least": 1, "each": {"least": 0}})
    num_nodes: int = field(metadata={"least": 1})
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"]
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed", "64-true"]
    max_epochs: int = field(metadata={"least": 1})
    schedule_start: int = field(metadata={"least": 0})
    schedule_epochs: int | None = field(metadata={"least": 1})
    limit_batches: int | None = field(metadata={"least": 1})
    accumulate: int = field(metadata={"least": 1})
    split_batches: int | Literal["auto"] = field(metadata={"least": 1})
    gradient_clip: float | None = field(metadata={"above": 0})
    on_nan: Literal["stop", "skip", "rollback"]
    ema: float = field(metadata={"least": 0, "below": 1})
    ema_bias_correction: bool
    decay_norm_and_bias: bool
    decoder_lr_ratio: float = field(metadata={"above": 0})
    compile: bool
    checkpoint_activations: bool
    cuda_graphs: bool
    channels_last: Literal["auto", True, False]
    eval_every: int = field(metadata={"least": 1})
    log_every: int = field(metadata={"least": 1})
    progress: Literal["auto", "rich", "plain", "none"]
    overfit_batches: int = field(metadata={"least": 0})
    fast_dev_run: bool
    profiler: Literal["simple", "advanced", "pytorch"] | None
    smoke: bool
    lightning: dict[str, Any]


@dataclass
class SweepConfig:
    sampler: Literal["grid", "list", "random", "tpe"]
    trials: int | None = field(metadata={"least": 1})
    seed: int = field(metadata={"least": 0, "most": 2**32 - 1})
    prune: Literal["median", "hyperband"] | None
    jobs: int | Literal["auto"] = field(metadata={"least": 1})
    metric: str | None
    mode: Literal["auto", "max", "min"]
    on_failure: Literal["continue", "retry", "stop"]
    fresh: bool
    engine: Literal["local", "slurm", "ray"]
    cpus: int = field(metadata={"least": 1})
    gpus: int | None = field(metadata={"least": 0})
    memory: float | None = field(metadata={"above": 0})
    partition: str | None
    time: str | int | None
    slurm: dict[str, Any]
    axes: dict[str, Any]


@dataclass
class RunConfig:
    """The keys at the top of a config. Fields typed Any are open nodes, or null."""

    seed: int = field(metadata={"least": 0, "most": 2**32 - 1})
    name: str
    image_size: int | list[int] | None = field(metadata={"least": 1})
    monitor: str | None
    weights: str | None
    output_dir: str
    config_dir: str | None
    repro: Literal["fast", "strict"]
    model: Any
    data: Any
    augment: Any
    norm: Any
    act: Any
    pool: Any
    global_pool: Any
    upsample: Any
    init: Any
    optimizer: Any
    scheduler: Any
    finetune: Any
    loss: Any
    inference: Any
    postprocess: Any
    logger: Any
    trainer: TrainerConfig
    callbacks: Any
    sweep: SweepConfig
    choices: dict[str, str | list[str] | None]
    settings: list[str]  # what was given besides choices, as typed


# Settings of a node that its builder does not see.
OURS = {"optimizer": {"scale_lr": "Literal['none', 'linear', 'sqrt']", "base_batch_size": "int | None"}}

# Parameters that the program fills in itself: naming one in a config would be ignored or contradict it.
FILLED_IN = {
    "model": {"num_classes": "the data", "in_channels": "the data", "layers": "norm=, act=, pool=, upsample=, init="},
    "norm": {"num_channels": "the network", "num_features": "the network"},
    "optimizer": {"params": "the network"},
    "loss": {"num_classes": "the data", "ignore_index": "the data"},
    "inference": {"train_size": "the data"},
}  # fmt: skip


# Bounds of parameters by their name, whichever builder takes them.
BOUNDS: dict[str, dict[str, float]] = {
    "batch_size": {"least": 1}, "eval_batch_size": {"least": 1}, "base_batch_size": {"least": 1},
    "lr": {"above": 0}, "weight_decay": {"least": 0},
    "momentum": {"least": 0, "most": 1}, "dropout": {"least": 0, "below": 1}, "warmup_epochs": {"least": 0},
    "label_smoothing": {"least": 0, "below": 1}, "eps": {"above": 0}, "num_groups": {"least": 1},
    "workers": {"least": 0},
    "every_minutes": {"above": 0}, "every_steps": {"least": 1}, "keep_best": {"least": 1}, "patience": {"least": 1},
    "every": {"least": 1}, "samples": {"least": 0}, "layer_decay": {"above": 0, "most": 1},
    "epochs_per_stage": {"least": 1},
}  # fmt: skip


# Groups that hold nodes by name, and what else stands among the nodes.
NAMED_NODES: dict[str, set[str]] = {"callbacks": {"samples"}, "logger": set()}

OPEN_GROUPS = tuple(f.name for f in fields(RunConfig) if f.type is Any)


def check(config: DictConfig) -> DictConfig:
    """Check keys, types and bounds of a composed config; the config to keep. Raises ConfigError.

    In that one, numbers are text where text is asked for (name=123), and names of code are no interpolations, so that
    its file says what it runs.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {first_line(error)}") from error
    if missing:
        unset = ConfigError(f"{missing[0]} is not set")
        unset.add_note(f"try: {missing[0]}=...")
        raise unset
    assert isinstance(plain, dict)
    _check_secrets(OmegaConf.to_container(config, resolve=False), "")
    texts = _check_closed(RunConfig, plain, "")
    for group in OPEN_GROUPS:
        _check_open(plain[group], group)
    for group, others in NAMED_NODES.items():
        _check_named(plain[group], group, others)
    size = plain["image_size"]
    if isinstance(size, list) and len(size) != 2:
        raise ConfigError(f"image_size must be one side or [height, width], got {typed(size)}")
    name = str(plain["name"])
    if re.search(r"^\.*$|[/\\\x00-\x1f]", name):  # it becomes a folder's name
        raise ConfigError(f"name must be a word without slashes, got {name!r}; output_dir says where runs are kept")
    changes = texts | dict(_computed_code(config))
    if not changes:
        return config
    result = deepcopy(config)
    for path, value in changes.items():
        OmegaConf.update(result, path, value)
    return result


def _computed_code(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values of `_target_` and its kin that are interpolations."""
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        child = node._get_node(key)
        inner = f"{path}[{key}]" if isinstance(node, ListConfig) else f"{path}.{key}".lstrip(".")
        if key in CODE and child._is_interpolation():
            value = node[key]
            yield inner, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        elif OmegaConf.is_config(child) and not child._is_none() and not child._is_interpolation():
            yield from _computed_code(child, inner)


def _check_secrets(node: Any, path: str) -> None:
    """Refuse a secret that is spelled out: it would stand in config.yaml, from which jobs and resumed runs start."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        inner = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict | list):
            _check_secrets(value, inner)
        elif isinstance(value, str) and value and "${" not in value:
            if is_secret(str(key)):
                where = f"{inner} is a secret's name, and its value would be kept in the run's files"
            elif re.search(r"://[^/\s:@]{0,200}:[^/\s@]{1,200}@", value):
                where = f"{inner} has a password in an address, which would be kept in the run's files"
            else:
                continue
            error = ConfigError(f"{where}; put it into an environment variable")
            error.add_note(f"try: {inner}='${{oc.env:NAME}}'")
            raise error


def _check_closed(schema: Any, node: Any, prefix: str) -> dict[str, str]:
    """Check a typed node; numbers that have to be text, by their path."""
    texts: dict[str, str] = {}
    expected = {f.name: f for f in fields(schema)}
    if not isinstance(node, dict):
        raise ConfigError(f"{prefix} must be a mapping, got {typed(node)}")
    for key in node.keys() - expected.keys():
        path = f"{prefix}.{key}".lstrip(".")
        guess = nearest(str(key), expected)
        meant = f"Did you mean {f'{prefix}.{guess}'.lstrip('.')}?" if guess else f"Known: {', '.join(expected)}"
        raise ConfigError(f"unknown setting {path!r}. {meant}")
    for name, rule in expected.items():
        path = f"{prefix}.{name}".lstrip(".")
        if name not in node:
            raise ConfigError(f"{path} is missing from the config")
        if is_dataclass(rule.type):
            texts |= _check_closed(rule.type, node[name], path)
        elif rule.type is not Any:
            annotation = rule.type.__name__ if type(rule.type) is type else str(rule.type)
            _check_value(path, node[name], annotation, dict(rule.metadata))
            if annotation.startswith("str") and isinstance(node[name], int | float) and node[name] is not None:
                texts[path] = str(node[name])
    return texts


def _check_open(node: Any, path: str) -> None:
    """Check a node against the signature of its `_target_`, and every node inside it."""
    if isinstance(node, list):
        for index, inner in enumerate(node):
            _check_open(inner, f"{path}[{index}]")
    if not isinstance(node, dict):
        return
    for key, inner in node.items():
        _check_open(inner, f"{path}.{key}")
    if "_target_" not in node:
        return
    target = node["_target_"]
    try:
        found = signature(str(target))
    except NoSuchTarget as error:
        raise ConfigError(f"{path}._target_: {error} (in {target})") from error
    except SyntaxError as error:
        raise ConfigError(
            f"{path}._target_: {error.filename} does not parse: {error.msg}, line {error.lineno}"
        ) from error
    filled_in = FILLED_IN.get(path, {})
    known = {**found.parameters, **OURS.get(path, {})}
    for name, value in node.items():
        key = f"{path}.{name}"
        if name.startswith("_"):
            continue
        if name in filled_in and not (value is None or path == "data"):
            raise ConfigError(f"{key} is not a setting: it comes from {filled_in[name]}")
        if name not in known and not found.open_ended:
            guess = nearest(name, known)
            takes = ", ".join(p for p in known if p not in filled_in) or "nothing"
            meant = f"Did you mean {path}.{guess}?" if guess else f"It takes {takes}"
            raise ConfigError(f"{path} takes no {name!r}. {meant}")
        _check_value(key, value, known.get(name, ""), BOUNDS.get(name, {}))


def _check_named(nodes: Any, group: str, others: set[str]) -> None:
    """Check that a group holds nodes by name."""
    if nodes is not None and (not isinstance(nodes, dict) or "_target_" in nodes):
        raise ConfigError(f"{group} holds nodes by name: {group}.NAME={{_target_: package.Class}}, got {nodes!r}")
    for name, node in (nodes or {}).items():
        if name in others:
            _check_value(f"{group}.{name}", node, "int", BOUNDS.get(name, {}))
        elif node is not None and not (isinstance(node, dict) and "_target_" in node):
            raise ConfigError(f"{group}.{name} must be a node, {{_target_: package.Class}}, or null, got {node!r}")


def _check_value(key: str, value: Any, annotation: str, bounds: Mapping[str, Any]) -> None:
    rule = kinds(annotation)
    node = isinstance(value, dict) and "_target_" in value
    if rule is not None and not node and not rule.accept(value) and not _becomes_text(rule, value):
        least = f" >= {bounds['least']:g}" if "least" in bounds and "int" in rule.names else ""
        wanted = rule.describe().replace("a whole number", f"a whole number{least}")
        guess = nearest(str(value), [str(word) for word in rule.words]) if rule.words else None
        meant = f". Did you mean {guess}?" if guess else ""
        if (key, value) == ("data.batch_size", "auto"):
            meant = ". trainer.split_batches=auto sends a batch through in as many parts as memory needs"
        raise ConfigError(f"{key} must be {wanted}, got {typed(value)}{meant}")
    if "each" in bounds and value == []:
        raise ConfigError(f"{key} is an empty list; leave it at auto, or name one at least")
    bounds = bounds.get("each", bounds) if isinstance(value, list) else {k: v for k, v in bounds.items() if k != "each"}
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and not isinstance(number, bool):
            _check_bounds(key, number, bounds)


def _becomes_text(rule: Kinds, value: Any) -> bool:
    """A word of digits, as in name=123."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and "str" in rule.names and not rule.words


def _check_bounds(key: str, number: float, bounds: Mapping[str, float]) -> None:
    tests = {
        "least": (number >= bounds.get("least", number), ">="),
        "most": (number <= bounds.get("most", number), "<="),
        "above": (number > bounds.get("above", -math.inf), ">"),
        "below": (number < bounds.get("below", math.inf), "<"),
    }
    if number != number or not all(passed for passed, _ in tests.values()):
        rule = " and ".join(f"{tests[name][1]} {limit:g}" for name, limit in bounds.items())
        raise ConfigError(f"{key} must be {rule or 'a number'}, got {number}")


def first_line(error: BaseException) -> str:
    """The message on one line, without Hydra's links and lists of folders."""
    text = str(error).split("\nConfig search path")[0].split("\nSee https")[0].split("\n    full_key")[0]
    return " ".join(text.split()) or type(error).__name__
