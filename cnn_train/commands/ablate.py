"""Change one part at a time, several seeds each, and report what each change does."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cnn_train.cli.options import Composes, option
from cnn_train.commands.report import report
from cnn_train.commands.sweep import train_all
from cnn_train.config.choices import Choices, nearest
from cnn_train.errors import ConfigError, EnvError


@dataclass(frozen=True, kw_only=True)
class Options(Composes):
    axis: tuple[str, ...] = option("groups whose every choice is tried, one at a time", default=(), value="GROUP,...")
    seeds: int = option("how many seeds each change has", default=3, least=1)
    examples = (
        ("cnn-train ablate model=resnet20 axis=norm,act seeds=3", "every norm, then every activation"),
        ("cnn-train ablate optimizer.lr=1e-3,1e-2 norm=bn,gn,ln", "lists: the first value is the base"),
    )


def run(options: Options) -> int:
    from cnn_train.config.compose import compose

    choices = Choices.find(options.config_dir)
    axes, fixed = read_axes(options.settings, options.axis, choices)
    base = compose(fixed, options.config_dir)
    given = {key: values for key, values in axes.items() if values}
    tried = {key: axes[key] or every_choice(key, base.choices[key], choices) for key in axes}
    if not given and not options.axis:
        error = ConfigError("ablate changes one part at a time: name groups, or give lists of values")
        error.add_note(f"try: {options.examples[0][0]}")
        raise error
    seeds = [] if "seed" in tried else [f"seed={','.join(map(str, range(options.seeds)))}"]
    seeds = [word if options.seeds > 1 else "seed=choice(0)" for word in seeds]
    words = [*fixed, "sweep=list", *one_at_a_time(tried), *seeds]
    if options.cfg is not None or options.info is not None:
        return train_all(replace(options, settings=tuple(words)), None)
    from cnn_train.sweep import folder as folders
    from cnn_train.sweep import start

    code = start.start(words, options.config_dir)
    folder = folders.same_line(Path(base.output_dir) / "sweeps", words)
    try:
        print(f"report  {report(str(folder))}")
    except EnvError as error:  # the extra that draws it is not installed
        print(f"no report: {error}", file=sys.stderr)
    return code


def read_axes(
    settings: Sequence[str], groups: Sequence[str], choices: Choices
) -> tuple[dict[str, list[str]], list[str]]:
    """What is varied, a list of values for each key (empty: every choice of a group), and the settings that stay.

    Raises ConfigError for a group that there is not.
    """
    from cnn_train.sweep.axes import Axes

    for group in groups:
        if group not in choices.groups():
            guess = nearest(group, choices.groups())
            meant = f" Did you mean {guess}?" if guess else ""
            right = [guess if name == group else name for name in groups]
            mended = {f"axis={','.join(groups)}": f"axis={','.join(map(str, right))}"} if guess else None
            raise ConfigError(f"axis={group}: no such group.{meant} Of a setting give a list: optimizer.lr=1,2", mended)
    line = Axes.read(settings, choices)
    varied = {axis.word for axis in line.axes.values()}
    if drawn := next((axis for axis in line.axes.values() if axis.is_interval), None):
        raise ConfigError(f"{drawn.word}: ablate takes lists of values; sweep=random draws from intervals")
    axes: dict[str, list[str]] = {key: axis.values for key, axis in line.axes.items()}
    return {**axes, **{group: [] for group in groups if group not in axes}}, [w for w in line.words if w not in varied]


def every_choice(group: str, base: str | None, choices: Choices) -> list[str]:
    """All choices of a group, the base first."""
    first = base or "null"
    same = (first,) if base else (first, "none")  # two words for nothing
    return [first, *(choice for choice in choices.options(group) if choice not in same)]


def one_at_a_time(axes: Mapping[str, Sequence[str]]) -> list[str]:
    """Lists of one length: the base, then each other value of each key with all other keys at their base."""
    points = [{key: values[0] for key, values in axes.items()}]
    for key, values in axes.items():
        points += [{**points[0], key: value} for value in values[1:] if key != "seed"]
    words = []
    for key, values in axes.items():
        text = ",".join(values) if key == "seed" else ",".join(point[key] for point in points)
        words.append(f"{key}={text}" if "," in text else f"{key}=choice({text})")
    return words
