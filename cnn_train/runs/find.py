"""Finding runs: by folder, and the newest unfinished one of a config."""

from pathlib import Path

from cnn_train.runs import folder as run_folder
from cnn_train.runs import secrets


def unfinished(parent: Path, config_yaml: str) -> Path | None:
    """The newest run folder in `parent` of this very config that has no results yet and that no process trains in."""
    for path in sorted(parent.glob("*/config.yaml"), reverse=True):
        same = path.read_text(encoding="utf-8") == secrets.mask_settings(config_yaml)
        if same and not (path.parent / "metrics.json").exists() and run_folder.is_free(path.parent):
            return path.parent
    return None


def found_runs() -> str:
    runs = sorted(Path("outputs").glob("*/*/config.yaml"), key=lambda path: path.stat().st_mtime)
    return f"the newest here is {runs[-1].parent}" if runs else "there is none in ./outputs"
