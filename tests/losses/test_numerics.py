import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.numerics import keep, log1mexp, require_float32

from .oracle import assert_close


@pytest.mark.slow
def test_log1mexp_matches_float64_from_rounding_noise_to_certainty():
    x = -np.logspace(-6.5, 4, 400).astype(np.float32)
    exact = x.astype(np.float64)
    expected = np.where(exact > -1, np.log(-np.expm1(exact)), np.log1p(-np.exp(np.minimum(exact, -1))))
    np.testing.assert_allclose(log1mexp(x), expected, rtol=1e-6, atol=1e-37)
    slope = jax.vmap(jax.grad(log1mexp))(x)
    np.testing.assert_allclose(slope, np.exp(exact) / np.expm1(exact), rtol=1e-5, atol=1e-37)


def test_log1mexp_is_finite_at_the_ends():
    for x in (0.0, -0.0, -1e-45, -1e-30, -1e-7, -1e4, -3e38):
        value, slope = jax.value_and_grad(log1mexp)(jnp.float32(x))
        assert np.isfinite(value) and np.isfinite(slope), x


def test_keep_shields_gradients_from_excluded_entries():
    x, mask = jnp.array([4.0, -1.0, np.nan, np.inf]), jnp.array([1.0, 0.0, 0.0, 0.0])
    assert_close(jax.grad(lambda x: jnp.sum(jnp.sqrt(keep(x, mask, 1.0))))(x), [0.25, 0, 0, 0])


def test_require_float32_names_the_array():
    good = jnp.zeros((2, 3))
    require_float32(a=good, b=None)
    with pytest.raises(TypeError, match=r"b is bfloat16; .* use b.astype"):
        require_float32(a=good, b=good.astype(jnp.bfloat16))
    with pytest.raises(TypeError, match="b is float;"):
        require_float32(b=1.0)
    with pytest.raises(ValueError, match=r"a \(2, 3\), b \(2, 1\)"):
        require_float32(a=good, b=good[:, :1])
