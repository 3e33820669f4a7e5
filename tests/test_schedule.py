"""Schedules against torch's own sequences and closed forms."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from cnn_train.training.schedule import Constant, Cosine, Exponential, Inverse, OneCycle, Poly, Step

EPOCHS, PER_EPOCH = 12, 10
TOTAL = EPOCHS * PER_EPOCH
ALL = [Constant, partial(Step, every=3), Cosine, Poly, OneCycle, Exponential, Inverse]


def factors(schedule, total: int = TOTAL) -> list[float]:
    return [schedule(step, total, PER_EPOCH) for step in range(total)]


def of_torch(make, number: int = TOTAL, per: int = 1) -> list[float]:
    """The learning rates of `number` steps, for a scheduler that is stepped once in `per` steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for step in range(number):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % per == 0:
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        (Cosine(), of_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL))),
        (Cosine(final=0.1), of_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL, eta_min=0.1))),
        (Poly(), of_torch(lambda o: lr_scheduler.PolynomialLR(o, TOTAL, power=0.9))),
        (Poly(power=2.0), of_torch(lambda o: lr_scheduler.PolynomialLR(o, TOTAL, power=2.0))),
        (Step(milestones=[3, 8]), of_torch(lambda o: lr_scheduler.MultiStepLR(o, [3, 8]), per=PER_EPOCH)),
        (Step(milestones=[0.25, 2 / 3]), of_torch(lambda o: lr_scheduler.MultiStepLR(o, [30, 80]))),
        (Step(every=5, gamma=0.3), of_torch(lambda o: lr_scheduler.StepLR(o, 5, 0.3), per=PER_EPOCH)),
        (Exponential(gamma=0.9, every=1), of_torch(lambda o: lr_scheduler.ExponentialLR(o, 0.9), per=PER_EPOCH)),
        (
            Exponential(gamma=0.9, every=1, staircase=False),
            of_torch(lambda o: lr_scheduler.ExponentialLR(o, 0.9 ** (1 / PER_EPOCH))),
        ),
        (OneCycle(), of_torch(lambda o: lr_scheduler.OneCycleLR(o, 1.0, TOTAL, cycle_momentum=False))),
        (
            OneCycle(start_fraction=0.5, div=10.0, final_div=100.0),
            of_torch(
                lambda o: lr_scheduler.OneCycleLR(
                    o, 1.0, TOTAL, pct_start=0.5, div_factor=10, final_div_factor=100, cycle_momentum=False
                )
            ),
        ),
        (Constant(), [1.0] * TOTAL),
        (Inverse(), [(1 + 1e-4 * t) ** -0.75 for t in range(TOTAL)]),
        (Inverse(gamma=0.1, power=1.0), [1 / (1 + 0.1 * t) for t in range(TOTAL)]),
    ],
)
def test_sequence_is_the_references(schedule, reference):
    assert factors(schedule) == pytest.approx(reference, rel=1e-9, abs=1e-12)


def test_step_shares_and_epochs_and_fractions_of_epochs():
    schedule = Step(milestones=[0.5, 2.5], gamma=0.1)
    rates = factors(schedule)
    assert [i for i in range(1, TOTAL) if rates[i] != rates[i - 1]] == [25, 60]
    rates = factors(Step(every=0.3))
    assert [i for i in range(1, TOTAL) if rates[i] != rates[i - 1]] == list(range(3, TOTAL, 3))


def test_inception_decays_by_6_percent_every_two_epochs():
    rates = factors(Exponential())
    for epoch in range(EPOCHS):
        assert rates[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH] == pytest.approx([0.94 ** (epoch // 2)] * PER_EPOCH)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("start", [0.0, 0.25])
def test_warmup_is_a_line_from_its_start(make, start):
    rates = factors(make(warmup_epochs=2.5, warmup_start=start))
    main = factors(make())
    spans_training = isinstance(make(), (Cosine, Poly, OneCycle))
    for step in range(25):
        value = (factors(make(), TOTAL - 25) if spans_training else main)[0 if spans_training else step]
        assert rates[step] == pytest.approx((start + (1 - start) * step / 25) * value)
    wanted = factors(make(), TOTAL - 25) if spans_training else main[25:]
    assert rates[25:] == pytest.approx(wanted)


def test_warmup_then_cosine_is_torchs_sequence():
    def make(optimizer):
        line = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=20)
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, TOTAL - 20)
        return lr_scheduler.SequentialLR(optimizer, [line, cosine], milestones=[20])

    rates = factors(Cosine(warmup_epochs=2, warmup_start=0.1))
    assert rates == pytest.approx(of_torch(make), abs=1e-12)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 5.0])
def test_short_trainings_stay_finite_and_never_exceed_the_base_rate(make, total, warmup):
    schedule = make(warmup_epochs=warmup)
    for step in range(total + 2):  # a little beyond the end, too
        assert 0 <= schedule(step, total, PER_EPOCH) <= 1 + 1e-12


@pytest.mark.parametrize("make", ALL)
def test_factor_depends_on_its_arguments_alone(make):
    schedule = make(warmup_epochs=1)
    steps = list(range(TOTAL))
    forwards = [schedule(step, TOTAL, PER_EPOCH) for step in steps]
    backwards = [schedule(step, TOTAL, PER_EPOCH) for step in reversed(steps)]
    assert forwards == backwards[::-1]
    assert all(type(factor) is float and math.isfinite(factor) for factor in forwards)


@pytest.mark.parametrize(
    "make",
    [
        partial(Step),
        partial(Step, milestones=[0, 3]),
        partial(Step, every=0),
        partial(Constant, warmup_epochs=-1),
        partial(Cosine, warmup_start=2.0),
        partial(Exponential, gamma=0),
        partial(Exponential, every=-1),
        partial(Inverse, gamma=-1),
        partial(OneCycle, start_fraction=0),
        partial(OneCycle, div=0),
    ],
)
def test_senseless_settings_are_refused(make):
    with pytest.raises(ValueError, match=r"must be|needs"):
        make()
