"""The report's statistics against independent references: statsmodels, a bootstrap by hand, Welch's formula."""

import itertools
import math

import numpy as np
import pytest
from test_report_runs import write_run

from cnn_train.report import answer, duels, effects, runs, settings
from cnn_train.report.settings import Setting

KEYS = ("a", "b", "c")


def made(levels, seeds, drop=0, rng_seed=0):
    """Levels and values of a grid with effects of all orders, `drop` of its runs missing."""
    rng = np.random.default_rng(rng_seed)
    grid = [level for level in itertools.product(*(map(str, range(n)) for n in levels)) for _ in range(seeds)]
    strength = [{level: rng.normal() for level in set(column)} for column in zip(*grid, strict=True)]
    pairs = {}
    values = []
    for level in grid:
        value = sum(table[x] for table, x in zip(strength, level, strict=True)) + rng.normal(0, 0.3)
        values.append(
            value + pairs.setdefault(level[:2], rng.normal(0, 0.5)) + pairs.setdefault(level, rng.normal(0, 0.2))
        )
    kept = sorted(rng.permutation(len(grid))[drop:])
    return [grid[i] for i in kept], np.array(values)[kept]


def by_means(levels, y, columns):
    """Sum of squares of cell means around the grand mean, in a balanced grid."""
    cells = {}
    for level, value in zip(levels, y, strict=True):
        cells.setdefault(tuple(level[i] for i in columns), []).append(value)
    return sum(len(cell) * (np.mean(cell) - y.mean()) ** 2 for cell in cells.values())


def test_shares_of_a_balanced_grid_are_those_of_its_means():
    levels, y = made((3, 2, 4), 3)
    found = effects.analyse(KEYS, levels, y)
    squares = {effect.keys: effect.squares for effect in found.effects}
    alone = [by_means(levels, y, [i]) for i in range(3)]
    for i in range(3):
        assert squares[KEYS[i],] == pytest.approx(alone[i], rel=1e-9)
    for i, j in itertools.combinations(range(3), 2):
        assert squares[KEYS[i], KEYS[j]] == pytest.approx(by_means(levels, y, [i, j]) - alone[i] - alone[j], rel=1e-9)
    total = ((y - y.mean()) ** 2).sum()
    cells = by_means(levels, y, [0, 1, 2])
    assert found.balanced and found.seeds == pytest.approx((total - cells) / total)
    assert sum(effect.share for effect in found.effects) + found.rest + found.seeds == pytest.approx(1)
    assert sum(effect.freedom for effect in found.effects) == 2 + 1 + 3 + 2 + 6 + 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of statsmodels' own
@pytest.mark.parametrize("drop", [0, 9])
def test_effects_agree_with_statsmodels(drop):
    pandas = pytest.importorskip("pandas")
    formulas = pytest.importorskip("statsmodels.formula.api")
    from statsmodels.stats.anova import anova_lm

    levels, y = made((3, 2, 4), 3, drop)
    frame = pandas.DataFrame(levels, columns=list(KEYS)).assign(y=y)
    table = anova_lm(formulas.ols("y ~ (C(a) + C(b) + C(c)) ** 2", frame).fit(), typ=2)
    found = effects.analyse(KEYS, levels, y)
    assert found.balanced == (drop == 0)
    for effect in found.effects:
        name = ":".join(f"C({key})" for key in effect.keys)
        assert effect.squares == pytest.approx(table.loc[name, "sum_sq"], rel=1e-8)
        assert effect.freedom == table.loc[name, "df"]
    assert found.left * found.total == pytest.approx(table.loc["Residual", "sum_sq"], rel=1e-8)


def test_what_cannot_be_told_is_none_or_left_out():
    levels, y = made((3, 3), 1)
    alone = effects.analyse(KEYS[:2], levels, y)
    assert alone.seeds is None and alone.rest is None and alone.left == pytest.approx(0)
    around = [("0", "0"), ("1", "0"), ("2", "0"), ("0", "1"), ("0", "2")]
    one_at_a_time = effects.analyse(KEYS[:2], around, np.array([1.0, 2, 4, 3, 5]))
    assert [effect.keys for effect in one_at_a_time.effects] == [("a",), ("b",)] and not one_at_a_time.balanced
    same = effects.analyse(("a",), [("0",), ("1",)], np.array([0.5, 0.5]))
    assert same.total == 0 and math.isnan(same.effects[0].share)


def setting(folder, name, results):
    """A setting of runs that left predictions: seed -> correctness of each sample."""
    found = []
    for seed, right in results.items():
        rows = [{"sample": i, "correct": value} for i, value in enumerate(right)]
        path = write_run(folder / f"{name}{seed}", {"norm": name, "seed": seed}, {"val/loss": 0.5}, predictions=rows)
        found.append(runs.read_run(path))
    return Setting(name, {"choices.norm": name}, tuple(found))


def test_a_duel_resamples_test_samples_in_pairs(tmp_path):
    rng = np.random.default_rng(1)
    right = {
        name: {seed: (rng.random(300) < share).astype(int) for seed in (0, 1, 2)}
        for name, share in (("a", 0.9), ("b", 0.82))
    }
    a, b = (setting(tmp_path, name, right[name]) for name in right)
    duel = duels.duel(a, b, duels.load([a, b]))
    per_sample = np.mean([right["a"][seed] - right["b"][seed] for seed in (0, 1, 2)], axis=0)
    assert duel.same_seeds and duel.difference.samples == 300
    assert duel.difference.mean == pytest.approx(per_sample.mean())
    means = per_sample[rng.integers(0, 300, (20_000, 300))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert (duel.difference.low, duel.difference.high) == (pytest.approx(low, abs=3e-3), pytest.approx(high, abs=3e-3))
    for pair, seed in zip(duel.pairs, (0, 1, 2), strict=True):
        assert (pair.seed_a, pair.seed_b) == (seed, seed)
        assert pair.difference.mean == pytest.approx((right["a"][seed] - right["b"][seed]).mean())
        assert pair.difference.high - pair.difference.low > duel.difference.high - duel.difference.low
    assert duel.wins == sum(pair.difference.mean > 0 for pair in duel.pairs)
    assert duels.duel(a, b, duels.load([a, b])) == duel


def test_runs_without_common_seeds_meet_each_other(tmp_path):
    a = setting(tmp_path, "a", {0: [1, 1, 0, 1], 1: [1, 0, 1, 1]})
    b = setting(tmp_path, "b", {5: [0, 1, 0, 1], 6: [0, 0, 1, 0]})
    duel = duels.duel(a, b, duels.load([a, b]))
    assert not duel.same_seeds and [(pair.seed_a, pair.seed_b) for pair in duel.pairs] == [
        (0, 5),
        (0, 6),
        (1, 5),
        (1, 6),
    ]
    assert duel.difference.mean == pytest.approx(0.75 - 0.375)


def test_a_duel_takes_only_samples_that_both_saw(tmp_path):
    a, b = setting(tmp_path, "a", {0: [1, 1, 1]}), setting(tmp_path, "b", {0: [0, 1]})
    assert duels.duel(a, b, duels.load([a, b])).difference.mean == pytest.approx(0.5)
    assert duels.duel(a, setting(tmp_path, "c", {0: [1]}), duels.load([a])) is None
    equal = duels.duel(a, setting(tmp_path, "d", {0: [1, 1, 1]}), duels.load([a, setting(tmp_path, "e", {0: [1]})]))
    assert equal is None


def test_equal_predictions_differ_by_exactly_nothing(tmp_path):
    a, b = setting(tmp_path, "a", {0: [1, 0, 1]}), setting(tmp_path, "b", {0: [1, 0, 1]})
    assert duels.duel(a, b, duels.load([a, b])).difference == duels.Difference(0.0, 0.0, 0.0, 3)


def test_the_interval_over_seeds_is_welchs(tmp_path):
    values = {"a": [0.95, 0.96, 0.97, 0.93], "b": [0.90, 0.94, 0.92]}
    for name, of_seeds in values.items():
        for seed, value in enumerate(of_seeds):
            write_run(
                tmp_path / f"{name}{seed}", {"norm": name, "seed": seed}, {"val/loss": 1 - value, "test/acc": value}
            )
    a, b = settings.compare(runs.read([tmp_path]).runs).settings
    low, high = answer.over_seeds(a, b, "test/acc")
    x, y = np.array(values["a"]), np.array(values["b"])
    u, v = x.var(ddof=1) / 4, y.var(ddof=1) / 3
    freedom = (u + v) ** 2 / (u**2 / 3 + v**2 / 2)
    assert (low + high) / 2 == pytest.approx(x.mean() - y.mean())
    assert freedom == pytest.approx(3.99, abs=0.01)
    assert (high - low) / 2 == pytest.approx(2.7764 * math.sqrt(u + v), rel=1e-3)  # the table of t, 4 degrees
    assert answer.over_seeds(a, settings.Setting("c", {}, b.runs[:1]), "test/acc") is None


def sampled(folder, count=24):
    rng = np.random.default_rng(0)
    for i in range(count):
        rate, decay = 10 ** rng.uniform(-4, 0), 10 ** rng.uniform(-5, -1)
        loss = (math.log10(rate) + 2) ** 2 + 0.01 * rng.normal()
        write_run(folder / f"{i:02}", {"optimizer.lr": rate, "optimizer.weight_decay": decay}, {"val/loss": loss})
    return settings.compare(runs.read([folder]).runs)


def test_sampled_sweeps_are_told_from_grids(tmp_path):
    assert effects.is_sampled(sampled(tmp_path / "sampled"))
    for i, (norm, rate) in enumerate(itertools.product(("bn", "gn"), (0.1, 0.01, 0.001))):
        write_run(tmp_path / "grid" / str(i), {"norm": norm, "optimizer.lr": rate}, {"val/loss": 0.5})
    grid = settings.compare(runs.read([tmp_path / "grid"]).runs)
    assert not effects.is_sampled(grid) and effects.is_sampled(grid, "tpe")


def test_importance_is_optunas_and_finds_the_key_that_matters(tmp_path):
    pytest.importorskip("optuna")
    comparison = sampled(tmp_path / "a")
    found = effects.importance(comparison, "val/loss")
    assert list(found) == ["optimizer.lr", "optimizer.weight_decay"]
    assert sum(found.values()) == pytest.approx(1) and found["optimizer.lr"] > 0.7
    assert effects.importance(sampled(tmp_path / "b", 6), "val/loss") == {}
