"""Recomputed activations: the same gradients and statistics to the bit, fewer kept values, for every network."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cnn_train.config.build import build, build_layers
from cnn_train.config.choices import Choices
from cnn_train.config.compose import compose
from cnn_train.experiment.train import train
from cnn_train.models.network import min_size
from cnn_train.runs import checkpoint
from cnn_train.training.recompute import recompute

NAMES = [name for name in Choices.find().options("model") if name not in ("timm", "torchvision")]
QUICK = ["resnet20", "mobilenet_v2", "unet", "fcos", "alexnet", "lstm"]


def tensors(outputs: object) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [t for part in outputs if part is not None for t in tensors(part)]


def step(network: nn.Module, images: Tensor) -> int:
    """A training step's gradients; bytes that were kept for them."""
    kept, weights = 0, {parameter.data_ptr() for parameter in network.parameters()}

    def keep(value: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if value.data_ptr() in weights else value.numel() * value.element_size()
        return value

    torch.manual_seed(1)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss = sum(value.square().mean() for value in tensors(network(images)))
    loss.backward()
    return kept


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_every_network_learns_the_same_with_less_memory(name):
    cfg = compose([f"model={name}", *(["norm=bn"] if name in QUICK else [])])
    channels = 1 if name in ("lenet5", "lstm") else 3
    torch.manual_seed(0)
    whole = build(cfg.model, num_classes=4, in_channels=channels, layers=build_layers(cfg)).train()
    recomputed = copy.deepcopy(whole)
    blocks = recompute(recomputed)
    again = copy.deepcopy(recomputed)  # its blocks run on its own weights
    side = {"lenet5": 32, "lstm": 28}.get(name, max(min_size(whole), 64))
    images = torch.randn(2, channels, side, side)
    before, after = step(whole, images), step(recomputed, images)
    assert after < 0.75 * before and blocks
    for key, value in whole.named_parameters():
        found = recomputed.get_parameter(key)
        assert (value.grad is None) == (found.grad is None), key
        assert value.grad is None or torch.equal(value.grad, found.grad), key
    for (key, value), found in zip(whole.named_buffers(), recomputed.buffers(), strict=True):
        assert torch.equal(value, found), key
    if name in QUICK:
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), recomputed.parameters(), strict=True))
        assert not any(bool(value.isnan().any()) for value in tensors(again(images)))


def test_a_run_ends_with_the_same_weights(tmp_path: Path):
    words = ["model=resnet20", "image_size=16", "trainer.max_epochs=1", "trainer.limit_batches=3", "model.dropout=0.2"]
    words += ["data.batch_size=8", "trainer.progress=none", "logger=none", "callbacks.samples=0", "trainer=cpu"]
    states = []
    for value in ("false", "true"):
        train(compose([*words, f"output_dir={tmp_path / value}", f"trainer.checkpoint_activations={value}"]))
        (folder,) = (tmp_path / value / "resnet20").iterdir()
        states.append(checkpoint.load(folder / "last.ckpt")["network"])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
