"""The program: the command line goes to its command, and whatever happens becomes an exit code."""

import importlib
import sys
from collections.abc import Sequence

from cnn_train import __version__, commands
from cnn_train.cli.guard import guarded
from cnn_train.cli.line import Line, add_try, split
from cnn_train.cli.options import Verb, read, refused_flag
from cnn_train.config.own import make_importable
from cnn_train.errors import ConfigError

# Flags of the commands that have no Options yet.
FLAGS_OF_LINES = ("--config-dir", "--picture", "--multirun", "--debug", "--run")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (by default this process's); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: dispatch(arguments), debug="--debug" in arguments)


def dispatch(arguments: Sequence[str]) -> int:
    """Call the command that a line names; its exit code."""
    try:
        found = commands.find()
        line = split(arguments, [name for name, command in found.items() if not command.hidden or name in arguments])
        make_importable(line.config_dir)
        if "--version" in line.flags:
            print(f"cnn-train {__version__}")
            return 0
        if "--help" in line.flags:
            asked = line.verb == "help" and line.words
            words = line.words if asked or not line.verb_is_typed else [line.verb]
            line = Line("help", words, flags={k: v for k, v in line.flags.items() if k == "--config-dir"})
        elif "--shell-completion" in line.flags:  # Hydra's word for it
            line = Line("completion", overrides=[line.flags["--shell-completion"]])
        command = importlib.import_module(f"cnn_train.commands.{found[line.verb].path.stem}")
        options = getattr(command, "Options", None)
        if isinstance(options, type) and issubclass(options, Verb):
            verbs = [name for name, command in found.items() if not command.hidden]
            return command.run(read(options, line, verbs)) or 0
        for name in line.flags:
            if name not in FLAGS_OF_LINES:
                raise refused_flag(name, line.verb, ("--config-dir", "--picture"))
        return command.run(line) or 0
    except ConfigError as error:
        add_try(error, arguments)
        raise


if __name__ == "__main__":
    sys.exit(main())
