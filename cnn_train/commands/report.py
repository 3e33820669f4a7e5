"""Write the answer of a sweep, or of any runs, as one HTML file."""

import sys
from dataclasses import dataclass
from pathlib import Path

from cnn_train.atomic import write_text
from cnn_train.cli.options import Verb, option
from cnn_train.errors import ConfigError
from cnn_train.report import runs


@dataclass(frozen=True, kw_only=True)
class Options(Verb):
    folder: str = option("a sweep, or a folder of runs", word=True, of="path", value="DIR")
    output: str | None = option("the file; without it DIR/report.html", default=None, of="path")
    metric: str | None = option("what the runs are ranked by", default=None, value="METRIC")
    examples = (
        ("cnn-train report outputs/sweeps/DATE_TIME_0", "a sweep"),
        ("cnn-train report outputs metric=test/acc output=answer.html", "all runs, by accuracy"),
    )


def run(options: Options) -> int:
    """Write the report and say where it is."""
    print(f"report  {report(options.folder, options.output, options.metric)}")
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
