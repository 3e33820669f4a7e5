"""Show a command's options and examples, or this overview."""

import importlib
from dataclasses import dataclass

from cnn_train import commands
from cnn_train.cli import help as text
from cnn_train.cli.line import Line, unknown_word
from cnn_train.cli.options import Verb, flag, option
from cnn_train.config.choices import Choices


@dataclass(frozen=True, kw_only=True)
class Options(Verb):
    command: str | None = option("the command", default=None, word=True, of="commands", value="COMMAND")
    config_dir: str | None = flag("--config-dir")
    examples = (("cnn-train help eval", "as cnn-train eval --help"), ("cnn-train help", "as cnn-train --help"))


def run(options: Options) -> int:
    found = commands.find()
    name = options.command
    if name is None:
        print(text.overview(Choices.find(options.config_dir), found))
        return 0
    if name not in found:
        flags = {} if options.config_dir is None else {"--config-dir": options.config_dir}
        raise unknown_word(name, Line("help", flags=flags), [name for name in found if not found[name].hidden])
    module = importlib.import_module(f"cnn_train.commands.{found[name].path.stem}")
    print(text.page(name, found[name], module))
    return 0
