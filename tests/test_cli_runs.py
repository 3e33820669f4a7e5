"""How a command names a run, which checkpoint it takes, and the folder of choices that a run was composed with."""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_cli_commands import run

from cnn_train.config.compose import compose
from cnn_train.config.load import load, recorded_choices
from cnn_train.errors import ConfigError
from cnn_train.runs.find import find, runs

NAMES = ("lenet5/2026-11-20_08-00-00_0", "lenet5/2026-11-21_09-00-00_0", "unet/2026-11-21_10-00-00_0",
         "sweeps/2026-11-22_08-00-00_0/1")  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with four runs, the last of a sweep and the newest."""
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.to_yaml(compose())
    for number, name in enumerate(NAMES):
        folder = tmp_path / "outputs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config)
        os.utime(folder / "config.yaml", (number, number))
    return tmp_path


def test_a_run_has_one_name_everywhere(here):
    outputs = Path("outputs")
    assert runs() == [outputs / name for name in reversed(NAMES)]
    assert find("last").folder == outputs / NAMES[3]
    assert find("outputs/lenet5/2026-11-20_08-00-00_0/").folder == outputs / NAMES[0]
    assert find("2026-11-20").folder == outputs / NAMES[0]
    assert find("lenet5/2026-11-21").folder == find("outputs/lenet5/2026-11-21").folder == outputs / NAMES[1]
    assert find("unet").folder == outputs / NAMES[2]
    assert find("last", here / "outputs").folder == here / "outputs" / NAMES[3]
    assert find(here / "outputs" / NAMES[0] / "config.yaml").folder == here / "outputs" / NAMES[0]


def test_best_or_last_by_one_rule(here):
    folder = Path("outputs") / NAMES[0]
    with pytest.raises(ConfigError, match=r"holds no best\.ckpt or last\.ckpt"):
        _ = find(folder).checkpoint
    for name in ("last.ckpt", "best.ckpt", "epoch_3.ckpt"):
        (folder / name).touch()
        assert find(folder).checkpoint.name == ("best.ckpt" if name == "epoch_3.ckpt" else name)
        assert find(folder / name).checkpoint == folder / name
    (here / "stray.ckpt").touch()
    with pytest.raises(ConfigError, match="is in no run folder"):
        find("stray.ckpt")
    for name in ("lenet5.pt2", "lenet5.torchscript.pt"):
        (folder / name).touch()
        with pytest.raises(
            ConfigError, match="would run here whatever it holds; export the run with format=safetensors"
        ):
            find(folder / name)


@pytest.mark.parametrize("verb", ["resume", "eval", "verify-repro", "inspect", "predict"])
def test_no_such_run_is_one_message(here, verb, capsys):
    rest = ["input=x"] if verb == "predict" else []
    text = f"error: no run at {here}/nowhere, and none in outputs begins so; the newest is outputs/{NAMES[3]}\n"
    assert run(capsys, verb, "run=nowhere", *rest) == (2, "", text)
    code, _, err = run(capsys, verb, "run=lenet5", *rest)
    assert (code, err) == (2, f"error: 2 runs begin with 'lenet5'; the newest of them is outputs/{NAMES[1]}\n")
    (here / "empty").mkdir()
    assert "empty is no run folder: it has no config.yaml; the newest" in run(capsys, verb, "run=empty", *rest)[2]


def test_without_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no run in"):
        find("last")
    with pytest.raises(ConfigError, match="there is none in elsewhere"):
        find("nowhere", "elsewhere")


@pytest.mark.parametrize("verb", ["resume", "eval", "predict", "verify-repro", "inspect"])
def test_cfg_shows_a_runs_config_and_does_nothing_else(here, verb, capsys):
    rest = ["input=x"] if verb == "predict" else []
    before = sorted(here.rglob("*"))
    code, out, err = run(capsys, verb, "run=last", *rest, "--cfg", "job", "-p", "norm")
    assert (code, out, err) == (0, "# @package norm\nnull\n", "")
    assert "Search path" in run(capsys, verb, "run=last", *rest, "--info")[1]
    assert sorted(here.rglob("*")) == before
    code, out, _ = run(
        capsys, verb, "run=last", *rest, "--cfg", "job", "trainer.max_epochs=99", "-p", "trainer.max_epochs"
    )
    assert out == "# @package trainer.max_epochs\n99\n"


@pytest.fixture
def own(here) -> Path:
    """Choices of the user's own, and a run that was composed with them."""
    (here / "my" / "postprocess").mkdir(parents=True)
    (here / "my" / "postprocess" / "mine.yaml").write_text(
        "# cnn-train postprocess=mine\n# Ours\n_target_: cnn_train.postprocess.Morphology\n_partial_: true\n"
    )
    config = compose(["model=unet"], "my")
    (here / "outputs" / NAMES[2] / "config.yaml").write_text(OmegaConf.to_yaml(config))
    return here / "my"


def test_a_run_finds_the_folder_of_choices_that_it_was_composed_with(own, capsys):
    config = load(Path("outputs") / NAMES[2], ["postprocess=mine"])
    assert config.config_dir == str(own) and config.choices.postprocess == "mine"
    assert recorded_choices(config).dirs[1] == own
    shown = ("--cfg", "job", "-p", "postprocess._target_")
    assert run(capsys, "eval", "unet", "postprocess=mine", *shown)[1].endswith("postprocess.Morphology\n")
    assert run(capsys, "predict", "unet", "x", "postprocess=mine", *shown)[0] == 0
    assert compose().config_dir is None


def test_config_dir_on_the_line_wins_over_the_recorded_one(own, capsys):
    words = ("eval", "lenet5/2026-11-20", "postprocess=mine", "--cfg", "job", "-p", "choices.postprocess")
    assert "no postprocess 'mine'" in run(capsys, *words)[2]
    assert run(capsys, *words, "--config-dir", "my")[1] == "# @package choices.postprocess\nmine\n"
    own.rename(own.with_name("moved"))
    assert load(Path("outputs") / NAMES[2]).config_dir == str(own), "a folder that is gone matters only if it is used"
    assert run(capsys, "eval", "unet", "postprocess=mine", "--cfg=job", "-cd", "moved")[0] == 0


def test_the_recorded_folder_is_no_setting(capsys):
    code, _, err = run(capsys, "seed=1", "config_dir=my")
    assert code == 2 and "a flag: --config-dir my" in err and "try: cnn-train seed=1 --config-dir=my" in err


def test_resume_auto_of_a_sweep_is_handed_on(monkeypatch):
    from cnn_train.__main__ import main
    from cnn_train.sweep import start

    seen = []
    monkeypatch.setattr(start, "start", lambda words, config_dir: seen.append((list(words), config_dir)) or 0)
    assert main(["-m", "norm=bn,gn", "resume=auto"]) == main(["sweep", "norm=bn,gn", "resume=auto", "-cd", "."]) == 0
    assert seen == [(["norm=bn,gn", "resume=auto"], None), (["norm=bn,gn", "resume=auto"], ".")]
