"""The commands: each file of this folder is one, by its name (`verify_repro.py` is `cnn-train verify-repro`).

The first line of its docstring is what `--help` says of it; `Options` (see `cnn_train.cli.options`) holds its options;
`run(options)` does it and gives the exit code. A file whose name begins with `_` is a command that only the program
itself calls, and that no help shows. To add a command, add a file.
"""

from pathlib import Path

from cnn_train.cli.line import Command

# The order of the help; others follow by their names.
FIRST = (
    "train",
    "resume",
    "eval",
    "predict",
    "export",
    "inspect",
    "verify-repro",
    "sweep",
    "ablate",
    "compare",
    "report",
    "check",
    "explain",
    "list",
)
LAST = ("help", "completion")


def find() -> dict[str, Command]:
    """Every command by its name, in the order of the help."""
    found = {}
    for path in sorted(path for folder in __path__ for path in Path(folder).glob("*.py")):
        if path.stem != "__init__":
            name = path.stem.strip("_").replace("_", "-")
            found[name] = Command(path)
    ordered = [*FIRST, *(name for name in found if name not in FIRST + LAST), *LAST]
    return {name: found[name] for name in ordered if name in found}
