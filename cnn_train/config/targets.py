"""What a config that this command line did not compose may name: default deny."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnn_train.config.schema import first_line
from cnn_train.config.signatures import NoSuchTarget, signature
from cnn_train.errors import ConfigError

# Where a class or function may be defined for a config that we did not write to be allowed to name it.
ALLOWED = re.compile(
    r"cnn_train\.(layers|models|tasks|training|data|postprocess)(\.|$)"
    r"|torch\.nn\.(modules|init)(\.|$)|torch\.optim(\.|$)"
    r"|lightning\.pytorch\.(callbacks|loggers)(\.|$)"
    r"|torchvision\.(models|transforms|ops)(\.|$)|timm\.(models|layers|optim)(\.|$)"
)


def check_targets(config: Any) -> None:
    """Refuse a config from a saved run or a downloaded file that names anything but layers, networks, losses, data.

    A `_target_` is a call: default deny. The name is followed through the sources to its definition, without importing
    anything, so `cnn_train.models.lenet.torch.load` is seen to be torch's. Raises ConfigError.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {first_line(error)}") from error
    for path, target in _targets(plain, ""):
        if not _is_allowed(target):
            raise ConfigError(
                f"{path}._target_: {target!r} is not allowed in a saved config; only cnn_train's, torch's and "
                "torchvision's layers, networks, optimizers, losses and data are"
            )


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node["_target_"]
        for key, inner in node.items():
            yield from _targets(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from _targets(inner, f"{path}[{index}]")


def _is_allowed(target: Any) -> bool:
    if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", target):
        return False
    try:
        found = signature(target)
    except (NoSuchTarget, SyntaxError):
        return False
    return found.kind in ("class", "function") and bool(ALLOWED.match(found.module))
