"""Classification networks: (N, in_channels, H, W) -> (N, num_classes)."""

import pkgutil
from collections.abc import Callable
from importlib import import_module

from torch import nn


def builder(name: str) -> Callable[..., nn.Module]:
    """The builder called `name`, as `conf/model/<name>.yaml` names it; ValueError with the nearest names otherwise."""
    names: list[str] = []
    for module_info in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{module_info.name}")
        if name in module.__all__:
            return getattr(module, name)
        names += module.__all__
    from difflib import get_close_matches

    close = ", ".join(get_close_matches(name, names)) or "cnn-train list model"
    raise ValueError(f"no classification network {name!r}; did you mean: {close}?")


def builder_names() -> list[str]:
    """The names of all builders but the libraries' own."""
    modules = [import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return [name for module in modules for name in module.__all__ if name not in ("timm", "torchvision")]
