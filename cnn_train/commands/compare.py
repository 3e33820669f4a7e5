"""Show the settings of runs side by side, each metric as mean and deviation over its seeds."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cnn_train.cli.options import Verb, option
from cnn_train.errors import ConfigError
from cnn_train.report import runs, settings, tables


@dataclass(frozen=True, kw_only=True)
class Options(Verb):
    folders: tuple[str, ...] = option("folders of runs or sweeps", word=True, of="path", value="DIR")
    where: str | None = option("only runs with these settings, as where=norm=bn", default=None, value="KEY=VALUE")
    sort: str | None = option("the metric to sort by", default=None, value="METRIC")
    format: Literal["text", "md", "csv", "json", "latex"] = option("of the table", default="text")
    examples = (
        ("cnn-train compare outputs", "all runs"),
        ("cnn-train compare outputs where=norm=bn format=md", "some of them, as Markdown"),
    )


def run(options: Options) -> int:
    """Print the table; remarks about damaged or repeated runs go to stderr."""
    text, notes = compare(options.folders, options.where, options.sort, options.format)
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
