"""The classification networks of timm and torchvision, as they are: choices of layers cannot reach into them."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from cnn_train.errors import EnvError
from cnn_train.layers import LayerFactory

__all__ = ["timm", "torchvision"]

UNCHOSEN = LayerFactory(norm_layer=None)
# Its own init of these two takes minutes or warns; auxiliary heads are what our googlenet and inception_v3 are for.
WITHOUT_AUX = {"aux_logits": False, "init_weights": False}
TORCHVISION_OPTIONS = {"googlenet": WITHOUT_AUX, "inception_v3": WITHOUT_AUX}


def timm(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    name: str = "resnet18",
    pretrained: bool = False,
    layers: LayerFactory = UNCHOSEN,
    **options: Any,
) -> nn.Module:
    """The network that timm calls `name`; `options` go to `timm.create_model`."""
    _refuse_choices("timm", layers)
    if pretrained:
        raise ValueError("model.pretrained is weights=timm here: it checks what it loads, and adapts head and channels")
    try:
        import timm as library
    except ModuleNotFoundError as error:
        raise EnvError("model=timm needs the package timm, which is not installed: pip install timm") from error
    if not library.is_model(name.partition(".")[0]):
        raise ValueError(_unknown("timm", name, library.list_models()))
    return library.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options)


def torchvision(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    name: str = "resnet18",
    layers: LayerFactory = UNCHOSEN,
    **options: Any,
) -> nn.Module:
    """The classification network that torchvision calls `name`; `options` go to its builder."""
    _refuse_choices("torchvision", layers)
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(_unknown("torchvision", name, names))
    options = TORCHVISION_OPTIONS.get(name, {}) | options
    network = models.get_model(name, weights=None, num_classes=num_classes, **options)
    if in_channels != 3:
        _replace_first_convolution(network, in_channels)
    return network


def _refuse_choices(model: str, layers: LayerFactory) -> None:
    chosen = [field.split("_layer")[0] for field, value in vars(layers).items() if value is not None]
    if chosen:
        words = " ".join(f"{'init' if field == 'initializer' else field}=" for field in chosen)
        raise ValueError(
            f"model={model} takes the library's network as it is, but got {words}...; "
            "leave that out, or choose one of our networks (cnn-train list model)"
        )


def _unknown(model: str, name: str, names: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = ", ".join(get_close_matches(name, list(names)))
    return f"{model} has no classification network {name!r}" + (f"; did you mean: {close}?" if close else "")


def _replace_first_convolution(network: nn.Module, in_channels: int) -> None:
    """Make the convolution that sees the image one of `in_channels`; torchvision's builders know colour images only."""
    name, old = next((name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d))
    assert old.in_channels == 3 and old.groups == 1
    parent, _, attribute = name.rpartition(".")
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    network.get_submodule(parent).add_module(attribute, new)
