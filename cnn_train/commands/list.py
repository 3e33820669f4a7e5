"""List the groups, the choices of one, or the settings of a choice."""

import sys
from dataclasses import dataclass

from cnn_train.cli.guard import Paint
from cnn_train.cli.options import Verb, flag, option
from cnn_train.config.choices import Choices, nearest
from cnn_train.config.settings import settings_of
from cnn_train.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options(Verb):
    groups: tuple[str, ...] = option(
        "groups, or a group and one of its choices", default=(), word=True, of="groups", value="GROUP"
    )
    config_dir: str | None = flag("--config-dir")
    examples = (
        ("cnn-train list model", "the networks, with a line about each"),
        ("cnn-train list data folder", "the settings of data=folder, also those that no file lists"),
    )


def run(options: Options) -> int:
    choices = Choices.find(options.config_dir)
    paint = Paint(sys.stdout)
    if not options.groups:
        show_groups(choices, paint)
    elif len(options.groups) == 2 and not choices.options(options.groups[1]):
        show_settings(choices, *options.groups, paint)
    else:
        for group in options.groups:
            show_group(choices, group, paint)
    return 0


def show_groups(choices: Choices, paint: Paint) -> None:
    """Each group, with the number of its choices and its default."""
    defaults = choices.defaults()
    for group in choices.groups():
        default = f"default {defaults[group]}" if defaults.get(group) else "none by default"
        print(f"{paint(f'{group:<12}', '1')} {len(choices.options(group)):>3} choices, {default}")
    print(paint("cnn-train list GROUP shows the choices", "2"), file=sys.stderr)


def options_of(choices: Choices, group: str) -> list[str]:
    """The choices of a group. Raises ConfigError if there is no such group."""
    options = choices.options(group)
    if not options:
        guess = nearest(group, choices.groups())
        meant = f"Did you mean {guess}?" if guess else f"There are {', '.join(choices.groups())}"
        raise ConfigError(f"no group {group!r}. {meant}", {group: guess} if guess else None)
    return options


def show_group(choices: Choices, group: str, paint: Paint) -> None:
    """The choices of a group, with a line about each; the default has a star."""
    names, default = options_of(choices, group), choices.defaults().get(group)
    width = max(map(len, names))
    for name in names:
        mark = "*" if name == default else " "
        print(f"{mark} {paint(f'{name:<{width}}', '1')}  {choices.describe(group, name)}".rstrip())


def show_settings(choices: Choices, group: str, name: str, paint: Paint) -> None:
    """The settings of a choice, with the value that its file gives or the type that its builder takes."""
    if name not in options_of(choices, group):
        error, guess = choices.no_such(group, name)
        error.mended = {name: guess} if guess else {}
        raise error
    print(paint(f"{group}={name}", "1") + f"  {choices.describe(group, name)}")
    settings = settings_of(choices, group, name)
    width = max(map(len, settings), default=0)
    for key, text in settings.items():
        print(f"  {key:<{width}}  {text}".rstrip())
