"""The command line: help, lists, flags, errors on stderr, exit codes; and that none of it imports torch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_train.__main__ import main
from cnn_train.cli.guard import Paint, guarded
from cnn_train.cli.help import EXAMPLES
from cnn_train.cli.line import split
from cnn_train.commands import find as find_commands
from cnn_train.config.choices import Choices
from cnn_train.errors import ConfigError, DataError, DivergedError, EnvError

ROOT = Path(__file__).parents[1]
CHOICES = Choices.find()
COMMANDS = {name: command for name, command in find_commands().items() if not command.hidden}
HEAVY = ("torch", "torchvision", "lightning", "numpy", "sklearn", "matplotlib", "torchmetrics")


def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a fresh process, which tells which heavy packages it has imported."""
    script = (
        "import sys, json; from cnn_train.__main__ import main; code = main();"
        f"print('\\nHEAVY', json.dumps([name for name in {HEAVY} if name in sys.modules])); sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=120,
    )


def heavy(result: subprocess.CompletedProcess[str]) -> list[str]:
    return json.loads(result.stdout.rpartition("HEAVY")[2])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["list"], 0),
        (["list", "model"], 0),
        (["--cfg", "job"], 0),
        (["--info"], 0),
        (["--version"], 0),
        (["-sc", "query=bash"], 0),
        (["-m", "norm=bn,gn", "--cfg", "job"], 0),
        (["model=resnt"], 2),
        (["optimizer.lr=abc"], 2),
        (["+optimizer.foo=1"], 2),
        (["-m", "norm=bn,gx"], 2),
        (["eval", "run=nowhere"], 2),
        (["trian"], 2),
        (["help", "predict"], 0),
        (["inspect", "--help"], 0),
        (["list", "data", "folder"], 0),
        (["norm=batchnorm"], 2),
        (["resume", "nowhere", "--cfg", "job"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_no_answer_imports_torch(words, code, tmp_path):
    result = call(*words, COMP_LINE="cnn-train optimizer.")
    assert result.returncode == code, result.stderr
    assert heavy(result) == []
    lines = result.stderr.splitlines()
    assert len(lines) <= 6
    assert not code or lines[0].startswith("error: ")
    assert "Traceback" not in result.stderr and "\x1b" not in result.stderr + result.stdout


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_is_one_screen_with_commands_groups_and_six_examples(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert run(capsys, "help") == (0, out, "")
    lines = out.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 110
    defaults = CHOICES.defaults()
    for group in CHOICES.groups():
        number, default = len(CHOICES.options(group)), defaults.get(group) or "-"
        assert re.search(rf"(^|  ){group} +{number} +{default}( |$)", out, re.M), group
    assert "resnet18 resnet20" not in out
    assert len(EXAMPLES) == 6 and all(command in out for command, _ in EXAMPLES)
    for verb, command in COMMANDS.items():
        assert any(re.match(rf"  {verb} +{re.escape(command.help[:40])}", line) for line in lines), verb
    assert "worker" not in out


def test_the_examples_compose():
    from cnn_train.config.compose import compose
    from cnn_train.sweep.plan import plan

    for command, _ in EXAMPLES:
        line = split(command.split()[1:], COMMANDS)
        if line.verb == "train":
            plan(line.overrides) if "--multirun" in line.flags else compose(line.overrides)


def test_every_verb_has_a_function():
    import importlib

    for command in find_commands().values():
        assert callable(importlib.import_module(f"cnn_train.commands.{command.path.stem}").run)


def test_list(capsys):
    _, out, _ = run(capsys, "list")
    assert [line.split()[0] for line in out.splitlines()] == list(CHOICES.groups())
    _, out, _ = run(capsys, "list", "norm")
    assert "* bn " in out and "Group normalization (Wu & He 2018)" in out
    assert len(out.splitlines()) == len(CHOICES.options("norm"))
    code, out, err = run(capsys, "list", "modle")
    assert (code, out) == (2, "")
    assert err == "error: no group 'modle'. Did you mean model?\n  try: cnn-train list model\n"


def test_cfg_prints_yaml_that_loads_again(capsys):
    from omegaconf import OmegaConf

    from cnn_train.config.compose import compose

    code, out, err = run(capsys, "norm=gn", "--cfg", "job")
    assert (code, err) == (0, "")
    assert OmegaConf.create(out) == compose(["norm=gn"])
    assert "${seed}" in out
    assert "${" not in run(capsys, "--cfg", "job", "--resolve")[1]
    _, out, _ = run(capsys, "train", "optimizer=sgd", "-c", "job", "-p", "optimizer")
    assert out.splitlines()[:2] == ["# @package optimizer", "_target_: torch.optim.SGD"]
    assert run(capsys, "--cfg=job", "--package=seed")[1] == "# @package seed\n0\n"
    assert "no such part" in run(capsys, "--cfg", "job", "-p", "nothing")[2]
    assert "--cfg shows job" in run(capsys, "--cfg", "hydra")[2]


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(capsys, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert "output_dir: /home/me/runs\n" in run(capsys, "--cfg=job", "output_dir=~/runs")[1]
    assert "no run at /home/me/gone" in run(capsys, "eval", "run=~/gone")[2]


def test_cfg_of_a_sweep_shows_every_job(capsys):
    _, out, _ = run(capsys, "-m", "seed=1,2", "--cfg", "job", "-p", "seed")
    assert out == "# job 0: seed=1\n# @package seed\n1\n# job 1: seed=2\n# @package seed\n2\n"


def test_info(capsys, tmp_path):
    (tmp_path / "model").mkdir()
    code, out, _ = run(capsys, "--config-dir", str(tmp_path), "--info", "searchpath")
    assert code == 0 and str(tmp_path) in out and str(CHOICES.dirs[0]) in out
    _, out, _ = run(capsys, "model=resnet18", "-i", "defaults")
    assert str(CHOICES.path("model", "resnet18")) in out
    assert run(capsys, "--info", "config")[1] == run(capsys, "--cfg", "job")[1]
    assert run(capsys, "--info=nothing")[0] == 2


def test_config_dir_reaches_list_and_help(capsys, tmp_path):
    (tmp_path / "act").mkdir()
    (tmp_path / "act" / "mine.yaml").write_text(
        "# cnn-train act=mine\n# My own\n_target_: torch.nn.ReLU\n_partial_: true\n"
    )
    assert "mine" in run(capsys, "list", "act", "--config-dir", str(tmp_path))[1]
    assert "My own" in run(capsys, "list", "act", f"--config-dir={tmp_path}")[1]
    count = len(CHOICES.options("act")) + 1
    assert re.search(rf"act +{count} ", run(capsys, "-cd", str(tmp_path), "--help")[1])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "no command 'trian'. Did you mean train?"),
        (["resnet18"], "'resnet18' is a choice of model. Did you mean model=resnet18?"),
        (["gn", "seed=1"], "try: cnn-train norm=gn seed=1"),
        (["train", "resnet18"], "Did you mean model=resnet18?"),
        (["qqqq"], "no command 'qqqq'. There are train,"),
        (["--mutlirun"], "no flag --mutlirun. Did you mean --multirun?"),
        (["--seed", "3"], "settings are key=value, without dashes: seed=..."),
        (["--lr=3"], "settings are key=value, without dashes: lr=..."),
        (["--cfg"], "--cfg needs a value: --cfg job"),
        (["--config-dir", "/nonexistent"], "--config-dir: no folder /nonexistent"),
        (["eval"], "eval needs run=RUN: a run's folder, a checkpoint file, the beginning of a run's name, or last"),
        (["eval", "run=nowhere"], "nowhere"),
        (["-sc", "install=tcsh"], "install must be one of bash, zsh, fish, got 'tcsh'"),
        (["norm=bn,gn"], "try: cnn-train -m norm=bn,gn"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_usage_errors(capsys, words, expected):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.startswith("error: ") and err.count("\n") <= 6


def fail_with(error: BaseException):
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (DataError("x"), 3),
        (EnvError("x"), 4),
        (DivergedError("x"), 5),
        (MemoryError("x"), 4),
        (ModuleNotFoundError("x", name="timm"), 4),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
        (ValueError("x"), 1),
    ],
    ids=repr,
)
def test_exit_codes(capsys, error, code):
    assert guarded(fail_with(error)) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_leaves_a_traceback_in_a_file_without_local_variables(capsys, tmp_path):
    def run() -> None:
        secret = "hunter" + str(1 + 1)
        raise RuntimeError("several\nlines" if secret else "")

    assert guarded(run, folder=tmp_path) == 1
    assert capsys.readouterr().err == (
        f"error: unexpected RuntimeError: several\n  traceback: {tmp_path / 'log.txt'}\n"
    )
    crash = (tmp_path / "log.txt").read_text()
    assert "Traceback" in crash and "hunter2" not in crash


def test_debug_shows_the_traceback(capsys, monkeypatch):
    assert guarded(fail_with(ConfigError("x")), debug=True) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("CNN_TRAIN_DEBUG", "1")
    guarded(fail_with(ConfigError("x")))
    assert "Traceback" in capsys.readouterr().err


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Paint(Terminal())("x", "1") == "\x1b[1mx\x1b[0m"
    assert Paint(object())("x", "1") == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert Paint(Terminal())("x", "1") == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert Paint(Terminal())("x", "1") == "x"


def test_a_closed_pipe_is_no_error():
    script = f"{sys.executable} -m cnn_train list model | head -n 1"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.stderr == "" and result.stdout.count("\n") == 1
