"""Secrets in text: found by name, by form, or by the environment's values, and masked.

Every pattern needs time that is proportional to the text's length: it begins at a word that is rare, or at the
beginning of a word, and repeats nothing without a bound that could begin again inside of what it has seen.
"""

import os
import re
from typing import Any

from cnn_train.text import SECRET_NAME, is_secret

HIDDEN = "HIDDEN"
_HARMLESS = r"(?!null\b|true\b|false\b|[\d.]+(?![\w.])|['\"]?\$\{)"
# After `name: ` the rest of the line, after `name=` a word or what stands in quotes.
_BY_NAME = (
    re.compile(rf"(?i)({SECRET_NAME}['\"]?[ \t]{{0,4}}:[ \t]{{1,8}}){_HARMLESS}\S.*"),
    re.compile(rf"(?i)({SECRET_NAME}['\"]?=){_HARMLESS}(?:'[^'\n]*'|\"[^\"\n]*\"|[^\s,;&'\"]+)"),
)
_BY_FORM = (
    re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)"),
    re.compile(
        r"()(?<![\w-])(?:AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|hf_\w{20,}|sk-[\w-]{20,}"
        r"|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
    ),
)


def mask(text: str) -> str:
    """The text with what looks like a secret replaced by HIDDEN: by its name or form, or from the environment.

    For what is only read: logs, the command, differences. What is run again goes through `mask_settings`.
    """
    for pattern in (*_BY_NAME, *_BY_FORM):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    for value in _environment().values():
        text = text.replace(value, HIDDEN)
    return text


def mask_settings(yaml_text: str) -> str:
    """A config's YAML without the environment's secrets, which become `${oc.env:NAME}`, so that it runs as before.

    Literals under a secret's name are refused when a config is composed; should one be here, it is HIDDEN.
    """
    yaml_text = re.sub(rf"(?im)^([ \t]*(?:- )?[\w.-]*{SECRET_NAME}:[ \t]+){_HARMLESS}\S.*$", rf"\1{HIDDEN}", yaml_text)
    for name, value in _environment().items():
        yaml_text = yaml_text.replace(value, f"${{oc.env:{name}}}")
    return yaml_text


def masked(value: Any) -> Any:
    """Plain data, as for a JSON file or TensorBoard, with secrets masked: by their keys, and in all texts."""
    if isinstance(value, dict):
        return {
            key: HIDDEN if isinstance(inner, str) and inner and is_secret(str(key)) else masked(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(inner) for inner in value]
    return mask(value) if isinstance(value, str) else value


def _environment() -> dict[str, str]:
    """Secrets in the environment by their names, the longest first: one may be a part of another."""
    found = {name: value for name, value in os.environ.items() if len(value) >= 8 and is_secret(name)}
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
