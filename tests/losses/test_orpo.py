import jax
import numpy as np
import pytest

from jaxalign.losses.metrics import finalize

from .flat import orpo_loss
from .oracle import assert_close, check_loss, log_sigmoid, weighted_mean


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 7, (3, 3, 4)).astype(np.float32)
    return {
        "chosen_logp": -rng.uniform(0.2, 12, (3, 4)).astype(np.float32),
        "rejected_logp": -rng.uniform(0.2, 12, (3, 4)).astype(np.float32),
        "chosen_length": lengths[0],
        "rejected_length": lengths[1],
        "nll": rng.uniform(1, 9, (3, 4)).astype(np.float32),
        "nll_length": lengths[2],
        "weight": (rng.random((3, 4)) < 0.7).astype(np.float32),
    }


def log_odds(logp, length):
    p = np.exp(logp / length)
    return np.log(p / (1 - p))


def np_log_odds(x):
    return log_odds(x["chosen_logp"], x["chosen_length"]) - log_odds(x["rejected_logp"], x["rejected_length"])


def oracle(**x):
    nll = np.sum(x["weight"] * x["nll"]) / np.sum(x["weight"] * x["nll_length"])
    return nll + 0.4 * weighted_mean(-log_sigmoid(np_log_odds(x)), x["weight"])


def test_value_gradients_and_metrics(arrays):
    metrics = check_loss(
        lambda **x: orpo_loss(**x, coef=0.4), oracle, arrays, ["chosen_logp", "rejected_logp", "nll"]
    )
    x = {name: a.astype(np.float64) for name, a in arrays.items()}
    chosen, rejected = x["chosen_logp"] / x["chosen_length"], x["rejected_logp"] / x["rejected_length"]
    expected = {
        "log_odds_ratio": log_sigmoid(np_log_odds(x)),
        "log_odds_chosen": np_log_odds(x),
        "rewards/chosen": 0.4 * chosen,
        "rewards/rejected": 0.4 * rejected,
        "rewards/margins": 0.4 * (chosen - rejected),
        "rewards/accuracies": (chosen > rejected).astype(float),
        "logps/chosen": chosen,
        "logps/rejected": rejected,
    }
    final = finalize(metrics)
    for name, value in expected.items():
        assert_close(final[name], weighted_mean(value, x["weight"]))
    assert_close(final["nll_loss"], np.sum(x["weight"] * x["nll"]) / np.sum(x["weight"] * x["nll_length"]))
    assert final.keys() == {*expected, "nll_loss"}


def test_demonstrations_count_in_the_likelihood_alone(arrays):
    """A pair of weight 0 that keeps its NLL: both terms against their own weighted means."""
    shown = arrays["weight"].copy()
    arrays = arrays | {"weight": arrays["weight"] * np.float32([1, 0, 1, 0])}
    value, metrics = orpo_loss(**arrays, coef=0.4, nll_weight=shown)
    x = {name: a.astype(np.float64) for name, a in arrays.items()}
    nll = np.sum(shown * x["nll"]) / np.sum(shown * x["nll_length"])
    assert_close(finalize(metrics)["nll_loss"], nll)
    assert_close(value, nll - 0.4 * weighted_mean(log_sigmoid(np_log_odds(x)), x["weight"]))


def test_equally_likely_responses_cost_ln_2(arrays):
    same = arrays | {"rejected_logp": arrays["chosen_logp"], "rejected_length": arrays["chosen_length"]}
    assert_close(orpo_loss(**same, coef=1.0)[0] - orpo_loss(**same, coef=0.0)[0], np.log(2))


@pytest.mark.parametrize("chosen, rejected", [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e-30, -1e4)])
def test_certainty_is_finite(arrays, chosen, rejected):
    extreme = arrays | {
        "chosen_logp": np.full((3, 4), chosen, np.float32),
        "rejected_logp": np.full((3, 4), rejected, np.float32),
    }

    def loss(chosen_logp, rejected_logp):
        return orpo_loss(**extreme | {"chosen_logp": chosen_logp, "rejected_logp": rejected_logp}, coef=1.0)[
            0
        ]

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(
        extreme["chosen_logp"], extreme["rejected_logp"]
    )
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
