"""What an optimisation gains on its way, and what it costs."""

import json

import numpy as np
import pytest

from jaxalign.ablation.costs import Leg, cost_of, course, trained_flops
from jaxalign.ablation.frontier import best_point, gain_at, gain_at_equal_length, halves


def test_the_best_point_of_one_half_is_measured_on_the_other():
    assert halves(np.array([1.0, 2.0, 3.0, 4.0])).tolist() == [2.0, 3.0]
    gold = np.array([[0.0, 0.9, 0.5], [0.0, 0.1, 0.4]])
    top, at = best_point(gold)
    assert at == [1, 2] and top == pytest.approx((0.1 + 0.5) / 2)


def test_a_gain_is_read_off_at_a_kl_in_whatever_order_the_points_are():
    d, gain = np.array([0.0, 2.0, 1.0]), np.array([0.0, 0.4, 0.3])
    assert gain_at(d, gain, 1.0) == pytest.approx(0.3)
    assert gain_at(d, gain, 2.25) == pytest.approx(0.35)
    assert gain_at(d, gain, 100.0) == pytest.approx(0.4)


def test_a_gain_that_is_all_length_is_none_at_equal_length():
    rng = np.random.default_rng(0)
    short, long = rng.integers(4, 20, 4_000), rng.integers(12, 28, 4_000)
    kinds = rng.choice(["fact", "harmful"], 4_000)
    worth = short // 4 / 10, long // 4 / 10
    assert worth[1].mean() - worth[0].mean() > 0.1
    assert gain_at_equal_length(worth[1], long, (worth[0], short), kinds, 4) == pytest.approx(0, abs=1e-12)
    better = gain_at_equal_length(worth[1] + 0.2, long, (worth[0], short), kinds, 4)
    assert better == pytest.approx(0.2)
    assert (
        gain_at_equal_length(worth[1], long + 100, (worth[0], short), kinds, 4) == 0.0
    )  # nothing to compare


def test_costs_add_up_over_runs(tmp_path):
    legs = []
    for name in ("one", "two"):
        lines = [
            {"step": 1, "kind": "train", "values": {"perf/total_flos": 10.0}},
            {"step": 2, "kind": "eval", "values": {"kl": 0.5}},
            {"step": 3, "kind": "train", "values": {"perf/total_flos": 30.0, "perf/step_time": 2.0}},
            {"step": 3, "kind": "eval", "values": {"kl": 0.7}},
        ]
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(line | {"time": 0.0}) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
        legs.append(Leg(tmp_path / name, flops=90.0, seconds=3.0))
    found = course(legs, ("kl",))
    assert found["kl"].tolist() == [0.5, 0.7, 0.5, 0.7]
    assert found["flops"].tolist() == [80.0, 120.0, 200.0, 240.0]
    assert trained_flops(tmp_path) == 60.0
    assert found["seconds"].tolist() == [6.0, 9.0, 15.0, 18.0]


def test_the_cost_of_a_gain_lies_between_the_points_around_it():
    costs = np.array([0.0, 100.0, 200.0])
    assert cost_of(np.array([0.0, 0.04, 0.08]), costs, 0.05) == (pytest.approx(125.0), True)
    assert cost_of(np.array([0.0, 0.04, 0.02]), costs, 0.05) == (200.0, False)
