"""What a layer may say of itself, kind by kind; one that says nothing gets the default that stands here.

Attributes of norms and activations belong to the class: `LayerFactory` asks for them before it makes a layer.
"""

from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn


class Norm(Protocol):
    """A normalization: `Norm(num_channels)` maps (N, num_channels, H, W) to the same shape.

    `standardize_weights`: convolutions before it are `WSConv2d`, whose filters have mean 0 and one variance.
    `synchronized`: in training its statistics are those of the joint batch of all processes; torch's `SyncBatchNorm`
    counts as such without saying so.
    """

    standardize_weights: bool = False
    synchronized: bool = False


class Activation(Protocol):
    """An activation: `Activation()`, or with `takes_channels` `Activation(num_channels)`, keeps every shape."""

    takes_channels: bool = False


class GlobalPool(Protocol):
    """What stands between the last map and the dense layers: `GlobalPool(channels)` on (N, channels, H, W).

    `out_features` has no default: it is set in `__init__` and says how many values the flattened result has.
    """

    out_features: int


class Upsampling(Protocol):
    """An upsampling: `Upsampling(channels, scale_factor)` of (N, channels, H, W) to s times the size, or to `size`."""

    def __call__(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor: ...


class Residual(Protocol):
    """A block with a shortcut; `zero_last_norms` starts its branch at zero.

    `last_norm` is the norm that ends the branch, None where there is none. A block without it is no residual block.
    """

    last_norm: nn.Module | None = None


def innermost(make: Any) -> Any:
    """The class or function in a partial, which Hydra's and our own make several of."""
    while isinstance(make, partial):
        make = make.func
    return make


def says(make: Any, kind: type, attribute: str) -> Any:
    """What a layer, its class or a partial of it says under `attribute`, or else the default of the Protocol `kind`."""
    return getattr(innermost(make), attribute, getattr(kind, attribute))
