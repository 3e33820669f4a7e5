"""Losses against torch where it has them, else against float64 loops written from the formula."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_train.tasks.class_weights import class_weights_from_counts, positive_weights_from_counts
from cnn_train.tasks.losses import (
    BCE,
    OHEM,
    CrossEntropy,
    Dice,
    Focal,
    Jaccard,
    LovaszSoftmax,
    MultiClassHinge,
    Sum,
)

IGNORE = 255
K = 4
LOSSES = {
    "cross_entropy": CrossEntropy,
    "smooth": partial(CrossEntropy, label_smoothing=0.1),
    "hinge": MultiClassHinge,
    "bce": BCE,
    "focal": Focal,
    "dice": Dice,
    "jaccard": Jaccard,
    "lovasz": LovaszSoftmax,
    "ohem": OHEM,
    "sum": partial(Sum, [CrossEntropy, Dice], [1.0, 0.5]),
}
WEIGHTS = [0.5, 2.0, 1.0, 0.25]


def batch(kind: str = "map", ignored: bool = True, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, K, 5, 4) if kind == "map" else (12, K)
    scores = torch.randn(shape, dtype=torch.float64, generator=generator) * 2
    targets = torch.randint(K, (shape[0], *shape[2:]), generator=generator)
    if ignored:
        targets[torch.rand(targets.shape, generator=generator) < 0.25] = IGNORE
    return scores, targets


def pixels(scores: Tensor, targets: Tensor) -> list[tuple[list[float], int]]:
    """(scores, label) of each counted sample or pixel."""
    rows = scores.movedim(1, -1).reshape(-1, scores.size(1)).tolist()
    return [(row, label) for row, label in zip(rows, targets.flatten().tolist(), strict=True) if label != IGNORE]


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(v) for v in row]
    return [e / sum(exponentials) for e in exponentials]


def weighted(values: list[float], weights: list[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def make(name: str, **options) -> nn.Module:
    return LOSSES[name](**{"num_classes": K, "ignore_index": IGNORE, **options})


@pytest.mark.parametrize("kind", ["map", "labels"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs(kind, smoothing, weights):
    scores, targets = batch(kind)
    loss = CrossEntropy(num_classes=K, ignore_index=IGNORE, class_weights=weights, label_smoothing=smoothing)
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    wanted = F.cross_entropy(scores, targets, tensor, ignore_index=IGNORE, label_smoothing=smoothing)
    torch.testing.assert_close(loss(scores, targets), wanted)
    soft = scores.flip(0).softmax(1)
    wanted = F.cross_entropy(scores, soft, tensor, label_smoothing=smoothing)
    torch.testing.assert_close(loss(scores, soft), wanted)


def test_hinge_and_softmax_loss_of_a_known_example():
    """A hinge is content with any margin of 1, the softmax never is."""
    label = torch.tensor([0])
    for scores, cross_entropy in (([10.0, -10.0, -10.0], 0.00), ([10.0, 9.0, 9.0], 0.55)):
        row = torch.tensor([scores])
        assert MultiClassHinge(num_classes=3)(row, label).item() == 0
        assert CrossEntropy(num_classes=3)(row, label).item() == pytest.approx(cross_entropy, abs=0.005)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("margin", [1.0, 0.3])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_hinge_equals_the_loop(squared, margin, weights):
    scores, targets = batch()
    losses, shares = [], []
    for row, label in pixels(scores, targets):
        terms = [max(0.0, row[j] - row[label] + margin) for j in range(K) if j != label]
        losses.append(sum(t * t if squared else t for t in terms))
        shares.append(1.0 if weights is None else weights[label])
    loss = make("hinge", squared=squared, margin=margin, class_weights=weights)
    assert loss(scores, targets).item() == pytest.approx(weighted(losses, shares), rel=1e-12)


def test_hinge_is_torchs_multi_margin_up_to_its_division():
    scores, targets = batch("labels", ignored=False)
    wanted = F.multi_margin_loss(scores, targets) * K  # torch divides by the number of classes
    torch.testing.assert_close(make("hinge")(scores, targets), wanted)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_bce_of_labels_is_k_binary_classifiers(weights):
    scores, targets = batch()
    losses, shares = [], []
    for row, label in pixels(scores, targets):
        for k in range(K):
            p = 1 / (1 + math.exp(-row[k]))
            losses.append(-math.log(p if k == label else 1 - p))
            shares.append(1.0 if weights is None else weights[k])
    loss = make("bce", class_weights=weights)
    assert loss(scores, targets).item() == pytest.approx(weighted(losses, shares), rel=1e-10)


def test_bce_of_several_labels_and_of_unknown_entries():
    scores, _ = batch("labels")
    several = (torch.rand(12, K, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) < 0.4).double()
    torch.testing.assert_close(make("bce")(scores, several), F.binary_cross_entropy_with_logits(scores, several))
    unknown = several.clone()
    unknown[::3, 1] = IGNORE
    known = unknown != IGNORE
    wanted = F.binary_cross_entropy_with_logits(scores[known], several[known])
    torch.testing.assert_close(make("bce")(scores, unknown), wanted)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_equals_the_loop(gamma, weights):
    scores, targets = batch()
    losses, shares = [], []
    for row, label in pixels(scores, targets):
        p = softmax(row)[label]
        losses.append(-((1 - p) ** gamma) * math.log(p))
        shares.append(1.0 if weights is None else weights[label])
    loss = make("focal", gamma=gamma, class_weights=weights)
    assert loss(scores, targets).item() == pytest.approx(weighted(losses, shares), rel=1e-10)
    if gamma == 0:
        torch.testing.assert_close(loss(scores, targets), make("cross_entropy", class_weights=weights)(scores, targets))


def test_focal_takes_soft_targets_and_certain_scores():
    scores, targets = batch("labels", ignored=False)
    one_hot = F.one_hot(targets, K).double()
    torch.testing.assert_close(make("focal")(scores, one_hot), make("focal")(scores, targets))
    certain = torch.tensor([[200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    for gamma in (0.5, 1.0, 2.0):
        value = make("focal", gamma=gamma)(certain, torch.tensor([0]))
        assert value.item() == 0 and torch.autograd.grad(value, certain)[0].isfinite().all()


def regions(scores: Tensor, targets: Tensor) -> list[tuple[list[float], list[float]]]:
    """Per class: probabilities and 0/1 targets of the counted pixels."""
    counted = [(softmax(row), label) for row, label in pixels(scores, targets)]
    return [([p[k] for p, _ in counted], [float(label == k) for _, label in counted]) for k in range(K)]


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_dice_and_jaccard_equal_the_loop(squared, smooth, weights):
    scores, targets = batch()
    targets[targets == 2] = IGNORE  # class 2 is absent
    dice, iou, shares = [], [], []
    for k, (p, t) in enumerate(regions(scores, targets)):
        if sum(t) == 0:
            continue
        power = 2 if squared else 1
        overlap = sum(a * b for a, b in zip(p, t, strict=True))
        sizes = sum(a**power for a in p) + sum(b**power for b in t)
        dice.append(1 - (2 * overlap + smooth) / (sizes + smooth))
        iou.append(1 - (overlap + smooth) / (sum(p) + sum(t) - overlap + smooth))
        shares.append(1.0 if weights is None else weights[k])
    assert len(dice) == 3
    loss = make("dice", squared=squared, smooth=smooth, class_weights=weights)
    assert loss(scores, targets).item() == pytest.approx(weighted(dice, shares), rel=1e-10)
    loss = make("jaccard", smooth=smooth, class_weights=weights)
    assert loss(scores, targets).item() == pytest.approx(weighted(iou, shares), rel=1e-10)


def jaccard_of(wrong: set[int], region: set[int]) -> float:
    """Jaccard loss of a set of mispredicted pixels (Berman et al. 2018, eq. 6)."""
    return len(wrong) / len(region | wrong) if region | wrong else 0.0


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_lovasz_is_the_extension_of_the_set_function(weights):
    scores, targets = batch()
    targets[targets == 1] = IGNORE
    losses, shares = [], []
    for k, (p, t) in enumerate(regions(scores, targets)):
        region = {i for i, b in enumerate(t) if b}
        if not region:
            continue
        errors = [abs(b - a) for a, b in zip(p, t, strict=True)]
        order = sorted(range(len(errors)), key=lambda i: -errors[i])
        losses.append(
            sum(
                errors[pixel] * (jaccard_of(set(order[: n + 1]), region) - jaccard_of(set(order[:n]), region))
                for n, pixel in enumerate(order)
            )
        )
        shares.append(1.0 if weights is None else weights[k])
    assert len(losses) == 3
    value = make("lovasz", class_weights=weights)(scores, targets)
    assert value.item() == pytest.approx(weighted(losses, shares), rel=1e-10)


def test_lovasz_of_hard_predictions_is_the_jaccard_loss():
    _, targets = batch(ignored=False)
    predicted = batch(ignored=False, seed=5)[1]
    scores = F.one_hot(predicted, K).movedim(-1, 1).double() * 1000
    wanted = [
        1 - ((predicted == k) & (targets == k)).sum().item() / ((predicted == k) | (targets == k)).sum().item()
        for k in range(K)
    ]
    assert make("lovasz")(scores, targets).item() == pytest.approx(sum(wanted) / K, rel=1e-10)


@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("threshold", [None, 0.3, 0.7])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ohem_counts_the_hard_examples_only(keep, threshold, weights):
    scores, targets = batch()
    examples = [(-math.log(softmax(row)[label]), label) for row, label in pixels(scores, targets)]
    examples.sort(reverse=True)
    number = math.ceil(keep * len(examples))
    hard = [
        (loss, 1.0 if weights is None else weights[label])
        for rank, (loss, label) in enumerate(examples)
        if rank < number or (threshold is not None and loss > -math.log(threshold))
    ]
    value = make("ohem", keep=keep, threshold=threshold, class_weights=weights)(scores, targets)
    assert value.item() == pytest.approx(weighted(*map(list, zip(*hard, strict=True))), rel=1e-10)


@pytest.mark.parametrize("options", [{"keep": 0.0}, {"keep": 1.5}, {"threshold": 1.0}])
def test_ohem_refuses_senseless_shares(options):
    with pytest.raises(ValueError, match=r"keep|threshold"):
        make("ohem", **options)


def test_sum_weighs_its_parts_and_hands_on_what_the_run_knows():
    scores, targets = batch()
    loss = Sum([CrossEntropy, partial(Dice, smooth=0.5)], [1.0, 0.3], num_classes=K, ignore_index=IGNORE)
    parts = make("cross_entropy")(scores, targets), make("dice", smooth=0.5)(scores, targets)
    torch.testing.assert_close(loss(scores, targets), parts[0] + 0.3 * parts[1])
    loss = Sum([CrossEntropy, Focal], num_classes=K, ignore_index=IGNORE, class_weights=WEIGHTS)
    parts = [make(name, class_weights=WEIGHTS)(scores, targets) for name in ("cross_entropy", "focal")]
    torch.testing.assert_close(loss(scores, targets), parts[0] + parts[1])
    with pytest.raises(ValueError, match="as many weights"):
        Sum([CrossEntropy], [1.0, 2.0], num_classes=K)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["map", "labels"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ignored_targets_move_nothing_and_all_ignored_gives_zero(name, kind, weights):
    loss = make(name, class_weights=weights)
    scores, targets = batch(kind)
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(scores, targets), scores)
    ignored = (targets == IGNORE).unsqueeze(1).expand_as(scores)
    assert gradient.isfinite().all() and (gradient[ignored] == 0).all() and gradient[~ignored].abs().sum() > 0
    other = torch.where(ignored, scores.detach() * -3 + 1, scores.detach())
    torch.testing.assert_close(loss(other, targets), loss(scores, targets))
    value = loss(scores, torch.full_like(targets, IGNORE))
    (gradient,) = torch.autograd.grad(value, scores)
    assert value.item() == 0 and (gradient == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    torch.manual_seed(0)
    scores, targets = batch("labels")
    loss = make(name, class_weights=WEIGHTS)
    assert torch.autograd.gradcheck(lambda s: loss(s, targets), scores.requires_grad_(), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_right_answer_costs_less_and_half_precision_stays_finite(name):
    _, targets = batch()
    right = F.one_hot(torch.where(targets == IGNORE, 0, targets), K).movedim(-1, 1).float() * 2
    loss = make(name)
    assert 0 <= loss(right, targets) < loss(torch.zeros_like(right), targets) < loss(-right, targets)
    for dtype in (torch.float16, torch.bfloat16):
        value = loss((right * 1000).to(dtype), targets)
        assert value.dtype == torch.float32 and value.isfinite()


@pytest.mark.parametrize("name", ["hinge", "dice", "jaccard", "lovasz", "ohem"])
def test_soft_targets_are_refused_where_labels_are_needed(name):
    scores, _ = batch("labels")
    with pytest.raises(ValueError, match=r"needs integer labels, got soft targets; use cross_entropy"):
        make(name)(scores, scores.softmax(1))


@pytest.mark.parametrize("name", LOSSES)
def test_targets_of_another_shape_are_refused(name):
    with pytest.raises(ValueError, match="do not fit scores of shape"):
        make(name)(torch.randn(2, K, 5, 5), torch.zeros(2, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 1.0, 1.0, -1.0], "auto"])
def test_unfit_class_weights_are_refused(weights):
    with pytest.raises(ValueError, match="class_weights"):
        make("cross_entropy", class_weights=weights)


def test_class_weights_follow_the_device_and_stay_out_of_the_state():
    for name in LOSSES:
        loss = make(name, class_weights=torch.tensor(WEIGHTS))
        assert not loss.state_dict()
        assert all(buffer.device.type == "meta" for buffer in loss.to("meta").buffers())


def test_class_weights_by_inverse_frequency():
    counts = [50, 10, 0, 40]
    weights = class_weights_from_counts(counts)
    assert weights.tolist() == pytest.approx([100 / 150, 100 / 30, 1.0, 100 / 120])
    assert sum(w * n for w, n in zip(weights.tolist(), counts, strict=True)) == pytest.approx(100)
    assert torch.equal(class_weights_from_counts(torch.tensor(counts)), weights)
    for senseless in ([0, 0], [[1, 2]]):
        with pytest.raises(ValueError, match="counts of each class"):
            class_weights_from_counts(senseless)


def test_positive_weights_are_those_of_torch():
    torch.manual_seed(0)
    scores, targets = torch.randn(30, K), (torch.rand(30, K) < torch.tensor([0.1, 0.5, 0.9, 0.5])).float()
    weights = positive_weights_from_counts(targets.sum(0), len(targets))
    for k in range(K):
        count = int(targets[:, k].sum())
        assert float(weights[k]) == pytest.approx((30 - count) / count)
    ours = BCE(num_classes=K, positive_weights=weights)(scores, targets)
    assert float(ours) == pytest.approx(float(F.binary_cross_entropy_with_logits(scores, targets, pos_weight=weights)))
    assert positive_weights_from_counts([0, 5, 3], 5).tolist() == [1, 1, pytest.approx(2 / 3)]
