"""What pictures are drawn of: the network with weights, and an image as the network and as people see it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from cnn_train.config.build import build, build_layers
from cnn_train.errors import ConfigError
from cnn_train.inspection.subject import Subject
from cnn_train.layers.init import lsuv_calibrate
from cnn_train.models import pretrained
from cnn_train.models.weights import load_weights
from cnn_train.runs import checkpoint, weights_file


@dataclass(frozen=True)
class Sample:
    """The image looked at: as the network takes it (1, C, H, W), as people see it (H, W, 3), and some with labels."""

    image: Tensor
    visible: np.ndarray
    batch: Tensor
    targets: Tensor | None
    name: str
    ignore_index: int = -100


def initialized(subject: Subject, seed: int, images: Tensor | None = None) -> nn.Module:
    """Build the network on the CPU in evaluation mode; an initializer that needs images is given `images`."""
    cfg = subject.cfg
    torch.manual_seed(seed)
    layers = build_layers(cfg)
    network = build(cfg.model, num_classes=subject.num_classes, in_channels=subject.input_size[0], layers=layers).eval()
    if layers.needs_images and images is not None:
        lsuv_calibrate(network, images)
    return network


def trained(subject: Subject, run: Path | None) -> nn.Module:
    """Build the network with a run's best weights, averaged ones if it has them, or with those of `weights=`."""
    network = initialized(subject, subject.cfg.seed)
    if run is None:
        load_weights(network, starting_weights(subject.cfg), subject.cfg.weights)
    else:
        file = next((run / name for name in ("best.ckpt", "last.ckpt") if (run / name).is_file()), run / "best.ckpt")
        state = checkpoint.load(file)
        network.load_state_dict(checkpoint.evaluated_weights(state))
    return network


def starting_weights(cfg: DictConfig) -> Mapping[str, Tensor]:
    """The state_dict that `weights=` names."""
    if not pretrained.is_name(cfg.weights):
        return weights_file.read(Path(cfg.weights)).tensors
    names = pretrained.names_of(cfg.model, cfg.choices.model, cfg.norm is not None)
    given = pretrained.resolve(cfg.weights, names)
    return weights_file.read(weights_file.fetch(given.address, given.file, given.sha256)).tensors


def load_sample(subject: Subject, image: Path | None = None) -> Sample:
    """Load the given image, or the data's first, or a photograph that comes with scikit-learn."""
    channels, height, width = subject.input_size
    data = subject.data
    if image is None and data is not None:
        batch = next(iter(data.eval_batches("val", device=torch.device("cpu"))))
        first = batch.images[:1]
        return Sample(
            first,
            visible(data.denormalize(first)[0]),
            batch.images[:8],
            batch.targets[:8],
            data.name,
            data.ignore_index,
        )
    from PIL import Image

    if image is not None:
        try:
            photo, name = Image.open(image).convert("RGB"), str(image)
        except OSError as error:
            raise ConfigError(f"{image} cannot be read as an image: {error}") from error
    else:
        from sklearn.datasets import load_sample_image

        photo, name = Image.fromarray(load_sample_image("china.jpg")), "scikit-learn's china.jpg"
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    photo = photo.crop((left, top, left + side, top + side)).resize((width, height))
    pixels = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None].float() / 255
    pixels = pixels if channels == 3 else pixels.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    standardized = (pixels - pixels.mean()) / pixels.std()
    given = standardized if data is None else data.to_input((pixels * 255).round())
    generator = torch.Generator().manual_seed(0)
    images = torch.cat([given, torch.randn(7, *subject.input_size, generator=generator)])
    return Sample(given, visible(pixels[0]), images, None, name)


def visible(image: Tensor) -> np.ndarray:
    """An image (C, H, W) in [0, 1] as people see it: (H, W, 3)."""
    image = image[:3] if image.size(0) >= 3 else image[:1].expand(3, -1, -1)
    return image.clamp(0, 1).permute(1, 2, 0).numpy()
