"""The command line: `cnn-train [command] [group=choice ...] [key=value ...] [flags]`.

The first bare word is the command, and without one it is `train`; everything with an `=` is Hydra's override grammar.
Nothing here imports torch before the config is composed and checked, so that help and every config error come at once.
"""

import errno
import importlib
import os
import re
import shlex
import shutil
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnn_train import __version__, run_folder, signals
from cnn_train.choices import Choices, nearest, read_yaml
from cnn_train.errors import ConfigError, EnvError, UserError


@dataclass(frozen=True)
class Verb:
    """A command: its function, `module:function` from a Line to an exit code, and one line of help."""

    function: str
    help: str


# To add a command, add a line.
VERBS = {
    "train": Verb("cnn_train.cli:train", "train a network; meant where no command is given"),
    "resume": Verb(
        "cnn_train.cli:resume",
        "go on with a stopped run, or for longer: resume DIR [trainer.max_epochs=N [schedule=stretch|keep|restart]]",
    ),
    "eval": Verb(
        "cnn_train.cli:evaluate", "evaluate a run again: eval run=DIR [split=val] [postprocess=crf] [inference=sliding]"
    ),
    "predict": Verb(
        "cnn_train.predict:run", "predict images: predict run=DIR input=FILE_OR_FOLDER [output=DIR] [postprocess=crf]"
    ),
    "inspect": Verb(
        "cnn_train.commands.inspect:run",
        "what each layer sees, weighs and costs: inspect model=vgg16 [versus=resnet50] [depth=1] [format=json] "
        "[picture=true]",
    ),
    "verify-repro": Verb(
        "cnn_train.verify:run",
        "train a run's first steps three times and compare the bits: verify-repro DIR [steps=10]",
    ),
    "sweep": Verb("cnn_train.cli:sweep", "train every combination of lists of values, as -m does"),
    "list": Verb("cnn_train.cli:list_choices", "list the groups, or the choices of one: list model"),
}

EXAMPLES = (
    ("cnn-train", "LeNet-5 on handwritten digits"),
    ("cnn-train model=deeplabv3 norm=gn", "segmentation; the model brings its data"),
    ("cnn-train model=resnet18 norm=ln act=elu init=he_normal", "swap any part for any other"),
    ("cnn-train model=resnet18 optimizer.lr=0.01 trainer.max_epochs=5", "change single settings"),
    ("cnn-train -m norm=bn,gn,ln seed=0,1", "a sweep: every combination"),
    ("cnn-train eval run=outputs/lenet5/...", "a run's test metrics again"),
)


INFO = ("all", "config", "defaults", "defaults-tree", "searchpath")


@dataclass(frozen=True)
class Flag:
    names: tuple[str, ...]
    value: str  # name of its value; "" if it takes none; in [] if it may be left out
    help: str


FLAGS = (
    Flag(("--multirun", "-m"), "", "sweep over lists of values: key=a,b, key=range(1,4), group=glob(*)"),
    Flag(("--cfg", "-c"), "job", "print the composed config and stop"),
    Flag(("--resolve",), "", "with --cfg: fill in ${...}"),
    Flag(("--package", "-p"), "KEY", "with --cfg: only this part"),
    Flag(("--info", "-i"), "[WHAT]", f"print what is composed from where and stop: {', '.join(INFO)}"),
    Flag(("--config-dir", "-cd"), "DIR", "a folder with choices of your own (DIR/model/mine.yaml)"),
    Flag(("--shell-completion", "-sc"), "install=SHELL", 'TAB: eval "$(cnn-train -sc install=bash)"; also zsh, fish'),
    Flag(("--picture",), "", "with inspect: PNG files and an HTML page"),
    Flag(("--debug",), "", "show tracebacks (also CNN_TRAIN_DEBUG=1)"),
    Flag(("--version",), "", "print the version"),
    Flag(("--help", "-h"), "", "this text"),
    Flag(("--run", "-r"), "", ""),  # Hydra's name for what happens anyway
)


@dataclass
class Line:
    """A command line taken apart."""

    verb: str = "train"
    words: list[str] = field(default_factory=list)  # bare words after the verb
    overrides: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)  # by long name

    @property
    def config_dir(self) -> str | None:
        return self.flags.get("--config-dir")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (by default this process's); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: dispatch(arguments), debug="--debug" in arguments)


def dispatch(arguments: Sequence[str]) -> int:
    line = split(arguments)
    if "--help" in line.flags:
        print(help_text(Choices.find(line.config_dir)))
        return 0
    if "--version" in line.flags:
        print(f"cnn-train {__version__}")
        return 0
    if "--shell-completion" in line.flags:
        from cnn_train import completion

        return completion.run(line.flags["--shell-completion"], VERBS, [n for flag in FLAGS for n in flag.names])
    module, _, function = VERBS[line.verb].function.partition(":")
    return getattr(importlib.import_module(module), function)(line) or 0


def guarded(
    run: Callable[[], int | None],
    debug: bool = False,
    folder: Path | None = None,
    tell: Callable[[str], object] | None = None,
) -> int:
    """Call `run`; whatever goes wrong becomes a line or two on stderr, or is given to `tell`, and an exit code.

    0 done, 2 command or config, 3 data, 4 environment, 5 diverged, 1 a bug, 128 + n signal n. The traceback is in the
    run folder's log.txt; that of a bug before there is a folder is in a temporary file; with `debug` it is shown.
    """
    debug = debug or os.environ.get("CNN_TRAIN_DEBUG", "") not in ("", "0")
    try:
        with signals.raised():
            return run() or 0
    except signals.Interrupted as stop:
        (tell or show)("\n".join([str(stop), *getattr(stop, "__notes__", ())]))
        return stop.exit_code
    except KeyboardInterrupt:  # not in the main thread, where it is Interrupted
        (tell or show)("stopped")
        return 130
    except BrokenPipeError:  # `cnn-train list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, notes, code = explain(error)
        if code == 1:
            notes = [f"traceback: {getattr(error, 'logged_in', None) or write_crash(folder)}"]
        if tell is not None:
            tell("\n".join([message, *notes]))
        else:
            show_error(message, notes)
        return code


def explain(error: Exception) -> tuple[str, Iterable[str], int]:
    """What to tell of an error, what to try, and the exit code."""
    if isinstance(error, UserError):
        return str(error), getattr(error, "__notes__", ()), error.exit_code
    # By name, since this must not import torch: the GPU's memory is the machine's matter, not a bug.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: " + first_line(error), [], EnvError.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" ({error.filename})" if error.filename else ""
        return f"no space left to write{where}: {error.strerror}; free some, then resume", [], EnvError.exit_code
    if isinstance(error, OSError) and error.filename and error.strerror:
        return (
            f"{error.filename}: {error.strerror}; is it there, and may this user write there?",
            [],
            EnvError.exit_code,
        )
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing and not missing.startswith("cnn_train"):
        package = missing.partition(".")[0]
        return f"the package {package} is not installed", [f"try: {pip_line(package)}"], EnvError.exit_code
    return f"unexpected {type(error).__name__}: {first_line(error)}", [], 1


def pip_line(package: str) -> str:
    """How to install a package, as one of our extras where it is one."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        wanted = metadata("cnn-train").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        wanted = []
    for line in wanted:
        if line.startswith(package) and (extra := re.search(r"extra == ['\"](?!dev)(\w+)['\"]", line)):
            return f"pip install 'cnn-train[{extra[1]}]'"
    return f"pip install {package}"


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def write_crash(folder: Path | None) -> Path | str:
    """Keep the current exception's traceback, without local variables, which may hold secrets."""
    text = f"{shlex.join(['cnn-train', *sys.argv[1:]])}\n\n{traceback.format_exc()}"
    try:
        return run_folder.log(folder or Path(tempfile.mkdtemp(prefix="cnn-train-")), text) or "could not be written"
    except OSError as error:
        return f"could not be written: {error.strerror}"


def show_error(message: str, notes: Iterable[str] = ()) -> None:
    paint = Paint(sys.stderr)
    lines = [paint("error:", "1;31") + " " + " ".join(message.split())]
    lines += ["  " + note for note in notes]
    show("\n".join(lines[:6]))


def show(text: str) -> None:
    print(text, file=sys.stderr)


class Paint:
    """Colours for a stream that is a terminal, unless NO_COLOR or TERM=dumb; otherwise plain text."""

    def __init__(self, stream: object):
        tty = getattr(stream, "isatty", lambda: False)()
        self.on = tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def __call__(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on else text


# -- taking the line apart --------------------------------------------------------------------------------------------


def split(arguments: Sequence[str]) -> Line:
    """Tell verb, bare words, overrides and flags apart. Raises ConfigError for an unknown verb or flag."""
    line = Line()
    bare: list[str] = []
    by_name = {name: flag for flag in FLAGS for name in flag.names}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and len(word) > 1:
            name, sign, value = word.partition("=")
            flag = by_name.get(name)
            if flag is None:
                raise unknown_flag(name, by_name)
            if flag.value and not sign:
                optional = flag.value.startswith("[")
                if rest and not rest[0].startswith("-") and (not optional or rest[0] in INFO):
                    value = rest.pop(0)
                elif not optional:
                    raise ConfigError(f"{name} needs a value: {name} {flag.value}")
            line.flags[flag.names[0]] = value
        elif "=" in word or word[0:1] in ("+", "~"):
            key, sign, value = word.partition("=")
            line.overrides.append(key + sign + os.path.expanduser(value))  # shells leave a ~ behind = as it is
        else:
            bare.append(word)
    if bare:
        line.verb, *line.words = bare
        if line.verb not in VERBS:
            raise unknown_verb(line.verb, line)
        if line.words and line.verb in ("train", "sweep"):
            raise unknown_verb(line.words[0], line)
    return line


def unknown_flag(name: str, known: Iterable[str]) -> ConfigError:
    guess = nearest(name, [flag for flag in known if flag.startswith("--")], cutoff=0.7)
    setting = nearest(
        name.strip("-").replace("-", "_"), ("seed", "model", "data", "norm", "epochs", "lr", "batch_size")
    )
    if guess:
        return ConfigError(f"no flag {name}. Did you mean {guess}?")
    meant = f"; settings are key=value, without dashes: {setting}=..." if setting else "; cnn-train --help lists them"
    return ConfigError(f"no flag {name}{meant}")


def unknown_verb(word: str, line: Line) -> ConfigError:
    guess = nearest(word, VERBS)
    error = ConfigError(f"no command {word!r}. There are {', '.join(VERBS)}")
    if guess:
        error = ConfigError(f"no command {word!r}. Did you mean {guess}?")
    else:
        choices = Choices.find(line.config_dir)
        group = next((group for group in choices.groups() if word in choices.options(group)), None)
        if group:
            error = ConfigError(f"{word!r} is a choice of {group}. Did you mean {group}={word}?")
            error.add_note(f"try: {shlex.join(['cnn-train', f'{group}={word}', *line.overrides])}")
    return error


# -- commands ---------------------------------------------------------------------------------------------------------


def train(line: Line) -> int:
    if "--multirun" in line.flags:
        return sweep(line)
    from cnn_train.config import Composer

    composer = Composer(line.config_dir)
    config = composer.compose([word for word in line.overrides if word != "resume=auto"])
    if "--cfg" in line.flags:
        show_config(config, line)
        return 0
    if "--info" in line.flags:
        show_info(config, composer.choices, line)
        return 0
    if "resume=auto" in line.overrides and (folder := unfinished(config)) is not None:
        return go_on(config, folder)
    from cnn_train.train import train

    train(config)
    return 0


def evaluate(line: Line) -> int:
    given = [override for override in line.overrides if override.startswith(("run=", "split="))]
    options = dict(override.split("=", 1) for override in given)
    run = options.get("run") or (line.words[0] if line.words else None)
    if run is None:
        error = ConfigError("eval needs a run folder or a checkpoint file")
        error.add_note("try: cnn-train eval run=outputs/MODEL/DATE_TIME_N")
        raise error
    if not Path(run).exists():
        raise ConfigError(f"no run at {Path(run).absolute()}; {found_runs()}")
    from cnn_train.config import load

    rest = [override for override in line.overrides if override not in given]
    folder = run if Path(run).is_dir() else Path(run).parent
    if "--multirun" in line.flags:
        return search(run, folder, rest, options.get("split", "val"), line)
    load(folder, rest)  # a bad config is told before torch is imported
    from cnn_train.evaluate import evaluate

    evaluate(run, rest, options.get("split", "test"))
    return 0


def search(run: str, folder: str | Path, overrides: list[str], split: str, line: Line) -> int:
    """`eval -m`: every combination of post-processing on the same scores."""
    from cnn_train.config import load
    from cnn_train.sweep import expand

    combinations = list(expand(overrides, Choices.find(line.config_dir)))
    for changes, settings in combinations:
        for change in changes:
            if not change.startswith(("postprocess=", "postprocess.")):
                raise ConfigError(
                    f"{change}: eval -m searches postprocess and its settings, which need no other scores; "
                    "evaluate once for each value of anything else"
                )
        load(folder, settings)
    if not combinations[0][0]:
        raise ConfigError("eval -m searches lists of values, as postprocess=crf postprocess.bi_w=2,4")
    from cnn_train.evaluate import search

    search(run, combinations, split)
    return 0


# What may change in a run that goes on: a setting, or all below one that ends with a dot. All else would make the
# steps before and after those of two experiments.
CHANGEABLE = (
    "trainer.max_epochs", "trainer.progress", "trainer.accelerator", "trainer.devices", "trainer.strategy",
    "trainer.precision", "trainer.eval_every", "trainer.log_every", "trainer.profiler", "trainer.on_nan",
    "trainer.gradient_clip", "callbacks.", "data.root", "data.workers", "data.cache_dir", "data.in_memory",
    "data.eval_batch_size", "repro",
)  # fmt: skip
SCHEDULES = ("stretch", "keep", "restart")


def resume(line: Line) -> int:
    own = [word for word in line.overrides if word.startswith(("run=", "schedule="))]
    options = dict(word.split("=", 1) for word in own)
    run = options.get("run") or (line.words[0] if line.words else None)
    if run is None:
        error = ConfigError("resume needs a run folder")
        error.add_note("try: cnn-train resume outputs/MODEL/DATE_TIME_N")
        raise error
    folder = Path(run)
    if not folder.is_dir():
        raise ConfigError(f"no run at {folder.absolute()}; {found_runs()}")
    changes = [word for word in line.overrides if word not in own]
    for word in changes:
        key = word.partition("=")[0].lstrip("+~")
        if not any(key == name or (name.endswith(".") and key.startswith(name)) for name in CHANGEABLE):
            error = ConfigError(f"{word}: a run that goes on keeps this; it would be another experiment")
            error.add_note(f"try: a new run that starts from these weights: weights={folder}/last.ckpt {word}")
            raise error
    policy = options.get("schedule", "stretch")
    if policy not in SCHEDULES:
        raise ConfigError(f"schedule must be one of {', '.join(SCHEDULES)}, got {policy!r}")
    from cnn_train.config import leaves, load

    before, config = dict(leaves(load(folder))), load(folder, changes)
    show_changes(before, dict(leaves(config)))
    return go_on(config, folder, policy if config.trainer.max_epochs != before["trainer.max_epochs"] else None)


def show_changes(before: dict[str, object], after: dict[str, object]) -> None:
    for key, value in after.items():
        if key not in before or before[key] != value:
            print(f"{key}  {before.get(key, 'not set')} -> {value}", file=sys.stderr)


def go_on(config: Any, folder: Path, policy: str | None = None) -> int:
    """Resume the run in `folder`; `policy` says what becomes of the schedule if the run is longer now.

    `stretch`: it is that of a run of the new length. `keep`: it stays, and its last value with it. `restart`: the
    epochs from here on have one of their own.
    """
    from cnn_train.config import load

    if policy in ("keep", "restart"):
        trainer, was = config.trainer, load(folder).trainer
        if policy == "keep":
            trainer.schedule_epochs = was.schedule_epochs or was.max_epochs - was.schedule_start
        else:
            from cnn_train import checkpoint

            state, _ = checkpoint.load_newest(folder)
            trainer.schedule_start = state["progress"]["epoch"] if state else 0
            trainer.schedule_epochs = None
    elif policy == "stretch":
        config.trainer.schedule_epochs = None
    from cnn_train.train import train

    train(config, folder, resume=True)
    return 0


def unfinished(config: Any) -> Path | None:
    """The newest run folder of this very config that has no results yet and that no process trains in."""
    from omegaconf import OmegaConf

    text = run_folder.mask(OmegaConf.to_yaml(config))
    for path in sorted(Path(config.output_dir, config.name).glob("*/config.yaml"), reverse=True):
        same = path.read_text(encoding="utf-8") == text
        if same and not (path.parent / "metrics.json").exists() and run_folder.is_free(path.parent):
            return path.parent
    return None


def found_runs() -> str:
    runs = sorted(Path("outputs").glob("*/*/config.yaml"), key=lambda path: path.stat().st_mtime)
    return f"the newest here is {runs[-1].parent}" if runs else "there is none in ./outputs"


def sweep(line: Line) -> int:
    from cnn_train import sweep

    if "--cfg" in line.flags:
        for number, job in enumerate(sweep.plan(line.overrides, line.config_dir)):
            print(f"# job {number}: {' '.join(job.changes)}")
            show_config(job.config, line)
        return 0
    return sweep.run(line.overrides, line.config_dir)


def list_choices(line: Line) -> int:
    choices = Choices.find(line.config_dir)
    defaults = choices.defaults()
    paint = Paint(sys.stdout)
    if not line.words:
        for group in choices.groups():
            options = choices.options(group)
            default = f"default {defaults[group]}" if defaults.get(group) else "none by default"
            print(f"{paint(f'{group:<12}', '1')} {len(options):>3} choices, {default}")
        print(paint("cnn-train list GROUP shows the choices", "2"), file=sys.stderr)
        return 0
    for group in line.words:
        options = choices.options(group)
        if not options:
            guess = nearest(group, choices.groups())
            meant = f"Did you mean {guess}?" if guess else f"There are {', '.join(choices.groups())}"
            raise ConfigError(f"no group {group!r}. {meant}")
        width = max(map(len, options))
        for option in options:
            mark = "*" if option == defaults.get(group) else " "
            print(f"{mark} {paint(f'{option:<{width}}', '1')}  {choices.describe(group, option)}".rstrip())
    return 0


def show_config(config: object, line: Line) -> None:
    """`--cfg job`: the config as YAML."""
    from omegaconf import DictConfig, OmegaConf

    wanted = line.flags["--cfg"]
    if wanted not in ("job", "all"):
        raise ConfigError(f"--cfg shows job, got {wanted!r}; Hydra's own runtime is not used and has no config")
    assert isinstance(config, DictConfig)
    package = line.flags.get("--package", "")
    if package in ("", "_global_"):
        print(OmegaConf.to_yaml(config, resolve="--resolve" in line.flags), end="")
        return
    part = OmegaConf.select(config, package, default=None)
    if part is None and package not in config:
        raise ConfigError(f"--package {package}: the config has no such part; it has {', '.join(map(str, config))}")
    print(f"# @package {package}")
    if OmegaConf.is_config(part):
        print(OmegaConf.to_yaml(part, resolve="--resolve" in line.flags), end="")
    else:
        print("null" if part is None else part)


def show_info(config: object, choices: Choices, line: Line) -> None:
    """`--info`: which file each part comes from, where files are looked for, and the config."""
    wanted = line.flags["--info"] or "all"
    if wanted not in INFO:
        raise ConfigError(f"--info shows {', '.join(INFO)}, got {wanted!r}")
    if wanted in ("all", "searchpath"):
        print("Search path")
        print("\n".join(f"  {path}" for path in choices.dirs))
    if wanted in ("all", "defaults", "defaults-tree"):
        print("Choices")
        for group, option in config.choices.items():  # type: ignore[attr-defined]
            path = choices.path(group, option) if option else None
            print(f"  {group:<12} {option or 'null':<20} {path or ''}".rstrip())
    if wanted in ("all", "config"):
        if wanted == "all":
            print("Config")
        line.flags["--cfg"] = "job"
        show_config(config, line)


def help_text(choices: Choices) -> str:
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
        *(row(name, verb.help) for name, verb in VERBS.items()),
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


if __name__ == "__main__":
    sys.exit(main())
