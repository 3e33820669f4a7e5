"""Explain an idea by a page that computes: convolution, normalization, LSTM, ...

Without a topic it lists them. Topics and options are read from the topics' files, so that a list or
a wrong word is answered before torch is imported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_train import explain
from cnn_train.cli.options import Verb, option, settings
from cnn_train.config.choices import nearest
from cnn_train.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options(Verb):
    topic: str | None = option("what to explain; without it the topics are listed", default=None, word=True)
    output: Path | None = option("folder; without it outputs/explain/TOPIC", default=None, of="path", value="DIR")
    options: tuple[str, ...] = settings()
    examples = (
        ("cnn-train explain", "the topics"),
        ("cnn-train explain convolution kernel=3 stride=2 size=7", "one of them, with numbers of your own"),
    )


def run(options: Options) -> int:
    """Print the list of topics, or a topic as text, and leave its pictures and its HTML page in a folder."""
    if options.topic is None:
        if options.options:
            word = options.options[0]
            raise ConfigError(f"{word} is an option of which topic? cnn-train explain TOPIC {word}")
        print(contents())
        return 0
    topic = find(options.topic)
    folder = options.output or Path(f"outputs/explain/{topic}")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output={folder} is a file; name a folder for the page and its pictures")
    given = dict(word.lstrip("+").split("=", 1) for word in options.options)
    page = explain.load(topic)(**{name: read(topic, name, text) for name, text in given.items()})
    print(page)
    print(f"\nPage: {page.write(folder)} (its {len(page.pictures)} pictures are beside it)")
    return 0


def contents() -> str:
    """The topics in the order in which one may read them, a line each."""
    width = max(map(len, explain.TOPICS))
    lines = [f"  {topic.ljust(width)}  {explain.summary(topic).partition(': ')[2]}" for topic in explain.TOPICS]
    return "\n".join(["cnn-train explain TOPIC [option=value ...] [output=DIR]", "", *lines])


def find(word: str) -> str:
    """The topic of this name; dashes and capitals are taken for what they mean. ConfigError names the nearest."""
    name = word.lower().replace("-", "_")
    if name in explain.TOPICS:
        return name
    about = [topic for topic in explain.TOPICS if name.replace("_", " ") in explain.summary(topic).lower()]
    guess = about[0] if about else nearest(name, explain.TOPICS)
    rest = f"Did you mean {guess}?" if guess else f"There are {', '.join(explain.TOPICS)}"
    raise ConfigError(f"no topic {word!r}. {rest}")


def read(topic: str, name: str, text: str) -> Any:
    """The value of a topic's option. ConfigError if there is none of this name, or if the text is not of its type."""
    options = explain.options(topic)
    if name not in options:
        guess = nearest(name, options)
        hint = f"Did you mean {guess}? " if guess else ""
        raise ConfigError(f"explain {topic} has no option {name!r}. {hint}It takes {', '.join([*options, 'output'])}")
    option = options[name]
    if option.words:
        if text in option.words:
            return text
        guess = nearest(text, option.words)
        hint = f". Did you mean {guess}?" if guess else ""
        raise ConfigError(f"{name} must be one of {', '.join(option.words)}, got {text!r}{hint}")
    kinds = {"int": (int, "a whole number"), "float": (float, "a number"), "str": (str, "text")}
    convert, meant = kinds[option.kind]
    try:
        return convert(text)
    except ValueError:
        raise ConfigError(f"{name} must be {meant}, got {text!r}; its default is {option.default}") from None
