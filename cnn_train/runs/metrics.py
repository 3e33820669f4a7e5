"""Metrics by name."""

import re


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better, by its name: losses, errors, calibration errors."""
    return bool(re.search(r"loss|error|perplexity|brier|ece\b", metric))
