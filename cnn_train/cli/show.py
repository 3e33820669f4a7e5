"""Printing configs: --cfg and --info."""

from typing import Any

from cnn_train.cli.line import INFO
from cnn_train.cli.options import Composes
from cnn_train.config.choices import Choices
from cnn_train.errors import ConfigError


def shown(config: Any, options: Composes, choices: Choices) -> bool:
    """Print the config, or what it is composed from, if --cfg or --info asks for it; whether one of them did."""
    if options.cfg is not None:
        show_config(config, options)
    elif options.info is not None:
        show_info(config, options, choices)
    return options.cfg is not None or options.info is not None


def show_config(config: Any, options: Composes) -> None:
    """`--cfg job`: the config as YAML."""
    from omegaconf import DictConfig, OmegaConf

    if options.cfg not in ("job", "all", None):
        raise ConfigError(f"--cfg shows job, got {options.cfg!r}; Hydra's own runtime is not used and has no config")
    assert isinstance(config, DictConfig)
    package = options.package or ""
    if package in ("", "_global_"):
        print(OmegaConf.to_yaml(config, resolve=options.resolve), end="")
        return
    part = OmegaConf.select(config, package, default=None)
    if part is None and package not in config:
        raise ConfigError(f"--package {package}: the config has no such part; it has {', '.join(map(str, config))}")
    print(f"# @package {package}")
    if OmegaConf.is_config(part):
        print(OmegaConf.to_yaml(part, resolve=options.resolve), end="")
    else:
        print("null" if part is None else part)


def show_info(config: Any, options: Composes, choices: Choices) -> None:
    """`--info`: which file each part comes from, where files are looked for, and the config."""
    wanted = options.info
    if wanted not in INFO:
        raise ConfigError(f"--info shows {', '.join(INFO)}, got {wanted!r}")
    if wanted in ("all", "searchpath"):
        print("Search path")
        print("\n".join(f"  {path}" for path in choices.dirs))
    if wanted in ("all", "defaults", "defaults-tree"):
        print("Choices")
        for group, option in config.choices.items():
            path = choices.path(group, option) if option else None
            print(f"  {group:<12} {option or 'null':<20} {path or ''}".rstrip())
    if wanted in ("all", "config"):
        if wanted == "all":
            print("Config")
        show_config(config, options)
