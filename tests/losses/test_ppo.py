import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.losses.metrics import finalize
from jaxalign.losses.ppo import PPOObjective, adaptive_kl, value_loss

from .flat import policy_loss
from .oracle import assert_close, check_loss, weighted_mean


def policy_arrays():
    rng = np.random.default_rng(0)
    return {
        "logp": -rng.uniform(1, 2, (3, 8)).astype(np.float32),
        "old_logp": -rng.uniform(1, 2, (3, 8)).astype(np.float32),
        "advantages": rng.normal(size=(3, 8)).astype(np.float32),
        "entropy": rng.uniform(0, 3, (3, 8)).astype(np.float32),
        "mask": (rng.random((3, 8)) < 0.7).astype(np.float32),
    }


def value_arrays():
    rng = np.random.default_rng(1)
    arrays = {
        name: rng.normal(size=(3, 8)).astype(np.float32) for name in ("values", "old_values", "returns")
    }
    return arrays | {"mask": (rng.random((3, 8)) < 0.7).astype(np.float32)}


@pytest.mark.parametrize("high, entropy_coef", [(None, 0.0), (0.4, 0.0), (None, 0.05)])
def test_policy_loss(high, entropy_coef):
    def surrogate(x):
        ratio = np.exp(x["logp"] - x["old_logp"])
        bounded = np.clip(ratio, 0.8, 1 + (high or 0.2))
        return ratio, ratio * x["advantages"], bounded * x["advantages"]

    def oracle(**x):
        _, free, bounded = surrogate(x)
        return weighted_mean(-np.minimum(free, bounded) - entropy_coef * x["entropy"], x["mask"])

    arrays = policy_arrays()
    metrics = check_loss(
        lambda **x: policy_loss(**x, clip=0.2, clip_high=high, entropy_coef=entropy_coef),
        oracle,
        arrays,
        ["logp", "entropy"] if entropy_coef else ["logp"],
    )
    x = {name: a.astype(np.float64) for name, a in arrays.items()}
    ratio, free, bounded = surrogate(x)
    expected = {
        "loss/policy_avg": -np.minimum(free, bounded),
        "policy/clipfrac_avg": (bounded < free).astype(float),
        "policy/approxkl_avg": (x["logp"] - x["old_logp"]) ** 2 / 2,
        "policy/entropy_avg": x["entropy"],
        "val/ratio": ratio,
        "val/ratio_sq": ratio**2,
    }
    final = finalize(metrics)
    assert final.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(final[name], weighted_mean(value, x["mask"]))
    assert 0 < final["policy/clipfrac_avg"] < 1


def test_before_the_first_update_the_gradient_is_the_policy_gradient():
    x = policy_arrays()
    x["old_logp"] = x["logp"]
    del x["entropy"]
    gradient, metrics = jax.grad(lambda logp: policy_loss(**x | {"logp": logp}, clip=0.2), has_aux=True)(
        x["logp"]
    )
    assert_close(gradient, -x["advantages"] * x["mask"] / x["mask"].sum())
    final = finalize(metrics)
    assert final["val/ratio"] == 1 and final["policy/approxkl_avg"] == final["policy/clipfrac_avg"] == 0


@pytest.mark.parametrize("log_ratio", [1e4, 21.0, -1e4])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_extreme_log_ratios_are_held_at_twenty(log_ratio, advantage):
    x = {"old_logp": [[0.0]], "advantages": [[advantage]], "mask": [[1.0]]}
    x = {name: np.array(value, np.float32) for name, value in x.items()}
    loss, gradient = jax.jit(jax.value_and_grad(lambda logp: policy_loss(logp=logp, **x, clip=0.2)[0]))(
        np.array([[log_ratio]], np.float32)
    )
    ratio = np.exp(np.clip(log_ratio, -20, 20))
    assert_close(loss, -min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage))
    assert gradient == 0


def test_constants_of_the_update_get_no_gradient():
    x = policy_arrays()
    wrt = {name: x.pop(name) for name in ("old_logp", "advantages")}
    gradients = jax.grad(lambda wrt: policy_loss(**wrt, **x, clip=0.2)[0])(wrt)
    x = value_arrays()
    wrt = {name: x.pop(name) for name in ("old_values", "returns")}
    gradients |= jax.grad(lambda wrt: value_loss(**wrt, **x, clip=0.2)[0])(wrt)
    assert not any(np.any(g) for g in gradients.values())


def test_entropy_bonus_needs_entropy():
    x = policy_arrays()
    del x["entropy"]
    with pytest.raises(ConfigError, match=r"entropy_coef=0\.1 needs entropy"):
        policy_loss(**x, clip=0.2, entropy_coef=0.1)
    assert "policy/entropy_avg" not in policy_loss(**x, clip=0.2)[1]


@pytest.mark.parametrize("clip", [0.2, 0.7, np.inf])
def test_value_loss(clip):
    def squares(x):
        bounded = np.clip(x["values"], x["old_values"] - clip, x["old_values"] + clip)
        return (x["values"] - x["returns"]) ** 2, (bounded - x["returns"]) ** 2

    def oracle(**x):
        return weighted_mean(0.5 * np.maximum(*squares(x)), x["mask"])

    arrays = value_arrays()
    final = finalize(check_loss(lambda **x: value_loss(**x, clip=clip), oracle, arrays, ["values"]))
    free, bounded = squares(arrays)
    assert_close(final["val/clipfrac_avg"], weighted_mean((bounded > free).astype(float), arrays["mask"]))
    assert_close(final["loss/value_avg"], oracle(**arrays))


def test_adaptive_kl_follows_the_clipped_proportional_error():
    for kl, error in ((6.6, 0.1), (5.4, -0.1), (100.0, 0.2), (0.0, -0.2), (6.0, 0.0)):
        new = adaptive_kl(jnp.float32(0.05), jnp.float32(kl), target=6.0, horizon=10_000, num_samples=512)
        assert_close(new, 0.05 * (1 + error * 512 / 10_000))
    with pytest.raises(TypeError, match="kl is float"):
        adaptive_kl(jnp.float32(0.05), 6.0, target=6.0, horizon=1, num_samples=1)


@pytest.mark.parametrize("settings", [{"clip": 0.0}, {"clip_high": -0.1}])
def test_a_clip_range_that_is_not_positive_is_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ConfigError, match=rf"config\.ppo\.{name}={value} must be a positive"):
        PPOObjective(**settings)
