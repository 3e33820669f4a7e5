"""Secrets in text: found by name, by form, or by the environment's values, and masked."""

import os
import re

# Names of settings and variables that hold secrets, and how some secrets look by themselves.
_SECRET_NAME = r"[\w.-]*(?:passw(?:or)?d|secret|token|api_?key|access_?key|credential)[\w-]*"


_SECRETS = (
    re.compile(rf"(?im)^(\s*(?:- )?{_SECRET_NAME}\s*:[ \t]+)(?!null\b|true\b|false\b|[\d.]+\s*$|['\"]?\$\{{)\S.*$"),
    re.compile(rf"(?i)(\b{_SECRET_NAME}=)(?!null\b|[\d.]+\b|['\"]?\$\{{)[^\s,;&'\"]+"),
    re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)"),
    re.compile(
        r"()\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|hf_\w{20,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
        r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
    ),
)


def mask(text: str) -> str:
    """The text with what looks like a secret replaced by HIDDEN: by its name or form, or from the environment."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1HIDDEN", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and re.fullmatch(_SECRET_NAME, name, re.IGNORECASE):
            text = text.replace(value, "HIDDEN")
    return text
