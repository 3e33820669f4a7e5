"""What makes a run unlike another one, for the table of hyperparameters that loggers show."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from cnn_train.config.choices import Choices, read_yaml
from cnn_train.runs import secrets


def hparams(cfg: DictConfig) -> dict[str, Any]:
    """The seed, each choice, and every setting that differs from its YAML, whoever changed it: one entry each.

    Numbers stay numbers, so that they can be sorted and drawn. Secrets are masked.
    """
    found: dict[str, Any] = {"seed": cfg.seed, **{group: name or "none" for group, name in cfg.choices.items()}}
    choices = Choices.find(cfg.config_dir)
    for group, name in cfg.choices.items():
        path = choices.path(group, name) if isinstance(name, str) else None
        node = cfg.get(group)
        if path is None or not isinstance(node, DictConfig):
            continue
        stated = {key: value for key, value in read_yaml(path).items() if key != "defaults"}
        found |= dict(_changed(stated, OmegaConf.to_container(node, resolve=False), group))
    for setting in cfg.settings:
        key, sign, value = str(setting).lstrip("+").partition("=")  # ~KEY has no value
        found[key] = _typed(value) if sign else "removed"
    plain = {key: value if isinstance(value, int | float) else str(value) for key, value in found.items()}
    return secrets.masked(plain)


def _changed(stated: Mapping[str, Any], now: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The leaves of `now` that are not as `stated`, with their paths."""
    for key, value in now.items():
        before = stated.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            yield from _changed(before, value, f"{place}.{key}")
        elif value != before and key != "_target_":
            yield f"{place}.{key}", value


def _typed(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, bool | int | float) else text
