"""Intervals, tests and verdicts against scipy, by simulation, and by hand."""

import numpy as np
import pytest
from scipy import stats

from jaxalign.ablation import Claim, value
from jaxalign.ablation.claims import NOT_REPRODUCED, REPRODUCED, UNDECIDED, decide
from jaxalign.ablation.statistics import holm, interval, p_above, p_below, prediction_interval


@pytest.mark.parametrize("n", [5, 8, 20])
def test_intervals_and_tests_are_scipys(n):
    x = np.random.default_rng(n).normal(0.3, 1.0, n)
    mean, low, high = interval(x)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x)))
    assert mean == pytest.approx(x.mean())
    assert p_above(x, 0.1) == pytest.approx(stats.ttest_1samp(x, 0.1, alternative="greater").pvalue)
    assert p_below(x, 0.1) == pytest.approx(stats.ttest_1samp(x, 0.1, alternative="less").pvalue)


def test_few_values_and_equal_ones():
    assert interval([2.0]) == (2.0, -np.inf, np.inf) and np.isnan(interval([])).all()
    assert prediction_interval([2.0]) == prediction_interval([]) == (-np.inf, np.inf)
    assert p_above([2.0], 0.0) == p_above([], 0.0) == p_below([2.0], 3.0) == 1.0
    assert [p_above([2.0, 2.0], bound) for bound in (1.9, 2.0, 2.1)] == [0.0, 1.0, 1.0]
    assert [p_below([2.0, 2.0], bound) for bound in (1.9, 2.0, 2.1)] == [1.0, 1.0, 0.0]
    # Of two values the next one lies within t √(3 / 2) s of their mean, with one degree of freedom, and s = √2.
    half = stats.t.ppf(0.95, 1) * np.sqrt(3)
    assert prediction_interval([1.0, 3.0], 0.9) == pytest.approx((2 - half, 2 + half))
    assert interval([1.0, 3.0], 0.9)[1:] == pytest.approx((2 - half / np.sqrt(3), 2 + half / np.sqrt(3)))


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_intervals_cover(n, kind):
    """At the numbers of seeds that studies have; gold scores are means of hundreds of questions, hardly skewed."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, n)) if kind == "normal" else rng.gamma(8.0, size=(4000, n)) - 8.0
    ends = np.array([interval(x)[1:] for x in draws])
    assert ((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean() >= 0.93
    future = rng.normal(size=4000)
    if kind == "normal":
        ranges = np.array([prediction_interval(x) for x in draws])
        assert ((ranges[:, 0] <= future) & (future <= ranges[:, 1])).mean() == pytest.approx(0.99, abs=0.005)


def test_pairing_by_seed_is_the_paired_test():
    rng = np.random.default_rng(1)
    world = rng.normal(size=8)
    a, b = world + rng.normal(0.2, 0.1, 8), world + rng.normal(0.0, 0.1, 8)
    table = {
        (seed, f"arm={name}"): {"score": x[seed]} for seed in range(8) for name, x in (("a", a), ("b", b))
    }
    claim = Claim("a is better", "", value("score", arm="a") - value("score", arm="b"), smallest=0.05)
    (found,) = decide([claim], table, tuple(range(8)))
    assert found.p_for == pytest.approx(stats.ttest_rel(a, b, alternative="greater").pvalue)
    assert found.verdict == REPRODUCED


def test_holm_by_hand_and_its_level():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    # Of ten true hypotheses all are kept in 95 of 100 cases.
    p = np.random.default_rng(0).uniform(size=(4000, 10))
    assert np.mean([min(holm(row)) < 0.05 for row in p]) == pytest.approx(0.05, abs=0.012)


VERDICTS = [
    # per seed, smallest, near, verdict
    ([0.30, 0.31, 0.29, 0.32, 0.30], 0.1, None, REPRODUCED),
    ([0.01, 0.02, 0.00, 0.01, 0.02], 0.1, None, NOT_REPRODUCED),  # above 0, but it does not count
    ([-0.5, -0.4, -0.6, -0.5, -0.5], 0.1, None, NOT_REPRODUCED),
    ([0.5, -0.3, 0.4, 0.0, 0.2], 0.1, None, UNDECIDED),
    ([0.08, 0.09, 0.08, 0.1, 0.09], 0.085, None, REPRODUCED),
    ([0.31, 0.30, 0.29, 0.30, 0.30], 0.1, 0.3, REPRODUCED),
    ([0.61, 0.60, 0.59, 0.60, 0.60], 0.1, 0.3, NOT_REPRODUCED),
    ([0.41, 0.40, 0.39, 0.40, 0.40], 0.1, 0.3, UNDECIDED),
    ([1.0, 1.0, 1.0, 1.0, 1.0], 0.02, 1.0, REPRODUCED),  # no spread, no doubt
    ([0.3, 0.3, 0.3, 0.3], 0.1, None, UNDECIDED),  # a seed too few
]


@pytest.mark.parametrize(("values", "smallest", "near", "verdict"), VERDICTS)
def test_verdicts(values, smallest, near, verdict):
    table = {(seed, "a=1"): {"x": number} for seed, number in enumerate(values)}
    claim = Claim("c", "", value("x", a=1), smallest=smallest, near=near)
    (found,) = decide([claim], table, tuple(range(5)))
    assert found.verdict == verdict
    assert found.mean == pytest.approx(np.mean(values))


def test_a_ratio_to_nothing_decides_nothing():
    """And leaves the verdicts on other claims as they are."""
    table = {(s, f"m={m}"): {"x": 1.0 + s * (m == "a")} for s in range(5) for m in "ab"}
    claims = [Claim("sum", "", value("x", m="a") + value("x", m="b"), smallest=0.1)]
    (alone,) = decide([*claims, claims[0]], table, tuple(range(5)))[:1]
    table[3, "m=b"] = {"x": 0.0}
    table[3, "m=a"] = {"x": 5.0}
    ratio = Claim("ratio", "", value("x", m="a") / value("x", m="b"), smallest=0.1)
    found = decide([*claims, ratio], table, tuple(range(5)))
    assert [each.verdict for each in found] == [REPRODUCED, UNDECIDED] and np.isnan(found[1].mean)
    assert found[0].p_for == pytest.approx(alone.p_for)


def test_effects_are_read_seed_by_seed():
    table = {(s, f"m={m}"): {"x": 10.0 * s + i} for s in range(3) for i, m in enumerate("abcd")}
    a, b, c, d = (value("x", m=m) for m in "abcd")
    assert ((a - b) - (c - d)).per_seed(table, (0, 1, 2)) == {0: 0.0, 1: 0.0, 2: 0.0}
    assert (d / (b * 2.0)).per_seed(table, (0,)) == {0: 1.5}
    assert str((a - b) * 2.0) == "(x[m=a] - x[m=b]) * 2"
    assert str((a / a).per_seed(table, (0, 1))) == "{0: nan, 1: 1.0}"  # of seed 0 it is 0 / 0
    del table[1, "m=b"]
    assert (a - b).per_seed(table, (0, 1, 2)) == {0: -1.0, 2: -1.0}
