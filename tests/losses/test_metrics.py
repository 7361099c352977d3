import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses.metrics import (
    Max,
    Mean,
    Min,
    finalize,
    masked_max,
    masked_mean,
    masked_min,
    merge,
    normalized,
)

from .oracle import assert_close


def collect(x, mask):
    return {"mean": masked_mean(x, mask), "max": masked_max(x, mask), "min": masked_min(x, mask)}


def test_merged_slices_equal_the_whole():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 5)).astype(np.float32)
    mask = (rng.random(x.shape) < 0.4).astype(np.float32)
    mask[1] = 0
    _, stacked = jax.lax.scan(lambda _, xs: (None, collect(*xs)), None, (x, mask))
    kept = x[mask != 0].astype(np.float64)
    merged = finalize(merge(stacked))
    assert_close(merged["mean"], kept.mean())
    assert_close(merged["max"], kept.max())
    assert_close(merged["min"], kept.min())


def test_excluded_entries_may_hold_anything():
    x = jnp.array([np.nan, 2.0, np.inf, -3.0, -np.inf])
    mask = jnp.array([0.0, 1.0, 0.0, 3.0, 0.0])
    final = finalize(collect(x, mask))
    assert final == {"mean": -7 / 4, "max": 2.0, "min": -3.0}


def test_nothing_counted_is_zero():
    x, mask = jnp.ones(3), jnp.zeros(3)
    assert finalize(collect(x, mask)) == {"mean": 0.0, "max": 0.0, "min": 0.0}
    assert jax.grad(lambda x: normalized(masked_mean(x, mask)))(x).tolist() == [0.0, 0.0, 0.0]


def test_types_survive_merging():
    stacked = {
        "a": Mean(jnp.array([1.0, 5.0]), jnp.array([1.0, 2.0])),
        "b": Max(jnp.array([1.0, 5.0])),
        "c": Min(jnp.array([1.0, 5.0])),
    }
    assert merge(stacked) == {"a": Mean(6.0, 3.0), "b": Max(5.0), "c": Min(1.0)}


def test_normalizer_replaces_the_own_weight():
    mean = Mean(jnp.float32(6.0), jnp.float32(3.0))
    assert normalized(mean) == 2.0
    assert normalized(mean, jnp.float32(12.0)) == 0.5
    assert normalized(mean, jnp.float32(0.0)) == 0.0
