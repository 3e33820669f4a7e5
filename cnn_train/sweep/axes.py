"""What a sweep varies, read from its command line: lists of values, intervals, and everything that stays.

Lists are `a,b`, `choice(a,b)`, `range(1,4)`, and `glob(*)` for the choices of a group; samplers take `interval(1,2)`.
"""

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnn_train.config.choices import Choices
from cnn_train.config.overrides import Override, parse
from cnn_train.errors import ConfigError

REPEATS = ("seed", "data.fold")  # not axes like others: their values repeat an experiment
NOT_SWEPT = ("sweep", "output_dir", "resume")  # what belongs to the sweep and not to a job


@dataclass
class Axis:
    """A key and the values it takes, or the interval they are drawn from."""

    key: str  # with its + or ++
    word: str  # as it was typed
    values: list[str] = field(default_factory=list)
    low: float | None = None
    high: float | None = None
    whole: bool = False
    log: bool = False

    @property
    def distinct(self) -> list[str]:
        """The values, each once; only `sweep=list` counts one more than once."""
        return list(dict.fromkeys(self.values))

    @property
    def is_interval(self) -> bool:
        return self.low is not None

    def corners(self) -> list[str]:
        """All values of a list, or both ends of an interval."""
        ends = [end for end in (self.low, self.high) if end is not None]
        return self.values or [str(int(end)) if self.whole else repr(end) for end in ends]

    def takes(self, value: str) -> bool:
        """Whether a job may have this value."""
        if self.low is None or self.high is None:
            return value in self.values
        try:
            return self.low <= float(value) <= self.high
        except ValueError:
            return False

    def as_word(self) -> str:
        """The axis as it would be typed."""
        if self.is_interval:
            return self.word
        text = ",".join(self.values)
        return f"{self.key}={text}" if len(self.values) > 1 else f"{self.key}=choice({text})"


@dataclass
class Axes:
    """A command line taken apart: `words` in their order, those that vary as axes."""

    words: list[str]
    axes: dict[str, Axis]  # by key, in the order of the line

    @classmethod
    def read(cls, words: Sequence[str], choices: Choices, published: Mapping[str, Any] | None = None) -> "Axes":
        """Parse a line; `published` are the axes of an experiment's YAML, which the line's own words replace."""
        words = [*published_words(published or {}, words), *words]
        last: dict[str, str] = {}  # the last word for a key counts
        axes: dict[str, Axis] = {}
        for override in parse(words):
            key = override.get_key_element()
            plain = override.key_or_group
            name = key.lstrip("+") if not override.is_delete() else key
            axes.pop(name, None)
            last.pop(name, None)
            last[name] = override.input_line or ""
            if override.is_sweep_override():
                if plain.split(".")[0] in NOT_SWEPT:
                    raise ConfigError(f"{override.input_line}: {plain} is one for the whole sweep; give it one value")
                axes[name] = axis(override, choices)
        return cls(list(last.values()), axes)

    def product(self) -> Iterator[tuple[list[str], list[str]]]:
        """Each combination as its varied words and its whole line; later keys vary fastest."""
        for values in itertools.product(*(axis.distinct for axis in self.axes.values())):
            yield self.line(dict(zip(self.axes, values, strict=True)))

    def repeats(self) -> list[dict[str, str]]:
        """The values that repeat each combination: every seed with every fold."""
        keys = [key for key in REPEATS if key in self.axes]
        return [dict(zip(keys, v, strict=True)) for v in itertools.product(*(self.axes[key].distinct for key in keys))]

    def zipped(self) -> Iterator[tuple[list[str], list[str]]]:
        """The first values of all lists, then the second, and so on; each with every seed and fold."""
        lists = [axis for key, axis in self.axes.items() if key not in REPEATS]
        lengths = {axis.word: len(axis.values) for axis in lists}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{word} has {length}" for word, length in lengths.items())
            raise ConfigError(f"sweep=list takes lists of one length: {told}; sweep=grid takes every combination")
        for index in range(max(lengths.values(), default=1)):
            for repeat in self.repeats():
                values = {key: axis.values[index] for key, axis in self.axes.items() if key not in repeat}
                yield self.line({**values, **repeat})

    def line(self, values: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """The varied words and the whole line of one job."""
        of_word = {axis.word: f"{axis.key}={values[key]}" for key, axis in self.axes.items()}
        return [of_word[axis.word] for axis in self.axes.values()], [of_word.get(word, word) for word in self.words]

    def has(self, changes: Sequence[str]) -> bool:
        """Whether each of a job's changes is a value of an axis."""
        pairs = [word.partition("=") for word in changes]
        keys = [key.lstrip("+") for key, _, _ in pairs]
        return all(
            key in self.axes and self.axes[key].takes(value) for key, (_, _, value) in zip(keys, pairs, strict=True)
        )

    def refuse_intervals(self) -> None:
        for each in self.axes.values():
            if each.is_interval:
                raise ConfigError(
                    f"{each.word}: an interval has no list of values; use range() or choice(), or draw from it with "
                    "sweep=tpe or sweep=random"
                )


def axis(override: Override, choices: Choices) -> Axis:
    """The axis that one swept word is."""
    word, key = override.input_line or "", override.get_key_element()
    value: Any = override.value()
    if override.is_interval_sweep():
        low, high = value.start, value.end
        if low is None or high is None or not low < high:
            raise ConfigError(f"{word}: an interval goes from a smaller to a larger number")
        if "log" in value.tags and low <= 0:
            raise ConfigError(f"{word}: a logarithmic interval begins above 0")
        unknown = {str(tag) for tag in value.tags} - {"log"}
        if unknown:
            raise ConfigError(f"{word}: tag() takes log, got {', '.join(sorted(unknown))}")
        return Axis(key, word, [], float(low), float(high), isinstance(low, int), "log" in value.tags)
    if any(hasattr(item, "shuffle") for item in getattr(value, "list", ())):  # a sweep inside a sweep
        flat = f"{key}={','.join(values)}" if (values := flattened(value)) else ""
        how = f": {flat}" if flat else ""
        raise ConfigError(
            f"{word}: a list of values has no range() or choice() in it; write the values out{how}",
            {word: flat} if flat else None,
        )
    override.config_loader = _GroupOptions(choices)  # type: ignore[assignment]
    values = [str(item) for item in override.sweep_string_iterator()]
    if not values:
        raise ConfigError(f"{word} gives no value")
    return Axis(key, word, values)


def flattened(value: Any) -> list[str]:
    """The single values of a list that holds ranges; [] if it holds anything else."""
    flat: list[str] = []
    for item in value.list:
        if isinstance(getattr(item, "start", None), int) and isinstance(item.stop, int):
            flat += [str(number) for number in range(item.start, item.stop, int(item.step))]
        elif isinstance(item, int | float | str):
            flat.append(str(item))
        else:
            return []
    return flat


class _GroupOptions:
    """What Hydra's glob() asks for."""

    def __init__(self, choices: Choices):
        self.choices = choices

    def get_group_options(self, group: str, results_filter: object = None) -> list[str]:
        return self.choices.options(group)


def published_words(published: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """The axes of an experiment's YAML as words, those left out whose key the line gives."""
    given = {word.partition("=")[0].lstrip("+~") for word in words}
    found = []
    for key, values in published.items():
        if key not in given:
            text = str(values)  # as it would be typed: a,b or range(0,3)
            if isinstance(values, list):
                text = ",".join(map(text_of, values))
                text = text if len(values) > 1 else f"choice({text})"
            found.append(f"{key}={text}")
    return found


def text_of(value: Any) -> str:
    """A value of YAML in the grammar of the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{text_of(inner)}" for key, inner in value.items()) + "}"
    text = str(value)
    if isinstance(value, str) and "(" not in text and not re.fullmatch(r"[\w./+-]*", text):
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return text


def without(words: Sequence[str], *keys: str) -> list[str]:
    """The words whose key is none of `keys`."""
    return [word for word in words if word.partition("=")[0].lstrip("+~") not in keys]


def command(words: Sequence[str], config_dir: str | None = None) -> str:
    """The command line of a sweep, quoted for a shell."""
    return shlex.join(["cnn-train", "-m", *words, *(["--config-dir", config_dir] if config_dir else [])])
