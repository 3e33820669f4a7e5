"""Hydra's override grammar: parsed, applied to a config, and the answers to what is misspelt."""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cnn_train.config.choices import GROUPS, nearest
from cnn_train.config.schema import NAMED_NODES, first_line
from cnn_train.config.signatures import Kinds, NoSuchTarget, Signature, kinds, signature
from cnn_train.errors import ConfigError

if TYPE_CHECKING:
    pass


# What people call a setting elsewhere.
OTHER_NAMES = {
    "learning_rate": "optimizer.lr", "epochs": "trainer.max_epochs", "num_epochs": "trainer.max_epochs",
    "bs": "data.batch_size", "wd": "optimizer.weight_decay", "dataset": "data", "arch": "model", "network": "model",
    "net": "model", "activation": "act", "normalization": "norm", "optim": "optimizer", "gpus": "trainer.devices",
    "criterion": "loss", "lr_scheduler": "scheduler", "pretrained": "weights", "ckpt": "weights",
}  # fmt: skip


def parse(overrides: Iterable[str]) -> list[Override]:
    """Parse Hydra's override grammar; a value that is an existing path with `=` or `,` in its name needs no quotes."""
    parser = OverridesParser.create()
    parsed = []
    for line in overrides:
        key, sign, value = line.partition("=")
        if re.search(r"[=,\[\]{}()]", value) and os.path.exists(value):
            quoted = value.replace("\\", "\\\\").replace("'", "\\'")
            line = f"{key}='{quoted}'"
        try:
            override = parser.parse_overrides([line])[0]
        except OverrideParseException as error:
            if not sign and not key.startswith("~"):
                raise ConfigError(f"{line!r} is neither a command nor a setting; settings are key=value") from error
            detail = first_line(error).removeprefix("LexerNoViableAltException: ")
            error_ = ConfigError(f"cannot read {line!r}: {detail}")
            error_.add_note(f"try: quotes around the value: '{key}=\"{value}\"'")
            raise error_ from error
        key = override.key_or_group
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            error_ = ConfigError(f"{line}: Hydra's own runtime is not used, so its settings do nothing here")
            error_.add_note("try: output_dir=... for the folder, -m for a sweep, --config-dir for your own choices")
            raise error_
        parsed.append(override)
    return parsed


def apply(config: DictConfig, settings: Sequence[Override], parsed: Sequence[Override]) -> None:
    """Set single values in a composed config, in Hydra's meaning of =, +, ++ and ~; `parsed` is the whole line."""
    for override in settings:
        key, value = override.key_or_group, override.value()
        if key.split(".")[0] == "choices":
            raise ConfigError(f"{line_of(override)}: choices records what was chosen; choose with GROUP=NAME")
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


def signature_of(node: Any) -> Signature | None:
    target = node.get("_target_") if isinstance(node, Mapping | DictConfig) else None
    if not isinstance(target, str):
        return None
    try:
        return signature(target)
    except (NoSuchTarget, SyntaxError):
        return None


def _same_kind(parent: DictConfig, name: str, key: str, value: Any) -> None:
    """Where no annotation speaks, a number in the YAML asks for a number."""
    found = signature_of(parent)
    if found is None or name not in parent or OmegaConf.is_interpolation(parent, name):
        return
    old = parent._get_node(name)
    old = None if old is None or isinstance(old, DictConfig | ListConfig) else old._value()
    if kinds(found.parameters.get(name, "")) is None and isinstance(old, int | float):
        wanted = Kinds(frozenset({"bool" if isinstance(old, bool) else "float"}))
        text = isinstance(value, str) and "${" not in value
        if text or (isinstance(value, bool) != isinstance(old, bool) and value is not None):
            raise ConfigError(f"{key} must be {wanted.describe()}, got {value!r}")


def _unknown(config: DictConfig, key: str, override: Override, parsed: Sequence[Override]) -> ConfigError:
    """The answer to a key that is not there, with the nearest one that is."""
    values = dict(leaves(config))
    values = {name: value for name, value in values.items() if not name.startswith("choices.")}
    names = {name for name in GROUPS if name in config or name in ("experiment", "debug")}
    *path, last = key.split(".")
    parent = OmegaConf.select(config, ".".join(path), throw_on_missing=False) if path else config
    guess = OTHER_NAMES.get(key) or OTHER_NAMES.get(last)
    if guess is None or (guess not in values and guess not in names):
        inside = [name for name in values if path and name.startswith(".".join(path) + ".")]
        if (found := signature_of(parent)) is not None:
            inside += [".".join([*path, name]) for name in found.parameters]
        guess = _nearest_key(key, inside) or _nearest_key(key, [*values, *([] if path else names)])
    if guess is None:
        inside = [str(name) for name in parent if name != "_target_"] if isinstance(parent, DictConfig) and path else []
        allowed = f"{'.'.join(path)} has {', '.join(inside)}" if inside else "`cnn-train --cfg job` shows them all"
        return ConfigError(f"unknown setting {key!r}; {allowed}")
    if guess in values and guess not in GROUPS:
        now = f" (now {text_of(values[guess])})"
    else:
        choice = (config.get("choices") or {}).get(guess)
        now = f" (now {choice})" if choice else ""
    error = ConfigError(f"unknown setting {key!r}. Did you mean {guess}{now}?")
    return with_try(error, parsed, {line_of(override): f"{guess}={value_of(override)}"})


def _nearest_key(key: str, names: Sequence[str]) -> str | None:
    last = key.split(".")[-1]
    same = sorted((name for name in names if name.split(".")[-1] == last), key=lambda name: name.count("."))
    if same:
        return nearest(key, same, cutoff=0.0)
    if "." not in key and (top := nearest(key, [name for name in names if "." not in name], cutoff=0.75)):
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


def with_try(
    error: ConfigError, parsed: Sequence[Override], fix: dict[str, str] | None = None, command: str = "cnn-train"
) -> ConfigError:
    """Add the command that would have worked: the same line with the faulty word replaced."""
    if fix:
        words = [fix.get(line_of(override), line_of(override)) for override in parsed]
        error.add_note(f"try: {command} {shlex.join(words)}")
    return error
