"""The settings of a choice: those that its file lists, and those that only its builder's signature does."""

from collections.abc import Mapping
from typing import Any

from cnn_train.config.choices import Choices, flat_keys, typed
from cnn_train.config.schema import FILLED_IN
from cnn_train.config.signatures import NoSuchTarget, Signature, kinds, signature


def settings_of(choices: Choices, group: str, option: str | None) -> dict[str, str]:
    """Dotted keys of a choice, each with its value in YAML, or with what its builder takes where no file sets it."""
    node: dict[str, Any] = {}
    for name in sorted(choices.inherits(group, option), key=lambda name: name == option) if option else ():
        content = choices.body(group, name)
        node |= content[group] if "_target_" not in content and isinstance(content.get(group), dict) else content
    found = {key: typed_at(node, key.removeprefix(f"{group}.")) for key in flat_keys(node, group)}
    builder = signature_of(node)
    for name, annotation in (builder.parameters if builder else {}).items():
        key = f"{group}.{name}"
        if name not in node and name not in FILLED_IN.get(group, {}) and not annotation_is_code(annotation):
            rule = kinds(annotation)
            found[key] = f"({rule.describe()})" if rule else ""
    return found


def typed_at(node: Mapping[str, Any], key: str) -> str:
    value: Any = node
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else {str(k): v for k, v in value.items()}[part]
    return value if isinstance(value, str) else typed(value)


def annotation_is_code(annotation: str) -> bool:
    """Whether an annotation names something that no YAML value is: a module, a function."""
    return bool(annotation) and kinds(annotation) is None


def signature_of(node: Any) -> Signature | None:
    """The signature of what a node's `_target_` names; None where there is none to read."""
    target = node.get("_target_") if hasattr(node, "get") else None
    if not isinstance(target, str):
        return None
    try:
        return signature(target)
    except (NoSuchTarget, SyntaxError):
        return None
