"""A run folder of the tree before this one: refused in one line, while its weights are taken."""

import shutil
from pathlib import Path

import pytest

from cnn_train.__main__ import main

OLD = Path(__file__).parent / "old_run"


@pytest.mark.parametrize("verb", ["eval", "resume", "predict", "verify-repro", "inspect"])
def test_an_old_run_is_refused_with_the_word_that_takes_its_weights(tmp_path, capsys, verb):
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    words = {"predict": [f"input={tmp_path}"], "inspect": []}.get(verb, [])
    assert main([verb, f"run={folder}", *words]) == 2
    text = capsys.readouterr().err
    assert "is of an older cnn-train, whose settings have other names" in text and len(text.splitlines()) == 1
    assert f"weights={folder / 'best.ckpt'}" in text


def test_its_weights_start_a_new_run(tmp_path, capsys):
    words = ["model=unet", "model.width=2", "model.depth=1", "data.num_train=4", "data.num_val=2", "data.num_test=2"]
    words += ["data.batch_size=4", "trainer.max_epochs=1", "logger=none", "callbacks.samples=0"]
    assert main([*words, f"weights={OLD / 'best.ckpt'}", f"output_dir={tmp_path}", "trainer.progress=none"]) == 0
