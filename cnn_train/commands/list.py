"""cnn-train list: the groups, or the choices of one."""

import sys

from cnn_train.cli.guard import Paint
from cnn_train.cli.line import Line
from cnn_train.config.choices import Choices, nearest
from cnn_train.errors import ConfigError


def run(line: Line) -> int:
    choices = Choices.find(line.config_dir)
    defaults = choices.defaults()
    paint = Paint(sys.stdout)
    if not line.words:
        for group in choices.groups():
            options = choices.options(group)
            default = f"default {defaults[group]}" if defaults.get(group) else "none by default"
            print(f"{paint(f'{group:<12}', '1')} {len(options):>3} choices, {default}")
        print(paint("cnn-train list GROUP shows the choices", "2"), file=sys.stderr)
        return 0
    for group in line.words:
        options = choices.options(group)
        if not options:
            guess = nearest(group, choices.groups())
            meant = f"Did you mean {guess}?" if guess else f"There are {', '.join(choices.groups())}"
            raise ConfigError(f"no group {group!r}. {meant}")
        width = max(map(len, options))
        for option in options:
            mark = "*" if option == defaults.get(group) else " "
            print(f"{mark} {paint(f'{option:<{width}}', '1')}  {choices.describe(group, option)}".rstrip())
    return 0
