"""Predictions of a trained network for new images."""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_train.config.build import build, build_layers
from cnn_train.config.load import AFTER_TRAINING, load
from cnn_train.errors import ConfigError, DataError
from cnn_train.runs.find import find

if TYPE_CHECKING:  # torch comes after the config is checked
    import torch
    from omegaconf import DictConfig
    from torch import Tensor, nn


BATCH = 32


def predict(
    run: str | Path,
    source: str | Path,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    top: int = 5,
    *,
    config_dir: str | None = None,
    trust: Sequence[str] = (),
    score: float | None = None,
    form: str = "csv",
) -> Path:
    """Predict one image or all of a folder with a run's weights (see `cnn_train.runs.find`); the results' folder.

    `score` and `form` are for detection (`cnn_train.experiment.detect`).
    """
    found = find(run)
    folder, file = found.folder, found.checkpoint
    cfg = load(folder, overrides, config_dir=config_dir, trust=trust)
    names = _names(Path(source))
    from cnn_train.runs import checkpoint

    state = checkpoint.load(file)
    if "class_names" not in state or "preprocessing" not in state:
        raise ConfigError(f"{file} does not say its classes and preprocessing; it is no checkpoint of cnn-train")
    task = state["preprocessing"]["task"]
    ignored = [word for word in overrides if word.startswith(AFTER_TRAINING)]
    if ignored and task == "classification":
        raise ConfigError(
            f"{ignored[0]} is for segmentation, and {cfg.choices.model} of {folder} is trained for {task}"
        )
    results = output or folder / "predictions"
    network, device = _network(cfg, state)
    if task == "segmentation":
        _segment(cfg, state, network, device, names, results)
    elif task == "detection":
        from cnn_train.experiment.detect import Finder, detect

        images = _images(list(names), state["preprocessing"])
        detect(Finder.of(cfg, state, network, score), images, names, state["class_names"], results, form)
    else:
        _classify(cfg, state, network, device, names, results, top)
    return results


def _names(source: Path) -> dict[Path, Path]:
    """The images and what each is called in the results: its path in the folder, without suffix if that is enough."""
    from cnn_train.data.decode import images_in
    from cnn_train.data.splits import what_is_in

    if source.is_file():
        return {source: Path(source.stem)}
    if not source.is_dir():
        raise DataError(f"no image or folder {source}")
    paths = images_in(source)
    if not paths:
        raise DataError(f"{source} holds no images but {what_is_in(source)}")
    names = {path: path.relative_to(source) for path in paths}
    stems = [name.with_suffix("") for name in names.values()]
    return names if len(set(stems)) < len(stems) else dict(zip(paths, stems, strict=True))


def _network(cfg: "DictConfig", state: dict[str, Any]) -> tuple["nn.Module", "torch.device"]:
    """The network with the checkpoint's weights, the averaged ones where there are some, where it will run."""
    import torch

    from cnn_train.experiment.hardware import accelerator
    from cnn_train.runs import checkpoint

    classes, channels = len(state["class_names"]), state["preprocessing"]["in_channels"]
    network = build(cfg.model, num_classes=classes, in_channels=channels, layers=build_layers(cfg))
    network.load_state_dict(checkpoint.evaluated_weights(state))
    device = torch.device({"gpu": "cuda"}.get(kind := accelerator(cfg.trainer.accelerator), kind))
    return network.eval().to(device), device


def _images(paths: Sequence[Path], how: dict[str, Any]) -> "Iterator[tuple[Path, Tensor]]":
    """Each image (C, H, W) uint8, with a progress line on a terminal."""
    from rich.console import Console
    from rich.progress import track

    from cnn_train.data.images import Reader

    read, console = Reader.of(how), Console(stderr=True)
    for path in track(paths, "predict", console=console, disable=not sys.stderr.isatty(), transient=True):
        yield path, read(path)


def _segment(
    cfg: "DictConfig", state: dict[str, Any], network: "nn.Module", device: "torch.device", names: dict[Path, Path],
    results: Path,
) -> None:  # fmt: skip
    """Each image is brought to the scale of evaluation, its scores back to its own size, and its labels are saved."""
    import torch
    from torch.nn import functional as F

    from cnn_train.data.data import scale_and_shift
    from cnn_train.data.images import scaled_size, visible
    from cnn_train.tasks.inference import labels_of
    from cnn_train.tasks.pictures import overlay, palette, save_labels, save_picture

    how = state["preprocessing"]
    classes = len(state["class_names"])
    scale, shift = scale_and_shift(how["mean"], how["std"])
    inference, postprocess = build(cfg.inference, train_size=tuple(how["image_size"])), build(cfg.postprocess)
    for path, image in _images(list(names), how):
        own = image.size(1), image.size(2)
        scaled = scaled_size(own, tuple(how["image_size"]), how["resize"])
        images = image.float()[None].to(device)
        with torch.no_grad():
            network_sees = F.interpolate(images, scaled, mode="bilinear", antialias=True) if scaled != own else images
            scores = inference(network, network_sees * scale.to(device) + shift.to(device))
            scores = F.interpolate(scores, own, mode="bilinear") if scaled != own else scores
            labels = labels_of(scores, images, postprocess)[0].cpu()
        name = names[path].as_posix() + ".png"
        save_labels(labels, results / "masks" / name)
        save_picture(overlay(visible(image), labels, classes), results / "overlays" / name)
    colours = palette(classes).tolist()
    rows = [[i, name, *colour] for i, (name, colour) in enumerate(zip(state["class_names"], colours, strict=True))]
    _write_csv(results / "classes.csv", ["class", "name", "red", "green", "blue"], rows)


def _classify(
    cfg: "DictConfig", state: dict[str, Any], network: "nn.Module", device: "torch.device", names: dict[Path, Path],
    results: Path, top: int,
) -> None:  # fmt: skip
    import torch

    from cnn_train.data.data import scale_and_shift
    from cnn_train.data.images import bring_to_size

    how, classes = state["preprocessing"], state["class_names"]
    scale, shift = scale_and_shift(how["mean"], how["std"])
    top = min(top, len(classes))
    rows: list[list[Any]] = []
    paths: list[Path] = []
    waiting: list[Tensor] = []

    def flush() -> None:
        with torch.no_grad():
            probabilities = network((torch.stack(waiting) * scale + shift).to(device)).float().softmax(1).cpu()
        values, numbers = probabilities.topk(top)
        for path, value, number in zip(paths, values.tolist(), numbers.tolist(), strict=True):
            pairs = [(classes[n], f"{v:.6f}") for n, v in zip(number, value, strict=True)]
            rows.append([path.as_posix(), *(word for pair in pairs for word in pair)])
        paths.clear()
        waiting.clear()

    for path, image in _images(list(names), how):
        paths.append(path)
        own = image.size(1), image.size(2)
        waiting.append(bring_to_size(own, tuple(how["image_size"]), how["resize"]).images(image))
        if len(waiting) == BATCH:
            flush()
    if waiting:
        flush()
    head = ["image", *(word for rank in range(1, top + 1) for word in (f"class_{rank}", f"probability_{rank}"))]
    _write_csv(results / "predictions.csv", head, rows)


def _write_csv(path: Path, head: list[str], rows: list[list[Any]]) -> None:
    from cnn_train.atomic import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_text(path, text.getvalue())
