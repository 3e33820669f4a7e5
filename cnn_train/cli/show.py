"""Printing configs: --cfg and --info."""

from cnn_train.cli.line import INFO, Line
from cnn_train.config.choices import Choices
from cnn_train.errors import ConfigError


def show_config(config: object, line: Line) -> None:
    """`--cfg job`: the config as YAML."""
    from omegaconf import DictConfig, OmegaConf

    wanted = line.flags["--cfg"]
    if wanted not in ("job", "all"):
        raise ConfigError(f"--cfg shows job, got {wanted!r}; Hydra's own runtime is not used and has no config")
    assert isinstance(config, DictConfig)
    package = line.flags.get("--package", "")
    if package in ("", "_global_"):
        print(OmegaConf.to_yaml(config, resolve="--resolve" in line.flags), end="")
        return
    part = OmegaConf.select(config, package, default=None)
    if part is None and package not in config:
        raise ConfigError(f"--package {package}: the config has no such part; it has {', '.join(map(str, config))}")
    print(f"# @package {package}")
    if OmegaConf.is_config(part):
        print(OmegaConf.to_yaml(part, resolve="--resolve" in line.flags), end="")
    else:
        print("null" if part is None else part)


def show_info(config: object, choices: Choices, line: Line) -> None:
    """`--info`: which file each part comes from, where files are looked for, and the config."""
    wanted = line.flags["--info"] or "all"
    if wanted not in INFO:
        raise ConfigError(f"--info shows {', '.join(INFO)}, got {wanted!r}")
    if wanted in ("all", "searchpath"):
        print("Search path")
        print("\n".join(f"  {path}" for path in choices.dirs))
    if wanted in ("all", "defaults", "defaults-tree"):
        print("Choices")
        for group, option in config.choices.items():  # type: ignore[attr-defined]
            path = choices.path(group, option) if option else None
            print(f"  {group:<12} {option or 'null':<20} {path or ''}".rstrip())
    if wanted in ("all", "config"):
        if wanted == "all":
            print("Config")
        line.flags["--cfg"] = "job"
        show_config(config, line)
