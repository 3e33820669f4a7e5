"""What conf/ holds, read without Hydra: groups, their choices, one line about each. Fast enough for a TAB key."""

import difflib
import os
import re
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
    """The name that a typo most probably meant; of a word of up to four letters only one or two may differ."""
    word = word.lower()
    ranked = by_likeness(word, names)
    if not ranked:
        return None
    likeness, best = ranked[0]
    if cutoff == 0 or (likeness >= cutoff if len(word) > 4 else _slips(word, best.lower()) <= 1):
        return best
    if len(word) <= 4:
        close = [name for _, name in ranked if _slips(word, name.lower()) <= 1]
        if close:
            return close[0]
    begun = [name for _, name in ranked if len(word) >= 3 and name.lower().startswith(word)]
    return min(begun, key=len, default=None)


def by_likeness(word: str, names: Iterable[str]) -> list[tuple[float, str]]:
    """The names with their likeness to a word, the likest first and equals by name."""
    likeness = [(difflib.SequenceMatcher(None, word.lower(), name.lower()).ratio(), name) for name in set(names)]
    return sorted(likeness, key=lambda pair: (-pair[0], pair[1]))


def _slips(word: str, name: str) -> int:
    """Letters to change, add, drop or swap with a neighbour to make one of the other (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(name) + 1))
    for i, a in enumerate(word, 1):
        earlier, before, row = before, row, [i]
        for j, b in enumerate(name, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
            if i > 1 and j > 1 and a == name[j - 2] and b == word[i - 2]:
                row[j] = min(row[j], earlier[j - 2] + 1)
    return row[-1]


def plain(name: str) -> str:
    """A name without what people write differently: capitals, hyphens, underscores, dots, blanks."""
    return re.sub(r"[-_. ]", "", name.lower())


def typed(value: Any) -> str:
    """A value as it is typed and stands in YAML: null, true, [a, b]; text in quotes."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(typed, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {typed(inner)}" for key, inner in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


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
                if text and not text.startswith(("@package", "cnn-train", "also called:")):
                    return text
        return ""

    def also_called(self, group: str, option: str) -> list[str]:
        """The field's other names for a choice: those of its file's comment `# also called: a, b`."""
        path = self.path(group, option)
        text = path.read_text(encoding="utf-8") if path else ""
        return [name.strip() for line in re.findall(r"^# also called: (.+)$", text, re.M) for name in line.split(",")]

    def meant(self, group: str, word: str) -> str | None:
        """The choice that a word names, by its own name or another of the field's, however it is spelt."""
        options = self.options(group)
        if word in options:
            return word
        others = ((option, name) for option in options for name in self.also_called(group, option))
        pairs = [*((option, option) for option in options), *others]
        return next((option for option, name in pairs if plain(name) == plain(word) != ""), None)

    def no_such(self, group: str, word: str) -> tuple[ConfigError, str | None]:
        """The error for a word that is no choice of a group, and the choice that was probably meant."""
        options = self.options(group)
        guess = self.meant(group, word) or nearest(word, options)
        question = f"Did you mean {guess}? " if guess else ""
        if len(options) <= 12:
            text = f"There are {', '.join(options)}; `cnn-train list {group}` shows them"
        else:
            near = ", ".join([name for _, name in by_likeness(word, options) if name != guess][: 2 if guess else 3])
            text = f"{'Also near are' if guess else 'The nearest are'} {near}; "
            text += f"`cnn-train list {group}` shows all {len(options)}"
        return ConfigError(f"no {group} {word!r}. {question}{text}"), guess

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
        """The choice and those of its own group that its defaults list builds on. Raises ConfigError for a circle."""
        return self._inherits(group, option, ())

    def _inherits(self, group: str, option: str, below: tuple[str, ...]) -> set[str]:
        if option in below:
            raise ConfigError(f"the defaults lists in {group} go in a circle: {' -> '.join([*below, option])}")
        names = {option}
        for entry in self.body(group, option).get("defaults", []):
            if isinstance(entry, str) and entry != "_self_":
                names |= self._inherits(group, entry, (*below, option))
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
