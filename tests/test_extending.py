"""What goes wrong with parts of one's own; the examples of docs/extending.md run in tests/test_pages.py."""

import pytest


def test_a_part_that_cannot_be_put_into_a_plain_model_is_told(tmp_path, monkeypatch):
    from cnn_train.config.compose import compose
    from cnn_train.errors import ConfigError
    from cnn_train.experiment.network import build_network_and_data

    (tmp_path / "model").mkdir()
    (tmp_path / "plain_parts.py").write_text(
        "from torch import nn\n"
        "def ten():\n    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))\n"
        "def nine():\n    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 9))\n"
    )
    for name in ("ten", "nine"):
        (tmp_path / "model" / f"{name}.yaml").write_text(f"_target_: plain_parts.{name}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    network, _ = build_network_and_data(compose(["model=ten"], tmp_path))
    assert len(network) == 2
    with pytest.raises(ConfigError, match="norm=gn cannot be put into model=ten, whose builder takes no `layers`"):
        build_network_and_data(compose(["model=ten", "norm=gn"], tmp_path))
    with pytest.raises(ConfigError, match="nine gives 9 scores, but data=digits has 10 classes"):
        build_network_and_data(compose(["model=nine"], tmp_path))
