import jax
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.losses import KTOObjective, finalize, kl_baseline, merge

from .flat import kto_loss
from .oracle import assert_close, check_loss, finite_difference, weighted_mean

BETA, D, U, Z = 0.3, 1.4, 0.8, 0.9


def make_arrays():
    rng = np.random.default_rng(0)
    arrays = {name: -rng.uniform(5, 15, (3, 4)).astype(np.float32) for name in ("logp", "ref_logp")}
    arrays["desirable"] = (rng.random((3, 4)) < 0.5).astype(np.float32)
    arrays["weight"] = (rng.random((3, 4)) < 0.8).astype(np.float32)
    arrays["weight"][0, 0] = 0.5
    return arrays


def entry_losses(x, z=Z, desirable_weight=1.0, undesirable_weight=1.0):
    """The paper's loss of a completion: λ_y - v(x, y)."""
    reward = x["logp"] - x["ref_logp"]
    gain, loss = (desirable_weight / (1 + np.exp(-BETA * (reward - z))),
                  undesirable_weight / (1 + np.exp(-BETA * (z - reward))))  # fmt: skip
    return np.where(x["desirable"], desirable_weight - gain, undesirable_weight - loss)


@pytest.mark.parametrize("weights", [{}, {"desirable_weight": D, "undesirable_weight": U}])
@pytest.mark.parametrize("variant, kl", [("kto", Z), ("apo_zero_unpaired", None)])
def test_value_and_gradients(weights, variant, kl):
    z = None if kl is None else np.float32(kl)
    check_loss(
        lambda **x: kto_loss(**x, beta=BETA, variant=variant, kl=z, **weights),
        lambda **x: weighted_mean(entry_losses(x, kl or 0.0, **weights), x["weight"]),
        make_arrays(),
        ["logp"],
    )


def test_metrics():
    arrays = make_arrays()
    x = {name: a.astype(np.float64) for name, a in arrays.items()}
    final = finalize(kto_loss(**arrays, beta=BETA, kl=np.float32(Z), desirable_weight=D)[1])
    reward = BETA * (x["logp"] - x["ref_logp"])
    chosen, rejected = x["weight"] * x["desirable"], x["weight"] * (1 - x["desirable"])
    expected = {
        "loss": weighted_mean(entry_losses(x, desirable_weight=D), x["weight"]),
        "rewards/chosen": weighted_mean(reward, chosen),
        "rewards/rejected": weighted_mean(reward, rejected),
        "rewards/margins": weighted_mean(reward, chosen) - weighted_mean(reward, rejected),
        "logps/chosen": weighted_mean(x["logp"], chosen),
        "logps/rejected": weighted_mean(x["logp"], rejected),
        "kl": Z,
    }
    assert final.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(final[name], value)


def test_desirable_may_be_bool():
    arrays = make_arrays()
    boolean = arrays | {"desirable": arrays["desirable"] != 0}
    assert kto_loss(**arrays, kl=np.float32(Z))[0] == kto_loss(**boolean, kl=np.float32(Z))[0]


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_the_baseline_is_the_mean_log_ratio_or_zero_and_constant(shift):
    rng = np.random.default_rng(1)
    ref_logp = -rng.uniform(5, 15, (3, 4)).astype(np.float32)
    logp = ref_logp + rng.normal(shift, 0.2, (3, 4)).astype(np.float32)
    weight = (rng.random((3, 4)) < 0.6).astype(np.float32)
    expected = max(0.0, weighted_mean(logp.astype(float) - ref_logp, weight))
    assert (expected > 0) == (shift > 0)
    logp[weight == 0] = np.nan
    assert_close(kl_baseline(logp, ref_logp, weight), expected)
    assert kl_baseline(logp, ref_logp, 0 * weight) == 0

    def loss(logp, kl_logp):
        kl = kl_baseline(kl_logp, ref_logp, weight)
        return kto_loss(logp=logp, ref_logp=ref_logp, desirable=weight, weight=weight, kl=kl)[0]

    gradients = jax.grad(loss, argnums=(0, 1))(ref_logp, logp)
    assert np.any(gradients[0]) and not np.any(gradients[1])


def test_slices_add_up_once_the_baseline_is_that_of_the_batch():
    """What a step with microbatches must do: one baseline of all rows, then the losses of the slices."""
    arrays = make_arrays()
    rng = np.random.default_rng(2)
    ref_kl = -rng.uniform(5, 15, (3, 4)).astype(np.float32)
    kl_logp = ref_kl + rng.normal(0.1, 1.0, (3, 4)).astype(np.float32)
    kl = kl_baseline(kl_logp, ref_kl, arrays["weight"])
    whole, metrics = kto_loss(**arrays, kl=kl)
    count = arrays["weight"].sum()
    parts, own = [], []
    for row in range(3):
        rows = {name: x[row : row + 1] for name, x in arrays.items()}
        parts.append(kto_loss(**rows, kl=kl, normalizer=count))
        of_slice = kl_baseline(kl_logp[row : row + 1], ref_kl[row : row + 1], rows["weight"])
        own.append(kto_loss(**rows, kl=of_slice, normalizer=count)[0])
    assert_close(sum(part[0] for part in parts), whole)
    merged = finalize(merge(jax.tree.map(lambda *x: np.stack(x), *(part[1] for part in parts))))
    for name, value in finalize(metrics).items():
        assert_close(merged[name], value)
    # The baselines of the slices themselves give another number.
    assert abs(sum(own) - whole) > 1e-4


def test_margins_are_zero_without_completions_on_both_sides():
    arrays = make_arrays() | {"desirable": np.ones((3, 4), np.float32)}
    final = finalize(kto_loss(**arrays, kl=np.float32(Z))[1])
    assert final["rewards/chosen"] != 0
    assert final["rewards/margins"] == final["rewards/rejected"] == final["logps/rejected"] == 0


def test_beta_may_be_traced():
    arrays = make_arrays()

    def loss(beta):
        return kto_loss(**arrays, beta=beta, kl=np.float32(Z))[0]

    def oracle(beta):
        x = {name: a.astype(np.float64) for name, a in arrays.items()}
        reward = beta * (x["logp"] - x["ref_logp"] - Z) * np.where(x["desirable"], -1, 1)
        return weighted_mean(1 / (1 + np.exp(-reward)), x["weight"])

    gradient = jax.jit(jax.grad(loss))(np.float32(BETA))
    assert_close(gradient, finite_difference(lambda beta: oracle(beta[()]), np.array(BETA)))


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"variant": "kto_pair"},
            r"config\.kto\.variant='kto_pair' is not one of kto, apo_zero_unpaired",
        ),
        ({"beta": 0.0}, r"config\.kto\.beta=0\.0 must be a positive"),
        ({"undesirable_weight": -1.0}, r"config\.kto\.undesirable_weight=-1\.0 must be a positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        KTOObjective(**settings)


def test_the_baseline_is_given_where_it_is_read():
    with pytest.raises(ConfigError, match="variant='kto' needs kl"):
        kto_loss(**make_arrays())
    with pytest.raises(ConfigError, match="variant='apo_zero_unpaired' has no baseline"):
        kto_loss(**make_arrays(), variant="apo_zero_unpaired", kl=np.float32(Z))
    with pytest.raises(TypeError, match="kl is float"):
        kto_loss(**make_arrays(), kl=0.5)
