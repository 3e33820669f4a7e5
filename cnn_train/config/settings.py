"""The settings of a choice: those that its file lists, and those that only its builder's signature does."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from cnn_train.config.choices import Choices, flat_keys, typed
from cnn_train.config.schema import FILLED_IN, RunConfig
from cnn_train.config.signatures import Kinds, NoSuchTarget, Signature, kinds, signature


def settings_of(choices: Choices, group: str, option: str | None) -> dict[str, str]:
    """Dotted keys of a choice, each with its value in YAML, or with what its builder takes where no file sets it."""
    node = node_of(choices, group, option)
    found = {key: typed_at(node, key.removeprefix(f"{group}.")) for key in flat_keys(node, group)}
    builder = signature_of(node)
    for name, annotation in (builder.parameters if builder else {}).items():
        key = f"{group}.{name}"
        if name not in node and name not in FILLED_IN.get(group, {}) and not annotation_is_code(annotation):
            rule = kinds(annotation)
            found[key] = f"({rule.describe()})" if rule else ""
    return found


def node_of(choices: Choices, group: str, option: str | None) -> dict[str, Any]:
    """What the file of a choice, and those that it builds on, put under its group."""
    node: dict[str, Any] = {}
    for name in sorted(choices.inherits(group, option), key=lambda name: name == option) if option else ():
        content = choices.body(group, name)
        node |= content[group] if "_target_" not in content and isinstance(content.get(group), dict) else content
    return node


def words_of(choices: Choices, key: str, option: str | None) -> list[str]:
    """The words that a setting takes, of the choice `option` of its group; none where any value goes."""
    rule = schema_rule(key)
    group, _, name = key.partition(".")
    if rule is None and name and (builder := signature_of(node_of(choices, group, option))) is not None:
        rule = kinds(builder.parameters.get(name, ""))
    if rule is None:
        return []
    words = [str(word).lower() if isinstance(word, bool) else str(word) for word in rule.words]
    return words or (["true", "false"] if rule.names == {"bool"} else [])


def schema_rule(key: str) -> Kinds | None:
    """The values that the schema allows for a setting; None for those of open nodes."""
    schema: Any = RunConfig
    for part in key.split("."):
        schema = next((f.type for f in fields(schema) if f.name == part), None) if is_dataclass(schema) else None
    if schema is None or schema is Any or is_dataclass(schema):
        return None
    return kinds(schema.__name__ if type(schema) is type else str(schema))


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
