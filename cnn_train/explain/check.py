"""What makes a page trustworthy: a number is compared with a second computation before it is written down."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from cnn_train.errors import ConfigError, UserError

TICK = "✓"


class Mismatch(UserError):
    """A number of a page that the second computation, torch's as a rule, does not confirm: a bug, here or there."""

    exit_code = 1


class Checked:
    """A value that was confirmed: `f"{agree(a, b):.3f}"` is it with a tick, 0.500✓, `f"{agree(a, b):✓}"` the tick."""

    def __init__(self, value: Any):
        self.value = value

    def __format__(self, spec: str) -> str:
        return TICK if spec == TICK else number(self.value, spec) + TICK

    def __str__(self) -> str:
        return format(self)


def agree(ours: Any, reference: Any, within: float = 1e-9) -> Checked:
    """Return `ours`, to be written with a tick, if `reference` says the same.

    Both are numbers, lists, arrays or tensors of one shape. `within` is the difference allowed, as a share of the
    largest number of the reference. Raises Mismatch, which names the line of the page.
    """
    a, b = plain(ours), plain(reference)
    where = sys._getframe(1)
    place = f"{Path(where.f_code.co_filename).name}:{where.f_lineno}"
    if a.shape != b.shape:
        raise Mismatch(f"{place}: the page has an array {a.shape}, the reference {b.shape}; one of them is wrong")
    difference = np.abs(a.astype(float) - b.astype(float))
    allowed = within * np.abs(b.astype(float)).max(initial=0.0) + 1e-300  # the last for what underflows
    if not (difference <= allowed).all():  # not `>`: NaN agrees with nothing
        worst = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), a.shape)
        found = f"the page computes {a[worst]:.10g}, the reference {b[worst]:.10g}"
        raise Mismatch(f"{place}: {found}; one of them is wrong")
    return Checked(ours)


def plain(value: Any) -> np.ndarray:
    """Anything that holds numbers as an array."""
    return np.asarray(value.detach().numpy() if hasattr(value, "detach") else value)


def number(value: Any, spec: str = "") -> str:
    """A number as the page writes it: whole ones with separators, others with four digits, a minus as in print."""
    if isinstance(value, Checked):
        return format(value, spec)
    if isinstance(value, str):
        return value
    value = plain(value)[()]
    if isinstance(value, np.ndarray):
        return "(" + ", ".join(number(item, spec) for item in value) + ")"
    whole = float(value).is_integer() and abs(value) < 1e12
    return format(int(value) if whole and not spec else value, spec or ("," if whole else ".4g")).replace("-", "−")


def require(condition: bool, rule: str) -> None:
    """Raise ConfigError with the rule that the options of a topic break."""
    if not condition:
        raise ConfigError(rule)


def limits(**ranges: tuple[float, float, float]) -> None:
    """Each is name=(value, least, most). Raises ConfigError, as "kernel must be from 1 to 9, got 12"."""
    for name, (value, least, most) in ranges.items():
        require(least <= value <= most, f"{name} must be from {least:g} to {most:g}, got {value:g}")
