"""Intervals against scipy and against how often they should cover."""

import numpy as np
import pytest
from scipy import stats

from jaxalign.evaluation import mean_interval, proportion_interval, ratio_interval, win_rate


@pytest.mark.parametrize("count", [2, 5, 50])
def test_mean_interval_is_students(count):
    x = np.random.default_rng(0).normal(3.0, 2.0, count)
    low, high = stats.t.interval(0.95, count - 1, loc=x.mean(), scale=stats.sem(x))
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


@pytest.mark.parametrize("count", [5, 100])
def test_mean_interval_covers_the_truth_95_times_in_100(count):
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        _, low, high = mean_interval(rng.normal(size=count))
        inside += low <= 0 <= high
    assert 0.935 < inside / 2000 < 0.965


@pytest.mark.parametrize("rate", [0.5, 0.95])
def test_win_rate_of_ten_questions_covers_the_truth(rate):
    """The whole distribution, not a sample of it: 10 questions have 11 outcomes."""
    intervals = [win_rate([1.0] * wins + [0.0] * (10 - wins), [0.5] * 10) for wins in range(11)]
    chances = stats.binom.pmf(range(11), 10, rate)
    covered = sum(p for p, (_, low, high) in zip(chances, intervals, strict=True) if low <= rate <= high)
    assert covered > 0.9
    assert all(0 <= low <= mean <= high <= 1 for mean, low, high in intervals)


def test_all_wins_leave_room_for_a_loss():
    expected = stats.binomtest(10, 10).proportion_ci(method="wilson")
    assert win_rate(range(1, 11), [0] * 10) == pytest.approx((1.0, expected.low, 1.0))


def test_win_rate_counts_ties_half():
    mean, low, high = win_rate([1.0, 0.5, 0.0, 0.7], [0.0, 0.5, 1.0, 0.2])
    assert mean == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert low < mean < high
    assert win_rate([0.3, 0.3], [0.3, 0.3]) == proportion_interval(1, 2)


def test_what_has_no_rate():
    assert all(np.isnan(proportion_interval(0, 0))) and all(np.isnan(mean_interval([])))
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(1,\)"):
        win_rate([1, 2, 3], [2])
    with pytest.raises(ValueError, match=r"shapes \(1, 2\)"):
        win_rate([[1, 2]], [[2, 1]])
    for mine, theirs in ([1, float("nan")], [2, 0]), ([1, 2], [float("inf"), 0]):
        with pytest.raises(ValueError, match="not a finite number"):
            win_rate(mine, theirs)
    for hits, count in (5, 4), (-1, 4), (1, 0):
        with pytest.raises(ValueError, match=f"{hits} hits of {count}"):
            proportion_interval(hits, count)
    assert all(np.isnan(ratio_interval([1.0, 2.0], [0.0, 0.0])))
    assert ratio_interval([1.0, 2.0], [0.0, 0.5])[0] == 6.0


def test_a_ratio_of_sums_weighs_long_units_more_and_covers_the_truth():
    """Nats over tokens, of texts whose longer ones are also the harder ones."""
    assert ratio_interval([2.0, 30.0], [1.0, 10.0])[0] == pytest.approx(32 / 11)
    same = ratio_interval([1.0, 2.0, 4.5], [1.0, 1.0, 1.0])
    assert same == pytest.approx(mean_interval([1.0, 2.0, 4.5]))
    assert ratio_interval([1.0, 2.0], [2.0, 2.0]) == pytest.approx(mean_interval([0.5, 1.0]))
    assert all(np.isnan(ratio_interval([], []))) and np.isnan(ratio_interval([1.0], [2.0])[1])
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(2000):
        length = rng.integers(5, 50, 40)
        nats = length * (1.0 + length / 50 + rng.normal(0, 0.3, 40))
        _, low, high = ratio_interval(nats, length)
        lengths = np.arange(5, 50)
        inside += low <= (lengths * (1 + lengths / 50)).sum() / lengths.sum() <= high
    assert 0.93 < inside / 2000 < 0.965
