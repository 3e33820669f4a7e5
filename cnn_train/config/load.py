"""The frozen config of a run: read, checked, and changed where a run may change."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from yaml import AliasToken, scan

from cnn_train.config.choices import GROUPS
from cnn_train.config.compose import Composer
from cnn_train.config.overrides import apply, line_of, parse
from cnn_train.config.schema import check, first_line
from cnn_train.config.targets import check_targets
from cnn_train.errors import ConfigError

if TYPE_CHECKING:
    pass


# Groups that a finished run may choose anew.
AFTER_TRAINING = ("inference", "postprocess")


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
            raise ConfigError(f"{line_of(override)}: a run keeps its {override.key_or_group}; start a new run instead")
    _choose_after_training(config, [override for override in parsed if override.key_or_group in AFTER_TRAINING], parsed)
    apply(config, [override for override in parsed if override.key_or_group not in AFTER_TRAINING], parsed)
    if not trusted:
        check_targets(config)
    check(config)
    return config


def _choose_after_training(config: DictConfig, chosen: Sequence[Override], parsed: Sequence[Override]) -> None:
    """Put the choices of these groups, or the defaults of those that an old run does not know, into its config."""
    composer = Composer()
    defaults = composer.choices.defaults()
    lines = [f"{group}={defaults[group]}" for group in (*AFTER_TRAINING, "finetune") if group not in config]
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
