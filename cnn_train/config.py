"""Configuration: compose conf/ with Hydra's grammar, have it checked (schema.py), build what `_target_` names.

Nothing here imports torch until `build` is called. Every error is a ConfigError of one line; its notes hold the command
to try.
"""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasToken, YAMLError, scan

from cnn_train.choices import GROUPS, Choices, nearest
from cnn_train.errors import ConfigError
from cnn_train.schema import OPEN_GROUPS, RunConfig, check, check_targets, first_line
from cnn_train.signatures import Kinds, NoSuchTarget, Signature, kinds, signature

if TYPE_CHECKING:
    from cnn_train.layers.factory import LayerFactory


# What people call a setting elsewhere.
OTHER_NAMES = {
    "learning_rate": "optimizer.lr", "epochs": "trainer.max_epochs", "num_epochs": "trainer.max_epochs",
    "bs": "data.batch_size", "wd": "optimizer.weight_decay", "dataset": "data", "arch": "model", "network": "model",
    "net": "model", "activation": "act", "normalization": "norm", "optim": "optimizer", "gpus": "trainer.devices",
    "criterion": "loss", "lr_scheduler": "scheduler", "pretrained": "weights", "ckpt": "weights",
}  # fmt: skip

# Groups that a finished run may choose anew.
AFTER_TRAINING = ("inference", "postprocess")


def compose(overrides: Iterable[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Compose and check the config of one run from Hydra overrides such as `model=resnet18` or `optimizer.lr=0.1`.

    `config_dir` adds choices of one's own in the same group folders. Raises ConfigError.
    """
    choices = Choices.find(config_dir)
    newest = max(path.stat().st_mtime_ns for folder in choices.dirs for path in folder.rglob("*.yaml"))
    return _composer(config_dir, newest).compose(overrides)


@lru_cache(maxsize=4)
def _composer(config_dir: str | Path | None, newest: int) -> "Composer":
    """One composer for as long as no file changes: equal choices are composed once."""
    return Composer(config_dir)


def load(path: str | Path, overrides: Iterable[str] = (), trusted: bool = False) -> DictConfig:
    """Read the frozen config of a run (its folder or config.yaml) and change single settings of it.

    The file may come from anywhere: it is checked like a command line, and `check_targets` lets in our builders and
    torch's only, unless it is `trusted`: written a moment ago from the user's own command line. Raises ConfigError.
    """
    path = Path(path)
    path = path / "config.yaml" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"no run config {path}")
    try:
        text = path.read_text(encoding="utf-8")
        # Ours have none, and a few of them can make a file of a hundred bytes billions of nodes.
        if any(isinstance(token, AliasToken) for token in scan(text)):
            raise ConfigError(f"{path} has YAML aliases (*name), which a run's config never has")
        config = OmegaConf.create(text)
    except ConfigError:
        raise
    except Exception as error:  # the YAML library's errors have no common base
        raise ConfigError(f"{path} is not valid YAML: {first_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} holds no run config")
    OmegaConf.set_struct(config, True)
    parsed = parse(overrides)
    for override in parsed:
        if override.key_or_group in GROUPS and override.key_or_group not in ("sweep", *AFTER_TRAINING):
            raise ConfigError(f"{_line(override)}: a run keeps its {override.key_or_group}; start a new run instead")
    _choose_after_training(config, [override for override in parsed if override.key_or_group in AFTER_TRAINING], parsed)
    _apply(config, [override for override in parsed if override.key_or_group not in AFTER_TRAINING], parsed)
    if not trusted:
        check_targets(config)
    check(config)
    return config


def _choose_after_training(config: DictConfig, chosen: Sequence[Override], parsed: Sequence[Override]) -> None:
    """Put the choices of these groups, or the defaults of those that an old run does not know, into its config."""
    composer = Composer()
    defaults = composer.choices.defaults()
    lines = [f"{group}={defaults[group]}" for group in AFTER_TRAINING if group not in config]
    lines += [line for override in chosen if (line := composer._selection(override, parsed))]
    for line in lines:
        group, option = line.split("=", 1)
        with open_dict(config):
            config[group] = composer._hydra(f"{group}/{option}", ()).get(group) or None
            if "choices" in config:
                config.choices[group] = option


def save(config: DictConfig, path: Path) -> None:
    """Write a config as YAML with its interpolations kept, so that no secret from the environment lands in a file."""
    OmegaConf.save(config, path, resolve=False)


class Composer:
    """Composes configs from one set of config folders; equal group choices are composed once."""

    def __init__(self, config_dir: str | Path | None = None):
        self.choices = Choices.find(config_dir)
        self._composed: dict[tuple[str, ...], tuple[DictConfig, dict[str, str | None]]] = {}

    def compose(self, overrides: Iterable[str] = ()) -> DictConfig:
        parsed = parse(overrides)
        for override in parsed:
            if override.is_sweep_override():
                raise _error(
                    f"several values for {override.key_or_group}: {_value_text(override)}",
                    parsed, fix={_line(override): _line(override)}, command="cnn-train -m",
                )  # fmt: skip
        groups = [override for override in parsed if self.is_group(override)]
        selected = [self._selection(override, parsed) for override in groups]
        config, choices = deepcopy(self._compose_groups(tuple(line for line in selected if line)))
        if config.name is None:
            config.name = choices["model"]
        with open_dict(config):
            config.choices = choices
        _apply(config, [override for override in parsed if override not in groups], parsed)
        config = _in_order(config)
        check(config)
        return config

    def is_group(self, override: Override) -> bool:
        key = override.key_or_group
        return key in GROUPS or (bool(re.fullmatch(r"\w+", key)) and bool(self.choices.options(key)))

    def _selection(self, override: Override, parsed: Sequence[Override]) -> str | None:
        """Check one choice of a group; the line to give to Hydra."""
        group, value = override.key_or_group, override.value()
        options = self.choices.options(group)
        if override.is_delete():
            hint = " or ".join(f"{group}={o}" for o in options if o in ("none", "paper")) or "another choice"
            raise ConfigError(f"{_line(override)}: a group cannot be left out; choose {hint}")
        if value is None and group in ("experiment", "debug"):
            return f"{group}=null"
        name = str(value).lower() if isinstance(value, bool) else str(value)
        if isinstance(value, (list, dict)) or name not in options:
            if "/" in name and (".." in name.split("/") or name.startswith("/")):
                raise _error(f"{_line(override)}: a choice is a name in conf/{group}, not a path", parsed)
            guess = nearest(name, options)
            meant = f"Did you mean {guess}? " if guess else ""
            few = ", ".join(options) if len(options) <= 12 else f"{len(options)} choices"
            name = _value_text(override)
            error = ConfigError(f"no {group} {name!r}. {meant}There are {few}; `cnn-train list {group}` shows them")
            raise _with_try(error, parsed, {_line(override): f"{group}={guess}"} if guess else None)
        if override.package:
            return _line(override)
        return f"{group}={name}"

    def _compose_groups(self, selected: tuple[str, ...]) -> tuple[DictConfig, dict[str, str | None]]:
        if selected not in self._composed:
            composed = self._hydra("train", selected)
            choices = {
                group: composed.hydra.runtime.choices.get(group)
                for group in GROUPS
                if group in composed.hydra.runtime.choices
            }
            with open_dict(composed):
                del composed["hydra"]
            chosen = dict(line.split("=", 1) for line in selected if "@" not in line)
            self._let_command_line_win(composed, chosen, choices)
            for group in OPEN_GROUPS:  # a file that holds `null` composes to an empty mapping
                if group in composed and composed[group] == {}:
                    composed[group] = None
            self._composed[selected] = composed, choices
        return self._composed[selected]

    def _let_command_line_win(self, config: DictConfig, chosen: dict[str, str], choices: dict[str, str | None]) -> None:
        """Undo a model's or experiment's tuning of a part that the command line has replaced by another.

        `model=deeplabv3 optimizer=sgd` must not get SGD with the learning rate that the model's file gives to Adam.
        """
        defaults = self.choices.defaults()
        for owner in ("model", "experiment"):
            body = self.choices.body(owner, choices.get(owner))
            brought = self.choices.brought(owner, choices.get(owner))
            for group, option in chosen.items():
                tuned_for = brought.get(group, defaults.get(group))
                if group == owner or group not in body or "_target_" in body or option == tuned_for:
                    continue
                own = self._hydra(f"{group}/{option}", ())
                if tuned_for in self.choices.inherits(group, option):  # trainer=gpu is trainer=auto and a line more
                    for key in self.choices.body(group, option).keys() - {"defaults"}:
                        config[group][key] = own[group][key]
                else:
                    config[group] = own[group]

    def _hydra(self, name: str, selected: tuple[str, ...]) -> DictConfig:
        search = [f"file://{path}" for path in self.choices.dirs[1:]]
        lines = [*selected]
        if search:
            quoted = ",".join("'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'" for path in search)
            lines.append(f"hydra.searchpath=[{quoted}]")
        try:
            with initialize_config_dir(str(self.choices.dirs[0]), version_base="1.3", job_name="cnn-train"):
                return hydra_compose(name, overrides=lines, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            raise ConfigError(f"cannot compose {' '.join(selected) or name}: {first_line(error)}") from error


def _in_order(config: DictConfig) -> DictConfig:
    """The same config with its top keys in the order of RunConfig, whatever file each came from."""
    names = [f.name for f in fields(RunConfig) if f.name in config]
    names += [str(name) for name in config if name not in names]
    ordered = OmegaConf.create({name: config._get_node(name) for name in names})
    OmegaConf.set_struct(ordered, True)
    return ordered


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


# -- applying single settings -----------------------------------------------------------------------------------------


def _apply(config: DictConfig, settings: Sequence[Override], parsed: Sequence[Override]) -> None:
    """Set single values in a composed config, in Hydra's meaning of =, +, ++ and ~; `parsed` is the whole line."""
    for override in settings:
        key, value = override.key_or_group, override.value()
        if key.split(".")[0] == "choices":
            raise ConfigError(f"{_line(override)}: choices records what was chosen; choose with GROUP=NAME")
        parent, name = _parent(config, key, override, parsed)
        known = name in parent
        if override.is_delete():
            if not known:
                raise _unknown(config, key, override, parsed)
            with open_dict(parent):
                del parent[name]
            continue
        if not known and not (override.is_add() or override.is_force_add() or _takes(parent, name)):
            raise _unknown(config, key, override, parsed)
        _same_kind(parent, name, key, value)
        try:
            OmegaConf.update(config, key, value, merge=True, force_add=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{_line(override)}: {first_line(error)}") from error


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
            raise ConfigError(f"{_line(override)}: {part} has no settings ({chosen}); choose one with {part}=NAME")
        node = inner
    if not isinstance(node, DictConfig):
        raise _unknown(config, key, override, parsed)
    return node, name


def _takes(parent: DictConfig, name: str) -> bool:
    """Whether the builder of a node has this parameter, though its YAML does not list it."""
    found = _signature(parent)
    return found is not None and name in found.parameters


def _signature(node: Any) -> Signature | None:
    target = node.get("_target_") if isinstance(node, Mapping | DictConfig) else None
    if not isinstance(target, str):
        return None
    try:
        return signature(target)
    except (NoSuchTarget, SyntaxError):
        return None


def _same_kind(parent: DictConfig, name: str, key: str, value: Any) -> None:
    """Where no annotation speaks, a number in the YAML asks for a number."""
    found = _signature(parent)
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
        if (found := _signature(parent)) is not None:
            inside += [".".join([*path, name]) for name in found.parameters]
        guess = _nearest_key(key, inside) or _nearest_key(key, [*values, *([] if path else names)])
    if guess is None:
        inside = [str(name) for name in parent if name != "_target_"] if isinstance(parent, DictConfig) and path else []
        allowed = f"{'.'.join(path)} has {', '.join(inside)}" if inside else "`cnn-train --cfg job` shows them all"
        return ConfigError(f"unknown setting {key!r}; {allowed}")
    if guess in values and guess not in GROUPS:
        now = f" (now {_text(values[guess])})"
    else:
        choice = (config.get("choices") or {}).get(guess)
        now = f" (now {choice})" if choice else ""
    error = ConfigError(f"unknown setting {key!r}. Did you mean {guess}{now}?")
    return _with_try(error, parsed, {_line(override): f"{guess}={_value_text(override)}"})


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


# -- building ---------------------------------------------------------------------------------------------------------


def build(node: Any, **arguments: Any) -> Any:
    """Call what a node's `_target_` names, with its settings and `arguments`; the one door to Hydra's instantiate.

    A null node gives None. A node with `_partial_: true` gives the callable. Raises ConfigError, also for a ValueError
    of the builder, whose message is the user's answer.
    """
    if node is None:
        return None
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    target = node.get("_target_")
    try:
        # Arguments stay outside of instantiate: OmegaConf would turn a dataclass such as LayerFactory into a config.
        builder = instantiate(node, _partial_=True, _convert_="all")
        if node.get("_partial_"):
            # Hydra's own kind of partial would hide the settings from whoever asks for them.
            return partial(builder.func, *builder.args, **{**builder.keywords, **arguments})
        return builder(**arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        raise ConfigError(f"cannot build {target}: {first_line(cause or error)}") from error
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ConfigError(f"cannot build {target}: {first_line(error)}") from error
    except ValueError as error:
        if isinstance(error, ConfigError) or type(error) is not ValueError:
            raise
        raise ConfigError(f"{target}: {first_line(error)}") from error


def build_layers(config: DictConfig) -> "LayerFactory":
    """The chosen norm, activation, pooling, upsampling and initializer, as networks take them."""
    from cnn_train.layers.factory import LayerFactory

    return LayerFactory(
        norm_layer=build(config.norm),
        act_layer=build(config.act),
        pool_layer=build(config.pool),
        global_pool_layer=build(config.global_pool),
        upsample_layer=build(config.upsample),
        initializer=build(config.init),
    )


# -- messages ---------------------------------------------------------------------------------------------------------


def _line(override: Override) -> str:
    return override.input_line or override.key_or_group


def _value_text(override: Override) -> str:
    return _line(override).partition("=")[2]


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _error(message: str, parsed: Sequence[Override], **how: Any) -> ConfigError:
    return _with_try(ConfigError(message), parsed, **how)


def _with_try(
    error: ConfigError, parsed: Sequence[Override], fix: dict[str, str] | None = None, command: str = "cnn-train"
) -> ConfigError:
    """Add the command that would have worked: the same line with the faulty word replaced."""
    if fix:
        words = [fix.get(_line(override), _line(override)) for override in parsed]
        error.add_note(f"try: {command} {shlex.join(words)}")
    return error
