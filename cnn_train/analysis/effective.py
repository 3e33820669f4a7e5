"""The effective receptive field: how much each pixel moves a unit (Luo et al. 2016)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnn_train.analysis.modules import in_mode
from cnn_train.analysis.trace import check_size, main_map

# Luo et al., section 4: a pixel counts above 1 - 95.45 % of the largest gradient (two deviations of a Gaussian).
_COUNTS = 1 - 0.9545


@dataclass(frozen=True)
class EffectiveField:
    """`map` (H, W): root mean square gradient of the unit with respect to each pixel, the largest set to 1.

    `width` is the side of a square with as many pixels as have more than 4.55 % of the largest gradient; `deviation`
    the standard deviation (rows, columns) in pixels of the squared gradient's distribution; `centre` its mean.
    """

    map: Tensor
    width: float
    deviation: tuple[float, float]
    centre: tuple[float, float]


def effective_receptive_field(
    module: nn.Module | Iterable[nn.Module],
    input_size: Sequence[int],
    layer: str | None = None,
    *,
    unit: tuple[int, int] | None = None,
    images: Tensor | None = None,
    samples: int = 20,
    seed: int = 0,
) -> EffectiveField:
    """The effective receptive field of a unit (row, column; the middle one) of `layer`'s output, weights as they are.

    The gradient reaches the unit's channels with random signs and is averaged over `images` (N, C, H, W) or, without,
    over `samples` images of standard normal noise of `input_size` (C, H, W). Several networks, such as one architecture
    initialized from several seeds, take the images in turn. Evaluation mode. ValueError if no gradient arrives.
    """
    size = check_size(input_size)
    generator = torch.Generator().manual_seed(seed)
    networks = [module] if isinstance(module, nn.Module) else list(module)
    total = torch.zeros(size[1:], dtype=torch.float64)
    for index in range(samples if images is None else len(images)):
        image = torch.randn(1, *size, generator=generator) if images is None else images[index : index + 1]
        total += _energy(networks[index % len(networks)], image, layer or "", unit, generator)
    if not total.max() > 0:
        raise ValueError(
            f"no gradient of layer {layer!r} reaches the image; all its units are dead, or it ignores the image"
        )
    share = total / total.sum()
    centre, deviation = [], []
    for axis in (0, 1):
        line = share.sum(1 - axis)
        places = torch.arange(len(line), dtype=torch.float64)
        mean = float((line * places).sum())
        centre.append(mean)
        deviation.append(float((line * (places - mean).square()).sum().sqrt()))
    field = (total / total.max()).sqrt()
    return EffectiveField(
        field.float(), float((field > _COUNTS).sum()) ** 0.5, (deviation[0], deviation[1]), (centre[0], centre[1])
    )


def _energy(
    module: nn.Module, image: Tensor, name: str, unit: tuple[int, int] | None, generator: torch.Generator
) -> Tensor:
    """Squared gradient of a unit by each pixel (H, W), summed over the image's channels."""
    modules = dict(module.named_modules())
    if name not in modules:
        raise ValueError(f"no layer {name!r}; layers are named as in named_modules()")
    outputs: list[Tensor] = []
    hook = modules[name].register_forward_hook(lambda m, _, y: outputs.append(main_map(name, m, y)))
    parameter = next(module.parameters(), torch.empty(0))
    image = image.to(parameter.device, parameter.dtype, copy=True).detach().requires_grad_()
    try:
        with in_mode(module, training=False), torch.enable_grad():
            module(image)
            y = outputs[-1]
            value = y[0]
            if y.dim() == 4:
                row, column = unit or (y.shape[2] // 2, y.shape[3] // 2)
                value = y[0, :, row, column]
            signs = torch.randn(value.shape, generator=generator).sign().to(value)
            (gradient,) = torch.autograd.grad((value * signs).sum(), image)
    finally:
        hook.remove()
    return gradient[0].double().square().sum(0).cpu()
