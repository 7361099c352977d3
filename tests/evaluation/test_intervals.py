"""Intervals against scipy and against how often they should cover."""

import numpy as np
import pytest
from scipy import stats

from jaxalign.evaluation import mean_interval, proportion_interval, win_rate


def test_mean_interval_is_the_normal_one():
    x = np.random.default_rng(0).normal(3.0, 2.0, 50)
    low, high = stats.norm.interval(0.95, loc=x.mean(), scale=stats.sem(x))
    assert mean_interval(x) == pytest.approx((x.mean(), low, high))


def test_one_value_has_no_interval():
    mean, low, high = mean_interval([0.5])
    assert mean == 0.5 and np.isnan(low) and np.isnan(high)


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (20, 20), (7, 30), (450, 600)])
def test_proportion_interval_is_wilsons(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert proportion_interval(hits, count) == pytest.approx(
        (hits / count, expected.low, expected.high), abs=1e-6
    )


def test_mean_interval_covers_the_truth_95_times_in_100():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        _, low, high = mean_interval(rng.uniform(size=100))
        inside += low <= 0.5 <= high
    assert 0.93 < inside / 2000 < 0.965


def test_win_rate_counts_ties_half():
    mean, low, high = win_rate([1.0, 0.5, 0.0, 0.7], [0.0, 0.5, 1.0, 0.2])
    assert mean == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert low < mean < high
    assert win_rate([0.3, 0.3], [0.3, 0.3]) == (0.5, 0.5, 0.5)
