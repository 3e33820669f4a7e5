"""`cnn-train explain [TOPIC] [option=value ...] [output=DIR]`: an idea as a page that computes.

Without a topic it lists them. Topics and options are read from the topics' files, so that a list or a wrong word is
answered before torch is imported.
"""

from pathlib import Path
from typing import Any, Protocol

from cnn_train import explain
from cnn_train.choices import nearest
from cnn_train.errors import ConfigError


class Words(Protocol):
    """What is needed of a command line: bare words after the verb, and words with an `=`."""

    words: list[str]
    overrides: list[str]


def run(line: Words) -> int:
    """Print the list of topics, or a topic as text, and leave its pictures and its HTML page in a folder."""
    if not line.words:
        if line.overrides:
            raise ConfigError(
                f"{line.overrides[0]} is an option of which topic? cnn-train explain TOPIC {line.overrides[0]}"
            )
        print(contents())
        return 0
    topic = find(line.words[0])
    if len(line.words) > 1:
        raise ConfigError(f"explain takes one topic at a time, got {' '.join(line.words)}; options are option=value")
    given = dict(word.lstrip("+").split("=", 1) for word in line.overrides)
    folder = Path(given.pop("output", f"outputs/explain/{topic}")).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output={folder} is a file; name a folder for the page and its pictures")
    settings = {name: read(topic, name, text) for name, text in given.items()}
    page = explain.load(topic)(**settings)
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
