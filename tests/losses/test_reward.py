from math import comb

import numpy as np
import pytest

from jaxalign.losses.metrics import finalize
from jaxalign.losses.reward import bradley_terry_loss

from .oracle import assert_close, check_loss, log_sigmoid, weighted_mean


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(0, 2, (2, 3, 4)).astype(np.float32)
    weight = rng.random((3, 4)).astype(np.float32) * (rng.random((3, 4)) < 0.7)
    margin = rng.random((3, 4)).astype(np.float32)
    return {"chosen": chosen, "rejected": rejected, "weight": weight.astype(np.float32), "margin": margin}


@pytest.mark.parametrize("centering", [0.0, 0.03])
def test_loss_with_margin_and_centering(arrays, centering):
    def oracle(chosen, rejected, weight, margin):
        loss = -log_sigmoid(chosen - rejected - margin) + centering * (chosen + rejected) ** 2
        return weighted_mean(loss, weight)

    metrics = check_loss(
        lambda **x: bradley_terry_loss(**x, centering=centering), oracle, arrays, ["chosen", "rejected"]
    )
    assert_close(finalize(metrics)["loss"], oracle(**{k: x.astype(np.float64) for k, x in arrays.items()}))


def test_loss_without_margin(arrays):
    del arrays["margin"]
    check_loss(
        bradley_terry_loss,
        lambda chosen, rejected, weight: weighted_mean(-log_sigmoid(chosen - rejected), weight),
        arrays,
        ["chosen", "rejected"],
    )


def test_metrics_by_hand():
    chosen = np.array([2.0, 1.0, 0.5, 9.0], np.float32)
    rejected = np.array([1.0, 3.0, 0.5, -9.0], np.float32)
    weight = np.array([1.0, 1.0, 2.0, 0.0], np.float32)
    final = finalize(bradley_terry_loss(chosen, rejected, weight)[1])
    assert final["accuracy"] == (1 + 0 + 2 * 0.5) / 4
    assert final["margin"] == (1 - 2 + 0) / 4
    assert final["mean_reward"] == (3 + 4 + 2 * 1) / 8
    assert (final["min_reward"], final["max_reward"]) == (0.5, 3.0)


def test_equal_scores_cost_ln_2():
    scores = np.array([-1e4, 0, 3, 1e4], np.float32)
    assert_close(bradley_terry_loss(scores, scores, np.ones_like(scores))[0], np.log(2))


def test_ranking_of_k_responses_is_the_paper_s_double_sum():
    rng = np.random.default_rng(1)
    rewards, human = rng.normal(size=5), np.array([3.0, 1.0, 5.0, 2.0, 4.0])
    chosen, rejected = np.nonzero(human[:, None] > human[None, :])
    weight = np.full(len(chosen), 1 / comb(5, 2), np.float32)
    order = np.argsort(-human)
    expected = sum(
        -log_sigmoid(rewards[order[a]] - rewards[order[b]]) for a in range(5) for b in range(a + 1, 5)
    ) / comb(5, 2)
    rewards = rewards.astype(np.float32)
    assert_close(bradley_terry_loss(rewards[chosen], rewards[rejected], weight)[0], expected)
