"""Print the script by which the TAB key completes a line in bash, zsh or fish.

Reads file names, YAML and signatures only: neither Hydra nor torch is imported.
"""

import importlib
import os
import shlex
from collections.abc import Iterable
from dataclasses import Field, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cnn_train import commands
from cnn_train.cli.line import FLAG, FLAGS
from cnn_train.cli.options import Verb, option
from cnn_train.config.choices import GROUPS, Choices, flat_keys, read_yaml
from cnn_train.errors import ConfigError, UserError

# Candidates are whole words. bash splits words at "=", so what stands before it is cut off there.
BASH = """\
_cnn_train() {
    local word="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n'
    word="${word##* }"
    COMPREPLY=($(COMP_LINE="${COMP_LINE:0:COMP_POINT}" cnn-train completion query=bash 2>/dev/null))
    if [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
    fi
}
complete -o nospace -o default -F _cnn_train cnn-train
"""


ZSH = """\
_cnn_train() {
    local -a found
    found=("${(@f)$(COMP_LINE="${LBUFFER}" cnn-train completion query=zsh 2>/dev/null)}")
    compadd -Q -S '' -- $found
}
compdef _cnn_train cnn-train
"""


FISH = """\
function __cnn_train
    set -lx COMP_LINE (commandline -cp)
    cnn-train completion query=fish 2>/dev/null
end
complete -c cnn-train -f -a '(__cnn_train)'
"""


SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


REMOVAL = {
    "bash": "complete -r cnn-train; unset -f _cnn_train\n",
    "zsh": "compdef -d cnn-train; unfunction _cnn_train\n",
    "fish": "complete -e -c cnn-train; functions -e __cnn_train\n",
}


# Settings that are paths, by the last part of their names.
PATHS = ("root", "weights", "output_dir", "cache_dir", "images", "masks", "file")
Shell = Literal["bash", "zsh", "fish"]


@dataclass(frozen=True, kw_only=True)
class Options(Verb):
    install: Shell | None = option("print the script that switches completion on", default=None)
    uninstall: Shell | None = option("print the script that switches it off", default=None)
    query: Shell | None = option("print what the line in $COMP_LINE may become", default=None)
    examples = (
        ('eval "$(cnn-train completion install=bash)"', "for this shell; or in ~/.bashrc"),
        ("cnn-train completion install=fish | source", "fish"),
    )


def run(options: Options) -> int:
    if options.install:
        print(SCRIPTS[options.install], end="")
    elif options.uninstall:
        print(REMOVAL[options.uninstall], end="")
    elif options.query:
        for candidate in candidates(os.environ.get("COMP_LINE", "")):
            print(candidate)
    else:
        error = ConfigError("completion takes install=, uninstall= or query= with bash, zsh or fish")
        error.add_note('try: eval "$(cnn-train completion install=bash)"')
        raise error
    return 0


def candidates(line: str) -> list[str]:
    """Whole words that the last word of a command line may become."""
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        words = line.split()
    word = words.pop() if words and not line.endswith((" ", "\t")) else ""
    config_dir = next((words[i + 1] for i, w in enumerate(words[:-1]) if w in ("--config-dir", "-cd")), None)
    try:
        found = _Completion(word, words[1:], Choices.find(config_dir)).candidates()
    except UserError:  # a folder or file that cannot be read is no time for a message
        return []
    return sorted({candidate for candidate in found if candidate.startswith(word)})


class _Completion:
    """What a word may become, given the words before it."""

    def __init__(self, word: str, before: list[str], choices: Choices):
        self.word, self.choices = word, choices
        self.given = dict(other.split("=", 1) for other in before if "=" in other and not other.startswith("-"))
        self.commands = {name: command for name, command in commands.find().items() if not command.hidden}
        bare = [other for other in before if "=" not in other and not other.startswith(("-", "+", "~"))]
        self.verb = bare[0] if bare and bare[0] in self.commands else None
        self.words = bare[1:] if self.verb else []
        path = self.commands[self.verb or "train"].path
        options = getattr(importlib.import_module(f"cnn_train.commands.{path.stem}"), "Options", None)
        self.options = options if isinstance(options, type) and issubclass(options, Verb) else None
        self.fields = {f.name: f for f in fields(self.options) if "help" in f.metadata} if self.options else {}

    def candidates(self) -> list[str]:
        key, sign, value = self.word.partition("=")
        name = key.lstrip("+~")
        if self.word.startswith("-"):
            return self.flags()
        if not sign:
            return self.bare_words()
        if name in self.fields:
            return [f"{key}={text}" for text in self.values(self.fields[name], value)]
        if name in GROUPS:
            head = value.rpartition(",")[0]
            return [f"{key}={head + ',' if head else ''}{option}" for option in self.choices.options(name)]
        if name.split(".")[-1] in PATHS:
            return [f"{key}={text}" for text in paths(value)]
        from cnn_train.config.settings import words_of

        return [f"{key}={word}" for word in words_of(self.choices, name, self.chosen(name.partition(".")[0]))]

    def flags(self) -> list[str]:
        """The flags of the verb, with one dash only if one is typed."""
        taken = (
            [item.metadata["flag"] for item in fields(self.options) if "flag" in item.metadata]
            if self.options
            else list(FLAG)
        )
        names = [
            name for flag in FLAGS if flag.help and (flag.everywhere or flag.names[0] in taken) for name in flag.names
        ]
        return [name for name in names if name.startswith("--")] if self.word.startswith("--") else names

    def bare_words(self) -> list[str]:
        """Verbs at the beginning; then values of the verb's next word, its options, groups and settings."""
        places = [item for name, item in self.fields.items() if item.metadata["word"] and name not in self.given]
        prefix = self.word[: len(self.word) - len(self.word.lstrip("+~"))]
        found = [] if self.verb or prefix else list(self.commands)
        if self.verb and places and not prefix:
            many = places[-1].default == ()
            if len(self.words) < len(places) or many:
                found += self.values(places[min(len(self.words), len(places) - 1)], self.word)
        if not prefix:
            found += [f"{name}=" for name in self.fields if name not in self.given]
        if self.options is None or any("settings" in item.metadata for item in fields(self.options)):
            found += [f"{prefix}{group}=" for group in self.choices.groups()]
            found += [prefix + key for key in self.settings()]
        return found

    def settings(self) -> list[str]:
        """Keys at the top; and, once a group and a dot are typed, those of its choice."""
        group = self.word.lstrip("+~").partition(".")[0]
        if "." in self.word and group in GROUPS:
            from cnn_train.config.settings import settings_of

            return [f"{key}=" for key in settings_of(self.choices, group, self.chosen(group))]
        top = read_yaml(self.choices.dirs[0] / "train.yaml")
        return [
            f"{key}=" for key in flat_keys({k: v for k, v in top.items() if k not in ("defaults", "config_dir")}, "")
        ]

    def chosen(self, group: str) -> str | None:
        """The choice of a group that the line makes, or that its model brings."""
        chosen = {key.lstrip("+"): value for key, value in self.given.items() if key.lstrip("+") in GROUPS}
        if "model" in self.fields and self.words:
            chosen.setdefault("model", self.words[0])
        return self.choices.resolve(chosen).get(group)

    def values(self, item: Field[Any], begun: str) -> Iterable[str]:
        """What an option's value may be."""
        assert self.options is not None
        hint, of = get_type_hints(self.options)[item.name], item.metadata["of"]
        for kind in (hint, *get_args(hint)):
            if get_origin(kind) is Literal:
                return [str(word) for word in get_args(kind)]
            if kind is bool:
                return ["true", "false"]
        if of == "run":
            return self.runs(begun)
        if of == "path":
            return paths(begun)
        return (
            {"groups": self.choices.groups(), "commands": self.commands}.get(of) or self.choices.options(of)
            if of
            else []
        )

    def runs(self, begun: str) -> list[str]:
        """`last`, runs by model and date, and once a path is begun, paths."""
        from cnn_train.runs.find import names, runs

        parent = self.given.get("output_dir", "outputs")
        folders = runs(parent)
        found = [names(folder, parent)[1] for folder in folders] + [folder.as_posix() for folder in folders if begun]
        return [*(["last"] if folders else []), *found, *(paths(begun) if begun else [])]


def paths(begun: str) -> list[str]:
    """Files, and folders with a slash, whose path begins so; those whose name a shell would have to quote left out."""
    folder, name = os.path.split(begun)
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name)
    except OSError:
        return []
    start = begun[: len(begun) - len(name)]
    return [
        start + entry.name + ("/" if entry.is_dir() else "")
        for entry in entries
        if entry.name.startswith(name) and (name or entry.name[0] != ".") and shlex.quote(entry.name) == entry.name
    ]
