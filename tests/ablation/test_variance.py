"""Shares of variance against least squares, by hand, and by simulation."""

import itertools

import numpy as np
import pytest

from jaxalign.ablation import Sources
from jaxalign.ablation.check import recorded
from jaxalign.ablation.files import load_study
from jaxalign.ablation.page import page_lines
from jaxalign.ablation.results import read_results
from jaxalign.ablation.variance import REST, SEEDS, TOGETHER, gather, share_intervals, shares, sums_of_squares
from jaxalign.errors import ConfigError


def residual(columns, y):
    return float(np.square(y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]).sum())


def test_sums_of_squares_are_those_of_nested_least_squares():
    """Each set of axes takes from the residual what its indicators explain beyond those of all smaller sets."""
    y = np.random.default_rng(0).normal(size=(4, 3, 2))
    cells = np.array(list(itertools.product(*map(range, y.shape))))

    def indicators(axes):
        level = np.ravel_multi_index(cells[:, axes].T, [y.shape[axis] for axis in axes])
        return np.eye(level.max() + 1)[level]

    columns, flat = np.ones((y.size, 1)), y.ravel()
    freedom = 0
    found = sums_of_squares(y)
    for count in (1, 2, 3):
        for axes in itertools.combinations(range(3), count):
            wider = np.column_stack([columns, indicators(list(axes))])
            square, own = found[axes]
            assert square == pytest.approx(residual(columns, flat) - residual(wider, flat), abs=1e-10)
            assert own == np.linalg.matrix_rank(wider) - np.linalg.matrix_rank(columns)
            columns, freedom = wider, freedom + own
    assert freedom == y.size - 1
    assert sum(x[0] for x in found.values()) == pytest.approx(np.square(y - y.mean()).sum())


def test_omega_squared_by_hand():
    """Two seeds and two levels: SS of the factor 16, of seeds 4, of the rest 1."""
    y = np.array([[0.0, 5.0], [3.0, 6.0]])
    assert sums_of_squares(y) == {(0,): (4.0, 1), (1,): (16.0, 1), (0, 1): (1.0, 1)}
    found = shares(y, ["data"])
    assert found == pytest.approx({"data": 15 / 22, SEEDS: 3 / 22, REST: 4 / 22})


def test_shares_are_those_that_made_the_numbers():
    """Fixed levels, seeds and noise of known variance; a share of factors whose levels are equal is around 0."""
    rng = np.random.default_rng(1)
    a, b = np.array([-2.0, 0.0, 2.0]), np.array([-1.0, 1.0])
    both = np.outer([1.0, -2.0, 1.0], [1.0, -1.0]) / 2
    seeds = rng.normal(size=(4000, 1, 1, 1))
    mean = a[:, None, None] + b[:, None] + both[..., None] + np.zeros(3)
    y = mean + seeds + 0.5 * rng.normal(size=(4000, 3, 2, 3))
    found = shares(y, ["a", "b", "c"])
    parts = {"a": 8 / 3, "b": 1.0, "c": 0.0, TOGETHER: 0.5, SEEDS: 1.0, REST: 0.25}
    whole = sum(parts.values())
    assert found == pytest.approx({name: part / whole for name, part in parts.items()}, abs=0.01)
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("count", "seeds", "noise"), [(8, 0.5, 0.7), (20, 0.5, 0.7), (20, 1.0, 0.3), (20, 0.1, 1.5)]
)
def test_intervals_of_shares_cover(count, seeds, noise):
    """Whatever of the differences is due to seeds; the share of seeds, a variance of a few numbers, least often."""
    rng = np.random.default_rng(0)
    mean = np.array([-1.0, 0.0, 1.0, 0.5])[:, None] + np.array([-0.3, 0.0, 0.3])

    def draw(count):
        return mean + seeds * rng.normal(size=(count, 1, 1)) + noise * rng.normal(size=(count, 4, 3))

    truth = shares(draw(20_000), ["a", "b"])
    inside = dict.fromkeys(truth, 0)
    for _ in range(100):
        for name, (share, low, high) in share_intervals(draw(count), ["a", "b"]).items():
            assert low <= share <= high
            inside[name] += low <= truth[name] <= high
    assert min(inside.values()) >= 80 and np.mean(list(inside.values())) >= 90


def test_a_design_that_is_not_crossed_is_refused_by_name():
    study, results = load_study("which_method"), read_results(recorded("which_method"))
    assert gather(study, study.sources, results).shape == (20, 5, 3)
    for factors, said in (
        ({"data": ("data",), "algorithm": ("method",)}, "have the same levels; name more keys"),
        (
            {"data": ("data",), "support": ("support", "quality"), "algorithm": ("method",)},
            r"no arm has the levels \(\('own',\), \('near', 'equal'\)",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            gather(study, Sources("gold", factors, ""), results)


def test_a_page_shares_out_what_its_study_asks_for():
    study, results = load_study("which_method"), read_results(recorded("which_method"))
    page = "\n".join(page_lines(study, results))
    found = shares(gather(study, study.sources, results), ["data", "algorithm"])
    assert f"| data | {found['data']:.3f} [" in page and "there is no verdict" in page
    assert found["data"] > found["algorithm"] > found[TOGETHER] > found[REST] > found[SEEDS]
