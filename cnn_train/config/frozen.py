"""The interpolations of a config that was read from a file: which may be there, and their values fixed once.

What is checked must be what is built, in every process and at every time. So `${oc.env:NAME}` becomes its value when
the file is read, references to other keys stay, and neither can decide which code runs.
"""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnn_train.errors import ConfigError

# Keys whose values become calls.
CODE = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")

_REFERENCE = re.compile(r"\$\{(\.*[\w-]+(?:\.[\w-]+|\[\d+\])*)\}")
_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s{0,8}[A-Za-z_]\w*\s{0,8}(?:,[^${}]*)?\}")
MOST_NODES = 100_000  # of a config with its references followed


def check_interpolations(config: DictConfig) -> None:
    """Refuse interpolations that compute: other resolvers than oc.env, nested ones, any in a key that becomes code.

    Also refuses references whose copies would fill the memory. Raises ConfigError.
    """
    plain = OmegaConf.to_container(config, resolve=False)
    for path, key, text in _strings(plain, ""):
        if "${" not in text:
            continue
        if key in CODE:
            raise ConfigError(f"{path}: {text!r} is computed; a saved config names its code as it is")
        if "${" in _ENVIRONMENT.sub("", _REFERENCE.sub("", text)):
            raise ConfigError(
                f"{path}: {text!r} is not allowed in a saved config; only ${{key}} and ${{oc.env:NAME}} are"
            )
    _size(plain, plain, "", {}, ())


def _strings(node: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """(path, last key, text) of every string."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        inner = f"{path}[{key}]" if isinstance(node, list) else f"{path}.{key}".lstrip(".")
        if isinstance(value, dict | list):
            yield from _strings(value, inner)
        elif isinstance(value, str):
            yield inner, str(key), value


def _size(node: Any, root: Any, path: str, known: dict[str, int], within: tuple[str, ...]) -> int:
    """Nodes and hundreds of characters that `node` has once its references are followed."""
    if path in within:
        raise ConfigError(f"{path} refers to itself")
    if path in known:
        return known[path]
    total = 1
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            total += _size(value, root, f"{path}.{key}".lstrip("."), known, (*within, path) if path else within)
    elif isinstance(node, str):
        total += len(node) // 100
        for name in _REFERENCE.findall(node):
            absolute = _absolute(name, path)
            found = root
            for part in absolute.split("."):
                found = _inside(found, part)
            total += _size(found, root, absolute, known, (*within, path))
    if total > MOST_NODES:
        raise ConfigError(f"{path or 'the config'} grows beyond {MOST_NODES:,} nodes by its references")
    known[path] = total
    return total


def _absolute(name: str, path: str) -> str:
    """A reference as a path from the root: one dot is the mapping that holds it, each further one a level up."""
    inner = name.lstrip(".")
    levels = len(name) - len(inner)
    parts = path.split(".")[:-levels] if levels else []
    return ".".join([*parts, inner.replace("[", ".").replace("]", "")])


def _inside(node: Any, part: str) -> Any:
    if isinstance(node, dict):
        return node.get(part)
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    return None


def fix_environment(config: DictConfig) -> None:
    """Put values in the place of all interpolations that are more than a reference. Raises ConfigError."""
    for container, key in list(_leaves(config)):
        node = container._get_node(key)
        text = None if node is None else node._value()
        if not isinstance(text, str) or "${" not in _REFERENCE.sub("", text):
            continue
        try:
            value = container[key]
        except OmegaConfBaseException as error:
            raise ConfigError(f"{node._get_full_key(None)}: {str(error).splitlines()[0]}") from error
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{node._get_full_key(None)}: {text} gives an interpolation, {value!r}; give a value")
        container[key] = value


def _leaves(node: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything that is no container."""
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node.keys())
    for key in keys:
        child = node._get_node(key)
        inner = isinstance(child, DictConfig | ListConfig)
        if inner and not child._is_none() and not child._is_interpolation() and not child._is_missing():
            yield from _leaves(child)
        else:
            yield node, key
