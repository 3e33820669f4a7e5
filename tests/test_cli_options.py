"""The options of commands: read from a line, checked like settings, shown by help; and a command is one file."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from test_cli_commands import run

from cnn_train import commands
from cnn_train.cli.line import Line, add_try, mend, split
from cnn_train.cli.options import Composes, Verb, flag, option, read
from cnn_train.errors import ConfigError

VERBS = [name for name, command in commands.find().items() if not command.hidden]


def options_of(verb: str) -> type[Verb]:
    import importlib

    module = importlib.import_module(f"cnn_train.commands.{commands.find()[verb].path.stem}")
    assert issubclass(module.Options, Verb), f"{verb} has no Options"
    return module.Options


@dataclass(frozen=True, kw_only=True)
class Toy(Composes):
    source: Path = option("where from", word=True, of="path", value="PATH")
    others: tuple[str, ...] = option("what else", default=(), word=True)
    steps: int = option("how many", default=10, least=2)
    share: float | None = option("of the whole", default=None)
    how: Literal["fast", "well"] = option("the way", default="fast")
    loud: bool = option("with noise", default=False, flag="--picture")


def toy(*words: str) -> Toy:
    return read(Toy, split(["toy", *words], ["toy"]), ["toy"])


def test_options_come_by_name_as_words_and_by_flags():
    given = toy("here", "a", "b", "steps=3", "share=0.5", "how=well", "--picture", "norm=gn", "seed=1", "--cfg", "job")
    assert given == Toy(
        source=Path("here"), others=("a", "b"), steps=3, share=0.5, how="well", loud=True,
        settings=("norm=gn", "seed=1"), cfg="job",
    )  # fmt: skip
    assert toy("source=here", "a").others == ("a",), "an option given by name leaves the words to the others"
    assert toy("here", "share=null", "loud=true") == Toy(source=Path("here"), loud=True)
    assert toy("here", "-i").info == "all" and toy("here", "--info=config").info == "config"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "toy needs source=PATH: where from"),
        (["here", "steps=1"], "steps must be a whole number >= 2, got '1'"),
        (["here", "steps=2.5"], "steps must be a whole number >= 2, got '2.5'"),
        (["here", "share=much"], "share must be a number, got 'much'"),
        (["here", "share=nan"], "share must be a number, got 'nan'"),
        (["here", "how=wel"], "how must be one of fast, well, got 'wel'. Did you mean well?"),
        (["here", "loud=1"], "loud must be true or false, got '1'"),
        (["source="], "source= is empty; it is where from"),
        (["here", "step=3"], "toy has no option 'step'. Did you mean steps?"),
        (["here", "steps=3", "steps=4"], "steps is given twice: 3 and 4"),
        (["here", "-m"], "toy takes no --multirun; it takes --config-dir, --cfg,"),
        (["here", "--resolve"], "--resolve goes with --cfg job"),
        (["here", "-p", "norm"], "--package goes with --cfg job"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_fit_is_refused(words, expected):
    with pytest.raises(ConfigError) as caught:
        toy(*words)
    assert expected in str(caught.value)


def test_settings_that_look_like_options_stay_settings():
    """Only a word that is neither a group nor a setting is taken for a misspelt option."""
    assert toy("here", "seed=1", "data=digits", "trainer.steps=3", "+stepps=3").settings[:3] == (
        "seed=1", "data=digits", "trainer.steps=3",
    )  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_options_types_defaults_and_two_examples(verb, capsys):
    code, out, err = run(capsys, "help", verb)
    assert (code, err) == (0, "")
    assert run(capsys, verb, "--help") == (0, out, "")
    options = options_of(verb)
    assert len(options.examples) >= 2
    for command, text in options.examples:
        assert command in out and text in out
    for name, item in options.__dataclass_fields__.items():
        if "help" in item.metadata:
            assert f"  {name}=" in out and item.metadata["help"].split()[0] in out
            if item.default not in (None, (), False) and isinstance(item.default, str | int):
                assert f"default {item.default}" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 110
    assert out.startswith(f"cnn-train {verb}: ")


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_are_read_without_complaint(verb):
    for command, _ in options_of(verb).examples:
        words = shlex.split(command.removeprefix('eval "$(').removesuffix(')"'))
        words = words[words.index("cnn-train") + 1 :]
        line = split(words[: words.index("|")] if "|" in words else words, VERBS)
        assert line.verb == verb or (verb in ("train", "sweep") and line.verb == "train") or "--multirun" in line.flags
        read(options_of(line.verb), line, VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_no_command_takes_a_flag_or_word_that_it_has_no_use_for(verb, capsys):
    takes = {item.metadata.get("flag") for item in options_of(verb).__dataclass_fields__.values()}
    for name in {"--multirun", "--picture", "--cfg", "--info", "--resolve"} - takes:
        words = [name, "job"] if name == "--cfg" else [name]
        code, out, err = run(capsys, verb, *words)
        assert (code, out) == (2, "") and f"{verb} takes no {name}" in err
    code, out, err = run(capsys, verb, "a", "b", "c", "surplus")
    assert (code, out) == (2, ""), err


def test_a_command_is_one_file(capsys, tmp_path, monkeypatch):
    (tmp_path / "count_up.py").write_text(
        '"""Count to a number.\n\nNothing else.\n"""\n\n'
        "from dataclasses import dataclass\n\nfrom cnn_train.cli.options import Verb, option\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Options(Verb):\n"
        '    to: int = option("the last number", default=3, least=1, word=True)\n'
        '    examples = (("cnn-train count-up 2", "to two"), ("cnn-train count-up", "to three"))\n\n\n'
        "def run(options):\n    print(*range(1, options.to + 1))\n    return 7\n"
    )
    (tmp_path / "old.py").write_text('"""`cnn-train old`: Say words."""\n\n\ndef run(line):\n    print(line.words)\n')
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert run(capsys, "count-up", "2") == (7, "1 2\n", "")
    assert run(capsys, "count-up", "to=0")[2] == "error: to must be a whole number >= 1, got '0'\n"
    assert "count-up      count to a number" in run(capsys, "--help")[1]
    assert "to=N" in run(capsys, "count-up", "--help")[1] and "Nothing else." in run(capsys, "help", "count-up")[1]
    assert "Did you mean count-up?" in run(capsys, "countup")[2]
    assert run(capsys, "old", "a", "b=c") == (0, "['a']\n", "")
    assert run(capsys, "old", "--cfg", "job")[0] == 2, "a command without Options takes no --cfg"
    assert "old           say words" in run(capsys, "--help")[1]


def test_the_programs_own_commands_are_hidden(capsys):
    hidden = [name for name, command in commands.find().items() if command.hidden]
    assert hidden == ["worker"]
    assert "worker" not in run(capsys, "qqqq")[2]


@pytest.mark.parametrize(
    ("typed", "mended", "expected"),
    [
        ("eval last postprocess=crff", {"postprocess=crff": "postprocess=crf"}, "eval last postprocess=crf"),
        ("-m norm=bn,batchnorm seed=0,1", {"norm=batchnorm": "norm=bn"}, "-m norm=bn,bn seed=0,1"),
        ("-m lr=0.1,0.01 norm=gn", {"lr=0.1": "optimizer.lr=0.1"}, "-m optimizer.lr=0.1,0.01 norm=gn"),
        ("--config-dir my norm=bn,gn", {"": "-m"}, "--config-dir my -m norm=bn,gn"),
        ("trian seed=1", {"trian": "train"}, "train seed=1"),
    ],
)
def test_the_line_to_try_keeps_verb_flags_and_lists(typed, mended, expected):
    assert shlex.join(mend(typed.split(), mended)) == expected
    error = ConfigError("x", mended)
    error.add_note("in job 1")
    add_try(error, typed.split())
    assert error.__notes__ == ["in job 1", f"try: cnn-train {expected}"]


def test_a_flag_sets_a_field():
    @dataclass(frozen=True, kw_only=True)
    class Options(Verb):
        config_dir: str | None = flag("--config-dir")
        multirun: bool = flag("--multirun")

    assert read(Options, Line("toy", flags={"--multirun": "", "--config-dir": "my"})) == Options(
        config_dir="my", multirun=True
    )
