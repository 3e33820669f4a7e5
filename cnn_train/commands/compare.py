"""`cnn-train compare DIR... [where=] [sort=] [format=]`: settings side by side, each metric over its seeds."""

import sys
from collections.abc import Sequence

from cnn_train.cli.line import Line
from cnn_train.errors import ConfigError
from cnn_train.report import runs, settings, tables


def run(line: Line) -> int:
    """Print the table; remarks about damaged or repeated runs go to stderr."""
    given = options(line, "compare", ("where", "sort", "format"))
    if not line.words:
        error = ConfigError("compare needs the folders of runs or sweeps")
        error.add_note("try: cnn-train compare outputs")
        raise error
    text, notes = compare(line.words, given.get("where"), given.get("sort"), given.get("format", "text"))
    print(text, end="")
    for note in notes:
        print(note, file=sys.stderr)
    return 0


def compare(
    folders: Sequence[str], where: str | None = None, sort: str | None = None, format: str = "text"
) -> tuple[str, list[str]]:
    """The table of the runs in `folders`, and remarks. Raises ConfigError."""
    if format not in tables.FORMATS:
        raise ConfigError(f"format must be one of {', '.join(tables.FORMATS)}, got {format!r}")
    study = runs.read(folders)
    chosen = settings.where(study.runs, where) if where else list(study.runs)
    comparison = settings.compare(chosen)
    notes = [*study.notes, *comparison.notes]
    notes += [f"{run.folder}: {run.cause}" for run in chosen if run.state == "unreadable"]
    return tables.table(comparison, format, sort), notes


def options(line: Line, command: str, known: Sequence[str]) -> dict[str, str]:
    """The `name=value` words of a line. Raises ConfigError for one that the command does not take."""
    given = {}
    for override in line.overrides:
        name, _, value = override.partition("=")
        if name not in known:
            raise ConfigError(f"{command} takes {', '.join(f'{key}=' for key in known)}, got {override!r}")
        if not value:
            raise ConfigError(f"{name}= needs a value")
        given[name] = value
    return given
