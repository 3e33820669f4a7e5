"""Schedules against torch's own sequences and closed forms."""

import csv
import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from cnn_train.__main__ import main
from cnn_train.config.load import load as load_config
from cnn_train.experiment.network import build_network_and_data
from cnn_train.runs import checkpoint
from cnn_train.training.callbacks.lr_range import proposed, smoothed
from cnn_train.training.callbacks.plateau import PlateauWatch
from cnn_train.training.schedule import (
    Constant,
    Cosine,
    Exponential,
    Inverse,
    OneCycle,
    Plateau,
    Poly,
    Range,
    Step,
)

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


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize(("patience", "cooldown", "threshold"), [(0, 0, 1e-4), (2, 0, 0.0), (1, 3, 0.05)])
def test_plateau_reduces_as_torchs(lower, patience, cooldown, threshold):
    random = torch.Generator().manual_seed(patience)
    values = (1 + torch.randn(60, generator=random).cumsum(0) * 0.03).abs().tolist()
    schedule = Plateau(gamma=0.5, patience=patience, cooldown=cooldown, threshold=threshold)
    watch = PlateauWatch(schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "min" if lower else "max", 0.5, patience, threshold, cooldown=cooldown, eps=0
    )
    for number, value in enumerate(values):
        reference.step(value)
        watch.observe(value, lower)
        if number == 30:  # what is counted goes through a checkpoint
            state, watch = watch.state_dict(), PlateauWatch(schedule)
            watch.load_state_dict(state)
        schedule.reductions = watch.reductions
        assert schedule(number, 60, 1) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert watch.reductions > 2
    with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\)"):
        Plateau(gamma=1.5)


def test_the_range_test_proposes_where_the_loss_falls_fastest():
    rates = [10 ** (-4 + 0.05 * i) for i in range(120)]
    losses = [1 / (1 + math.exp(4 * (math.log10(rate) + 1.5))) + (0.2 * rate**2 if rate > 0.5 else 0) for rate in rates]
    rate = proposed(rates, losses)
    assert rate == pytest.approx(10**-1.5, rel=0.13)  # the middle of the sigmoid
    assert proposed(rates, sorted(losses)) is None
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert Range(low=0.1, high=10)(50, 101, 10) == pytest.approx(1.0)


def test_a_run_looks_for_its_rate(tmp_path, capsys):
    words = ["debug=lr_range", f"output_dir={tmp_path}", "trainer.progress=none", "logger=none", "optimizer=sgd"]
    assert main(words) == 0
    (folder,) = (tmp_path / "lenet5").iterdir()
    rows = list(csv.DictReader((folder / "lr_range.csv").read_text().splitlines()))
    rates = [float(row["rate"]) for row in rows]
    ratios = [b / a for a, b in itertools.pairwise(rates)]
    assert 20 < len(rows) <= 100 and min(ratios) == pytest.approx(max(ratios), rel=1e-3) and min(ratios) > 1
    assert float(rows[-1]["smoothed"]) > 3 * min(float(row["smoothed"]) for row in rows)  # it was ended
    out = capsys.readouterr().out
    assert "learning rate  optimizer.lr=" in out and (folder / "pictures" / "lr_range.png").stat().st_size > 5000
    state = checkpoint.load(folder / "last.ckpt")["network"]
    start = build_network_and_data(load_config(folder))[0].state_dict()
    assert all(torch.equal(state[name], start[name]) for name in start)


def test_plateau_goes_on_after_a_resume(tmp_path, capsys):
    words = ["scheduler=plateau", "scheduler.patience=1", "scheduler.threshold=9", "trainer.progress=none"]
    words += ["logger=none", "callbacks.samples=0", "trainer.limit_batches=4", "optimizer=momentum"]
    assert main([*words, "trainer.max_epochs=6", f"output_dir={tmp_path / 'whole'}"]) == 0
    assert main([*words, "trainer.max_epochs=4", f"output_dir={tmp_path / 'parts'}"]) == 0
    whole, parts = (next((tmp_path / name / "lenet5").iterdir()) for name in ("whole", "parts"))
    assert main(["resume", str(parts), "trainer.max_epochs=6"]) == 0
    rates = [
        [row["lr"] for row in csv.DictReader((f / "metrics.csv").read_text().splitlines())] for f in (whole, parts)
    ]
    assert rates[0] == rates[1] and len(set(rates[0])) > 1
    a, b = (checkpoint.load(folder / "last.ckpt")["network"] for folder in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)
