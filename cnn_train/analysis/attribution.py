"""What of an image a layer answers to: a deconvnet's pictures and Grad-CAM, for any `nn.Module`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnn_train.analysis.modules import tensors
from cnn_train.analysis.trace import main_map


def output_of(network: nn.Module, layer: str, image: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a layer, and the scores of the network."""
    found: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda m, _, y: found.append(main_map(layer, m, y)))
    try:
        scores = network(image)
    finally:
        hook.remove()
    return found[-1], next(tensors(scores))


class _Deconvnet(torch.autograd.Function):
    """A ReLU whose gradient is rectified too and ignores the forward sign (Zeiler & Fergus 2014)."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp(min=0)


@contextmanager
def deconvnet(network: nn.Module) -> Iterator[None]:
    """Make gradients those of a deconvnet in the block: ReLU rectifies them on the way back.

    Those of convolutions (the transposed filter) and of max pooling (unpooling to the maximum) are a deconvnet's as
    they are.
    """
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, nn.ReLU | nn.ReLU6):
                module.forward = _Deconvnet.apply  # type: ignore[method-assign]
                stack.callback(module.__dict__.pop, "forward")
        yield


def excitations(network: nn.Module, image: Tensor, layer: str, count: int = 6) -> list[tuple[int, Tensor]]:
    """Bring the strongest units of the `count` channels that an image (1, C, H, W) excites most back to pixels.

    Each is (channel, picture (C, H, W)).
    """
    image = image.clone().requires_grad_()
    with deconvnet(network), torch.enable_grad():
        maps, _ = output_of(network, layer, image)
        strongest = maps[0].flatten(1).max(1)
        channels = strongest.values.topk(min(count, maps.size(1))).indices.tolist()
        found = []
        for channel in channels:
            unit = maps[0, channel].flatten()[strongest.indices[channel]]
            (picture,) = torch.autograd.grad(unit, image, retain_graph=True)
            found.append((channel, picture[0].detach()))
    return found


def grad_cam(network: nn.Module, image: Tensor, layer: str, target: int | None = None) -> tuple[Tensor, int]:
    """Where a layer's map (H, W) supports class `target` (by default the answer), in [0, 1] (Selvaraju et al. 2017).

    Channels are weighted by the mean gradient of the class's score, summed over pixels in segmentation.
    """
    with torch.enable_grad():
        maps, scores = output_of(network, layer, image.clone().requires_grad_())
        scores = scores[0].flatten(1).sum(1) if scores.dim() == 4 else scores[0]
        target = int(scores.argmax()) if target is None else target
        (gradient,) = torch.autograd.grad(scores[target], maps)
    weights = gradient.mean((2, 3), keepdim=True)
    cam = (weights * maps.detach()).sum(1, keepdim=True).clamp(min=0)
    cam = nn.functional.interpolate(cam, size=image.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    return cam / cam.max().clamp(min=1e-12), target
