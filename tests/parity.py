"""Comparing a network with another implementation of it, from random weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.models.encoder import Encoder

State = Mapping[str, Tensor]


def meta(build: Callable[..., nn.Module], *args: Any, **options: Any) -> Any:
    """Build without memory or initialization."""
    with torch.device("meta"):
        return build(*args, **options)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def random_weights(state: State) -> dict[str, Tensor]:
    """Weights that keep the scale, norms away from their neutral values; one tile is repeated, as randn takes seconds.

    Without norms by He's rule, lest the image fades; with them by half its variance, lest residual sums explode.
    """
    gain = 1 if any(name.endswith("running_var") for name in state) else 2
    tile = torch.randn(1_000_003)
    result = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            result[name] = torch.tensor(1)
        elif name.endswith("running_var"):
            result[name] = torch.empty(value.shape).uniform_(0.05, 1.5)
        elif name.endswith("weight") and value.dim() == 1:
            result[name] = torch.empty(value.shape).uniform_(0.5, 1.0)
        elif value.dim() == 1:
            result[name] = torch.randn(value.shape) * 0.1
        else:
            numbers = tile.repeat(-(-value.numel() // tile.numel()))[: value.numel()].view(value.shape)
            result[name] = numbers.mul_((gain / value[0].numel()) ** 0.5)
    return result


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal within 1e-5 of the logits' scale."""
    assert ours.shape == theirs.shape
    scale = theirs.abs().max()
    assert 1e-3 < scale < 1e9, f"the logits' scale {scale:.2g} makes the comparison worthless"
    assert (ours - theirs).abs().max() <= 1e-5 * scale


def check_parity(
    ours: nn.Module, theirs: nn.Module, size: int, rename: Callable[[State], State] = lambda state: state
) -> None:
    """Load the same random weights strictly into both, built on the meta device, and compare their logits."""
    state = random_weights(theirs.state_dict())
    for network, its_state in ((ours, rename(state)), (theirs, state)):
        network.load_state_dict(its_state, strict=True, assign=True)
        network.eval()
    image = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        close(ours(image), theirs(image))


def check_swaps(build: Callable[..., nn.Module], layers: Any) -> None:
    """No norm but the chosen one is left, and no activation but GELU; gates are not choices."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    acts = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Tanh)
    assert layers.act_layer is nn.GELU
    network = meta(build, layers=layers)
    kinds = {type(module) for module in network.modules()}
    assert not [kind for kind in kinds if issubclass(kind, acts)]
    assert nn.GELU in kinds
    assert {kind for kind in kinds if issubclass(kind, norms)} == {layers.norm_layer} - {None}
    ours, paper = network.state_dict(), meta(build).state_dict()
    weights = [key for key in paper if paper[key].dim() == 4]
    assert [key for key in ours if ours[key].dim() == 4] == weights


def check_stages(build: Callable[..., nn.Module], output_stride: int = 8) -> None:
    """The stages hold all but the head, halve the map one after another, and stop halving where an encoder asks."""
    strides = [2, 4, 8, 16, 32]
    network = meta(build, num_classes=7).eval()
    x = torch.empty(1, 3, 256, 320, device="meta")
    for stage, stride in zip(network.stages, strides, strict=True):
        x = stage(x)
        # Unpadded windows lose a pixel or two.
        assert 0 <= 256 // stride - x.size(2) <= 3
        assert 0 <= 320 // stride - x.size(3) <= 3
    used = {id(p) for stage in network.stages for p in stage.parameters()}
    head = {name.split(".")[0] for name, p in network.named_parameters() if id(p) not in used}
    assert len(head) == 1
    assert head <= {"fc", "classifier", "head"}
    encoder = Encoder(network, output_stride=output_stride)
    assert encoder.channels[-1] == x.size(1)
    assert encoder.strides == [min(stride, output_stride) for stride in strides]
