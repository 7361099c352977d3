import numpy as np
import pytest

from jaxalign.losses import running_moments

from .oracle import assert_close


def test_without_data_both_directions_are_the_identity():
    x = np.linspace(-3, 3, 7, dtype=np.float32)
    empty = running_moments.init()
    assert_close(running_moments.normalize(empty, x), x, 0)
    assert_close(running_moments.denormalize(empty, x), x, 0)


def test_one_update_gives_the_batch_s_own_moments_whatever_the_decay():
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (4, 50)).astype(np.float32)
    mask = (rng.random(x.shape) < 0.5).astype(np.float32)
    kept = x[mask != 0].astype(float)
    dirty = np.where(mask, x, np.float32(np.nan))
    for decay in (0.0, 0.9, 0.99995):
        moments = running_moments.update(running_moments.init(), dirty, mask, decay)
        assert_close(running_moments.normalize(moments, x), (x - kept.mean()) / kept.std(), 1e-4)


def test_many_updates_match_the_weighted_average_of_all_batches():
    rng = np.random.default_rng(1)
    batches = rng.normal(1, 2, (6, 30)).astype(np.float32)
    moments = running_moments.init()
    for batch in batches:
        moments = running_moments.update(moments, batch, np.ones_like(batch), 0.8)
    weight = 0.2 * 0.8 ** np.arange(5, -1, -1)
    batches = batches.astype(float)
    mean = (weight * batches.mean(1)).sum() / weight.sum()
    variance = (weight * (batches**2).mean(1)).sum() / weight.sum() - mean**2
    assert_close(moments.debias, weight.sum())
    x = np.linspace(-5, 5, 9, dtype=np.float32)
    assert_close(running_moments.normalize(moments, x), (x - mean) / np.sqrt(variance))
    assert_close(running_moments.denormalize(moments, x), x * np.sqrt(variance) + mean)


def test_an_empty_batch_changes_nothing():
    x = np.array([1.0, 4.0], np.float32)
    moments = running_moments.update(running_moments.init(), x, np.ones_like(x), 0.9)
    assert running_moments.update(moments, x, np.zeros_like(x), 0.9) == moments


def test_constant_returns_stay_finite_and_invertible():
    x = np.full(8, 2.5, np.float32)
    moments = running_moments.update(running_moments.init(), x, np.ones_like(x), 0.99995)
    normal = running_moments.normalize(moments, x)
    assert np.isfinite(normal).all()
    assert_close(running_moments.denormalize(moments, normal), x)


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="x is float64"):
        running_moments.normalize(running_moments.init(), np.zeros(2))
