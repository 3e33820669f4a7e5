"""Configuration: compose conf/ with Hydra's grammar, have it checked (schema.py), build what `_target_` names.

Nothing here imports torch until `build` is called. Every error is a ConfigError of one line; its notes hold the command
to try.
"""

import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cnn_train.config.choices import GROUPS, Choices, as_choice
from cnn_train.config.overrides import apply, line_of, parse, rule_of, value_of, with_try
from cnn_train.config.schema import NAMED_NODES, OPEN_GROUPS, RunConfig, check, first_line
from cnn_train.errors import ConfigError


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


class Composer:
    """Composes configs from one set of config folders; equal group choices are composed once."""

    def __init__(self, config_dir: str | Path | None = None):
        self.choices = Choices.find(config_dir)
        self._composed: dict[tuple[str, ...], tuple[DictConfig, dict[str, str | None]]] = {}
        self._independent: dict[tuple[tuple[str, ...], tuple[str, ...]], bool] = {}

    def compose(self, overrides: Iterable[str] = ()) -> DictConfig:
        parsed = parse(overrides)
        for override in parsed:
            if override.is_sweep_override():
                raise self._several_values(override, parsed)
        groups = [override for override in parsed if self.is_group(override)]
        selected = [self._selection(override, parsed) for override in groups]
        config, choices = deepcopy(self._compose_groups(tuple(line for line in selected if line)))
        unnamed = config.name is None
        if unnamed:
            config.name = choices["model"]
        with open_dict(config):
            config.config_dir = str(self.choices.dirs[1]) if len(self.choices.dirs) > 1 else None
            config.choices = choices
        settings = [override for override in parsed if override not in groups]
        apply(config, settings, parsed)
        with open_dict(config):
            config.settings = [line_of(override) for override in settings]
        if unnamed and config.name == choices["model"] and (config.model or {}).get("name"):
            config.name = re.sub(r"[^\w.-]", "_", str(config.model.name))  # a network of a library
        return check(_in_order(config))

    def _several_values(self, override: Override, parsed: Sequence[Override]) -> ConfigError:
        """The answer to a list of values without -m; or to a comma that stands for a decimal point."""
        key, value = override.key_or_group, value_of(override)
        error = ConfigError(f"several values for {key}: {value}")
        if re.fullmatch(r"[-+]?\d+,\d+", value):
            groups = tuple(line for o in parsed if self.is_group(o) and not o.is_sweep_override()
                           and (line := self._selection(o, parsed)))  # fmt: skip
            config = self._compose_groups(groups)[0]
            rule, old = rule_of(config, key), OmegaConf.select(config, key, throw_on_missing=False)
            if (rule is not None and "float" in rule.names) or isinstance(old, float) or re.match(r"[-+]?0,0", value):
                point = value.replace(",", ".")
                error = ConfigError(f"{key}={value} is a list of two values; a number has a decimal point: {point}")
                return with_try(error, parsed, {line_of(override): f"{key}={point}"})
        return with_try(error, parsed, {"": "-m"})

    def is_group(self, override: Override) -> bool:
        key = override.key_or_group
        return key in GROUPS or (bool(re.fullmatch(r"\w+", key)) and bool(self.choices.options(key)))

    def _selection(self, override: Override, parsed: Sequence[Override]) -> str | None:
        """Check one choice of a group; the line to give to Hydra."""
        group, value = override.key_or_group, override.value()
        options = self.choices.options(group)
        if override.is_delete():
            hint = " or ".join(f"{group}={o}" for o in options if o in ("none", "paper")) or "another choice"
            raise ConfigError(f"{line_of(override)}: a group cannot be left out; choose {hint}")
        if value is None and self.choices.defaults().get(group, "") is None:
            return None  # null is the default, and Hydra takes the word from a defaults list only
        if isinstance(value, list) and group in NAMED_NODES and set(map(str, value)) <= set(options):
            return f"{group}={as_choice(value)}"
        if isinstance(value, list) and group in NAMED_NODES:  # the first of several that there is not
            value = next(option for option in value if str(option) not in options)
        name = str(value).lower() if isinstance(value, bool) else str(value)
        if isinstance(value, (list, dict)) or name not in options:
            if "/" in name and (".." in name.split("/") or name.startswith("/")):
                raise _error(f"{line_of(override)}: a choice is a name in conf/{group}, not a path", parsed)
            error, guess = self.choices.no_such(
                group, name if isinstance(value, list | dict) or group in NAMED_NODES else value_of(override)
            )
            raise with_try(error, parsed, {line_of(override): f"{group}={guess}"} if guess else None)
        if override.package:
            return line_of(override)
        return f"{group}={name}"

    def _compose_groups(self, selected: tuple[str, ...]) -> tuple[DictConfig, dict[str, str | None]]:
        """The config of these choices and no settings, composed by Hydra once, or put together from such configs."""
        if selected not in self._composed:
            self._composed[selected] = self._put_together(selected) or self._compose_by_hydra(selected)
        return self._composed[selected]

    def _put_together(self, selected: tuple[str, ...]) -> tuple[DictConfig, dict[str, str | None]] | None:
        """The config made of others that differ from it in one choice each; None if the choices are not independent.

        A sweep over norms and activations has as many combinations as their product. Hydra needs 0.3 s for each, so it
        composes their sum: each choice beside the first of all others. A choice counts as independent if, beside those,
        it changes its own group's node and nothing else.
        """
        first = next((known for known in self._composed if differences(known, selected) is not None), None)
        changed = differences(first, selected) if first is not None else None
        if first is None or not changed or len(changed) < 2:
            return None
        config, choices = deepcopy(self._composed[first])
        for index in changed:
            group = selected[index].partition("=")[0]
            single = (*first[:index], selected[index], *first[index + 1 :])
            if single not in self._composed:
                self._composed[single] = self._compose_by_hydra(single)
            other, chosen = self._composed[single]
            if not self._only_its_own(group, first, single):
                return None
            config._set_item_impl(group, deepcopy(other._get_node(group)))
            choices[group] = chosen[group]
        return config, choices

    def _only_its_own(self, group: str, first: tuple[str, ...], single: tuple[str, ...]) -> bool:
        """Whether two composed configs differ in this group's node alone."""
        key = (first, single)
        if key not in self._independent:
            (a, chosen_a), (b, chosen_b) = self._composed[first], self._composed[single]
            plain_a, plain_b = (OmegaConf.to_container(config, resolve=False) for config in (a, b))
            assert isinstance(plain_a, dict) and isinstance(plain_b, dict)
            for plain in (plain_a, plain_b):
                plain.pop(group, None)
            same = {name for name in chosen_a.keys() | chosen_b.keys() if chosen_a.get(name) != chosen_b.get(name)}
            self._independent[key] = plain_a == plain_b and same <= {group} and group in a and group in b
        return self._independent[key]

    def _compose_by_hydra(self, selected: tuple[str, ...]) -> tuple[DictConfig, dict[str, str | None]]:
        composed = self._hydra("train", selected)
        chosen = dict(line.split("=", 1) for line in selected if "@" not in line)
        choices = {**self.choices.resolve(chosen), **composed.hydra.runtime.choices}  # which leaves out lists
        choices = {group: choices[group] for group in GROUPS if group in choices}
        with open_dict(composed):
            del composed["hydra"]
        self._let_command_line_win(composed, chosen, choices)
        for group in OPEN_GROUPS:  # a file that holds `null` composes to an empty mapping
            if group in composed and composed[group] == {}:
                composed[group] = None
        return composed, choices

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
        # Hydra looks for the file that it starts from in one folder only.
        home = next((path for path in self.choices.dirs if (path / f"{name}.yaml").is_file()), self.choices.dirs[0])
        search = [f"file://{path}" for path in self.choices.dirs if path != home]
        lines = [*selected]
        if search:
            quoted = ",".join("'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'" for path in search)
            lines.append(f"hydra.searchpath=[{quoted}]")
        outer = GlobalHydra.instance()
        around, outer.hydra = outer.hydra, None  # of somebody's own @hydra.main
        try:
            with initialize_config_dir(str(home), version_base="1.3", job_name="cnn-train"):
                return hydra_compose(name, overrides=lines, return_hydra_config=True)
        except RecursionError as error:
            raise ConfigError(f"cannot compose {' '.join(selected) or name}: defaults lists go in a circle") from error
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            raise ConfigError(f"cannot compose {' '.join(selected) or name}: {first_line(error)}") from error
        finally:
            GlobalHydra.instance().hydra = around


def differences(one: tuple[str, ...], other: tuple[str, ...]) -> list[int] | None:
    """The places where two lists of `group=choice` differ, if they choose in the same groups in the same order."""
    if [line.partition("=")[0] for line in one] != [line.partition("=")[0] for line in other]:
        return None
    return [index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]


def _in_order(config: DictConfig) -> DictConfig:
    """The same config with its top keys in the order of RunConfig, whatever file each came from."""
    names = [f.name for f in fields(RunConfig) if f.name in config]
    names += [str(name) for name in config if name not in names]
    ordered = OmegaConf.create({name: config._get_node(name) for name in names})
    OmegaConf.set_struct(ordered, True)
    return ordered


def _error(message: str, parsed: Sequence[Override], **how: Any) -> ConfigError:
    return with_try(ConfigError(message), parsed, **how)
