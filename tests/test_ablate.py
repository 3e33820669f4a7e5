"""One part changed at a time: which jobs that makes, and what is refused."""

import re

import pytest

from cnn_train.__main__ import main
from cnn_train.config.choices import Choices


def jobs(capsys, *words: str) -> list[str]:
    code = main(["ablate", *words, "--cfg", "job"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return re.findall(r"^# job \d+: (.*)$", out, re.M)


def test_the_base_then_each_change_alone_with_every_seed(capsys):
    found = jobs(capsys, "norm=none,bn,gn", "optimizer.lr=1e-3,3e-3", "seeds=2")
    points = [("none", "0.001"), ("bn", "0.001"), ("gn", "0.001"), ("none", "0.003")]
    assert found == [f"norm={norm} optimizer.lr={lr} seed={seed}" for norm, lr in points for seed in (0, 1)]


def test_every_choice_of_a_group_the_base_first(capsys):
    found = jobs(capsys, "model=lenet5", "axis=pool", "norm=gn", "seeds=1")
    choices = Choices.find().options("pool")
    assert found[0] == "pool=paper seed=0" and len(found) == len(choices)
    assert sorted(found) == sorted(f"pool={choice} seed=0" for choice in choices)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "ablate changes one part at a time: name groups"),
        (["axis=nrm"], "axis=nrm: no such group. Did you mean norm?"),
        (["optimizer.lr=interval(1,2)"], "ablate takes lists of values"),
        (["axis=norm", "seeds=0"], "seeds must be a whole number >= 1, got '0'"),
    ],
)
def test_what_is_refused(words, says, capsys):
    assert main(["ablate", *words]) == 2
    assert says in capsys.readouterr().err
