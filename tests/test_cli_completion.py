"""TAB: what a line may become, and what bash makes of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_train import commands
from cnn_train.commands.completion import candidates
from cnn_train.config.choices import Choices
from cnn_train.config.compose import compose
from cnn_train.config.overrides import leaves
from cnn_train.config.signatures import signature

ROOT = Path(__file__).parents[1]
complete = candidates


def test_verbs_groups_and_settings_begin_a_line():
    found = complete("cnn-train ")
    assert {name for name, command in commands.find().items() if not command.hidden} <= set(found)
    assert {"model=", "norm=", "seed=", "output_dir="} <= set(found)
    assert complete("cnn-train tr") == ["train", "trainer="]
    assert "train" not in complete("cnn-train train ")


def test_choices_also_in_lists_and_after_a_plus():
    assert complete("cnn-train norm=g") == [f"norm={n}" for n in Choices.find().options("norm") if n[0] == "g"]
    assert "norm=bn,gn" in complete("cnn-train -m norm=bn,g")
    assert "+experiment=lenet5_1998" in complete("cnn-train +experiment=")
    assert complete("cnn-train seed=") == []


def test_settings_are_those_of_the_choice_on_the_line():
    assert "optimizer.betas=" in complete("cnn-train optimizer.")
    assert "optimizer.betas=" not in complete("cnn-train optimizer=sgd optimizer.")
    assert "data.num_train=" in complete("cnn-train model=deeplabv3 data.")
    assert complete("cnn-train trainer=smoke trainer.smo") == ["trainer.smoke="]


@pytest.mark.parametrize("group", ["optimizer", "trainer", "callbacks", "data", "model"])
def test_settings_are_the_composed_ones(group):
    composed = {f"{key}=" for key, _ in leaves(compose()) if key.startswith(f"{group}.")}
    found = set(complete(f"cnn-train {group}."))
    assert composed <= found
    config = compose()
    for key in found - composed:  # settings that no file lists, taken by the builder
        assert key.removesuffix("=").split(".")[1] in signature(config[group]._target_).parameters


def test_flags_and_the_words_of_list():
    assert complete("cnn-train --c") == ["--cfg", "--config-dir"]
    assert complete("cnn-train list mo") == ["model"]


def test_config_dir_on_the_line_counts(tmp_path):
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").touch()
    assert complete(f"cnn-train --config-dir {tmp_path} norm=mi") == ["norm=mine"]
    assert complete("cnn-train --config-dir /nonexistent norm=mi") == []


def test_an_open_quote_is_no_error():
    assert complete("cnn-train 'model=resnet1") == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [("cnn-train model=lene", "lenet5"), ("cnn-train -m norm=bn,lr", "bn,lrn"), ("cnn-train tra", "train trainer=")],
)
def test_bash_completes_what_stands_after_the_equals_sign(line, expected):
    script = f"""
        cnn-train() {{ "{sys.executable}" -m cnn_train "$@"; }}
        eval "$(cnn-train -sc install=bash)"
        COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:' COMP_LINE="{line}" COMP_POINT={len(line)}
        _cnn_train
        echo "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert result.stdout.strip() == expected, result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_install_and_uninstall_print_a_script(shell, capsys):
    from cnn_train.__main__ import main

    assert main(["-sc", f"install={shell}"]) == 0
    assert f"query={shell}" in capsys.readouterr().out
    assert main(["--shell-completion", f"uninstall={shell}"]) == 0
    assert "cnn-train" in capsys.readouterr().out
