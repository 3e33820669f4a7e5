"""Finding runs: by folder, checkpoint file, the beginning of a name, or `last`; and the newest unfinished one."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cnn_train.errors import ConfigError
from cnn_train.runs import folder as run_folder
from cnn_train.runs import secrets

CHECKPOINTS = ("best.ckpt", "last.ckpt")  # the first of them that is there is evaluated
PROGRAMS = (".pt2", ".torchscript.pt")  # exports that cannot be read without running them


@dataclass(frozen=True)
class Run:
    """A run's folder; `file` is the checkpoint if one was named."""

    folder: Path
    file: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that was named, else best.ckpt, else last.ckpt. Raises ConfigError."""
        if self.file is not None:
            return self.file
        for name in CHECKPOINTS:
            if (self.folder / name).is_file():
                return self.folder / name
        raise ConfigError(f"{self.folder} holds no {' or '.join(CHECKPOINTS)}; train it first, or name a checkpoint")


def find(name: str | Path, output_dir: str | Path = "outputs") -> Run:
    """The run that `name` means, looked for where it says, then among the runs in `output_dir`.

    `name` is a run's folder, a checkpoint file in it, `last` (the newest run), or the only beginning of a run's
    folder name, `model/date` or path. Raises ConfigError.
    """
    path, text = Path(os.path.expanduser(name)), os.fspath(name).rstrip("/")
    if path.is_file():
        if path.name.endswith(PROGRAMS):
            raise ConfigError(
                f"{path} is a program for others, which would run here whatever it holds; "
                "export the run with format=safetensors or format=onnx"
            )
        run = Run(path.parent, None if path.name == "config.yaml" else path)
        if not (run.folder / "config.yaml").is_file():
            raise ConfigError(f"{path} is in no run folder: there is no {run.folder / 'config.yaml'}")
        return run
    if (path / "config.yaml").is_file():
        return Run(path)
    folders = runs(output_dir)
    if text == "last" and folders:
        return Run(folders[0])
    begun = [folder for folder in folders if text and any(n.startswith(text) for n in names(folder, output_dir))]
    exact = [folder for folder in begun if text in names(folder, output_dir)]
    if len(exact or begun) == 1:
        return Run((exact or begun)[0])
    newest = f"the newest is {folders[0]}" if folders else f"there is none in {output_dir}"
    if begun:
        raise ConfigError(f"{len(begun)} runs begin with {text!r}; the newest of them is {begun[0]}")
    if path.is_dir():
        raise ConfigError(f"{path} is no run folder: it has no config.yaml; {newest}")
    if text == "last":
        raise ConfigError(f"there is no run in {Path(output_dir).absolute()}")
    raise ConfigError(f"no run at {path.absolute()}, and none in {output_dir} begins so; {newest}")


def runs(output_dir: str | Path = "outputs") -> list[Path]:
    """The run folders in `output_dir`, the newest first: those of single runs and of sweeps."""
    parent = Path(output_dir)
    configs = [path for depth in ("*/*", "sweeps/*/*") for path in parent.glob(f"{depth}/config.yaml")]
    configs.sort(key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
    return [path.parent for path in configs]


def names(folder: Path, output_dir: str | Path) -> tuple[str, ...]:
    """What a run's folder may be called: its own name, that below `output_dir`, and its path."""
    return folder.name, folder.relative_to(output_dir).as_posix(), folder.as_posix()


def unfinished(parent: Path, config_yaml: str) -> Path | None:
    """The newest run folder in `parent` of this very config that has no results yet and that no process trains in."""
    for path in sorted(parent.glob("*/config.yaml"), reverse=True):
        same = _typed(path.read_text(encoding="utf-8"), config_yaml) == secrets.mask_settings(config_yaml)
        if same and not (path.parent / "metrics.json").exists() and run_folder.is_free(path.parent):
            return path.parent
    return None


def _typed(saved_yaml: str, config_yaml: str) -> str:
    """A saved config as it was composed: anchors that the run took from its data are `auto` again."""
    if "\n  anchors: auto\n" not in config_yaml:
        return saved_yaml
    return re.sub(r"\n  anchors:\n(  - - .*\n    - .*\n)+", "\n  anchors: auto\n", saved_yaml)
