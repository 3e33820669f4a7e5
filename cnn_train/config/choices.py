"""What conf/ holds, read without Hydra: groups, their choices, one line about each. Fast enough for a TAB key."""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_train.errors import ConfigError

# Order of the help, of a run's header and of the config; experiment and debug write into the others.
GROUPS = (
    "model", "data", "augment", "norm", "act", "pool", "global_pool", "upsample", "init", "optimizer", "scheduler",
    "finetune", "loss", "inference", "postprocess", "trainer", "logger", "callbacks", "sweep", "experiment", "debug",
)  # fmt: skip


def conf_dir() -> Path:
    """The shipped configuration: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for path in (package / "conf", package.parent / "conf"):
        if (path / "train.yaml").is_file():
            return path
    raise ConfigError(f"no conf/train.yaml in {package} or beside it: the installation is incomplete")


def nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that a typo most probably meant."""
    word = word.lower()
    cutoff = min(cutoff, 0.5) if len(word) <= 3 else cutoff
    likeness = {name: difflib.SequenceMatcher(None, word, name.lower()).ratio() for name in sorted(set(names))}
    best = max(likeness, key=lambda name: likeness[name], default=None)
    if best is not None and likeness[best] >= cutoff:
        return best
    begun = [name for name in likeness if len(word) >= 3 and name.lower().startswith(word)]
    return min(begun, key=len, default=None)


def read_yaml(path: Path) -> dict[str, Any]:
    """One file as plain data, its defaults list included; an empty file and `null` give {}."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {reason}") from error
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class Choices:
    """The config folders in order of precedence: the shipped one, then the user's."""

    dirs: tuple[Path, ...]

    @classmethod
    def find(cls, config_dir: str | Path | None = None) -> "Choices":
        if config_dir is None:
            return cls((conf_dir(),))
        path = Path(os.path.expanduser(config_dir)).resolve()
        if not path.is_dir():
            raise ConfigError(f"--config-dir: no folder {path}")
        return cls((conf_dir(), path))

    def groups(self) -> tuple[str, ...]:
        """Every group with at least one choice, in the order of GROUPS."""
        return tuple(group for group in GROUPS if self.options(group))

    def options(self, group: str) -> list[str]:
        """The choices of one group, sorted; files whose name starts with an underscore are not choices."""
        names = set()
        for folder in self.dirs:
            for path in (folder / group).rglob("*.yaml"):
                name = path.relative_to(folder / group).with_suffix("").as_posix()
                if not path.name.startswith("_"):
                    names.add(name)
        return sorted(names)

    def path(self, group: str, option: str) -> Path | None:
        paths = (folder / group / f"{option}.yaml" for folder in self.dirs)
        return next((path for path in paths if path.is_file()), None)

    def body(self, group: str, option: str | None) -> dict[str, Any]:
        """One choice's file as it stands, without what its defaults list adds."""
        path = self.path(group, option) if option else None
        return read_yaml(path) if path else {}

    def describe(self, group: str, option: str) -> str:
        """The comment line after the command line at the top of the file."""
        path = self.path(group, option)
        assert path is not None
        with path.open(encoding="utf-8") as file:
            for line in file:
                text = line.strip().lstrip("#").strip()
                if line.strip() and not line.startswith("#"):
                    break
                if text and not text.startswith(("@package", "cnn-train")):
                    return text
        return ""

    def defaults(self) -> dict[str, str | None]:
        """What train.yaml chooses by itself: group -> choice."""
        chosen: dict[str, str | None] = {}
        for entry in read_yaml(self.dirs[0] / "train.yaml").get("defaults", []):
            if isinstance(entry, dict):
                chosen.update({group: as_choice(option) for group, option in entry.items()})
        return chosen

    def brought(self, group: str, option: str | None) -> dict[str, str | None]:
        """The choices in other groups that a file makes with `- override /group: choice`."""
        brought = {}
        for entry in self.body(group, option).get("defaults", []):
            for key, value in entry.items() if isinstance(entry, dict) else ():
                if key.startswith("override /"):
                    brought[key.removeprefix("override /")] = value
        return brought

    def resolve(self, chosen: dict[str, str]) -> dict[str, str | None]:
        """Every group's choice, given those of a command line."""
        result = {**self.defaults(), **chosen}
        for group in ("model", "experiment", "debug"):
            if result.get(group):
                result.update(self.brought(group, result[group]))
                result.update(chosen)
        return result

    def inherits(self, group: str, option: str) -> set[str]:
        """The choice and those of its own group that its defaults list builds on."""
        names = {option}
        for entry in self.body(group, option).get("defaults", []):
            if isinstance(entry, str) and entry != "_self_" and entry not in names:
                names |= self.inherits(group, entry)
        return names

    def keys(self, group: str, option: str | None) -> list[str]:
        """Dotted keys that a choice defines under its group, for completion."""
        content: dict[str, Any] = {}
        for name in sorted(self.inherits(group, option)) if option else ():
            content |= self.body(group, name)
        node = content.get(group, {}) if "_target_" not in content and group in content else content
        return flat_keys(node, group)


def as_choice(option: Any) -> str | None:
    """A choice as it is typed: a word, or words in brackets where a group may have several."""
    if not isinstance(option, Sequence) or isinstance(option, str):
        return option
    return str(option[0]) if len(option) == 1 else f"[{','.join(map(str, option))}]"


def flat_keys(node: dict[str, Any], prefix: str) -> list[str]:
    """Dotted keys of all leaves; Hydra's own words (`_target_`, defaults) left out."""
    keys = []
    for key, value in (node or {}).items():
        if str(key).startswith("_") or key == "defaults":
            continue
        path = f"{prefix}.{key}" if prefix else str(key)
        keys += flat_keys(value, path) if isinstance(value, dict) and value else [path]
    return keys
