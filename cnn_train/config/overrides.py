"""Hydra's override grammar: parsed, applied to a config, and the answers to what is misspelt."""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cnn_train.config.choices import GROUPS, nearest, typed
from cnn_train.config.schema import FILLED_IN, NAMED_NODES, first_line
from cnn_train.config.settings import schema_rule, signature_of
from cnn_train.config.signatures import Kinds, kinds
from cnn_train.errors import ConfigError

# What people call a setting elsewhere.
OTHER_NAMES = {
    "learning_rate": "optimizer.lr", "epochs": "trainer.max_epochs", "num_epochs": "trainer.max_epochs",
    "n_epochs": "trainer.max_epochs", "bs": "data.batch_size", "wd": "optimizer.weight_decay", "dataset": "data",
    "arch": "model", "architecture": "model", "network": "model", "net": "model", "activation": "act",
    "nonlinearity": "act", "normalization": "norm", "normalisation": "norm", "optim": "optimizer",
    "gpus": "trainer.devices", "device": "trainer.accelerator", "criterion": "loss", "loss_function": "loss",
    "lr_scheduler": "scheduler", "schedule": "scheduler", "pretrained": "weights", "ckpt": "weights",
    "checkpoint": "weights", "num_workers": "data.workers", "augmentation": "augment", "initialization": "init",
    "initializer": "init", "pooling": "pool", "img_size": "image_size", "imgsz": "image_size",
    "resolution": "image_size", "log_dir": "output_dir", "save_dir": "output_dir", "outdir": "output_dir",
    "data_dir": "data.root", "data_path": "data.root", "root": "data.root", "amp": "trainer.precision",
    "random_state": "seed", "random_seed": "seed", "grad_clip": "trainer.gradient_clip",
    "gpu": "trainer.devices", "workers": "data.workers",
}  # fmt: skip
# What people call a value elsewhere.
OTHER_VALUES = {
    "trainer.accelerator": {"cuda": "gpu", "cuda:0": "gpu", "metal": "mps"},
    "trainer.precision": {
        "16": "16-mixed", "fp16": "16-mixed", "float16": "16-mixed", "bf16": "bf16-mixed", "bfloat16": "bf16-mixed",
        "32": "32-true", "fp32": "32-true", "float32": "32-true", "64": "64-true", "fp64": "64-true",
        "true": "16-mixed", "false": "32-true",
    },
}  # fmt: skip
RANGE = re.compile(r"[^\"'\[]*\{\d+\.\.\d+\}[^\"'\]]*")  # names of files with numbers {000..099}
LISTS = ("data.urls", "data.val_urls", "data.test_urls")  # what may be given several times
TAKES = {"weights": "a checkpoint file"}  # said better than by the type


def parse(overrides: Iterable[str]) -> list[Override]:
    """Parse Hydra's override grammar; an existing path with `=` or `,` in its name, or {000..099}, needs no quotes."""
    parser = OverridesParser.create()
    parsed = []
    for line in _joined(overrides):
        key, sign, value = line.partition("=")
        if re.search(r"[=,\[\]{}()]", value) and (os.path.exists(value) or RANGE.fullmatch(value)):
            quoted = value.replace("\\", "\\\\").replace("'", "\\'")
            line = f"{key}='{quoted}'"
        try:
            override = parser.parse_overrides([line])[0]
        except OverrideParseException as error:
            if not sign and not key.startswith("~"):
                raise ConfigError(f"{line!r} is neither a command nor a setting; settings are key=value") from error
            detail = first_line(error).removeprefix("LexerNoViableAltException: ")
            unreadable = ConfigError(f"cannot read {line!r}: {detail}")
            unreadable.add_note(f"try: quotes around the value: '{key}=\"{value}\"'")
            raise unreadable from error
        key = override.key_or_group
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            refused = ConfigError(f"{line}: Hydra's own runtime is not used, so its settings do nothing here")
            refused.add_note("try: output_dir=... for the folder, -m for a sweep, --config-dir for your own choices")
            raise refused
        parsed.append(override)
    return parsed


def _joined(overrides: Iterable[str]) -> list[str]:
    """The words, with `data.urls=a data.urls=b` as a list: shells write data.urls={a,b} out like that."""
    words = list(overrides)
    for key in LISTS:
        own = [word for word in words if word.startswith(f"{key}=")]
        if len(own) > 1:
            values = ",".join(f'"{word.partition("=")[2]}"' for word in own)
            words = [word for word in words if word not in own] + [f"{key}=[{values}]"]
    return words


def apply(config: DictConfig, settings: Sequence[Override], parsed: Sequence[Override]) -> None:
    """Set single values in a composed config, in Hydra's meaning of =, +, ++ and ~; `parsed` is the whole line."""
    for override in settings:
        key, value = override.key_or_group, override.value()
        if key.split(".")[0] == "choices":
            raise ConfigError(f"{line_of(override)}: choices records what was chosen; choose with GROUP=NAME")
        if key == "config_dir":
            raise ConfigError(f"{line_of(override)}: a folder of choices is a flag: --config-dir {value_of(override)}",
                              {line_of(override): f"--config-dir={value_of(override)}"})  # fmt: skip
        parent, name = _parent(config, key, override, parsed)
        known = name in parent
        new_node = key.count(".") == 1 and key.split(".")[0] in NAMED_NODES and isinstance(value, dict)
        if override.is_delete():
            if not known:
                raise _unknown(config, key, override, parsed)
            with open_dict(parent):
                del parent[name]
            continue
        if not known and not (new_node or override.is_add() or override.is_force_add() or _takes(parent, name)):
            raise _unknown(config, key, override, parsed)
        if (meant := OTHER_VALUES.get(key, {}).get(str(value).lower())) is not None:
            error = ConfigError(f"{key} has no {value_of(override)!r}. Did you mean {meant}?")
            raise with_try(error, parsed, {line_of(override): f"{key}={meant}"})
        _same_kind(parent, name, key, value)
        try:
            OmegaConf.update(config, key, value, merge=True, force_add=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{line_of(override)}: {first_line(error)}") from error


def _parent(config: DictConfig, key: str, override: Override, parsed: Sequence[Override]) -> tuple[DictConfig, str]:
    """The mapping that a dotted key's last part belongs to."""
    node: Any = config
    *path, name = key.split(".")
    for index, part in enumerate(path):
        if not isinstance(node, DictConfig) or part not in node:
            if index and (override.is_add() or override.is_force_add()) and isinstance(node, DictConfig):
                with open_dict(node):
                    node[part] = {}
            else:
                raise _unknown(config, key, override, parsed)
        inner = OmegaConf.select(node, part, throw_on_missing=False)
        if inner is None and len(path) == 1:
            choice = (config.get("choices") or {}).get(part)
            chosen = f"{part}={choice}" if choice else f"{part} is null"
            raise ConfigError(f"{line_of(override)}: {part} has no settings ({chosen}); choose one with {part}=NAME")
        node = inner
    if not isinstance(node, DictConfig):
        raise _unknown(config, key, override, parsed)
    return node, name


def _takes(parent: DictConfig, name: str) -> bool:
    """Whether the builder of a node has this parameter, though its YAML does not list it."""
    found = signature_of(parent)
    if found is None or name in found.parameters:
        return found is not None
    # What a builder hands on to a library is the library's to judge, but for a slip of the pen.
    hands_on = found.open_ended and found.kind in ("function", "class")
    return hands_on and nearest(name, [*found.parameters, *map(str, parent)], cutoff=0.75) is None


def _same_kind(parent: DictConfig, name: str, key: str, value: Any) -> None:
    """Without an annotation, a numeric default accepts only numbers."""
    found = signature_of(parent)
    if found is None or name not in parent or OmegaConf.is_interpolation(parent, name):
        return
    old = parent._get_node(name)
    old = None if old is None or isinstance(old, DictConfig | ListConfig) else old._value()
    if kinds(found.parameters.get(name, "")) is None and isinstance(old, int | float):
        wanted = Kinds(frozenset({"bool" if isinstance(old, bool) else "float"}))
        text = isinstance(value, str) and "${" not in value
        if text or (isinstance(value, bool) != isinstance(old, bool) and value is not None):
            raise ConfigError(f"{key} must be {wanted.describe()}, got {typed(value)}")


def _unknown(config: DictConfig, key: str, override: Override, parsed: Sequence[Override]) -> ConfigError:
    """The error for an unknown key, with the nearest known one that takes such a value."""
    values = {name: value for name, value in leaves(config) if not name.startswith("choices.")}
    groups = [name for name in GROUPS if name in config or name in ("experiment", "debug")]
    *path, last = key.split(".")
    parent = OmegaConf.select(config, ".".join(path), throw_on_missing=False) if path else config
    names = [*values, *groups]
    if path and (found := signature_of(parent)) is not None:
        names += [".".join([*path, name]) for name in found.parameters if name not in _filled_in(path)]
    guess = _called_elsewhere(key, names)
    if guess is None and (absent := _absent(config, key, names)):
        return ConfigError(f"unknown setting {key!r}; {absent}")
    if guess is None:
        fitting = [name for name in names if _fits(config, name, override.value())]
        guess = _nearest_key(key, fitting, inside=".".join(path) if isinstance(parent, DictConfig) and path else "")
    if guess is None:
        return ConfigError(f"unknown setting {key!r}; {_what_is_there(config, path, last, parent)}")
    value = OTHER_VALUES.get(guess, {}).get(value_of(override).lower(), value_of(override))
    if guess in values and guess not in GROUPS:
        now = f" (now {text_of(values[guess])})"
    else:
        choice = (config.get("choices") or {}).get(guess)
        now = f" (now {choice})" if choice else ""
    if value == value_of(override) and not _fits(config, guess, override.value()):
        rule = rule_of(config, guess)
        wanted = TAKES.get(guess) or (rule.describe() if rule else "a name")
        return ConfigError(f"unknown setting {key!r}. Did you mean {guess}{now}? It takes {wanted}, not {value}")
    error = ConfigError(f"unknown setting {key!r}. Did you mean {guess}{now}?")
    return with_try(error, parsed, {line_of(override): f"{guess}={value}"})


def _called_elsewhere(key: str, names: Sequence[str]) -> str | None:
    """The setting that other programs call so, if the config has it."""
    last = key.split(".")[-1]
    guess = OTHER_NAMES.get(key.lower()) or OTHER_NAMES.get(last.lower())
    return guess if guess in names and guess != key else None


def _absent(config: DictConfig, key: str, names: Sequence[str]) -> str:
    """What to say of a name from elsewhere for a setting that the choice of its group does not have."""
    known = OTHER_NAMES.get(key.lower(), "")
    group, _, setting = known.partition(".")
    choice = (config.get("choices") or {}).get(group)
    if setting and choice and known not in names:
        return f"here it is {known}, which {group}={choice} does not have"
    return ""


def _filled_in(path: Sequence[str]) -> dict[str, str]:
    return FILLED_IN.get(path[0], {}) if len(path) == 1 else {}


def _what_is_there(config: DictConfig, path: Sequence[str], last: str, parent: Any) -> str:
    """What to say of a key that is like no other."""
    sources = {source for names in FILLED_IN.values() if (source := names.get(last))}
    if sources and not path:
        return f"it comes from {min(sources)}"
    if not path or not isinstance(parent, DictConfig):
        return "`cnn-train --cfg job` shows them all"
    inside = [str(name) for name in parent if not str(name).startswith("_")]
    choice = (config.get("choices") or {}).get(path[0]) if len(path) == 1 else None
    of = f"{path[0]}={choice}" if choice and choice != "default" else ".".join(path)
    return f"{of} has {', '.join(inside) or 'none'}"


def rule_of(config: DictConfig, key: str) -> Kinds | None:
    """The values that a setting takes, by the schema or its builder's signature; None where neither says."""
    if (rule := schema_rule(key)) is not None:
        return rule
    *path, last = key.split(".")
    found = signature_of(OmegaConf.select(config, ".".join(path), throw_on_missing=False)) if path else None
    return kinds(found.parameters.get(last, "")) if found else None


def _fits(config: DictConfig, key: str, value: Any) -> bool:
    """Whether a value may be meant for a setting, or for the choice of a group."""
    if key in GROUPS:
        return isinstance(value, str)
    rule = rule_of(config, key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if rule is not None:
        return rule.accept(value) or (number and "str" in rule.names and not rule.words) or rule.words != ()
    old = OmegaConf.select(config, key, throw_on_missing=False)
    if isinstance(old, bool) or isinstance(value, bool):
        return (isinstance(old, bool) and isinstance(value, bool)) or old is None
    return number or isinstance(value, str) if isinstance(old, int | float) else True


def _nearest_key(key: str, names: Sequence[str], inside: str = "") -> str | None:
    """The name most like a key: first one with the same last part; in a part that exists, only one of that part."""
    last = key.split(".")[-1]
    same = sorted((name for name in names if name.split(".")[-1] == last), key=lambda name: name.count("."))
    if same:
        return nearest(key, same, cutoff=0.0)
    if inside:
        names = [name for name in names if name.startswith(inside + ".")]
    elif top := nearest(key, [name for name in names if "." not in name], cutoff=0.75):
        return top
    by_leaf = {name.split(".")[-1]: name for name in sorted(names, key=lambda name: -name.count("."))}
    leaf = nearest(last, by_leaf, cutoff=0.7)
    return by_leaf[leaf] if leaf else None


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and unresolved value of every leaf, `_target_` and its kin left out."""
    for key in node:
        path = f"{prefix}.{key}" if prefix else str(key)
        child = node._get_node(key)
        if str(key).startswith("_"):
            continue
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from leaves(child, path)
        elif isinstance(child, ListConfig):
            yield path, OmegaConf.to_container(child, resolve=False)
        else:
            yield path, child._value()


def line_of(override: Override) -> str:
    return override.input_line or override.key_or_group


def value_of(override: Override) -> str:
    return line_of(override).partition("=")[2]


def text_of(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def with_try(error: ConfigError, parsed: Sequence[Override], mended: Mapping[str, str] | None = None) -> ConfigError:
    """Add the command that would have worked: the same line with the faulty word replaced.

    The command line itself, with its verb, flags and lists, is put in place of this one by `cnn_train.cli.line`.
    """
    if mended:
        error.mended = dict(mended)
        words = [mended[""]] if "" in mended else []
        words += [mended.get(line_of(override), line_of(override)) for override in parsed]
        error.add_note(f"try: cnn-train {shlex.join(words)}")
    return error
