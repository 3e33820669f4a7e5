"""The text of --help: an overview of one screen, and a page for each command."""

import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from types import ModuleType
from typing import Any, get_type_hints

from cnn_train import __version__
from cnn_train.cli.guard import Paint
from cnn_train.cli.line import FLAG, FLAGS, Command, Flag
from cnn_train.cli.options import Verb, type_text, value_text
from cnn_train.config.choices import Choices, read_yaml

EXAMPLES = (
    ("cnn-train", "LeNet-5 on handwritten digits"),
    ("cnn-train model=deeplabv3 norm=gn", "segmentation; the model brings its data"),
    ("cnn-train model=resnet18 norm=ln act=elu init=he_normal", "swap any part for any other"),
    ("cnn-train model=resnet18 optimizer.lr=0.01 trainer.max_epochs=5", "change single settings"),
    ("cnn-train -m norm=bn,gn,ln seed=0,1", "a sweep: every combination"),
    ("cnn-train eval last", "the newest run's test metrics again"),
)


def screen_width() -> int:
    return min(shutil.get_terminal_size().columns, 110) if sys.stdout.isatty() else 100


def row(name: str, text: str, column: int = 14) -> str:
    """A name and its explanation, wrapped beside it."""
    wrapped = textwrap.wrap(text, max(screen_width() - column - 2, 20), break_on_hyphens=False) or [""]
    gap = f"\n{'':{column + 2}}"
    return f"  {name:<{column}}" + (gap if len(name) >= column else "") + gap.join(wrapped)


def overview(choices: Choices, commands: Mapping[str, Command]) -> str:
    """The text of `cnn-train --help`: at most 50 lines."""
    paint = Paint(sys.stdout)
    head = heading(paint)
    keys = [key for key in read_yaml(choices.dirs[0] / "train.yaml") if key not in ("defaults", "config_dir")]
    shown = {name: command for name, command in commands.items() if not command.hidden}
    lines = [
        f"{paint('cnn-train', '1')} {__version__}: compose a CNN experiment from parts, and train it",
        "",
        "  cnn-train [command] [group=choice ...] [key=value ...] [flags]",
        "",
        head("Commands") + " (cnn-train help COMMAND: its options)",
        *(f"  {name:<14}{textwrap.shorten(command.help, screen_width() - 16)}" for name, command in shown.items()),
        "",
        head("Groups") + " (how many choices, and the default; cnn-train list GROUP names them)",
        *group_table(choices),
        "",
        head("Settings"),
        row("of the run", " ".join(keys)),
        row("of a choice", "optimizer.lr, data.batch_size, ...: cnn-train --cfg job shows all"),
        "",
        head("Flags"),
        *flag_rows([FLAG[name] for name in ("-m", "--cfg", "--info", "--config-dir", "--debug")]),
        "",
        head("Examples"),
        *example_rows(EXAMPLES, paint),
    ]
    return "\n".join(lines)


def group_table(choices: Choices, columns: int = 3) -> list[str]:
    """Each group with the number of its choices and its default, column by column."""
    defaults = choices.defaults()
    cells = [f"{group:<12}{len(choices.options(group)):>3}  {defaults.get(group) or '-'}" for group in choices.groups()]
    height = -(-len(cells) // columns)
    return ["  " + "".join(f"{cell:<32}" for cell in cells[i::height]).rstrip() for i in range(height)]


def heading(paint: Paint) -> Callable[[str], str]:
    return lambda text: paint(text, "1;36")


def flag_rows(flags: Sequence[Flag]) -> list[str]:
    return [row(f"{', '.join(reversed(flag.names))} {flag.value}".rstrip(), flag.help, 26) for flag in flags]


def example_rows(examples: Sequence[tuple[str, str]], paint: Paint) -> list[str]:
    longest = max(len(command) for command, _ in examples)
    return [f"  {command:<{longest}}  {paint('# ' + text, '2')}" for command, text in examples]


def page(name: str, command: Command, module: ModuleType) -> str:
    """The text of `cnn-train help COMMAND`: its options with types and defaults, settings, flags and examples."""
    paint = Paint(sys.stdout)
    head = heading(paint)
    title = f"{paint(f'cnn-train {name}', '1')}: {command.help}"
    more = (module.__doc__ or "").strip().partition("\n")[2].strip("\n")
    options = getattr(module, "Options", None)
    if not (isinstance(options, type) and issubclass(options, Verb)):
        return "\n".join([title, "", more]).rstrip()
    hints = get_type_hints(options)
    known = [item for item in fields(options) if "help" in item.metadata]
    takes_settings = any("settings" in item.metadata for item in fields(options))
    usage, rows = [f"  cnn-train {name}"], []
    for item in known:
        value = value_text(hints[item.name], item)
        if item.metadata["word"]:
            usage.append(value if item.default is MISSING else f"[{value}]")
        rows.append(row(f"{item.name}={value}", explanation(hints[item.name], item), 26))
    usage += ["[option=value ...]"] if any(not item.metadata["word"] for item in known) else []
    usage += ["[group=choice ...] [key=value ...]"] if takes_settings else []
    taken = [FLAG[item.metadata["flag"]] for item in fields(options) if "flag" in item.metadata]
    taken += [flag for flag in FLAGS if flag.everywhere and flag.names[0] in ("--debug", "--help")]
    parts = [title, "", " ".join(usage) + " [flags]"]
    parts += ["", more] if more else []
    parts += ["", head("Options"), *rows] if rows else []
    if takes_settings:
        text = "any group or setting of the config: cnn-train list, cnn-train --cfg job"
        parts += ["", head("Settings"), row("group=choice, key=value", text, 26)]
    parts += ["", head("Flags"), *flag_rows(taken)]
    parts += ["", head("Examples"), *example_rows(options.examples, paint)] if options.examples else []
    return "\n".join(parts)


def explanation(hint: Any, item: Any) -> str:
    """Help, type and default of an option, and whether it may stand as a bare word."""
    kind = type_text(hint, item.metadata) if "one of" not in type_text(hint, item.metadata) else ""
    default = item.default
    if default is MISSING:
        state = "required"
    elif default is None or default == ():
        state = ""
    else:
        state = f"default {str(default).lower() if isinstance(default, bool) else default}"
    bare = f"{item.name}= may be left out" if item.metadata["word"] else ""
    notes = ", ".join(note for note in (kind, state, bare) if note)
    return item.metadata["help"] + (f" ({notes})" if notes else "")
