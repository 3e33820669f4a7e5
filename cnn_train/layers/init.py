"""Initializers: each sets all weights of a module in place. Biases become 0, norms scale 1 and shift 0.

`act` makes the activation in use; initializers that preserve variance take their gain from it.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Act = Callable[[], nn.Module]
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


def gain(act: Act) -> float:
    """1 / sqrt(E[act(z)^2]) for z ~ N(0, 1): the factor that keeps the second moment (He et al. 2015, section 2.2).

    sqrt(2) for ReLU, 1 for the identity. The integral is taken by the trapezoid rule on [-12, 12].
    """
    z = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    module = act().double().cpu()
    with torch.no_grad():
        second_moment = torch.trapezoid(module(z.view(1, 1, 1, -1)).view(-1).square() * density, z)
    return float(second_moment.rsqrt())


def weights(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights of convolutions and dense layers after resetting biases and norms to their neutral values."""
    for layer in module.modules():
        if isinstance(layer, WEIGHTED):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            yield layer.weight
        elif type(layer).__name__.endswith("Norm") or isinstance(layer, nn.modules.batchnorm._BatchNorm):
            if isinstance(getattr(layer, "weight", None), Tensor):
                nn.init.ones_(layer.weight)  # type: ignore[arg-type]
            if isinstance(getattr(layer, "bias", None), Tensor):
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def xavier_uniform(module: nn.Module, act: Act = nn.Identity) -> None:
    """U(+-sqrt(6 / (fan_in + fan_out))) (Glorot & Bengio 2010, eq. 16)."""
    for weight in weights(module):
        nn.init.xavier_uniform_(weight)


def xavier_normal(module: nn.Module, act: Act = nn.Identity) -> None:
    """N(0, 2 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 12)."""
    for weight in weights(module):
        nn.init.xavier_normal_(weight)


def he_normal(module: nn.Module, act: Act = nn.ReLU, mode: str = "fan_in") -> None:
    """N(0, gain^2 / fan) with the gain of the activation in use (He et al. 2015, eq. 10; 2 / fan for ReLU)."""
    scale = gain(act)
    for weight in weights(module):
        nn.init.normal_(weight, 0.0, scale / math.sqrt(fan(weight, mode)))


def he_convolutions(module: nn.Module) -> None:
    """N(0, 2 / fan_out) for convolutions, neutral norms; dense layers keep torch's own: what residual networks use."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def he_uniform(module: nn.Module, act: Act = nn.ReLU, mode: str = "fan_in") -> None:
    """Uniform with the variance of `he_normal`: U(+-gain sqrt(3 / fan))."""
    scale = gain(act)
    for weight in weights(module):
        bound = scale * math.sqrt(3.0 / fan(weight, mode))
        nn.init.uniform_(weight, -bound, bound)


def lecun_normal(module: nn.Module, act: Act = nn.Identity) -> None:
    """N(0, 1 / fan_in) (LeCun et al. 1998, "Efficient BackProp", eq. 16)."""
    for weight in weights(module):
        nn.init.normal_(weight, 0.0, math.sqrt(1.0 / fan(weight, "fan_in")))


def orthogonal(module: nn.Module, act: Act = nn.ReLU) -> None:
    """Random orthogonal rows or columns times the activation's gain (Saxe et al. 2014)."""
    scale = gain(act)
    for weight in weights(module):
        nn.init.orthogonal_(weight, scale)


def normal(module: nn.Module, act: Act = nn.Identity, std: float = 0.01) -> None:
    """N(0, std^2) (Krizhevsky et al. 2012 with 0.01)."""
    for weight in weights(module):
        nn.init.normal_(weight, 0.0, std)


def fan(weight: Tensor, mode: str) -> int:
    """Number of inputs (`fan_in`) or outputs (`fan_out`) that a weight of (out, in, ...) connects to one unit."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    return {"fan_in": fan_in, "fan_out": fan_out}[mode]


def lsuv(module: nn.Module, act: Act = nn.ReLU) -> None:
    """Orthogonal start of LSUV (Mishkin & Matas 2016); `lsuv_calibrate` does the data-dependent part."""
    for weight in weights(module):
        nn.init.orthogonal_(weight)


@torch.no_grad()
def lsuv_calibrate(network: nn.Module, images: Tensor, tolerance: float = 0.1, max_rounds: int = 10) -> None:
    """Scale each layer until its output on `images` (N, C, H, W) has variance 1 (Mishkin & Matas 2016, alg. 1)."""
    variance: dict[str, float] = {}

    def record(layer: nn.Module, inputs: object, output: Tensor) -> None:
        variance["now"] = float(output.float().var())

    for layer in [m for m in network.modules() if isinstance(m, WEIGHTED)]:
        handle = layer.register_forward_hook(record)
        try:
            for _ in range(max_rounds):
                variance.clear()
                network(images)
                if "now" not in variance or variance["now"] <= 0 or abs(variance["now"] - 1) < tolerance:
                    break
                layer.weight.div_(math.sqrt(variance["now"]))
        finally:
            handle.remove()
