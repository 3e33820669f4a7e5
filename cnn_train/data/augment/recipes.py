"""Augmentations in a row that papers use together, named in conf/augment."""

from collections.abc import Sequence
from typing import Literal

from cnn_train.data.augment.compose import Compose
from cnn_train.data.augment.geometry import Flip, PadCrop
from cnn_train.data.augment.sample import RandomResizedCrop, ScaleCrop


def flip_crop(padding: int = 4, mode: Literal["zeros", "reflect"] = "zeros", flip: float = 0.5) -> Compose:
    """Padded random crop and mirror image (He et al. 2016, section 4.2)."""
    return Compose([PadCrop(padding, mode), Flip(flip)])


def random_resized_crop(
    area: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3), flip: float = 0.5
) -> Compose:
    """A random part brought to size, and mirror image (Szegedy et al. 2015)."""
    return Compose([RandomResizedCrop(area, ratio), Flip(flip)])


def scale_crop_flip(scale: Sequence[float] = (0.5, 2.0), flip: float = 0.5) -> Compose:
    """Random scale, crop and mirror image for segmentation (Chen et al. 2017)."""
    return Compose([ScaleCrop(scale), Flip(flip)])
