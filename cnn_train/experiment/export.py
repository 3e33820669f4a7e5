"""A trained network as a file for others: written, read back, compared with the network, and only then named."""

import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from cnn_train import __version__
from cnn_train.config.build import build
from cnn_train.config.load import load as load_config
from cnn_train.errors import ConfigError, DataError, EnvError, UserError
from cnn_train.experiment.detect import boxes_and_scores
from cnn_train.experiment.trained import Trained, load
from cnn_train.postprocess.nms import NMS
from cnn_train.runs.find import find
from cnn_train.tasks.pictures import palette

SUFFIXES = {"torch_export": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors", "torchscript": ".torchscript.pt"}
METADATA = "cnn_train.json"  # the file of metadata inside of .pt2 and TorchScript archives
OPSET = 18
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}  # of probabilities, or of scores as a share of the largest one
CHANGED = 1e-3  # labels that may differ
SEEN = 0.3  # the score from which on a prior's class is compared


class DiffersError(UserError):
    """The file does not compute what the network computes."""

    exit_code = 1


@dataclass(frozen=True)
class Check:
    """The file and the network on the same images: largest difference, labels, milliseconds per image."""

    images: int
    what: str
    difference: float
    changed: int
    labels: int
    ours: float
    theirs: float
    size: int
    varies: tuple[str, ...]


class Deployed(nn.Module):
    """What the file computes: scores of normalized images or, with preprocessing inside, answers to uint8 images.

    Inside, a classifier gives probabilities (N, K) and a segmenter labels (N, H, W). A detector gives, at its training
    size, corners in pixels and probabilities of all priors: (N, P, 4 + K).
    """

    network: nn.Module
    scale: Tensor
    shift: Tensor

    def __init__(self, model: Trained, inside: bool, half: bool):
        super().__init__()
        self.network = model.network
        self.inside = inside
        self.dtype = torch.float16 if half else torch.float32
        self.labels, self.boxes = model.task == "segmentation", model.task == "detection"
        self.thresholds = model.thresholds if model.several_labels else None
        self.temperature = model.temperature
        self.register_buffer("scale", model.scale.clone())
        self.register_buffer("shift", model.shift.clone())
        if half:
            self.network.half()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        given = (images.float() * self.scale + self.shift if self.inside else images).to(self.dtype)
        if self.boxes:
            return torch.cat(boxes_and_scores(self.network, given), -1)
        scores = self.network(given).float()
        if not self.inside:
            return scores
        if self.labels:
            return scores.argmax(1)
        return (scores / self.temperature).softmax(1) if self.thresholds is None else scores.sigmoid()

    def decided(self, answers: Tensor) -> Tensor:
        """Classes (N) or (N, H, W) of answers; of several labels, which it shows (N, K); of priors (N, P)."""
        if self.boxes:
            best, label = answers[..., 4:].max(-1)
            return torch.where(best >= SEEN, label, -1)
        if self.thresholds is not None:
            return (answers if self.inside else answers.sigmoid()) >= self.thresholds
        return answers.argmax(1) if answers.is_floating_point() else answers


def export(
    run: str | Path,
    form: str = "torch_export",
    output: Path | None = None,
    *,
    preprocessing: Literal["outside", "inside"] = "outside",
    precision: Literal["fp32", "fp16"] = "fp32",
    count: int = 100,
    overrides: Sequence[str] = (),
    config_dir: str | None = None,
    trust: Sequence[str] = (),
) -> Path:
    """Write a run's network as a file; its path, by default RUN/export/<name>.<suffix>.

    The file is read back and run on `count` images of the test split (random ones where the data is not here). If it
    differs from the network by more than 1e-4, or in one label of 1,000, DiffersError is raised and no file appears.
    Raises ConfigError for what cannot be exported, EnvError for a missing package.
    """
    if form not in SUFFIXES:
        raise ConfigError(f"format must be {', '.join(SUFFIXES)}, got {form!r}")
    if preprocessing not in ("outside", "inside") or precision not in TOLERANCE:
        raise ConfigError(
            f"preprocessing is outside or inside, and precision fp32 or fp16; got {preprocessing}, {precision}"
        )
    if form == "safetensors" and (preprocessing == "inside" or precision == "fp16"):
        raise ConfigError(
            "format=safetensors holds the weights as they are; other formats take preprocessing= and precision="
        )
    if form == "onnx":
        _needs_onnx()
    model = load(run, overrides, device="cpu", config_dir=config_dir, trust=trust)
    folder = find(run).folder
    cfg = load_config(folder, overrides, config_dir=config_dir, trust=trust)
    images, what = test_images(cfg, model, count)
    inside = preprocessing == "inside"
    given = images if inside else model.normalized(images)
    reference = Deployed(model, inside, half=False)
    with torch.no_grad():
        expected, ours = timed(reference, given)
    path = output or folder / "export" / f"{cfg.name}{'_fp16' if precision == 'fp16' else ''}{SUFFIXES[form]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = describe(cfg, model, folder, preprocessing, precision)
    temporary = path.with_name(f".{os.getpid()}.tmp{''.join(path.suffixes)}")
    try:
        with quiet():
            module = Deployed(model, inside, half=precision == "fp16")
            varies = WRITERS[form](module, given[:2], temporary, metadata)
            answer = READERS[form](temporary, module)
            found, theirs = timed(answer, given)
        check = compare(reference, expected, found, what, ours, theirs, temporary, varies)
        show(check, form)
        refuse(check, precision, path)
        os.replace(temporary, path)
    finally:
        for leftover in path.parent.glob(f"{temporary.name}*"):
            with suppress(OSError):
                leftover.unlink()
    return path


def describe(cfg: Any, model: Trained, folder: Path, preprocessing: str, precision: str) -> dict[str, Any]:
    """What the file says of itself, as plain data."""
    metrics = folder / "metrics.json"
    output = {"segmentation": "labels", "detection": "boxes, probabilities"}.get(model.task, "probabilities")
    how = {**model.preprocessing, "where": preprocessing}
    if isinstance(model.postprocess, NMS):
        how["postprocess"] = asdict(model.postprocess)
    return {
        "cnn_train": __version__,
        "torch": torch.__version__,
        "name": cfg.name,
        "task": model.task,
        "class_names": model.class_names,
        "preprocessing": how,
        "precision": precision,
        "output": output if preprocessing == "inside" or model.task == "detection" else "scores",
        "palette": palette(len(model.class_names)).tolist() if model.task == "segmentation" else None,
        "metrics": json.loads(metrics.read_text()) if metrics.is_file() else None,
        "config": OmegaConf.to_yaml(cfg),
    }


def test_images(cfg: Any, model: Trained, count: int) -> tuple[Tensor, str]:
    """Images (N, C, H, W) uint8 of the test split, or random ones where the data is not here; what they are."""
    try:
        data = build(cfg.data)
        chosen = range(min(count, data.size("test")))
        images, _ = data.samples("test", chosen, device=torch.device("cpu"))
        if tuple(images.shape[-2:]) != model.image_size:
            images = torch.stack([model.sized(image) for image in images])
        return images, "images of the test split"
    except (DataError, ConfigError):
        generator = torch.Generator().manual_seed(0)
        shape = (min(count, 16), model.in_channels, *model.image_size)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8), "random images (the data is not here)"


# -- Formats ---------------------------------------------------------------------------------------------


def exported(module: Deployed, images: Tensor) -> tuple[Any, tuple[str, ...]]:
    """The program of `torch.export`, with every axis free that the network leaves free; the names of those."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*_flat_weights", category=UserWarning)  # of recurrent layers
            # A detector's priors are those of one size.
            program = _with_free(module, images, (0,) if module.boxes else (0, 2, 3))
    except Exception as error:
        raise ConfigError(
            f"torch.export cannot take {failing_layer(module, images)}: {' '.join(str(error).split())[:200]}; choose "
            "another layer for that slot (norm=, pool=, upsample=) and train again"
        ) from error
    node = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == "images")
    shape = node.meta["val"].shape
    free = tuple(n for n, axis in (("batch", 0), ("height", 2), ("width", 3)) if not isinstance(shape[axis], int))
    return program, free


def _with_free(module: Deployed, images: Tensor, axes: Sequence[int]) -> Any:
    shapes = {"images": dict.fromkeys(axes, torch.export.Dim.AUTO)}
    try:
        return torch.export.export(module, (images,), dynamic_shapes=shapes)
    except Exception:
        # Dense layers after several poolings fix the size by an equation that torch may not solve.
        if len(axes) == 1:
            raise
        return _with_free(module, images, axes[:1])


def failing_layer(module: nn.Module, images: Tensor) -> str:
    """The first of a network's innermost modules that `torch.export` refuses by itself, or the network."""
    inputs: dict[str, tuple[Any, ...]] = {}
    hooks = [
        inner.register_forward_pre_hook(lambda m, given, name=name: inputs.setdefault(name, given) and None)
        for name, inner in module.named_modules()
        if not list(inner.children())
    ]
    with torch.no_grad(), suppress(Exception):
        module(images)
    for hook in hooks:
        hook.remove()
    for name, given in inputs.items():
        layer = module.get_submodule(name)
        try:
            torch.export.export(layer, given)
        except Exception:
            return f"{name.removeprefix('network.')} ({type(layer).__name__})"
    return "the network"


def write_torch_export(module: Deployed, images: Tensor, path: Path, metadata: dict[str, Any]) -> tuple[str, ...]:
    program, free = exported(module, images)
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})
    return free


def write_onnx(module: Deployed, images: Tensor, path: Path, metadata: dict[str, Any]) -> tuple[str, ...]:
    import onnx

    program, free = exported(module, images)
    inside = "labels" if module.labels else "probabilities"
    names = ["detections" if module.boxes else inside if module.inside else "scores"]
    torch.onnx.export(
        program, (), path, input_names=["images"], output_names=names, opset_version=OPSET, external_data=False,
        verbose=False,
    )  # fmt: skip
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()})
    onnx.save(graph, path)
    return free


def write_safetensors(module: Deployed, images: Tensor, path: Path, metadata: dict[str, Any]) -> tuple[str, ...]:
    from safetensors.torch import save_file

    state = {name: value.contiguous().clone() for name, value in module.network.state_dict().items()}
    save_file(state, path, {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()})
    return ("batch", "height", "width")


def write_torchscript(module: Deployed, images: Tensor, path: Path, metadata: dict[str, Any]) -> tuple[str, ...]:
    with torch.no_grad():
        script = torch.jit.trace(module, (images,), check_trace=False)
    torch.jit.save(script, str(path), _extra_files={METADATA: json.dumps(metadata).encode()})
    return ("batch",)


def read_torch_export(path: Path, module: Deployed) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def read_onnx(path: Path, module: Deployed) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def read_safetensors(path: Path, module: Deployed) -> Callable[[Tensor], Tensor]:
    from safetensors.torch import load_file

    module.network.load_state_dict(load_file(path))
    return module


def read_torchscript(path: Path, module: Deployed) -> Callable[[Tensor], Tensor]:
    return torch.jit.load(str(path))


WRITERS = {
    "torch_export": write_torch_export, "onnx": write_onnx, "safetensors": write_safetensors,
    "torchscript": write_torchscript,
}  # fmt: skip
READERS = {
    "torch_export": read_torch_export, "onnx": read_onnx, "safetensors": read_safetensors,
    "torchscript": read_torchscript,
}  # fmt: skip


def _needs_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise EnvError(f"format=onnx needs the package {package}: pip install 'cnn-train[onnx]'") from error


@contextmanager
def quiet() -> Any:
    """Silence what the exporters say of themselves, such as that TorchScript is old."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


# -- The check -------------------------------------------------------------------------------------------


def timed(answer: Callable[[Tensor], Tensor], images: Tensor, batch: int = 20) -> tuple[Tensor, float]:
    """Answers to all images, in batches of changing size, and milliseconds per image."""
    with torch.no_grad():
        answer(images[:2])
        started = time.perf_counter()
        found = torch.cat([answer(part) for part in images.split(batch)])
        return found, (time.perf_counter() - started) / len(images) * 1000


def compare(
    reference: Deployed,
    expected: Tensor,
    found: Tensor,
    what: str,
    ours: float,
    theirs: float,
    path: Path,
    varies: tuple[str, ...],
) -> Check:
    """How far the file's answers are from the network's."""
    difference = 0.0
    if expected.is_floating_point():
        scale = max(1.0, float(expected.abs().max()))
        difference = float((expected - found).abs().max()) / scale
    labels, other_labels = reference.decided(expected), reference.decided(found)
    changed = int((labels != other_labels).sum())
    size = path.stat().st_size
    return Check(len(expected), what, difference, changed, labels.numel(), ours, theirs, size, varies)


def show(check: Check, form: str) -> None:
    """Print the comparison."""
    rows = {
        "checked on": f"{check.images} {check.what}",
        "difference": f"{check.difference:.1e} at most, {check.changed} of {check.labels:,} labels changed",
        "speed": f"{check.theirs:.2f} ms per image as {form}, {check.ours:.2f} ms as it was trained",
        "size": f"{check.size / 1e6:,.1f} MB",
        "free axes": ", ".join(check.varies) or "none",
    }
    for name, text in rows.items():
        print(f"{name:<11}  {text}")


def refuse(check: Check, precision: str, path: Path) -> None:
    """DiffersError if the file is not the network."""
    if not check.difference <= TOLERANCE[precision] or check.changed > CHANGED * check.labels:
        raise DiffersError(
            f"the file differs from the network by {check.difference:.1e} and in {check.changed} of {check.labels:,} "
            f"labels; at most {TOLERANCE[precision]:g} and {CHANGED:g} of them may differ, so {path} was not written"
        )
