"""Initializers: each sets all weights of a module in place. Biases become 0, norms scale 1 and shift 0.

`act` makes the activation in use; initializers that preserve variance take their gain from it. Upsampling by
`Transposed` keeps its bilinear start, which is what it is chosen for.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from cnn_train.layers.norm import NORMS, WSConv2d
from cnn_train.layers.protocols import Residual
from cnn_train.layers.upsample import Transposed

Act = Callable[[], nn.Module]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def gain(act: Act) -> float:
    """1 / sqrt(E[act(z)^2]) for z ~ N(0, 1): the factor that keeps the second moment (He et al. 2015, section 2.2).

    sqrt(2) for ReLU, 1 for the identity. The integral is taken by the trapezoid rule on [-12, 12].
    """
    with torch.device("cpu"):  # also for a network that is being built on the meta device
        z = torch.linspace(-12, 12, 24001, dtype=torch.float64)
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        module = act().double().cpu().eval()
        with torch.no_grad():
            activated = module(z.clone().view(1, 1, 1, -1)).view(-1)
            second_moment = torch.trapezoid(activated.square() * density, z)
    return float(second_moment.rsqrt())


def fans(layer: nn.Module) -> tuple[float, float]:
    """Inputs that one output is summed from (fan-in), and outputs that one input goes to (fan-out).

    Strides are ignored, as usual, except in transposed convolutions, where only every stride-th weight of the window
    meets an input.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    window = math.prod(weight.shape[2:])
    groups = int(getattr(layer, "groups", 1))
    if isinstance(layer, TRANSPOSED):
        inputs, outputs = weight.size(0) // groups, weight.size(1)
        return inputs * window / math.prod(layer.stride), outputs * window
    return weight.size(1) * window, weight.size(0) // groups * window


def fan(weight: Tensor, mode: str) -> int:
    """Fan-in or fan-out by the shape (out, in, ...) of a weight; right for dense layers and plain convolutions."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    return {"fan_in": fan_in, "fan_out": fan_out}[mode]


def weights_and_fans(module: nn.Module) -> Iterator[tuple[Tensor, float, float]]:
    """Yield (weight, fan-in, fan-out) of each layer with weights; biases and norms are set to their neutral values.

    Recurrent layers yield one weight for each gate.
    """
    for layer in module.modules():
        if isinstance(layer, WEIGHTED):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            if not isinstance(layer, Transposed):
                yield (layer.weight, *fans(layer))
        elif isinstance(layer, nn.RNNBase):
            for name, parameter in layer.named_parameters(recurse=False):
                if name.startswith("bias"):
                    nn.init.zeros_(parameter)
                else:
                    gates = 1 if name.startswith("weight_hr") else {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
                    for gate in parameter.detach().chunk(gates):
                        yield gate, gate.size(1), gate.size(0)
        elif isinstance(layer, NORMS):
            for name, neutral in (("weight", nn.init.ones_), ("bias", nn.init.zeros_)):
                value = getattr(layer, name, None)
                if isinstance(value, Tensor):
                    neutral(value)


def weights(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights alone of `weights_and_fans`, with the same effect on biases and norms."""
    for weight, _, _ in weights_and_fans(module):
        yield weight


def xavier_uniform(module: nn.Module, act: Act = nn.Identity) -> None:
    """U(+-sqrt(6 / (fan_in + fan_out))) (Glorot & Bengio 2010, eq. 16)."""
    for weight, fan_in, fan_out in weights_and_fans(module):
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        nn.init.uniform_(weight, -bound, bound)


def xavier_normal(module: nn.Module, act: Act = nn.Identity) -> None:
    """N(0, 2 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 12)."""
    for weight, fan_in, fan_out in weights_and_fans(module):
        nn.init.normal_(weight, 0.0, math.sqrt(2.0 / (fan_in + fan_out)))


def he_normal(module: nn.Module, act: Act = nn.ReLU, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """N(0, gain^2 / fan) with the gain of the activation in use (He et al. 2015, eq. 10; 2 / fan for ReLU)."""
    scale = gain(act)
    for weight, fan_in, fan_out in weights_and_fans(module):
        nn.init.normal_(weight, 0.0, scale / math.sqrt(_choose(mode, fan_in, fan_out)))


def he_uniform(module: nn.Module, act: Act = nn.ReLU, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Uniform with the variance of `he_normal`: U(+-gain sqrt(3 / fan))."""
    scale = gain(act)
    for weight, fan_in, fan_out in weights_and_fans(module):
        bound = scale * math.sqrt(3.0 / _choose(mode, fan_in, fan_out))
        nn.init.uniform_(weight, -bound, bound)


def _choose(mode: str, fan_in: float, fan_out: float) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be fan_in (keeps activations) or fan_out (keeps gradients), got {mode!r}")
    return fan_in if mode == "fan_in" else fan_out


def he_convolutions(module: nn.Module) -> None:
    """N(0, 2 / fan_out) for convolutions, neutral norms; dense layers keep torch's own: what residual networks use.

    As in torchvision, groups are not counted in the fan-out.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def he_convolutions_normal_dense(module: nn.Module) -> None:
    """`he_convolutions`, and N(0, 0.01^2) for dense layers: VGG and MobileNet in torchvision."""
    he_convolutions(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01)
            nn.init.zeros_(layer.bias)


def zero_last_norms(network: nn.Module) -> None:
    """Start each residual branch at zero: the scale of its block's `last_norm` (Goyal et al. 2017, section 5.1)."""
    norms = [getattr(block, "last_norm", Residual.last_norm) for block in network.modules()]
    scales = [getattr(norm, "weight", None) for norm in norms]
    learned = [scale for scale in scales if isinstance(scale, nn.Parameter)]
    if not learned:
        raise ValueError(
            "zero_init_residual=true starts the scale of each branch's last norm at 0, but no residual branch here "
            "ends in a norm that learns its scale; choose one, as norm=bn, or leave it out"
        )
    for scale in learned:
        nn.init.zeros_(scale)


def lecun_normal(module: nn.Module, act: Act = nn.Identity) -> None:
    """N(0, 1 / fan_in) (LeCun et al. 1998, "Efficient BackProp", eq. 16)."""
    for weight, fan_in, _ in weights_and_fans(module):
        nn.init.normal_(weight, 0.0, math.sqrt(1.0 / fan_in))


def orthogonal(module: nn.Module, act: Act = nn.ReLU) -> None:
    """Random orthogonal rows or columns times the activation's gain (Saxe et al. 2014)."""
    scale = gain(act)
    for weight in weights(module):
        nn.init.orthogonal_(weight, scale)


def normal(module: nn.Module, act: Act = nn.Identity, std: float = 0.01) -> None:
    """N(0, std^2) (Krizhevsky et al. 2012 with 0.01)."""
    for weight in weights(module):
        nn.init.normal_(weight, 0.0, std)


def lsuv(module: nn.Module, act: Act = nn.ReLU) -> None:
    """Orthogonal start of LSUV (Mishkin & Matas 2016); `lsuv_calibrate` does the data-dependent part."""
    for weight in weights(module):
        nn.init.orthogonal_(weight)


@torch.no_grad()
def lsuv_calibrate(network: nn.Module, images: Tensor) -> None:
    """Scale each layer in place to an output of variance 1 on `images` (N, C, H, W) (Mishkin & Matas 2016, alg. 1).

    Outputs are linear in the weights, so one pass does what the paper iterates for: each layer is scaled, and its
    output with it, before the next one sees it. Runs in training mode, as do auxiliary heads; the buffers (running
    statistics) are put back.
    """
    scaled: set[nn.Module] = set()

    def scale(layer: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        std = float(output.float().std())
        if layer in scaled or not 0 < std < math.inf:
            return None
        scaled.add(layer)
        for parameter in (layer.weight, layer.bias):
            if isinstance(parameter, Tensor):
                parameter.div_(std)
        return output / std

    layers = [layer for layer in network.modules() if isinstance(layer, WEIGHTED) and not isinstance(layer, WSConv2d)]
    handles = [layer.register_forward_hook(scale) for layer in layers]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.train()
        network(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
