"""Sliding windows, scales and mirror images against their definitions, and the post-processing of what they give."""

import math

import pytest
import torch
from torch import Tensor, nn

from cnn_train.postprocess import DenseCRF, Morphology
from cnn_train.tasks.inference import Inference, content, labels_of


class Pixelwise(nn.Module):
    """Scores of each pixel from that pixel alone, of images that must be large enough."""

    def __init__(self, min_size: int = 1):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 1).requires_grad_(False)
        self.min_size = min_size
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert min(x.shape[-2:]) >= self.min_size
        self.seen.append(tuple(x.shape[-2:]))
        return self.conv(x)


def local_network() -> nn.Module:
    """Two convolutions: what a pixel gets depends on its distance from a window's edge, which is padded by 0."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, padding=1)).requires_grad_(False)


def blended(network: nn.Module, images: Tensor, window: tuple[int, int], step: tuple[int, int]) -> Tensor:
    """The definition, pixel by pixel of each window: a mean of probabilities weighted by the distance to the edge."""
    n, _, height, width = images.shape
    total, weights = torch.zeros(n, 4, height, width), torch.zeros(height, width)
    starts = [
        sorted({min(i * s, whole - side) for i in range(whole)})
        for whole, side, s in zip((height, width), window, step, strict=True)
    ]
    for top in starts[0]:
        for left in starts[1]:
            found = network(images[..., top : top + window[0], left : left + window[1]]).softmax(1)
            for y in range(window[0]):
                for x in range(window[1]):
                    weight = 1.0
                    for at, side, s in ((y, window[0], step[0]), (x, window[1], step[1])):
                        weight *= min(at + 1, side - at, side - s + 1) / (side - s + 1)
                    total[..., top + y, left + x] += weight * found[..., y, x]
                    weights[top + y, left + x] += weight
    return total / weights


@pytest.mark.parametrize("size", [(97, 61), (40, 40), (12, 90), (7, 5)])
@pytest.mark.parametrize("options", [{"window": 24}, {"window": [16, 30], "stride": 1.0}, {"flip": True}])
def test_views_of_a_pixelwise_network_change_nothing(options, size):
    network, images = Pixelwise(), torch.randn(2, 3, *size)
    scores = Inference(**options)(network, images)
    torch.testing.assert_close(scores.softmax(1), network(images).softmax(1))


def test_windows_are_blended_by_their_distance_from_the_edge():
    network, images = local_network(), torch.randn(1, 3, 23, 31)
    scores = Inference(window=(12, 15), stride=2 / 3)(network, images)
    torch.testing.assert_close(scores.softmax(1), blended(network, images, (12, 15), (8, 10)))


def test_one_view_gives_the_networks_own_scores():
    network, images = local_network(), torch.randn(2, 3, 30, 20)
    assert torch.equal(Inference()(network, images), network(images))


def test_windows_are_of_the_training_size_and_no_larger_than_the_image():
    network = Pixelwise()
    Inference(window="train", train_size=(20, 30))(network, torch.randn(1, 3, 50, 25))
    assert set(network.seen) == {(20, 25)}
    assert len(network.seen) == 1 + math.ceil((50 - 20) / 13)


@pytest.mark.parametrize("options", [{}, {"window": 10}, {"scales": [0.5, 1.0]}])
def test_small_images_are_padded_to_what_the_network_needs_and_cropped_back(options):
    images = torch.randn(2, 3, 9, 40)
    padded, free = Inference(**options)(Pixelwise(min_size=16), images), Inference(**options)(Pixelwise(), images)
    assert padded.shape == (2, 4, 9, 40)
    torch.testing.assert_close(padded, free)


def test_scales_and_mirror_images_are_averaged_as_probabilities():
    network, images = local_network(), torch.randn(1, 3, 20, 28)
    expected = []
    for size in ((10, 14), (20, 28), (30, 42)):
        scaled = nn.functional.interpolate(images, size, mode="bilinear", antialias=size[0] < 20)
        for flip in (False, True):
            found = network(scaled.flip(-1) if flip else scaled).softmax(1)
            found = found.flip(-1) if flip else found
            expected.append(nn.functional.interpolate(found, (20, 28), mode="bilinear"))
    scores = Inference(scales=[0.5, 1, 1.5], flip=True)(network, images)
    torch.testing.assert_close(scores.exp(), torch.stack(expected).mean(0))
    mirrored = Inference(scales=[0.5, 1, 1.5], flip=True)(network, images.flip(-1)).flip(-1)
    torch.testing.assert_close(scores, mirrored)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stride": 0}, "inference.stride is a part"),
        ({"stride": 1.5}, "inference.stride is a part"),
        ({"scales": []}, "at least one"),
        ({"scales": [0.5, -1]}, "positive factors"),
        ({"window": 0}, "inference.window is train"),
        ({"window": [1, 2, 3]}, "inference.window is train"),
    ],
)
def test_bad_settings_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        Inference(**options)


@pytest.mark.parametrize("postprocess", [DenseCRF(bi_xy=20, bi_rgb=20), Morphology(min_region=30, fill_holes=30)])
def test_padding_tells_post_processing_nothing(postprocess):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 24, 30, generator=generator) * 255
    scores = torch.randn(2, 4, 24, 30, generator=generator)
    counted = torch.zeros(2, 24, 30, dtype=torch.bool)
    counted[0, :16, :20] = True
    counted[0, 3:6, 4:9] = False  # ignored inside: part of the image
    counted[1, :, 5:] = True
    labels = labels_of(scores, images, postprocess, counted)
    alone = labels_of(scores[:1, :, :16, :20], images[:1, :, :16, :20], postprocess)
    assert torch.equal(labels[0, :16, :20], alone[0])
    assert torch.equal(labels[1, :, 5:], labels_of(scores[1:, ..., 5:], images[1:, ..., 5:], postprocess)[0])
    assert not torch.equal(labels, labels_of(scores, images, None))
    assert not torch.equal(labels[0, :16, :20], labels_of(scores, images, postprocess)[0, :16, :20])


def test_content_of_nothing_is_everything():
    assert content(torch.zeros(4, 5, dtype=torch.bool)) == (slice(None), slice(None))
