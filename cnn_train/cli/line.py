"""A command line taken apart: verb, words, overrides, flags; and the line to try after a mistake."""

import ast
import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnn_train.config.choices import Choices, nearest
from cnn_train.errors import ConfigError

INFO = ("all", "config", "defaults", "defaults-tree", "searchpath")


@dataclass(frozen=True)
class Flag:
    """A flag; `everywhere`: each verb takes it."""

    names: tuple[str, ...]
    value: str  # name of its value; "" if it takes none; in [] if it may be left out
    help: str
    everywhere: bool = False


FLAGS = (
    Flag(("--multirun", "-m"), "", "sweep over lists of values: key=a,b, key=range(1,4), group=glob(*)"),
    Flag(("--cfg", "-c"), "job", "print the composed config and stop"),
    Flag(("--resolve",), "", "with --cfg: fill in ${...}"),
    Flag(("--package", "-p"), "KEY", "with --cfg: only this part"),
    Flag(("--info", "-i"), "[WHAT]", f"print where it comes from and stop: {', '.join(INFO)}"),
    Flag(("--config-dir", "-cd"), "DIR", "a folder with choices of your own (DIR/model/mine.yaml)"),
    Flag(("--trust",), "PACKAGE[,...]", "your own packages that a saved run may name, since its file may be anybody's"),
    Flag(("--shell-completion", "-sc"), "install=SHELL", "the TAB key: as the command completion", everywhere=True),
    Flag(("--picture",), "", "PNG files and an HTML page"),
    Flag(("--fix",), "DIR", "as fix=DIR"),
    Flag(("--strict",), "", "as strict=true"),
    Flag(("--debug",), "", "show tracebacks (also CNN_TRAIN_DEBUG=1)", everywhere=True),
    Flag(("--version",), "", "print the version", everywhere=True),
    Flag(("--help", "-h"), "", "help for a command, or this overview", everywhere=True),
    Flag(("--run", "-r"), "", "", everywhere=True),  # accepted for Hydra users; has no effect
)
FLAG = {name: flag for flag in FLAGS for name in flag.names}

# What commands are called elsewhere.
OTHER_VERBS = {
    "fit": "train", "run": "train", "learn": "train", "test": "eval", "evaluate": "eval", "validate": "eval",
    "val": "eval", "infer": "predict", "inference": "predict", "continue": "resume", "restart": "resume",
    "tune": "sweep", "search": "sweep", "multirun": "sweep", "summary": "inspect", "models": "list", "ls": "list",
    "verify": "verify-repro",
}  # fmt: skip
DASHES = "‐‑‒–—―−"
QUOTES = "“”„‟‘’‚‛«»″′"


@dataclass(frozen=True)
class Command:
    """A command: its file in `cnn_train.commands`. Hidden ones, whose name begins with `_`, are for the program."""

    path: Path

    @property
    def hidden(self) -> bool:
        return self.path.stem.startswith("_")

    @property
    def help(self) -> str:
        """What it does: the first line of its docstring, read without importing it."""
        text = ast.get_docstring(ast.parse(self.path.read_text(encoding="utf-8"))) or ""
        first = text.partition("\n")[0].rstrip(".")
        named = first.startswith(("cnn-train ", "`cnn-train ")) and ": " in first
        first = first.partition(": ")[2] if named else first
        return first[:1].lower() + first[1:] if first[1:2].islower() else first


@dataclass
class Line:
    """A command line taken apart."""

    verb: str = "train"
    words: list[str] = field(default_factory=list)  # bare words after the verb
    overrides: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)  # by long name
    verb_is_typed: bool = False

    @property
    def config_dir(self) -> str | None:
        return self.flags.get("--config-dir")


def split(arguments: Sequence[str], verbs: Collection[str]) -> Line:
    """Tell verb, bare words, overrides and flags apart. Raises ConfigError for an unknown verb or flag."""
    refuse_typography(arguments)
    refuse_blanks(arguments, verbs)
    line = Line()
    bare: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and len(word) > 1:
            name, sign, value = word.partition("=")
            flag = FLAG.get(name)
            if flag is None:
                raise unknown_flag(word, arguments)
            if not flag.value and sign:
                raise ConfigError(f"{name} takes no value", {word: name})
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
        line.verb_is_typed = True
        if line.verb not in verbs:
            raise unknown_word(line.verb, line, verbs)
    if line.words == ["help"] and line.verb != "help" and not Path("help").exists():
        error = ConfigError(f"help comes before the command: cnn-train help {line.verb}")
        error.add_note(f"try: cnn-train help {line.verb}")
        raise error
    return line


def refuse_typography(arguments: Sequence[str]) -> None:
    """Refuse the dashes and quotes of word processors where a shell's are meant."""
    for word in arguments:
        key, sign, value = word.partition("=")
        if word[:1] and word[0] in DASHES:
            name = word.lstrip(DASHES + "-")
            plain = ("-" if len(name.partition("=")[0]) <= 2 else "--") + name
            raise ConfigError(f"{word!r} begins with a long dash, as word processors write it; flags begin with -",
                              {word: plain})  # fmt: skip
        text = value if sign else word
        if text and (text[0] in QUOTES or text[-1] in QUOTES) and not os.path.exists(text):
            plain = key.strip(QUOTES) + sign + text.strip(QUOTES) if sign else word.strip(QUOTES)
            raise ConfigError(f"{word!r} has a typographic quote; shells know ' and \" only", {word: plain})


def refuse_blanks(arguments: Sequence[str], verbs: Collection[str]) -> None:
    """Refuse `key = value`, `key= value` and `key =value`: a setting is one word."""
    for index, word in enumerate(arguments):
        before = arguments[index - 1] if index else ""
        after = arguments[index + 1] if index + 1 < len(arguments) else ""
        setting_before = bool(re.fullmatch(r"[+~]?[\w.@/:]+", before))
        value_after = bool(after) and "=" not in after and after[0] not in "-+~" and after not in verbs
        start, end = index, index + 1
        if word == "=" and setting_before and after:
            start, end = index - 1, index + 2
        elif word.startswith("=") and len(word) > 1 and setting_before:
            start = index - 1
        elif re.fullmatch(r"[+~]?[\w.@/:]+=", word) and value_after:
            end = index + 2
        elif not re.match(r"[+~]?[\w.@/:]+( +=|= )", word):  # in quotes
            continue
        joined = re.sub(" *= *", "=", "".join(arguments[start:end]), count=1)
        error = ConfigError(f"{' '.join(arguments[start:end])!r} has blanks around =; a setting is one word: {joined}")
        error.add_note(f"try: {shlex.join(['cnn-train', *arguments[:start], joined, *arguments[end:]])}")
        raise error


def unknown_flag(word: str, arguments: Sequence[str]) -> ConfigError:
    """The answer to a flag that does not exist: the nearest, or the setting that was meant."""
    name, sign, value = word.partition("=")
    if guess := nearest(name, [flag for flag in FLAG if flag.startswith("--")], cutoff=0.7):
        return ConfigError(f"no flag {name}. Did you mean {guess}?", {word: guess + sign + value})
    key = name.strip("-").replace("-", "_")
    setting = nearest(key, ("seed", "model", "data", "norm", "epochs", "lr", "batch_size"))
    meant = f"; settings are key=value, without dashes: {setting}=..." if setting else "; cnn-train --help lists them"
    return ConfigError(f"no flag {name}{meant}")


def unknown_word(word: str, line: Line, verbs: Iterable[str]) -> ConfigError:
    """The answer to a bare word that is neither a command nor an option's value."""
    verbs = list(verbs)
    guess = OTHER_VERBS.get(word.lower()) or nearest(word, verbs, cutoff=0.7)
    if guess in verbs and guess != line.verb:
        return ConfigError(f"no command {word!r}. Did you mean {guess}?", {word: str(guess)})
    choices = Choices.find(line.config_dir)
    for group in choices.groups():
        option = choices.meant(group, word)
        if option is not None:
            return ConfigError(
                f"{word!r} is a choice of {group}. Did you mean {group}={option}?", {word: f"{group}={option}"}
            )
    return ConfigError(f"no command {word!r}. There are {', '.join(verbs)}")


def add_try(error: ConfigError, arguments: Sequence[str]) -> None:
    """Note the line that would have worked: the typed one, verb, flags and lists kept, with the faulty words mended."""
    mended = mend(arguments, error.mended)
    if mended == list(arguments):  # nothing to mend, or a word of a file
        return
    notes = [note for note in getattr(error, "__notes__", ()) if not note.startswith("try: cnn-train")]
    error.__notes__ = [*notes, f"try: {shlex.join(['cnn-train', *mended])}"]


def mend(arguments: Sequence[str], mended: Mapping[str, str]) -> list[str]:
    """Replace faulty words; of a list `key=a,b` only its faulty value, or the key.

    The word "" stands for a flag that is missing: it is put before the settings.
    """
    words = []
    for word in arguments:
        if word in mended:
            words.append(mended[word])
            continue
        key, sign, value = word.partition("=")
        for wrong, right in mended.items():
            wrong_key, _, wrong_value = wrong.partition("=")
            if sign and key.lstrip("+~") == wrong_key.lstrip("+~"):
                key, _, right_value = right.partition("=")
                value = ",".join(right_value if part.strip() == wrong_value else part for part in value.split(","))
            elif not sign and wrong_value and word == wrong_value:  # an option given as a bare word
                key = right.partition("=")[2]
        words.append(key + sign + value)
    if "" in mended:
        place = next((i for i, word in enumerate(words) if "=" in word), len(words))
        words.insert(place, mended[""])
    return words
