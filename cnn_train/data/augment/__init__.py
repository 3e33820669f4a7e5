"""Augmentations of uint8 batches, each a pure function of (seed, epoch, sample index).

All are called as `augment(images, targets, indices, epoch, seed, spec)` with images (N, C, H, W) uint8, on any device,
and targets of the kind that `spec` says (`cnn_train.data.targets`). What moves pixels is computed once and applied to
images, label maps and boxes (`moves`). The cheap and common ones work on the whole batch; those of
torchvision.transforms.v2 on a sample at a time, so that a data worker may do them (`sample`, `split_stages`).
"""

from cnn_train.data.augment.colour import Erase, Lighting
from cnn_train.data.augment.compose import Augment, Compose, check_support, split_stages
from cnn_train.data.augment.detection import HSV, Jitter, Mosaic, SamplePatch, mosaic, ssd, yolo
from cnn_train.data.augment.geometry import Flip, PadCrop, Shift
from cnn_train.data.augment.mix import CutMix, MixUp
from cnn_train.data.augment.moves import Move, Resample, Resize, apply
from cnn_train.data.augment.recipes import flip_crop, random_resized_crop, scale_crop_flip
from cnn_train.data.augment.sample import (
    ColorJitter,
    PerSample,
    RandAugment,
    RandomResizedCrop,
    ScaleCrop,
    TrivialAugment,
)

__all__ = [
    "HSV",
    "Augment",
    "ColorJitter",
    "Compose",
    "CutMix",
    "Erase",
    "Flip",
    "Jitter",
    "Lighting",
    "MixUp",
    "Mosaic",
    "Move",
    "PadCrop",
    "PerSample",
    "RandAugment",
    "RandomResizedCrop",
    "Resample",
    "Resize",
    "SamplePatch",
    "ScaleCrop",
    "Shift",
    "TrivialAugment",
    "apply",
    "check_support",
    "flip_crop",
    "mosaic",
    "random_resized_crop",
    "scale_crop_flip",
    "split_stages",
    "ssd",
    "yolo",
]  # fmt: skip
