"""The options of a verb: a dataclass with a field each, read from a command line and checked like settings.

    @dataclass(frozen=True, kw_only=True)
    class Options(Verb):
        steps: int = option("how many steps to train", default=10, least=2)
        examples = (("cnn-train toy steps=20", "twenty steps"), ("cnn-train toy", "ten steps"))

    def run(options: Options) -> int: ...

A field of `option` is given as `name=value`, with `word=True` also as a bare word; one of `flag` by its flag.
"""

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cnn_train.cli.line import FLAG, Line, unknown_word
from cnn_train.config.choices import GROUPS, Choices, nearest, read_yaml
from cnn_train.errors import ConfigError

T = TypeVar("T", bound="Verb")
RUN = "a run's folder, a checkpoint file, the beginning of a run's name, or last"


def option(
    help: str,
    *,
    default: Any = MISSING,
    word: bool = False,
    least: int | None = None,
    of: str = "",
    value: str = "",
    flag: str = "",
) -> Any:
    """A field that is given as `name=value`, or with `word` as a bare word too; without a default it is required.

    `least` bounds a number. `value` is what the help shows behind `=`. `of` says what the TAB key offers: "run",
    "path", "commands", "groups" or the name of a group. `flag` names a flag that makes it true, or has its value.
    """
    metadata = {"help": help, "word": word, "least": least, "of": of, "value": value}
    return field(default=default, metadata={**metadata, "flag": flag} if flag else metadata)


def flag(name: str) -> Any:
    """A field that a flag of FLAGS sets: True, or the flag's value."""
    return field(default=None if FLAG[name].value else False, metadata={"flag": name})


def settings() -> Any:
    """The field that holds all `key=value` words that are no options: settings of a config."""
    return field(default=(), metadata={"settings": True})


@dataclass(frozen=True, kw_only=True)
class Verb:
    """What every verb's Options inherit from. `examples` are two command lines, each with what it does."""

    examples: ClassVar[Sequence[tuple[str, str]]] = ()


@dataclass(frozen=True, kw_only=True)
class Composes(Verb):
    """Options of a verb that composes a config or reads a run's: it takes settings, and can show the config."""

    settings: tuple[str, ...] = settings()
    config_dir: str | None = flag("--config-dir")
    cfg: str | None = flag("--cfg")
    resolve: bool = flag("--resolve")
    package: str | None = flag("--package")
    info: str | None = flag("--info")

    def __post_init__(self) -> None:
        if self.cfg is None and self.info is None:
            for name, given in (("--resolve", self.resolve), ("--package", self.package is not None)):
                if given:
                    raise ConfigError(f"{name} goes with --cfg job, which prints the config", {"": "--cfg=job"})


@dataclass(frozen=True, kw_only=True)
class OfRun(Composes):
    """Options of a verb that takes up a run."""

    run: str = option(RUN, word=True, of="run", value="RUN")
    output_dir: str = option("where last and names of runs are looked for", default="outputs", of="path", value="DIR")
    trust: str | None = flag("--trust")

    @property
    def reading(self) -> dict[str, Any]:
        """How the run's config is read: with which choices of one's own, and which packages it may name."""
        return {"config_dir": self.config_dir, "trust": tuple((self.trust or "").split(","))}


def read(options: type[T], line: Line, verbs: Iterable[str] = ()) -> T:
    """The options that a command line gives. Raises ConfigError for a word, option or flag that the verb lacks."""
    known = {item.name: item for item in fields(options) if "help" in item.metadata}
    rest = next((item.name for item in fields(options) if "settings" in item.metadata), None)
    hints = get_type_hints(options)
    given: dict[str, Any] = read_flags(options, line)
    for name in known.keys() & given.keys():  # by its flag, whose value is text
        if isinstance(given[name], str):
            given[name] = convert(name, given[name], hints[name], known[name].metadata)
    others = []
    for override in line.overrides:
        key, sign, value = override.partition("=")
        if key not in known or not sign:
            if rest is None or _option_meant(key, known, line):
                raise _unknown_option(override, known, line, rest is not None)
            others.append(override)
        elif key in given:  # also by its flag
            several = "; write all in one, with commas" if get_origin(hints[key]) is tuple else ""
            first = ",".join(map(str, given[key])) if isinstance(given[key], tuple) else given[key]
            raise ConfigError(f"{key} is given twice: {first} and {value}{several}")
        else:
            given[key] = convert(key, value, hints[key], known[key].metadata)
    if rest is not None:
        given[rest] = tuple(others)
    words = list(line.words)
    for name, item in known.items():
        if item.metadata["word"] and name not in given and words:
            if get_origin(hints[name]) is tuple:
                given[name], words = tuple(words), []
            else:
                given[name] = convert(name, words.pop(0), hints[name], item.metadata)
    if words:
        composes = issubclass(options, Composes)
        raise unknown_word(words[0], line, verbs) if composes else ConfigError(_takes(line.verb, known, repr(words[0])))
    missing = [item for item in known.values() if item.default is MISSING and item.name not in given]
    if missing:
        needed = " and ".join(f"{item.name}={item.metadata['value']}" for item in missing)
        error = ConfigError(f"{line.verb} needs {needed}: {missing[0].metadata['help']}")
        if options.examples:
            error.add_note(f"try: {options.examples[0][0]}")
        raise error
    return options(**given)


def read_flags(options: type[Verb], line: Line) -> dict[str, Any]:
    """The fields that flags set. Raises ConfigError for a flag that the verb does not take."""
    takes = {item.metadata["flag"]: item.name for item in fields(options) if "flag" in item.metadata}
    given = {}
    for name, value in line.flags.items():
        if name in takes:
            given[takes[name]] = (value or "all") if FLAG[name].value else True
        elif not FLAG[name].everywhere:
            raise refused_flag(name, line.verb, takes)
    return given


def refused_flag(name: str, verb: str, takes: Iterable[str]) -> ConfigError:
    """The answer to a flag of other verbs."""
    also = ", ".join(takes) or "no flags but --help and --debug"
    return ConfigError(f"{verb} takes no {name}; it takes {also}")


def convert(name: str, text: str, hint: Any, rules: Mapping[str, Any]) -> Any:
    """The value of an option's text. Raises ConfigError if it does not fit the type."""
    kinds = [*(get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))]
    if text == "null" and type(None) in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    least = rules.get("least")
    if get_origin(kind) is Literal:
        words = [str(word) for word in get_args(kind)]
        if text not in words:
            guess = nearest(text, words)
            meant = f". Did you mean {guess}?" if guess else ""
            mended = {f"{name}={text}": f"{name}={guess}"} if guess else None
            raise ConfigError(f"{name} must be {_one_of(words)}, got {text!r}{meant}", mended)
        return next(word for word in get_args(kind) if str(word) == text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{name} must be true or false, got {text!r}")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            number = None
        if number is None or number != number or (least is not None and number < least):
            raise ConfigError(f"{name} must be {type_text(hint, rules)}, got {text!r}")
        return number
    if not text:
        raise ConfigError(f"{name}= is empty; it is {rules['help']}")
    if get_origin(kind) is tuple:
        return tuple(text.split(","))
    return Path(text) if kind is Path else text


def type_text(hint: Any, rules: Mapping[str, Any]) -> str:
    """What an option takes, in words."""
    kinds = [*(get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))]
    kind = next(kind for kind in kinds if kind is not type(None))
    least = "" if rules.get("least") is None else f" >= {rules['least']}"
    if get_origin(kind) is Literal:
        return _one_of([str(word) for word in get_args(kind)])
    names = {bool: "true or false", int: f"a whole number{least}", float: f"a number{least}", Path: "a path"}
    return names.get(kind, "a path" if rules.get("of") == "path" else "")


def value_text(hint: Any, item: Field[Any]) -> str:
    """What the help shows behind the `=` of an option."""
    kinds = [*(get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))]
    kind = next(kind for kind in kinds if kind is not type(None))
    if item.metadata["value"]:
        return str(item.metadata["value"])
    if get_origin(kind) is Literal:
        return "|".join(str(word) for word in get_args(kind))
    return {bool: "true|false", int: "N", float: "X", Path: "PATH"}.get(kind, item.metadata["of"].upper() or "WORD")


def _one_of(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"one of {', '.join(words)}"


def _option_meant(key: str, known: Iterable[str], line: Line) -> str | None:
    """The option that a word which is no setting either was probably meant to be."""
    if not key.isidentifier() or key in GROUPS:
        return None
    choices = Choices.find(line.config_dir)
    if key in read_yaml(choices.dirs[0] / "train.yaml") or choices.options(key):
        return None
    return nearest(key, known, cutoff=0.75)


def _unknown_option(override: str, known: Mapping[str, Any], line: Line, takes_settings: bool) -> ConfigError:
    key, sign, value = override.partition("=")
    guess = nearest(key, known, cutoff=0.75 if takes_settings else 0.6)
    if guess:
        return ConfigError(f"{line.verb} has no option {key!r}. Did you mean {guess}?",
                           {override: f"{guess}{sign}{value}"})  # fmt: skip
    return ConfigError(_takes(line.verb, known, repr(override)))


def _takes(verb: str, known: Iterable[str], word: str) -> str:
    names = ", ".join(f"{name}=" for name in known)
    return f"{verb} takes {names or 'no options'}, got {word}; `cnn-train help {verb}` says more"
