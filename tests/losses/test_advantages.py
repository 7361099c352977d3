import jax
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.losses.advantages import gae, kl_estimate, shape_scores, token_rewards, whiten

from .oracle import assert_close

MASKS = {
    "full": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
    "padded": [[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]],
    "holes": [[0, 1, 0, 0, 1, 1], [1, 0, 1, 0, 1, 0]],
    "one token and none": [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
}

jitted_gae = jax.jit(gae)


def np_gae(rewards, values, mask, gamma, lam, bootstrap):
    """The definition: A_t = Σ_l (γλ)^l δ_{t+l}, over the masked tokens of a row only."""
    advantages = np.zeros(rewards.shape)
    for row in range(len(rewards)):
        steps = np.flatnonzero(mask[row])
        reward, value = rewards[row, steps], np.append(values[row, steps], bootstrap[row])
        delta = reward + gamma * value[1:] - value[:-1]
        for i, t in enumerate(steps):
            advantages[row, t] = sum((gamma * lam) ** (j - i) * delta[j] for j in range(i, len(steps)))
    return advantages, advantages + values * mask


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.9, 0.0)])
@pytest.mark.parametrize("bootstrap", [None, [0.7, -1.2]])
def test_gae_matches_the_quadratic_definition(mask, gamma, lam, bootstrap):
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 2, 6)).astype(np.float32)
    mask = np.array(mask, np.float32)
    expected = np_gae(rewards.astype(float), values, mask, gamma, lam, bootstrap or [0, 0])
    rewards[mask == 0] = np.nan
    values[mask == 0] = np.inf
    bootstrap = None if bootstrap is None else np.array(bootstrap, np.float32)
    actual = jitted_gae(rewards, values, mask, gamma=gamma, lam=lam, bootstrap=bootstrap)
    for x, wanted in zip(actual, expected, strict=True):
        assert_close(x, wanted)


def test_with_lambda_one_the_return_is_the_discounted_sum_of_rewards():
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(2, 1, 6)).astype(np.float32)
    _, returns = gae(rewards, values, np.ones((1, 6), np.float32), gamma=0.9, lam=1.0)
    expected = [sum(0.9 ** (j - i) * rewards[0, j] for j in range(i, 6)) for i in range(6)]
    assert_close(returns[0], expected)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten(shift_mean):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 5, (4, 6)).astype(np.float32)
    mask = (rng.random((4, 6)) < 0.5).astype(np.float32)
    kept = x[mask != 0].astype(float)
    expected = np.where(mask, (x - kept.mean()) / kept.std() + (0 if shift_mean else kept.mean()), 0)
    x[mask == 0] = np.nan
    assert_close(whiten(x, mask, shift_mean=shift_mean), expected)


def test_whiten_of_nothing_and_of_a_constant_is_zero():
    ones = np.ones((2, 3), np.float32)
    assert not np.any(whiten(ones, 0 * ones))
    assert not np.any(whiten(ones, ones))


def test_kl_estimators():
    rng = np.random.default_rng(0)
    logp, ref_logp = -rng.exponential(2.0, (2, 3, 4)).astype(np.float32)
    ratio = np.exp(ref_logp.astype(float) - logp)
    assert_close(kl_estimate(logp, ref_logp, "k1"), -np.log(ratio))
    assert_close(kl_estimate(logp, ref_logp, "k2"), np.log(ratio) ** 2 / 2)
    assert_close(kl_estimate(logp, ref_logp, "k3"), ratio - 1 - np.log(ratio))
    for kind in ("k1", "k2", "k3"):
        assert not np.any(kl_estimate(logp, logp, kind))
    with pytest.raises(ConfigError, match="KL estimator is 'k4'; choose k1, k2 or k3"):
        kl_estimate(logp, ref_logp, "k4")


def test_k1_and_k3_are_unbiased():
    rng = np.random.default_rng(0)
    p, q = (np.exp(x) / np.exp(x).sum() for x in rng.normal(size=(2, 9)))
    logp, logq = np.log(p).astype(np.float32), np.log(q).astype(np.float32)
    exact = (p * np.log(p / q)).sum()
    for kind in ("k1", "k3"):
        np.testing.assert_allclose((p * kl_estimate(logp, logq, kind)).sum(), exact, rtol=1e-5)


def test_the_score_lands_on_the_last_masked_token():
    mask = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], np.float32)
    kl = np.arange(16, dtype=np.float32).reshape(4, 4)
    kl[mask == 0] = np.nan
    scores = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    expected = [[0, -0.1, -0.2 + 1, 0], [-0.4, -0.5, -0.6, -0.7 + 2], [-0.8, 0, -1.0 + 3, 0], [0, 0, 0, 0]]
    assert_close(token_rewards(scores, kl, mask, kl_coef=0.1), expected)


def test_shape_scores_scales_then_clips_then_penalises():
    scores = np.array([1.0, 4.0, -4.0, 1.0, 4.0], np.float32)
    has_eos = np.array([True, True, True, False, False])
    shaped = shape_scores(scores, has_eos=has_eos, missing_eos_penalty=1.5, clip=5.0, scale=2.0)
    assert_close(shaped, [2, 5, -5, 0.5, 3.5])
    assert_close(shape_scores(scores, has_eos=has_eos), scores)


def test_bad_arrays_are_refused():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"bootstrap has shape \(3,\); rows of \(2, 3\) need \(2,\)"):
        gae(x, x, x, gamma=1.0, lam=1.0, bootstrap=x[0])
    with pytest.raises(TypeError, match="mask is int32"):
        gae(x, x, x.astype(np.int32), gamma=1.0, lam=1.0)
    with pytest.raises(TypeError, match="x is float64"):
        whiten(x.astype(np.float64), x)
    with pytest.raises(TypeError, match="ref_logp is bool"):
        kl_estimate(x, x > 0, "k1")
    with pytest.raises(TypeError, match="scores is int32"):
        token_rewards(x[:, 0].astype(np.int32), x, x, kl_coef=0.1)
    with pytest.raises(TypeError, match="has_eos is float32; give a bool array"):
        shape_scores(x[:, 0], has_eos=x[:, 0])
    with pytest.raises(ValueError, match="shapes differ"):
        shape_scores(x[:, 0], has_eos=x[0] > 0)
