import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.losses.metrics import finalize
from jaxalign.losses.nll import nll_loss

from .oracle import assert_close, check_loss, weighted_mean


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "logp": -rng.exponential(size=(3, 5)).astype(np.float32),
        "mask": (rng.random((3, 5)) < 0.6).astype(np.float32),
        "logsumexp": rng.normal(5, 2, (3, 5)).astype(np.float32),
    }


def test_nll_is_the_mean_over_target_tokens(arrays):
    def oracle(logp, mask, logsumexp):
        return -weighted_mean(logp, mask)

    metrics = check_loss(nll_loss, oracle, arrays, ["logp"])
    assert set(metrics) == {"nll"}
    assert metrics["nll"].weight == arrays["mask"].sum()


def test_z_loss_adds_the_squared_log_normaliser(arrays):
    def oracle(logp, mask, logsumexp):
        return weighted_mean(-logp + 0.01 * logsumexp**2, mask)

    metrics = check_loss(lambda **x: nll_loss(**x, z_loss=0.01), oracle, arrays, ["logp", "logsumexp"])
    final = finalize(metrics)
    assert_close(final["nll"] + final["z_loss"], oracle(**arrays))
    assert_close(
        final["z_loss"], 0.01 * weighted_mean(arrays["logsumexp"].astype(np.float64) ** 2, arrays["mask"])
    )


def test_z_loss_needs_the_log_normaliser(arrays):
    with pytest.raises(ConfigError, match=r"z_loss=0\.1 needs logsumexp"):
        nll_loss(arrays["logp"], arrays["mask"], z_loss=0.1)
