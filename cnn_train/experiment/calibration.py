"""The temperature of a run's probabilities: fitted on validation scores, and kept in the run folder."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.nn import functional as F

from cnn_train import atomic
from cnn_train.errors import ConfigError
from cnn_train.tasks.probabilities import Kept, temperature

FILE = "calibration.json"
log = logging.getLogger(__name__)


def write(folder: Path, kept: Kept, step: int, inference: str) -> float:
    """Fit a temperature to validation scores of the weights of `step` by `inference`; write it to the run folder."""
    found = temperature(kept.scores, kept.labels)
    before, after = (float(F.cross_entropy(kept.scores.double() / t, kept.labels)) for t in (1.0, found))
    about = {"temperature": found, "step": step, "inference": inference, "images": len(kept.labels)}
    atomic.write_json(folder / FILE, about | {"val_cross_entropy_before": before, "val_cross_entropy_after": after})
    return found


def read(folder: Path, state: Mapping[str, Any], inference: str) -> float | None:
    """The temperature of the run's checkpoint; None if none was fitted to its scores by `inference`.

    Raises ConfigError.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        found, step = float(about["temperature"]), int(about["step"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path} is damaged; remove it, or write it anew with calibrate=true") from error
    if not (math.isfinite(found) and found > 0):
        raise ConfigError(f"{path}: temperature must be above 0, got {found}; write it anew with calibrate=true")
    if step != state["progress"]["step"] or about.get("inference") != inference:
        log.warning("%s is of other weights or another inference, and not used; calibrate=true fits a new one", path)
        return None
    return found
