import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.metrics import (
    Difference,
    Last,
    Max,
    Mean,
    Min,
    finalize,
    masked_max,
    masked_mean,
    masked_min,
    masked_std,
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


@pytest.mark.parametrize("xp", [jnp, np])
def test_deviations_merge_to_that_of_the_whole(xp):
    """Slices of several entries, of one and of none; far from zero, where squares would lose the deviation."""
    rng = np.random.default_rng(1)
    x = (1000.0 + rng.normal(size=(4, 3, 5))).astype(np.float32)
    mask = (rng.random(x.shape) < 0.4).astype(np.float32)
    mask[1], mask[2] = 0, 0
    mask[2, 1, 1] = 1
    slices = [{"std": masked_std(*xs)} for xs in zip(x, mask, strict=True)]
    alone = [finalize(each, xp)["std"] for each in slices]
    assert alone[1] == alone[2] == 0.0
    np.testing.assert_allclose(alone[0], x[0][mask[0] > 0].std(ddof=1, dtype=np.float64), rtol=1e-4)
    stacked = jax.tree.map(lambda *leaves: xp.stack([xp.asarray(leaf) for leaf in leaves]), *slices)
    whole = finalize(merge(stacked, xp), xp)["std"]
    np.testing.assert_allclose(whole, x[mask > 0].std(ddof=1, dtype=np.float64), rtol=1e-4)


@pytest.mark.parametrize("xp", [jnp, np])
def test_differences_and_last_values(xp):
    def difference(*numbers):
        return {"x": Difference(*(xp.asarray(number, np.float32) for number in numbers))}

    assert finalize(difference(6.0, 3.0, 5.0, 2.0), xp) == {"x": 6 / 3 - 5 / 2}
    assert (
        finalize(difference(6.0, 3.0, 0.0, 0.0), xp)
        == finalize(difference(0.0, 0.0, 5.0, 2.0), xp)
        == {"x": 0.0}
    )
    # Sums of the slices, of which the first has entries on one side alone.
    merged = merge(difference([4.0, 2.0], [1.0, 2.0], [0.0, 5.0], [0.0, 2.0]), xp)
    assert finalize(merged, xp) == {"x": 6 / 3 - 5 / 2}
    last = merge({"x": Last(xp.asarray([3.0, 7.0, 5.0], np.float32))}, xp)
    assert finalize(last, xp) == {"x": 5.0}
