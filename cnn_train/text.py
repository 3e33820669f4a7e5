"""Text from outside: class names, folders, messages. It holds no escape codes, no formulas and no secrets.

A terminal obeys escape codes, a spreadsheet calculates cells, and log lines are forged by line breaks: whatever comes
from a file passes through `plain`, `cell` or `indented` on its way there.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS, ...: titles, links, clipboard
    r"|\x1b[ -/]*[0-~]?|\x9b[0-?]*[ -/]*[@-~]?"
)
# Control characters but tab and line feed; the marks that turn the direction of writing; halves of characters.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_HALVES = re.compile("[\ud800-\udfff]")

# Names of settings and variables that hold secrets: password, MY_API_KEY, secret_2, but not num_tokens or tokenizer.
SECRET_NAME = (
    r"(?:passw(?:or)?d|passphrase|secret|token|credentials?|(?:api|access|private|secret)[_-]?key)"
    r"(?![a-zA-Z])(?:[_-][\w-]{0,40}|\d{0,4})"
)
_SECRET = re.compile(SECRET_NAME, re.IGNORECASE)


def plain(text: object) -> str:
    """The text without escape codes and control characters; tabs and line breaks stay."""
    text = _CONTROLS.sub("", _ESCAPES.sub("", str(text).replace("\r\n", "\n")))
    return _HALVES.sub("\ufffd", text)


def indented(text: str) -> str:
    """Plain text whose second and further lines begin with blanks, so that none looks like the next entry of a log."""
    return plain(text).rstrip().replace("\n", "\n  ")


def is_secret(name: str) -> bool:
    """Whether a setting or an environment variable of this name holds a secret."""
    return _SECRET.search(name) is not None


def cell(value: object) -> str:
    """A cell of a CSV file: plain, and a word that a spreadsheet would calculate begins with an apostrophe."""
    text = plain("" if value is None else value)
    if text[:1] in ("=", "+", "-", "@", "\t", "\n"):
        try:
            float(text)
        except ValueError:
            return "'" + text
    return text


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as the text of a CSV file."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([cell(value) for value in row] for row in rows)
    return file.getvalue()
