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
        name = key.removesuffix("=").split(".")[1]
        assert name in config[group] or name in signature(config[group]._target_).parameters


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


def test_options_of_the_command_come_with_their_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"run=", "split=", "postprocess=", "output_dir="} <= set(complete("cnn-train eval "))
    assert complete("cnn-train eval split=") == ["split=all", "split=test", "split=train", "split=val"]
    assert "split=" not in complete("cnn-train train ")
    assert complete("cnn-train resume schedule=k") == ["schedule=keep"]
    assert complete("cnn-train inspect picture=") == ["picture=false", "picture=true"]
    assert complete("cnn-train help ev") == ["eval"]
    assert complete("cnn-train list no") == ["norm"]
    assert "seed=" not in complete("cnn-train list "), "a command that takes no settings"
    assert "--multirun" in complete("cnn-train eval --") and "--multirun" not in complete("cnn-train predict --")
    assert "--picture" in complete("cnn-train inspect --p") and complete("cnn-train list --c") == ["--config-dir"]


def test_networks_after_inspect():
    networks = Choices.find().options("model")
    assert set(networks) <= set(complete("cnn-train inspect "))
    assert complete("cnn-train inspect vgg") == [name for name in networks if name.startswith("vgg")]
    assert complete("cnn-train inspect resnet18 vgg1") == ["vgg11", "vgg13", "vgg16", "vgg19"]
    assert complete("cnn-train inspect resnet18 versus=vgg19") == ["versus=vgg19"]
    assert "model.stem=" in complete("cnn-train inspect densenet121 model.")


def test_runs_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("outputs/lenet5/2026-11-20_0", "outputs/unet/2026-11-21_0", "elsewhere/a/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "two words").mkdir()
    assert complete("cnn-train eval run=") == ["run=last", "run=lenet5/2026-11-20_0", "run=unet/2026-11-21_0"]
    assert {"last", "unet/2026-11-21_0"} <= set(complete("cnn-train resume "))
    assert complete("cnn-train resume outputs/l") == ["outputs/lenet5/", "outputs/lenet5/2026-11-20_0"]
    assert complete("cnn-train eval output_dir=elsewhere run=a") == ["run=a/b"]
    assert complete("cnn-train predict last input=p") == ["input=photo.jpg"]
    assert complete("cnn-train predict last ph") == ["photo.jpg"]
    assert complete("cnn-train data=folder data.root=") == [
        "data.root=elsewhere/",
        "data.root=outputs/",
        "data.root=photo.jpg",
    ]
    assert complete("cnn-train weights=outputs/u") == ["weights=outputs/unet/"]
    assert complete("cnn-train weights=nowhere/") == []


def test_closed_words_and_settings_that_no_file_lists():
    assert complete("cnn-train trainer.precision=b") == ["trainer.precision=bf16-mixed"]
    assert complete("cnn-train trainer.compile=") == ["trainer.compile=false", "trainer.compile=true"]
    assert complete("cnn-train optimizer.amsgrad=") == ["optimizer.amsgrad=false", "optimizer.amsgrad=true"]
    assert {"data.max_pixels=", "data.mean=", "data.std="} <= set(complete("cnn-train data=folder data."))
    assert {"data.images=", "data.masks="} <= set(complete("cnn-train data=segmentation_folder data."))
    assert "model.layers=" not in complete("cnn-train model=vgg16 model."), "filled in by the program"


def test_completion_is_a_command_too(capsys, monkeypatch):
    from cnn_train.__main__ import main

    monkeypatch.setenv("COMP_LINE", "cnn-train norm=frozen")
    assert main(["completion", "query=bash"]) == main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out == "norm=frozen_bn\nnorm=frozen_bn\n"
    assert main(["completion"]) == 2
