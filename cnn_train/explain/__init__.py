"""Ideas explained by pages that compute: one file a topic, an example with real numbers, each checked as it is made.

    from cnn_train.explain import convolution

    convolution.explain(kernel=3, stride=2, size=7)  # in a notebook this shows the page; print() shows it as text

Nothing here imports torch before a topic is imported, so that a list of topics and their options comes at once.
"""

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# In the order in which one may read them. To add a topic: a file with a docstring and a function `explain`, and its
# name here.
TOPICS = (
    "convolution", "channels", "pooling", "dilation", "upsampling", "receptive_field", "deconvnet", "backpropagation",
    "activations", "initialization", "normalization", "batch_norm", "optimizers", "dropout", "label_smoothing", "lstm",
    "crf", "detection",
)  # fmt: skip


@dataclass(frozen=True)
class Option:
    """A keyword of a topic's function: its type, its default and, where the type is a `Literal`, the words it takes."""

    kind: str
    default: Any
    words: tuple[str, ...] = ()


@lru_cache
def _source(topic: str) -> ast.Module:
    return ast.parse((Path(__file__).parent / f"{topic}.py").read_text(encoding="utf-8"))


def summary(topic: str) -> str:
    """The first line of a topic's file."""
    return (ast.get_docstring(_source(topic)) or "").partition("\n")[0]


def options(topic: str) -> dict[str, Option]:
    """The keywords of a topic's `explain` by name, read from its source."""
    function = next(node for node in _source(topic).body if getattr(node, "name", "") == "explain")
    assert isinstance(function, ast.FunctionDef)
    found = {}
    for argument, default in zip(function.args.args, function.args.defaults, strict=True):
        kind, words = argument.annotation, ()
        if isinstance(kind, ast.Subscript):
            words = ast.literal_eval(kind.slice)
        name = "word" if words else ast.unparse(kind) if kind else "word"
        found[argument.arg] = Option(name, ast.literal_eval(default), words)
    return found


def load(topic: str) -> Callable[..., Any]:
    """Import a topic, and torch with it; returns its function, from keywords to a `Page`."""
    return importlib.import_module(f"cnn_train.explain.{topic}").explain
