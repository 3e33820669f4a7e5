"""The doors for Python: importing the package is light, images come in any form; tests/test_pages.py runs the page."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import cnn_train
from cnn_train.errors import ConfigError
from cnn_train.experiment.trained import Trained, as_image

ROOT = Path(__file__).parents[1]


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, cnn_train; cnn_train.DOORS; sys.exit(bool({'torch', 'hydra', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        cnn_train.tain  # noqa: B018


def test_an_image_is_the_same_in_every_form(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for channels in (1, 3):
        how = {"in_channels": channels, "mean": [0.5] * channels, "std": [0.2] * channels}
        read = Trained(nn.Identity(), ["a"], how).read
        expected = torch.from_numpy(np.array(Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")))
        expected = expected[None] if channels == 1 else expected.permute(2, 0, 1)
        for image in (
            tmp_path / "a.png",
            str(tmp_path / "a.png"),
            Image.fromarray(pixels),
            pixels,
            tensor,
            tensor / 255,
        ):
            assert torch.equal(read(image), expected), type(image)
    assert torch.equal(as_image(pixels[..., 0], 3), torch.from_numpy(pixels[..., 0]).expand(3, -1, -1))
    kept = pixels[..., 0].copy()
    kept.flags.writeable = False  # as numpy.asarray gives a PIL image
    assert torch.equal(as_image(kept, 3), as_image(pixels[..., 0], 3))


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (3, "an image is a path, a PIL image, an array or a tensor, got int"),
        (np.zeros((4, 4), np.int64), "uint8 or float"),
        (np.full((4, 4), 2.0), r"in \[0, 1\], got 2 to 2"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), "takes images of 3 channels, got 2"),
        (np.zeros(4, np.uint8), "2 or 3 axes"),
    ],
)
def test_what_is_no_image_is_told(image, text):
    with pytest.raises(ConfigError, match=text):
        as_image(image, 3)


def test_a_segmenter_answers_at_the_images_own_size():
    torch.manual_seed(0)
    how = {
        "task": "segmentation",
        "image_size": [16, 16],
        "resize": "stretch",
        "in_channels": 1,
        "mean": [0.5],
        "std": [0.2],
    }
    model = Trained(nn.Conv2d(1, 3, 3, padding=1), ["a", "b", "c"], how)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    answer, small = model.predict([pixels, pixels[:9, :5]])
    with torch.no_grad():
        expected = model(model.preprocess(pixels)[None]).argmax(1)[0]
    assert torch.equal(answer.labels, expected) and small.labels.shape == (9, 5)
    assert sum(answer.shares.values()) == pytest.approx(1)
    assert answer.shares["b"] == pytest.approx((expected == 1).float().mean().item())
