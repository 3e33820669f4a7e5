"""A command line taken apart: verb, words, overrides, flags."""

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cnn_train.config.choices import Choices, nearest
from cnn_train.errors import ConfigError

INFO = ("all", "config", "defaults", "defaults-tree", "searchpath")


@dataclass(frozen=True)
class Flag:
    names: tuple[str, ...]
    value: str  # name of its value; "" if it takes none; in [] if it may be left out
    help: str


FLAGS = (
    Flag(("--multirun", "-m"), "", "sweep over lists of values: key=a,b, key=range(1,4), group=glob(*)"),
    Flag(("--cfg", "-c"), "job", "print the composed config and stop"),
    Flag(("--resolve",), "", "with --cfg: fill in ${...}"),
    Flag(("--package", "-p"), "KEY", "with --cfg: only this part"),
    Flag(("--info", "-i"), "[WHAT]", f"print what is composed from where and stop: {', '.join(INFO)}"),
    Flag(("--config-dir", "-cd"), "DIR", "a folder with choices of your own (DIR/model/mine.yaml)"),
    Flag(("--shell-completion", "-sc"), "install=SHELL", 'TAB: eval "$(cnn-train -sc install=bash)"; also zsh, fish'),
    Flag(("--picture",), "", "with inspect: PNG files and an HTML page"),
    Flag(("--debug",), "", "show tracebacks (also CNN_TRAIN_DEBUG=1)"),
    Flag(("--version",), "", "print the version"),
    Flag(("--help", "-h"), "", "this text"),
    Flag(("--run", "-r"), "", ""),  # Hydra's name for what happens anyway
)


@dataclass(frozen=True)
class Command:
    """A command: its module in `cnn_train.commands` and a line of help ("": not shown)."""

    module: str
    help: str


@dataclass
class Line:
    """A command line taken apart."""

    verb: str = "train"
    words: list[str] = field(default_factory=list)  # bare words after the verb
    overrides: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)  # by long name

    @property
    def config_dir(self) -> str | None:
        return self.flags.get("--config-dir")


def split(arguments: Sequence[str], verbs: Iterable[str]) -> Line:
    """Tell verb, bare words, overrides and flags apart. Raises ConfigError for an unknown verb or flag."""
    line = Line()
    bare: list[str] = []
    by_name = {name: flag for flag in FLAGS for name in flag.names}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and len(word) > 1:
            name, sign, value = word.partition("=")
            flag = by_name.get(name)
            if flag is None:
                raise unknown_flag(name, by_name)
            if flag.value and not sign:
                optional = flag.value.startswith("[")
                if rest and not rest[0].startswith("-") and (not optional or rest[0] in INFO):
                    value = rest.pop(0)
                elif not optional:
                    raise ConfigError(f"{name} needs a value: {name} {flag.value}")
            line.flags[flag.names[0]] = value
        elif "=" in word or word[0:1] in ("+", "~"):
            key, sign, value = word.partition("=")
            line.overrides.append(key + sign + os.path.expanduser(value))  # shells leave a ~ behind = as it is
        else:
            bare.append(word)
    if bare:
        line.verb, *line.words = bare
        if line.verb not in verbs:
            raise unknown_verb(line.verb, line, verbs)
        if line.words and (line.verb == "train" or (line.verb == "sweep" and line.words[0] != "status")):
            raise unknown_verb(line.words[0], line, verbs)
    return line


def unknown_flag(name: str, known: Iterable[str]) -> ConfigError:
    guess = nearest(name, [flag for flag in known if flag.startswith("--")], cutoff=0.7)
    setting = nearest(
        name.strip("-").replace("-", "_"), ("seed", "model", "data", "norm", "epochs", "lr", "batch_size")
    )
    if guess:
        return ConfigError(f"no flag {name}. Did you mean {guess}?")
    meant = f"; settings are key=value, without dashes: {setting}=..." if setting else "; cnn-train --help lists them"
    return ConfigError(f"no flag {name}{meant}")


def unknown_verb(word: str, line: Line, verbs: Iterable[str]) -> ConfigError:
    guess = nearest(word, verbs)
    error = ConfigError(f"no command {word!r}. There are {', '.join(verbs)}")
    if guess:
        error = ConfigError(f"no command {word!r}. Did you mean {guess}?")
    else:
        choices = Choices.find(line.config_dir)
        group = next((group for group in choices.groups() if word in choices.options(group)), None)
        if group:
            error = ConfigError(f"{word!r} is a choice of {group}. Did you mean {group}={word}?")
            error.add_note(f"try: {shlex.join(['cnn-train', f'{group}={word}', *line.overrides])}")
    return error
