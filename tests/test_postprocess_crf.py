"""The dense CRF against loops written from the paper, its fast form against its exact one, and pydensecrf2 if there."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cnn_train.postprocess import DenseCRF
from cnn_train.postprocess.crf import choose_groups, neighbours

DEEPLAB_V2 = DenseCRF(bi_w=4, bi_xy=67, bi_rgb=3, pos_w=3, pos_xy=1)
DEEPLAB_V1 = DenseCRF(bi_w=4, bi_xy=121, bi_rgb=5, pos_w=3, pos_xy=3)
PYDENSECRF = DenseCRF(bi_w=10, bi_xy=80, bi_rgb=13, pos_w=3, pos_xy=3)


def mean_field_loop(image: Tensor, prior: Tensor, crf: DenseCRF) -> np.ndarray:
    """Algorithm 1 of the paper by loops over pixels in float64; (C, H, W), (K, H, W) -> (K, H, W)."""
    height, width = image.shape[1:]
    pixels = list(itertools.product(range(height), range(width)))
    colour = {(y, x): [float(v) for v in image[:, y, x]] for y, x in pixels}

    def appearance(a: tuple[int, int], b: tuple[int, int]) -> float:
        place = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (2 * crf.bi_xy**2)
        return math.exp(
            -place - sum((p - q) ** 2 for p, q in zip(colour[a], colour[b], strict=True)) / (2 * crf.bi_rgb**2)
        )

    def smoothness(a: tuple[int, int], b: tuple[int, int]) -> float:
        return math.exp(-((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (2 * crf.pos_xy**2))

    weights: dict[tuple[tuple[int, int], tuple[int, int]], float] = {}
    for weight, kernel in ((crf.bi_w, appearance), (crf.pos_w, smoothness)):
        total = {a: sum(kernel(a, b) for b in pixels) for a in pixels}
        for a, b in itertools.product(pixels, pixels):
            weights[a, b] = weights.get((a, b), 0.0) + weight * kernel(a, b) / math.sqrt(total[a] * total[b])
    probability = prior.double().numpy()
    energy = -np.log(probability)
    marginal = probability.copy()
    for _ in range(crf.iterations):
        message = np.zeros_like(marginal)
        for (a, b), weight in weights.items():
            message[:, a[0], a[1]] += weight * marginal[:, b[0], b[1]]
        # Potts: a label pays for all messages to the other labels; the sum over all labels is the same for each.
        pay = message.sum(0) - message
        marginal = np.exp(-energy - pay)
        marginal /= marginal.sum(0)
    return marginal


def scene(height: int, width: int, classes: int, seed: int = 0, noise: float = 6.0) -> tuple[Tensor, Tensor]:
    """A picture (1, 3, H, W) of discs on a gradient with noise, and coarse probabilities (1, K, H, W) for it."""
    images, label = discs(height, width, classes, seed, noise)
    return images, coarse(label, classes, seed)


def discs(height: int, width: int, classes: int, seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """A picture (1, 3, H, W) and its true labels (1, H, W)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    label = np.zeros((height, width), int)
    image = np.stack([60 + 40 * x / width, 90 + 0 * x, 120 - 40 * y / height])
    for c in range(1, min(classes, 7)):
        cy, cx, r = random.uniform(0, height), random.uniform(0, width), random.uniform(0.12, 0.3) * height
        inside = (y - cy) ** 2 + (x - cx) ** 2 < r * r
        label[inside] = c
        image[:, inside] = random.uniform(30, 225, (3, 1)) + 15 * np.sin(x[inside] / 5)
    image = (image + random.normal(0, noise, image.shape)).clip(0, 255).round()
    return torch.from_numpy(image)[None].float(), torch.from_numpy(label)[None]


def coarse(label: Tensor, classes: int, seed: int = 0) -> Tensor:
    """Probabilities (1, K, H, W) as of a network of output stride 8 that is fairly sure of these labels (1, H, W)."""
    scores = torch.nn.functional.one_hot(label, classes).permute(0, 3, 1, 2).float()
    scores = torch.nn.functional.avg_pool2d(scores, 8, ceil_mode=True)
    noise = np.random.default_rng(seed).normal(size=scores.shape)
    scores = 4 * scores + 0.7 * torch.from_numpy(noise).float()
    return torch.nn.functional.interpolate(scores, tuple(label.shape[1:]), mode="bilinear").softmax(1)


def photograph(top: int, left: int, height: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """A piece of a photograph, and coarse probabilities for eight kinds of its colours and places."""
    from sklearn.datasets import load_sample_image

    image = load_sample_image("china.jpg")[top : top + height, left : left + width]
    y, x = np.mgrid[:height, :width]
    features = np.dstack([image / 40, 4 * y / height, 4 * x / width]).reshape(-1, 5)
    centres = features[np.random.default_rng(0).choice(len(features), 8, replace=False)]
    label = ((features[:, None] - centres) ** 2).sum(2).argmin(1).reshape(1, height, width)
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float(), coarse(torch.from_numpy(label), classes)


def agree(marginals: Tensor, exact: Tensor) -> tuple[float, float]:
    """Mean difference and the part of pixels with the same label."""
    same = (marginals.argmax(1) == exact.argmax(1)).double().mean()
    return float((marginals - exact).abs().mean()), float(same)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crf", [DEEPLAB_V2, DenseCRF(5, 6, 40, 2, 1.5, iterations=4)])
def test_exact_is_the_papers_algorithm(crf: DenseCRF, channels: int) -> None:
    images, prior = scene(7, 9, 4, noise=3)
    expected = mean_field_loop(images[0, :channels], prior[0], crf)
    actual = replace(crf, exact=True)(images[:, :channels], prior)[0]
    assert np.abs(actual.numpy() - expected).max() < 1e-5
    assert (actual - prior[0]).abs().max() > 0.05  # it does something


def test_float64_is_kept() -> None:
    images, prior = scene(6, 8, 3)
    prior = (prior.double() / prior.double().sum(1, keepdim=True)).contiguous()
    expected = mean_field_loop(images[0], prior[0], DEEPLAB_V2)
    actual = replace(DEEPLAB_V2, exact=True)(images, prior)[0]
    assert actual.dtype == torch.float64
    assert np.abs(actual.numpy() - expected).max() < 1e-12


def test_the_separable_kernel_is_exact() -> None:
    images, prior = scene(45, 33, 5)
    for pos_xy in (0.5, 1.0, 3.0, 20.0):
        crf = DenseCRF(bi_w=0, pos_w=3, pos_xy=pos_xy)
        torch.testing.assert_close(crf(images, prior), replace(crf, exact=True)(images, prior), atol=1e-5, rtol=0)


@pytest.mark.parametrize("crf", [DEEPLAB_V2, DEEPLAB_V1, PYDENSECRF], ids=["deeplab_v2", "deeplab_v1", "pydensecrf"])
@pytest.mark.parametrize(
    "picture",
    ["photograph", pytest.param("scene", marks=pytest.mark.slow), pytest.param("grey", marks=pytest.mark.slow)],
)
def test_the_fast_form_agrees_with_the_exact_one(crf: DenseCRF, picture: str) -> None:
    images, prior = photograph(150, 250, 48, 64, 21) if picture == "photograph" else scene(64, 84, 21, seed=1)
    if picture == "grey":
        images = images.mean(1, keepdim=True)
    difference, same = agree(crf(images, prior), replace(crf, exact=True)(images, prior))
    assert difference < 5e-3
    assert same >= 0.995


def test_groups_of_one_pixel_leave_only_the_cut() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 30, 40, generator=random) * 255
    prior = torch.rand(1, 5, 30, 40, generator=random).softmax(1)
    crf = DenseCRF(bi_xy=30, bi_rgb=1, pos_w=0)
    groups, _, _ = choose_groups(images[0], 30, 1)
    assert len(groups.pixels) == 30 * 40
    difference, same = agree(crf(images, prior), replace(crf, exact=True)(images, prior))
    assert difference < 5e-4
    assert same >= 0.995


@pytest.mark.parametrize("size, xy", [((40, 50), 67.0), ((40, 60), 2.0), ((1, 70), 2.0)])
def test_all_neighbours_are_found_with_tiles_and_without(size: tuple[int, int], xy: float) -> None:
    images, _ = scene(64, 96, 5, seed=2, noise=9)
    groups, runs, reach = choose_groups(images[0, :, : size[0], : size[1]], xy, 5.0)
    assert bool(groups.cell[:, :2].any()) == (xy < 10)
    count, other, value = neighbours(groups, runs, reach)
    owner = torch.repeat_interleave(count)
    distance = (groups.centre[:, None] - groups.centre).double().square().sum(2)
    dense = torch.zeros_like(distance)
    dense[owner, other.long()] = value.double()
    inside, clear = distance < reach**2, (distance.sqrt() - reach).abs() > 1e-3
    assert ((dense > 0) == inside)[clear].all()
    torch.testing.assert_close(dense[inside & clear], (-distance / 2).exp()[inside & clear], atol=1e-5, rtol=1e-3)


def test_narrow_colours_are_searched_without_a_table() -> None:
    images, prior = scene(24, 32, 4)
    crf = DenseCRF(bi_xy=20, bi_rgb=0.2)
    difference, same = agree(crf(images, prior), replace(crf, exact=True)(images, prior))
    assert difference < 1e-3
    assert same >= 0.995


def test_each_image_of_a_batch_is_its_own() -> None:
    first, second = scene(20, 26, 4, seed=1), scene(20, 26, 4, seed=2)
    images, prior = (torch.cat(pair) for pair in zip(first, second, strict=True))
    together = DEEPLAB_V2(images, prior)
    torch.testing.assert_close(together[:1], DEEPLAB_V2(*first))
    torch.testing.assert_close(together[1:], DEEPLAB_V2(*second))
    assert together.shape == prior.shape
    torch.testing.assert_close(together.sum(1), torch.ones(2, 20, 26))


def test_the_image_decides_where_scores_are_coarse() -> None:
    """The claim of the paper: edges of the image become edges of the labels."""
    images, label = discs(96, 96, 5, seed=3, noise=6)
    prior = coarse(label, 5)
    before = (prior.argmax(1) == label).float().mean()
    after = (DEEPLAB_V1(images, prior).argmax(1) == label).float().mean()
    assert 1 - after < 0.5 * (1 - before)


def test_zero_weights_and_zero_iterations_change_nothing() -> None:
    images, prior = scene(12, 15, 3)
    torch.testing.assert_close(DenseCRF(iterations=0)(images, prior), prior)
    torch.testing.assert_close(DenseCRF(bi_w=0, pos_w=0)(images, prior), prior)


def test_certain_and_half_precision_probabilities_stay_finite() -> None:
    images, prior = scene(12, 15, 3)
    certain = torch.nn.functional.one_hot(prior.argmax(1), 3).permute(0, 3, 1, 2).bfloat16()
    marginals = DEEPLAB_V2(images.byte(), certain)
    assert marginals.dtype == torch.bfloat16
    assert marginals.isfinite().all()


def test_one_colour_and_one_pixel() -> None:
    prior = torch.rand(1, 3, 30, 30, generator=torch.Generator().manual_seed(0)).softmax(1)
    flat = torch.full((1, 3, 30, 30), 7.0)
    difference, same = agree(DEEPLAB_V2(flat, prior), replace(DEEPLAB_V2, exact=True)(flat, prior))
    assert difference < 5e-3
    assert same >= 0.995
    one = prior[..., :1, :1]
    torch.testing.assert_close(
        DEEPLAB_V2(flat[..., :1, :1], one), replace(DEEPLAB_V2, exact=True)(flat[..., :1, :1], one)
    )


def test_bad_input_is_named() -> None:
    images, prior = scene(12, 15, 3)
    with pytest.raises(ValueError, match="resize the probabilities"):
        DEEPLAB_V2(images, prior[..., ::2, ::2])
    with pytest.raises(ValueError, match="bi_rgb is a standard deviation, got 0"):
        DenseCRF(bi_rgb=0)
    with pytest.raises(ValueError, match="pos_w must not be negative"):
        DenseCRF(pos_w=-1)


@pytest.mark.gpu
def test_cuda_gives_the_same() -> None:
    images, prior = scene(40, 56, 6)
    for crf in (DEEPLAB_V2, replace(DEEPLAB_V2, exact=True)):
        torch.testing.assert_close(crf(images.cuda(), prior.cuda()).cpu(), crf(images, prior), atol=1e-4, rtol=0)


@pytest.mark.parametrize("crf", [DEEPLAB_V2, DEEPLAB_V1, PYDENSECRF], ids=["deeplab_v2", "deeplab_v1", "pydensecrf"])
def test_pydensecrf2_means_the_same_by_its_parameters(crf: DenseCRF) -> None:
    dcrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 (a compiler is needed) is not installed")
    images, prior = scene(60, 80, 6, seed=1)
    rival = dcrf.DenseCRF2D(80, 60, 6)
    rival.setUnaryEnergy(-prior[0].flatten(1).log().numpy())
    rival.addPairwiseGaussian(sxy=crf.pos_xy, compat=crf.pos_w)
    image = np.ascontiguousarray(images[0].permute(1, 2, 0).byte().numpy())
    rival.addPairwiseBilateral(sxy=crf.bi_xy, srgb=crf.bi_rgb, rgbim=image, compat=crf.bi_w)
    theirs = torch.from_numpy(np.array(rival.inference(10))).reshape(prior.shape)
    exact = replace(crf, exact=True)(images, prior)
    difference, same = agree(theirs, exact)
    assert difference < 0.02
    assert same > 0.97
    assert agree(crf(images, prior), exact)[0] <= difference  # and we are the nearer
