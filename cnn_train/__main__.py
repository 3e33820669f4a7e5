"""The program: the command line goes to its command, and whatever happens becomes an exit code."""

import importlib
import sys
from collections.abc import Sequence

from cnn_train import __version__
from cnn_train.cli.guard import guarded
from cnn_train.cli.help import help_text
from cnn_train.cli.line import FLAGS, split
from cnn_train.commands import COMMANDS
from cnn_train.config.choices import Choices
from cnn_train.config.own import make_importable


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (by default this process's); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: dispatch(arguments), debug="--debug" in arguments)


def dispatch(arguments: Sequence[str]) -> int:
    """Call the command that a line names; its exit code."""
    line = split(arguments, COMMANDS)
    make_importable(line.config_dir)
    if "--help" in line.flags:
        print(help_text(Choices.find(line.config_dir), COMMANDS))
        return 0
    if "--version" in line.flags:
        print(f"cnn-train {__version__}")
        return 0
    if "--shell-completion" in line.flags:
        from cnn_train.commands import completion

        names = [name for flag in FLAGS for name in flag.names]
        return completion.run(line.flags["--shell-completion"], COMMANDS, names)
    command = importlib.import_module(f"cnn_train.commands.{COMMANDS[line.verb].module}")
    return command.run(line) or 0


if __name__ == "__main__":
    sys.exit(main())
