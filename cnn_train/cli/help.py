"""The text of --help."""

import shutil
import sys
import textwrap
from collections.abc import Mapping

from cnn_train import __version__
from cnn_train.cli.guard import Paint
from cnn_train.cli.line import FLAGS, Command
from cnn_train.config.choices import Choices, read_yaml

EXAMPLES = (
    ("cnn-train", "LeNet-5 on handwritten digits"),
    ("cnn-train model=deeplabv3 norm=gn", "segmentation; the model brings its data"),
    ("cnn-train model=resnet18 norm=ln act=elu init=he_normal", "swap any part for any other"),
    ("cnn-train model=resnet18 optimizer.lr=0.01 trainer.max_epochs=5", "change single settings"),
    ("cnn-train -m norm=bn,gn,ln seed=0,1", "a sweep: every combination"),
    ("cnn-train eval run=outputs/lenet5/...", "a run's test metrics again"),
)


def help_text(choices: Choices, commands: Mapping[str, Command]) -> str:
    """The text of --help."""
    paint = Paint(sys.stdout)
    width = min(shutil.get_terminal_size().columns, 110) if sys.stdout.isatty() else 100
    defaults = choices.defaults()

    def head(text: str) -> str:
        return paint(text, "1;36")

    def row(name: str, text: str, column: int = 14) -> str:
        wrapped = textwrap.wrap(text, width - column - 2, break_on_hyphens=False) or [""]
        return f"  {name:<{column}}" + f"\n{'':{column + 2}}".join(wrapped)

    lines = [
        f"{paint('cnn-train', '1')} {__version__}: compose a CNN experiment from parts, and train it",
        "",
        "  cnn-train [command] [group=choice ...] [key=value ...] [flags]",
        "",
        head("Commands"),
        *(row(name, command.help) for name, command in commands.items() if command.help),
        "",
        head("Groups") + " (in brackets: the default; a model may bring its own)",
    ]
    for group in choices.groups():
        names = [f"[{name}]" if name == defaults.get(group) else name for name in choices.options(group)]
        lines.append(row(group, " ".join(names)))
    keys = [key for key in read_yaml(choices.dirs[0] / "train.yaml") if key != "defaults"]
    lines += [
        "",
        head("Settings"),
        row("of the run", " ".join(keys)),
        row("of a choice", "optimizer.lr, data.batch_size, trainer.max_epochs, ...: cnn-train --cfg job shows all"),
        "",
        head("Flags"),
    ]
    for flag in FLAGS:
        if flag.help:
            lines.append(row(f"{', '.join(reversed(flag.names))} {flag.value}".rstrip(), flag.help, 37))
    lines += ["", head("Examples")]
    longest = max(len(command) for command, _ in EXAMPLES)
    lines += [f"  {command:<{longest}}  {paint('# ' + text, '2')}" for command, text in EXAMPLES]
    return "\n".join(lines)
