"""Pooling: sizes as torch's, frequencies as the probabilities, and the global heads."""

import random

import pytest
import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.layers.pool import GlobalAvgPool, GlobalDepthwiseConv, GlobalMaxPool, KeepMap, StochasticPool2d


def drawn_windows(count: int) -> list[tuple[int, int, int, int, int, bool]]:
    draw = random.Random(0)
    found = []
    while len(found) < count:
        kernel = draw.randint(1, 5)
        padding = draw.randint(0, kernel // 2)
        height, width = (draw.randint(max(kernel - 2 * padding, 1), 13) for _ in range(2))
        found.append((height, width, kernel, draw.randint(1, 5), padding, draw.random() < 0.5))
    return found


@pytest.mark.parametrize("training", [True, False])
def test_sizes_are_those_of_max_pooling_and_values_come_from_the_window(training):
    torch.manual_seed(0)
    for height, width, kernel, stride, padding, ceil_mode in drawn_windows(300):
        x = torch.rand(2, 3, height, width) + 0.1
        options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
        y = StochasticPool2d(kernel, **options).train(training)(x)
        highest = nn.MaxPool2d(kernel, **options)(x)
        lowest = -nn.MaxPool2d(kernel, **options)(-x)
        assert y.shape == highest.shape, (height, width, kernel, options)
        assert (y <= highest + 1e-6).all() and (y >= lowest - 1e-6).all(), (height, width, kernel, options)


def test_evaluation_is_the_probability_weighted_mean():
    torch.manual_seed(0)
    for height, width, kernel, stride, padding, ceil_mode in drawn_windows(40):
        x = torch.randn(1, 2, height, width, dtype=torch.float64)
        y = StochasticPool2d(kernel, stride, padding, ceil_mode).eval()(x)
        for c in range(2):
            for i in range(y.size(2)):
                for j in range(y.size(3)):
                    rows = range(max(i * stride - padding, 0), min(i * stride - padding + kernel, height))
                    columns = range(max(j * stride - padding, 0), min(j * stride - padding + kernel, width))
                    values = [x[0, c, a, b].item() for a in rows for b in columns]
                    positive = [max(v, 0.0) for v in values]
                    if sum(positive) > 0:
                        wanted = sum(p * v for p, v in zip(positive, values, strict=True)) / sum(positive)
                    else:
                        wanted = sum(values) / len(values)
                    assert y[0, c, i, j].item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("window", "probabilities"),
    [
        ([[1.6, 0.0], [0.0, 2.4]], [0.4, 0.0, 0.0, 0.6]),  # like the paper's Fig. 1
        ([[1.0, 2.0], [3.0, 4.0]], [0.1, 0.2, 0.3, 0.4]),
        ([[-5.0, 1.0], [-0.1, 3.0]], [0.0, 0.25, 0.0, 0.75]),
        ([[-1.0, -2.0], [-3.0, -4.0]], [0.25] * 4),
    ],
)
def test_training_draws_in_proportion_to_the_activations(window, probabilities):
    torch.manual_seed(1)
    draws = 40_000
    x = torch.tensor(window).repeat(1, 1, draws, 1)  # (1, 1, 2 * draws, 2): one window after another
    y = StochasticPool2d(2).train()(x).flatten()
    chi_square = 0.0
    for value, probability in zip(torch.tensor(window).flatten(), probabilities, strict=True):
        observed, expected = int((y == value).sum()), draws * probability
        if probability == 0:
            assert observed == 0
        else:
            chi_square += (observed - expected) ** 2 / expected
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


def test_windows_are_drawn_independently():
    torch.manual_seed(2)
    x = torch.tensor([[1.0, 1.0001], [1.0, 1.0001]]).repeat(1, 64, 32, 32)
    first = (StochasticPool2d(2)(x) > 1.00005).double()
    assert first.mean().item() == pytest.approx(0.5, abs=0.01)
    assert abs(torch.corrcoef(torch.stack([first[:, :-1].flatten(), first[:, 1:].flatten()]))[0, 1]) < 0.02


def test_gradient_goes_to_the_drawn_value():
    torch.manual_seed(3)
    x = (torch.rand(2, 3, 6, 6) + 0.1).requires_grad_()
    y = StochasticPool2d(2)(x)
    y.sum().backward()
    assert set(x.grad.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close((x * x.grad).sum(), y.sum())


def test_seed_decides_the_draws_and_nan_passes_through():
    x = torch.rand(2, 3, 8, 8)
    results = [torch.manual_seed(5) and StochasticPool2d(3, 2, 1)(x) for _ in range(2)]
    assert torch.equal(*results)
    x[0, 0, 0, 0] = float("nan")
    assert StochasticPool2d(2)(x).isnan().sum() == 1
    assert StochasticPool2d(2).eval()(x).isnan().sum() == 1
    x[0, 0, 0, 0] = float("inf")
    assert StochasticPool2d(2)(x).isinf().sum() == 1


def test_half_precision_sums_do_not_overflow():
    x = torch.full((1, 1, 4, 4), 60_000.0, dtype=torch.float16)
    for training in (True, False):
        assert torch.equal(StochasticPool2d(4).train(training)(x), x[:, :, :1, :1])


def test_senseless_windows_are_refused():
    with pytest.raises(ValueError, match="padding must be at most half"):
        StochasticPool2d(3, 2, 2)
    with pytest.raises(ValueError, match="too small"):
        StochasticPool2d(3)(torch.rand(1, 1, 2, 5))


def test_factory_gives_the_chosen_pool_or_the_papers():
    assert isinstance(LayerFactory().pool(3, 2, 1, ceil_mode=True), nn.MaxPool2d)
    assert isinstance(LayerFactory().pool(2, paper=nn.AvgPool2d), nn.AvgPool2d)
    pool = LayerFactory(pool_layer=StochasticPool2d).pool(3, 2, 1, ceil_mode=True, paper=nn.AvgPool2d)
    assert (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode) == (3, 2, 1, True)
    assert LayerFactory(pool_layer=StochasticPool2d).pool(2).stride == 2


@pytest.mark.parametrize("head", [GlobalAvgPool, GlobalMaxPool, GlobalDepthwiseConv, KeepMap])
def test_heads_say_how_many_values_they_leave(head):
    for size in (1, 3, 7):
        pool = head(5, size)
        out = pool(torch.randn(2, 5, size, size)).flatten(1)
        assert out.shape == (2, pool.out_features)


def test_global_heads_against_the_formula():
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(GlobalAvgPool(4)(x).flatten(1), x.sum((2, 3)) / 15)
    assert torch.equal(GlobalMaxPool(4)(x).flatten(1), x.flatten(2).max(2).values)
    square: Tensor = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    conv = GlobalDepthwiseConv(4, 3).double()
    torch.testing.assert_close(conv(square).flatten(1), (square * conv.weight[:, 0]).sum((2, 3)))
    assert torch.equal(KeepMap(4, 3)(square), square)


@pytest.mark.parametrize(("head", "name"), [(GlobalDepthwiseConv, "gdconv"), (KeepMap, "flatten")])
def test_heads_of_fixed_size_say_what_to_do(head, name):
    with pytest.raises(ValueError, match=rf"global_pool={name} .* 7x7 map, got 4x4; set global_pool.size=4"):
        head(5)(torch.randn(1, 5, 4, 4))
    with pytest.raises(ValueError, match="square image_size"):
        head(5)(torch.randn(1, 5, 4, 6))
