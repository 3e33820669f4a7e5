"""cnn-train inspect: what each layer of a network sees, weighs and costs, without training it.

The network is built on the meta device, where no weight takes memory; neither lightning nor torchvision is imported.
Results go to stdout.
"""

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from cnn_train.config.choices import GROUPS, Choices, nearest
from cnn_train.config.compose import compose
from cnn_train.config.load import load
from cnn_train.config.schema import RunConfig
from cnn_train.errors import ConfigError
from cnn_train.inspection.comparison import COMPARISONS, compare
from cnn_train.inspection.examine import examine
from cnn_train.inspection.subject import describe
from cnn_train.inspection.tables import WRITERS, show_on_terminal

if TYPE_CHECKING:
    from cnn_train.cli.line import Line

OPTIONS = {
    "versus": "another model beside this one",
    "format": ", ".join(WRITERS),
    "depth": "rows summed up by module, so many names deep",
    "input_size": "side of the image, or [height, width]",
    "batch_size": "of the memory estimate",
    "run": "a run folder, whose network and weights are looked at",
    "picture": "true, or --picture: PNG files and an HTML page",
    "pictures": "the folder for them",
    "image": "the image file for them",
    "samples": "images that the effective receptive field is averaged over",
}


@dataclass(frozen=True)
class Options:
    """The command's own settings; OPTIONS says what each is."""

    format: str = "table"
    depth: int | None = None
    batch_size: int | None = None
    versus: str | None = None
    pictures: Path | None = None
    picture: bool = False
    image: Path | None = None
    run: Path | None = None
    samples: int = 4


def run(line: "Line") -> int:
    """Run `inspect MODEL [VERSUS] [group=choice ...] [depth=N] [format=...] [picture=true] ...`."""
    with without_collector():
        options, overrides = read_options(line)
        configs = [composed(overrides, line, options.run)]
        if options.versus is not None:
            others = [o for o in overrides if not o.startswith("model=")]
            configs.append(composed([f"model={options.versus}", *others], line))
        with_data = options.run is not None or any(o.startswith(("data=", "data.")) for o in overrides)
        choices = Choices.find(line.config_dir)
        subjects = [describe(cfg, with_data=with_data, with_images=options.picture, choices=choices) for cfg in configs]
        reports = [examine(subject, depth=options.depth, batch_size=options.batch_size) for subject in subjects]
    if len(reports) == 2:
        print(COMPARISONS[options.format](compare(*reports)), end="")
    elif options.format == "table" and sys.stdout.isatty():
        show_on_terminal(reports[0])
    else:
        print(WRITERS[options.format](reports[0]), end="")
    if options.picture:
        from cnn_train.inspection.page import draw

        for report in reports:
            folder = options.pictures
            if folder is not None and len(reports) > 1:
                folder /= report.subject.name
            page = draw(report, folder, image=options.image, run=options.run, samples=options.samples)
            print(f"pictures {page}", file=sys.stderr if options.format != "table" else sys.stdout)
    return 0


@contextmanager
def without_collector() -> Iterator[None]:
    """Import torch with the cyclic garbage collector off: saves 1 of 4 seconds.

    Afterwards torch's objects are frozen, or the collector would look through them once more at the end of the process.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if on:
            gc.enable()


def composed(overrides: Sequence[str], line: "Line", folder: Path | None = None) -> DictConfig:
    """Compose the config of a run's folder or of the command line; an error's advice is a command of this verb."""
    try:
        return load(folder, overrides) if folder else compose(overrides, line.config_dir)
    except ConfigError as error:
        told = ConfigError(str(error))
        for note in getattr(error, "__notes__", ()):
            told.add_note(note.replace("try: cnn-train ", "try: cnn-train inspect ", 1))
        raise told from error


def read_options(line: "Line") -> tuple[Options, list[str]]:
    """Take our own settings out of the command line; the rest is Hydra's. Raises ConfigError."""
    if "--multirun" in line.flags:
        raise ConfigError("inspect looks at one network, or at two (versus=MODEL); leave --multirun out")
    given: dict[str, str] = {}
    overrides = []
    known = {"model", *GROUPS, *(f.name for f in fields(RunConfig))}
    for override in line.overrides:
        key, _, value = override.partition("=")
        guess = nearest(key, OPTIONS, cutoff=0.75)
        if key == "input_size":
            overrides.append(f"image_size={value}")
        elif key in OPTIONS:
            given[key] = value
        elif key.isidentifier() and key not in known and guess:
            raise ConfigError(f"unknown setting {key!r}. Did you mean {guess}?")
        else:
            overrides.append(override)
    words = list(line.words)
    if words and any(o.startswith("model=") for o in overrides):
        given.setdefault("versus", words.pop(0))
    elif words:
        overrides.insert(0, f"model={words.pop(0)}")
    if words:
        given.setdefault("versus", words.pop(0))
    if words:
        raise ConfigError(f"inspect compares two networks at most, and {words[0]!r} is one more")
    for key, value in given.items():
        if not value:
            raise ConfigError(f"{key}= is empty; it is {OPTIONS[key]}")
    form = given.get("format", "table")
    if form not in WRITERS:
        raise ConfigError(f"format must be {', '.join(WRITERS)}, got {form!r}")
    picture = given.get("picture", "true" if "--picture" in line.flags or "pictures" in given else "false")
    if picture.lower() not in ("true", "false"):
        raise ConfigError(f"picture must be true or false, got {picture!r}")
    return (
        Options(
            format=form,
            depth=_number(given, "depth"),
            batch_size=_number(given, "batch_size"),
            versus=given.get("versus"),
            pictures=Path(given["pictures"]) if "pictures" in given else None,
            picture=picture.lower() == "true",
            image=_path(given, "image"),
            run=_path(given, "run"),
            samples=_number(given, "samples") or 4,
        ),
        overrides,
    )


def _number(given: Mapping[str, str], key: str) -> int | None:
    text = given.get(key)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{key} must be a whole number >= 1, got {text!r}")
    return int(text)


def _path(given: Mapping[str, str], key: str) -> Path | None:
    if key not in given:
        return None
    path = Path(given[key])
    if not path.exists():
        raise ConfigError(f"no {key} at {path.absolute()}")
    return path
