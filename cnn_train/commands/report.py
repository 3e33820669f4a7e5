"""`cnn-train report DIR [output=FILE] [metric=NAME]`: the answer of a sweep, or of any runs, as one HTML file."""

import sys
from pathlib import Path

from cnn_train.atomic import write_text
from cnn_train.cli.line import Line
from cnn_train.commands.compare import options
from cnn_train.errors import ConfigError
from cnn_train.report import runs


def run(line: Line) -> int:
    """Write the report and say where it is."""
    given = options(line, "report", ("output", "metric"))
    if len(line.words) != 1:
        error = ConfigError(f"report needs one folder of runs or a sweep, got {len(line.words)}")
        error.add_note("try: cnn-train report outputs/sweeps/DATE_TIME_N")
        raise error
    print(f"report  {report(line.words[0], given.get('output'), given.get('metric'))}")
    return 0


def report(folder: str, output: str | None = None, metric: str | None = None) -> Path:
    """Write the report about the runs in `folder`, by default to report.html in it. Raises ConfigError and EnvError."""
    study = runs.read([folder])
    path = Path(output) if output else Path(folder) / "report.html"
    if path.is_dir():
        raise ConfigError(f"output={path} is a folder; name a file, as output={path / 'report.html'}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"output={path}: no folder {path.absolute().parent}; make it first")
    from cnn_train.report import page  # imports numpy

    write_text(path, page.render(study, metric))
    for note in study.notes:
        print(note, file=sys.stderr)
    return path
