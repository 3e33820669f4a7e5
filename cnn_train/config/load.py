"""The frozen config of a run: read, checked, and changed where a run may change."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from yaml import AliasToken, scan

from cnn_train.atomic import refuse_links
from cnn_train.config.choices import GROUPS, Choices
from cnn_train.config.compose import Composer
from cnn_train.config.frozen import check_interpolations, fix_environment
from cnn_train.config.overrides import apply, leaves, line_of, parse
from cnn_train.config.schema import check, first_line
from cnn_train.config.targets import check_targets, is_within
from cnn_train.errors import ConfigError

# Groups that a finished run may choose anew.
AFTER_TRAINING = ("inference", "postprocess")
# Settings that runs of before do not have, with what those did.
NEWER = {"trainer.checkpoint_activations": False, "trainer.cuda_graphs": False}


def load(
    path: str | Path,
    overrides: Iterable[str] = (),
    *,
    config_dir: str | Path | None = None,
    trust: Sequence[str] = (),
    may: Sequence[str] = (),
    other_data: bool = False,
) -> DictConfig:
    """Read the frozen config of a run (its folder or config.yaml) and change single settings of it.

    The file may come from anywhere: it is checked like a command line, and `check_targets` lets in what conf/ names
    and what lies in the user's own packages `trust`. Only `overrides`, which the user typed, and the keys `may` can
    download. What `${oc.env:NAME}` gives is fixed here, so that what was checked is what is built. `config_dir` holds
    choices of the user's own; without it the one that the run was composed with is used. With `other_data` the
    overrides may also choose `data=` anew. Raises ConfigError.
    """
    path = Path(path)
    if path.is_dir():
        refuse_links(path)
        path = path / "config.yaml"
    config = _read(path)
    if config_dir is not None:
        OmegaConf.update(config, "config_dir", str(Choices.find(config_dir).dirs[1]), force_add=True)
    parsed = parse(overrides)
    free = (*AFTER_TRAINING, *(("data",) if other_data else ()))
    for override in parsed:
        if override.key_or_group in GROUPS and override.key_or_group not in ("sweep", *free):
            raise ConfigError(f"{line_of(override)}: a run keeps its {override.key_or_group}; start a new run instead")
    _choose_after_training(config, [override for override in parsed if override.key_or_group in free], parsed)
    apply(config, [override for override in parsed if override.key_or_group not in free], parsed)
    # A chosen group is checked, unless its folder was named now: else that may be the config's own word.
    unchecked = free if config_dir is not None else ()
    keys = [override.key_or_group for override in parsed]
    typed = [*may, *(key for key in keys if key not in GROUPS or key in unchecked)]
    _fix(config, typed)
    check_targets(config, trust, typed)
    return check(config)


def _read(path: Path) -> DictConfig:
    """A run's config.yaml as it stands; ConfigError if it is no config, or not one that this program wrote."""
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
    if "choices" in config and "settings" not in config:
        raise ConfigError(
            f"{path} is of an older cnn-train, whose settings have other names; a new run takes its weights: "
            f"weights={path.parent / 'best.ckpt'}"
        )
    check_interpolations(config)
    for key, value in NEWER.items():
        if "trainer" in config and OmegaConf.select(config, key) is None:
            OmegaConf.update(config, key, value, force_add=True)
    OmegaConf.set_struct(config, True)
    return config


def recorded_choices(config: DictConfig) -> Choices:
    """The choices that a run was composed with: the shipped ones, and those of its --config-dir if it exists."""
    folder = config.get("config_dir")
    return Choices.find(folder if folder and Path(folder).is_dir() else None)


def _fix(config: DictConfig, typed: Sequence[str]) -> None:
    """Put values for what depends on the environment, and take back a download that nobody typed now.

    A run that downloaded its data has it; where it has not, the error says how to fetch it.
    """
    fix_environment(config)
    if OmegaConf.select(config, "data.download") is True and not is_within("data.download", typed):
        config.data.download = False


def text(config: DictConfig, path: Path) -> str:
    """A config as YAML, for the config.yaml at `path` that it was loaded from and changed.

    Where loading alone made the difference, the file's own words stay: `${oc.env:NAME}`, whose value may be a secret,
    and `download: true`. Raises ConfigError.
    """
    if not path.is_file():
        return OmegaConf.to_yaml(config)
    fixed, result = _read(path), deepcopy(config)
    written = dict(leaves(fixed))
    _fix(fixed, ())
    loaded, now = dict(leaves(fixed)), dict(leaves(config))
    for key, word in written.items():
        if loaded[key] != word and key in now and now[key] == loaded[key]:
            OmegaConf.update(result, key, word)
    return OmegaConf.to_yaml(result)


def _choose_after_training(config: DictConfig, chosen: Sequence[Override], parsed: Sequence[Override]) -> None:
    """Apply `inference=` and `postprocess=` to a saved config; one that lacks them gets the defaults."""
    choices = recorded_choices(config)
    composer = Composer(choices.dirs[1] if len(choices.dirs) > 1 else None)
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
