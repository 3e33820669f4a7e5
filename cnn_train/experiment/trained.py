"""A trained network with all that belongs to it: loaded by one call, and asked about images of any form."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_train.config.build import build, build_layers
from cnn_train.config.load import load as load_config
from cnn_train.data.data import scale_and_shift
from cnn_train.data.images import Reader, bring_to_size, scaled_size
from cnn_train.errors import ConfigError, EnvError
from cnn_train.experiment import calibration
from cnn_train.experiment.detect import Finder, thresholds_of
from cnn_train.experiment.hardware import accelerator
from cnn_train.experiment.network import build_network
from cnn_train.postprocess.nms import NMS
from cnn_train.runs import checkpoint, weights_file
from cnn_train.runs.find import find
from cnn_train.tasks.inference import Inference, labels_of


@dataclass(frozen=True)
class Classified:
    """The classes of one image: the most probable one, the probability of each (K), and those that it is said to show.

    `labels` is the most probable one or, of a network for several labels an image, each at or above its threshold.
    """

    label: str
    probability: float
    probabilities: Tensor
    class_names: Sequence[str]
    labels: tuple[str, ...]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes and their probabilities."""
        values, numbers = self.probabilities.topk(min(count, len(self.class_names)))
        return [(self.class_names[n], v) for n, v in zip(numbers.tolist(), values.tolist(), strict=True)]


@dataclass(frozen=True)
class Segmented:
    """The class of each pixel of one image: (H, W) int64, at the image's own size."""

    labels: Tensor
    class_names: Sequence[str]

    @property
    def shares(self) -> dict[str, float]:
        """The share of the image that each class has."""
        counts = torch.bincount(self.labels.flatten(), minlength=len(self.class_names))
        return dict(zip(self.class_names, (counts / self.labels.numel()).tolist(), strict=True))


@dataclass(frozen=True)
class Detected:
    """The objects of one image, the best first: corners (n, 4) in the image's own pixels, classes (n), scores (n)."""

    boxes: Tensor
    labels: tuple[str, ...]
    scores: Tensor
    class_names: Sequence[str]


class Trained(nn.Module):
    """A network in evaluation mode: `model(x)` gives scores of preprocessed images (N, C, H, W).

    `predict` takes images as they are. `class_names` are the classes in the order of the scores, `preprocessing` says
    as plain data what an image goes through, and `preprocess` does it.
    """

    network: nn.Module
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        class_names: Sequence[str],
        preprocessing: Mapping[str, Any],
        inference: Inference | None = None,
        postprocess: Any = None,
    ):
        super().__init__()
        self.network = network
        self.class_names = list(class_names)
        self.preprocessing = dict(preprocessing)
        self.inference = inference or Inference()
        self.postprocess = postprocess
        scale, shift = scale_and_shift(preprocessing["mean"], preprocessing["std"])
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.eval()

    @property
    def task(self) -> str:
        return self.preprocessing["task"]

    @property
    def in_channels(self) -> int:
        return self.preprocessing["in_channels"]

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = self.preprocessing["image_size"]
        return height, width

    @property
    def several_labels(self) -> bool:
        """Whether an image may show several classes: each has a sigmoid and a threshold of its own."""
        return self.task == "multilabel"

    @property
    def thresholds(self) -> Tensor:
        """The probabilities (K) from which on an image of several labels is said to show a class; on the CPU."""
        given = self.preprocessing.get("thresholds") or [0.5] * len(self.class_names)
        return torch.tensor(given, dtype=torch.float64)

    @property
    def temperature(self) -> float:
        """What scores are divided by before the softmax: 1, or what `cnn-train eval calibrate=true` has found."""
        return self.preprocessing.get("temperature") or 1.0

    @property
    def device(self) -> torch.device:
        return self.scale.device

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, K), or (N, K, H, W), of preprocessed images."""
        return self.network(images)

    def preprocess(self, image: Any) -> Tensor:
        """One image in any form as the network takes it: (C, H, W), normalized, on the network's device."""
        return self.normalized(self.sized(self.read(image)))

    def read(self, image: Any) -> Tensor:
        """One image in any form as (C, H, W) uint8; a file is read as the run's own. Raises ConfigError, DataError."""
        if isinstance(image, str | Path):
            return Reader.of(self.preprocessing)(image)
        return as_image(image, self.in_channels)

    def sized(self, image: Tensor) -> Tensor:
        """An image (C, H, W) uint8 at the size that the network takes."""
        own = image.size(1), image.size(2)
        return bring_to_size(own, self.image_size, self.preprocessing["resize"]).images(image)

    def normalized(self, images: Tensor) -> Tensor:
        """Images of 0..255 as the network takes them."""
        return images.to(self.device) * self.scale + self.shift

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities (N, K) on the CPU, of images (N, C, H, W) uint8 at the network's size."""
        scores = self.inference.classify(self, self.normalized(images)).float()
        return (scores.sigmoid() if self.several_labels else (scores / self.temperature).softmax(1)).cpu()

    def shown(self, probabilities: Tensor) -> tuple[str, ...]:
        """The classes that an image with these probabilities (K) is said to show."""
        if not self.several_labels:
            return (self.class_names[int(probabilities.argmax())],)
        shows = (probabilities >= self.thresholds).tolist()
        return tuple(name for name, is_shown in zip(self.class_names, shows, strict=True) if is_shown)

    @torch.no_grad()
    def segment(self, image: Tensor) -> Tensor:
        """Labels (H, W) on the CPU, of one image (C, H, W) uint8 at its own size.

        The image is brought to the scale of evaluation, and its scores back to its own size.
        """
        own = image.size(1), image.size(2)
        scaled = scaled_size(own, self.image_size, self.preprocessing["resize"])
        images = image.float()[None].to(self.device)
        seen = F.interpolate(images, scaled, mode="bilinear", antialias=True) if scaled != own else images
        scores = self.inference(self.network, self.normalized(seen))
        scores = F.interpolate(scores, own, mode="bilinear") if scaled != own else scores
        return labels_of(scores, images, self.postprocess)[0].cpu()

    def finder(self, score: float | None = None) -> Finder:
        """What finds objects: of each class from its own threshold on, or of all from `score` on."""
        classes = len(self.class_names)
        own = self.preprocessing.get("thresholds") or [0.3] * classes
        least = own if score is None else [score] * classes
        return Finder(self.network, self.preprocessing, self.postprocess, least, self.class_names)

    def detect(self, image: Tensor) -> Detected:
        """The objects of one image (C, H, W) uint8 at its own size."""
        rows = self.finder()(image)
        labels = tuple(self.class_names[int(number)] for number in rows[:, 4])
        return Detected(rows[:, :4], labels, rows[:, 5], self.class_names)

    def predict(self, images: Any, batch_size: int = 32) -> Any:
        """Predict one image or several: paths, PIL images, arrays (H, W[, C]) or tensors ([N,] C, H, W).

        Arrays and tensors are uint8, or float in [0, 1]. One image gives a `Classified`, `Segmented` or `Detected`,
        several a list.
        """
        several = not isinstance(images, str | Path | np.ndarray | Tensor) and isinstance(images, Iterable)
        several = several or (isinstance(images, Tensor) and images.ndim == 4)
        every = [self.read(image) for image in (images if several else [images])]
        found: list[Any] = []
        if self.task == "segmentation":
            found = [Segmented(self.segment(image), self.class_names) for image in every]
        elif self.task == "detection":
            found = [self.detect(image) for image in every]
        else:
            for first in range(0, len(every), batch_size):
                batch = torch.stack([self.sized(image) for image in every[first : first + batch_size]])
                for values in self.probabilities(batch):
                    best = int(values.argmax())
                    label, names = self.class_names[best], self.class_names
                    found.append(Classified(label, float(values[best]), values, names, self.shown(values)))
        return found if several else found[0]


def load(
    run: str | Path,
    overrides: Sequence[str] = (),
    device: str | torch.device | None = None,
    *,
    config_dir: str | None = None,
    trust: Sequence[str] = (),
) -> Trained:
    """The trained network of a run (see `cnn_train.runs.find`), with the weights that the run is judged by.

    It may also be a .safetensors or .onnx file that `cnn-train export` wrote. `overrides` may choose `inference=` and
    `postprocess=`. `device` is by default the one that the run would use now. Nothing that is in the files is run.
    Raises ConfigError.
    """
    path = Path(run)
    if path.suffix in EXPORTED and path.is_file():
        return EXPORTED[path.suffix](path, overrides)
    found = find(run)
    file = found.checkpoint
    cfg = load_config(found.folder, overrides, config_dir=config_dir, trust=trust)
    state = checkpoint.load(file)
    if "class_names" not in state or "preprocessing" not in state:
        raise ConfigError(f"{file} does not say its classes and preprocessing; it is no checkpoint of cnn-train")
    weights = checkpoint.evaluated_weights(state)
    how = {**state["preprocessing"], "thresholds": (state.get("chosen") or {}).get("thresholds")}
    if how["task"] == "detection":
        how["thresholds"] = thresholds_of(state)
    how["temperature"] = calibration.read(found.folder, state, cfg.choices.inference)
    model = assemble(cfg, state["class_names"], how, weights, file)
    kind = accelerator(cfg.trainer.accelerator) if device is None else device
    return model.to({"gpu": "cuda"}.get(str(kind), kind))


def assemble(
    cfg: DictConfig, names: Sequence[str], how: Mapping[str, Any], weights: Mapping[str, Tensor], file: Path
) -> Trained:
    """The network of a config with these weights, which came from `file`. Raises ConfigError."""
    if len(how.get("thresholds") or names) != len(names):
        raise ConfigError(f"{file} has {len(how['thresholds'])} thresholds for {len(names)} classes; it is not whole")
    network = build_network(cfg, num_classes=len(names), in_channels=how["in_channels"], layers=build_layers(cfg))
    network.load_state_dict(weights)
    inference, postprocess = build(cfg.inference, train_size=tuple(how["image_size"])), build(cfg.postprocess)
    if how["task"] in ("classification", "multilabel"):
        several = how["task"] == "multilabel" and not inference.sees_whole_images
        for group, other in (
            ("inference", inference.window is not None or several),
            ("postprocess", postprocess is not None),
        ):
            if other:
                raise ConfigError(
                    f"{group}={OmegaConf.select(cfg, f'choices.{group}')} is for segmentation, but {file} is of a "
                    "network for classification"
                )
    return Trained(network, names, how, inference, postprocess)


# -- Exported files --------------------------------------------------------------------------------------


def from_safetensors(path: Path, overrides: Sequence[str] = ()) -> Trained:
    """The network of a .safetensors file, which has the run's config among its metadata; on the CPU."""
    from safetensors import safe_open

    weights = weights_file.read(path).tensors
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
    if not {"config", "class_names", "preprocessing"} <= about.keys():
        raise ConfigError(f"{path} holds weights alone; use it as weights={path}, or name a run")
    with tempfile.TemporaryDirectory() as folder:  # the config is checked as one that came from elsewhere
        (Path(folder) / "config.yaml").write_text(about["config"], encoding="utf-8")
        cfg = load_config(folder, overrides)
    return assemble(cfg, json.loads(about["class_names"]), json.loads(about["preprocessing"]), weights, path)


class OnnxNetwork(nn.Module):
    """An ONNX file as a module, run by onnxruntime on the CPU."""

    def __init__(self, session: Any):
        super().__init__()
        self.session = session

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"images": images.numpy()})[0])


class WithPreprocessing(Trained):
    """A network that takes images of 0..255 and gives probabilities itself."""

    def normalized(self, images: Tensor) -> Tensor:
        return images

    def probabilities(self, images: Tensor) -> Tensor:
        return self(images)


def from_onnx(path: Path, overrides: Sequence[str] = ()) -> Trained:
    """The network of an .onnx file that `cnn-train export` wrote; on the CPU."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise EnvError(f"{path} needs the package onnxruntime: pip install 'cnn-train[onnx]'") from error
    if overrides:
        raise ConfigError(
            f"{path} is a whole program, which takes no {overrides[0].partition('=')[0]}; name its run instead"
        )
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        raise ConfigError(f"{path} is no ONNX file that onnxruntime can run: {str(error).splitlines()[0]}") from error
    about = session.get_modelmeta().custom_metadata_map
    if "class_names" not in about or "preprocessing" not in about:
        raise ConfigError(f"{path} does not say its classes and preprocessing; cnn-train did not write it")
    names, how = json.loads(about["class_names"]), json.loads(about["preprocessing"])
    inside = how["where"] == "inside"
    if how["task"] == "detection":
        if inside:
            raise ConfigError(f"{path} takes images of one size; export it with preprocessing=outside, or name its run")
        if how["resize"] == "own":
            how["resize"] = "pad"  # the file's priors are those of one size
        return Trained(OnnxNetwork(session), names, how, postprocess=NMS(**how["postprocess"]))
    if inside and how["task"] == "segmentation":
        raise ConfigError(
            f"{path} gives labels of one image size; export it with preprocessing=outside, or name its run"
        )
    return (WithPreprocessing if inside else Trained)(OnnxNetwork(session), names, how)


EXPORTED = {".safetensors": from_safetensors, ".onnx": from_onnx}


def as_image(image: Any, channels: int) -> Tensor:
    """A PIL image, array (H, W[, C]) or tensor ([C,] H, W) as (channels, H, W) uint8. Raises ConfigError."""
    if hasattr(image, "convert") and hasattr(image, "getbands"):  # PIL's, which need not be imported for this
        if channels not in (1, 3):
            raise ConfigError(f"the network takes images of {channels} channels; give arrays (H, W, {channels})")
        image = np.array(image.convert({1: "L", 3: "RGB"}[channels]))
    if isinstance(image, np.ndarray):
        image = np.require(image, requirements=["C", "W"])  # numpy.asarray of a PIL image may not be written
        pixels = torch.from_numpy(image)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)
    elif isinstance(image, Tensor):
        pixels = image.detach().cpu() if image.ndim == 3 else image.detach().cpu()[None]
    else:
        raise ConfigError(f"an image is a path, a PIL image, an array or a tensor, got {type(image).__name__}")
    if pixels.ndim != 3:
        raise ConfigError(f"an image has 2 or 3 axes, got {tuple(image.shape)}; a batch is a tensor (N, C, H, W)")
    if pixels.is_floating_point():
        if pixels.numel() and not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ConfigError(f"values of a float image are in [0, 1], got {pixels.min():.3g} to {pixels.max():.3g}")
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ConfigError(f"an image is uint8 or float in [0, 1], got {pixels.dtype}")
    return _with_channels(pixels, channels)


def _with_channels(pixels: Tensor, channels: int) -> Tensor:
    given = pixels.size(0)
    if given == channels:
        return pixels
    if given == 1 and channels == 3:
        return pixels.expand(3, -1, -1)
    if given in (3, 4) and channels == 1:  # Pillow's luma (ITU-R 601), to the bit
        weights = torch.tensor([19595, 38470, 7471]).view(3, 1, 1)
        return (((pixels[:3].int() * weights).sum(0, keepdim=True) + 0x8000) >> 16).to(torch.uint8)
    if given == 4 and channels == 3:
        return pixels[:3]
    raise ConfigError(f"the network takes images of {channels} channels, got {given}")
