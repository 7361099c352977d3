import jax
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.losses.metrics import finalize

from .flat import dpo_loss
from .oracle import assert_close, check_loss, log_sigmoid, weighted_mean

LOGPS = ["chosen_logp", "rejected_logp"]


def make_arrays(seed=0):
    rng = np.random.default_rng(seed)
    names = [*LOGPS, "ref_chosen_logp", "ref_rejected_logp"]
    arrays = {name: -rng.uniform(5, 15, (3, 4)).astype(np.float32) for name in names}
    for name in ("chosen_length", "rejected_length"):
        arrays[name] = rng.integers(3, 9, (3, 4)).astype(np.float32)
    arrays["weight"] = (rng.random((3, 4)) < 0.7).astype(np.float32)
    return arrays


def pairwise(function, normalized=False):
    """Oracle: weighted mean of function(log-ratio difference, chosen_logp / chosen_length)."""

    def oracle(**x):
        chosen = x["chosen_logp"] - x.get("ref_chosen_logp", 0)
        rejected = x["rejected_logp"] - x.get("ref_rejected_logp", 0)
        if normalized:
            chosen, rejected = chosen / x["chosen_length"], rejected / x["rejected_length"]
        return weighted_mean(function(chosen - rejected, x["chosen_logp"] / x["chosen_length"]), x["weight"])

    return oracle


def sigmoid(h):
    return 1 / (1 + np.exp(-h))


BETA, E, GAMMA = 0.3, 0.2, 0.7
SETTINGS = [
    ({}, pairwise(lambda h, _: -np.log(sigmoid(BETA * h)))),
    (
        {"label_smoothing": E},
        pairwise(lambda h, _: -(1 - E) * np.log(sigmoid(BETA * h)) - E * np.log(sigmoid(-BETA * h))),
    ),
    (
        {"variant": "robust", "label_smoothing": E},
        pairwise(
            lambda h, _: (-(1 - E) * np.log(sigmoid(BETA * h)) + E * np.log(sigmoid(-BETA * h))) / (1 - 2 * E)
        ),
    ),
    ({"variant": "hinge"}, pairwise(lambda h, _: np.maximum(0, 1 - BETA * h))),
    ({"variant": "ipo"}, pairwise(lambda h, _: (h - 1 / (2 * BETA)) ** 2)),
    ({"variant": "ipo_mean"}, pairwise(lambda h, _: (h - 1 / (2 * BETA)) ** 2, normalized=True)),
    ({"length_normalized": True}, pairwise(lambda h, _: -log_sigmoid(BETA * h), normalized=True)),
    (
        {"length_normalized": True, "variant": "hinge"},
        pairwise(lambda h, _: np.maximum(0, 1 - BETA * h), normalized=True),
    ),
    ({"target_margin": GAMMA}, pairwise(lambda h, _: -log_sigmoid(BETA * h - GAMMA))),
    (
        {"target_margin": GAMMA, "variant": "robust", "label_smoothing": E},
        pairwise(
            lambda h, _: (
                (-(1 - E) * log_sigmoid(BETA * h - GAMMA) + E * log_sigmoid(GAMMA - BETA * h)) / (1 - 2 * E)
            )
        ),
    ),
    (
        {"target_margin": GAMMA, "variant": "hinge"},
        pairwise(lambda h, _: np.maximum(0, 1 - BETA * h + GAMMA)),
    ),
    ({"nll_coef": 0.7}, pairwise(lambda h, mean_logp: -log_sigmoid(BETA * h) - 0.7 * mean_logp)),
]


@pytest.mark.slow
@pytest.mark.parametrize("settings, oracle", SETTINGS, ids=[str(s) for s, _ in SETTINGS])
def test_value_and_gradients(settings, oracle):
    check_loss(lambda **x: dpo_loss(**x, beta=BETA, **settings), oracle, make_arrays(), LOGPS)


def test_reference_free_is_a_reference_of_zero():
    arrays = {name: x for name, x in make_arrays().items() if not name.startswith("ref_")}

    def loss(**x):
        return dpo_loss(**x, ref_chosen_logp=None, ref_rejected_logp=None, beta=BETA, reference_free=True)

    check_loss(loss, pairwise(lambda h, _: -log_sigmoid(BETA * h)), arrays, LOGPS)


def test_simpo_is_the_papers_equation():
    """Equation 6 of arXiv 2405.14734: mean log-probabilities of a token, no reference, a margin."""
    arrays = {name: x for name, x in make_arrays().items() if not name.startswith("ref_")}

    def loss(**x):
        return dpo_loss(
            **x, ref_chosen_logp=None, ref_rejected_logp=None, beta=2.0, target_margin=1.6, reference_free=True,
            length_normalized=True,
        )  # fmt: skip

    def equation(**x):
        reward = {side: 2.0 / x[f"{side}_length"] * x[f"{side}_logp"] for side in ("chosen", "rejected")}
        return weighted_mean(-np.log(sigmoid(reward["chosen"] - reward["rejected"] - 1.6)), x["weight"])

    check_loss(loss, equation, arrays, LOGPS)


@pytest.mark.parametrize("settings", [{"length_normalized": True}, {"variant": "ipo_mean"}, {}], ids=str)
def test_rewards_are_sums_as_trl_has_them(settings):
    """β (log π - log π_ref) summed over the response: TRL's DPOTrainer, also where the loss averages."""
    arrays = make_arrays()
    final = finalize(dpo_loss(**arrays, beta=BETA, **settings)[1])
    exact = {name: np.float64(x) for name, x in arrays.items()}
    ratios = {
        side: BETA * (exact[f"{side}_logp"] - exact[f"ref_{side}_logp"]) for side in ("chosen", "rejected")
    }
    for side, ratio in ratios.items():
        assert_close(final[f"rewards/{side}"], weighted_mean(ratio, exact["weight"]))
    margin = ratios["chosen"] - ratios["rejected"]
    assert_close(final["rewards/margins"], weighted_mean(margin, exact["weight"]))
    assert_close(final["rewards/accuracies"], weighted_mean(margin > 0, exact["weight"]))


@pytest.mark.parametrize("size", [1.0, 300.0, 1e4])
def test_a_policy_equal_to_its_reference_costs_ln_2(size):
    arrays = make_arrays()
    for name in LOGPS:
        arrays[name] = arrays[f"ref_{name}"] = arrays[name] * np.float32(size)
    loss, metrics = dpo_loss(**arrays, beta=0.1)
    assert_close(loss, np.log(2))
    final = finalize(metrics)
    assert final["rewards/margins"] == final["rewards/accuracies"] == 0


def test_robust_loss_is_unbiased_under_label_flips():
    arrays = make_arrays()
    flipped = dict(arrays)
    for a, b in (("chosen", "rejected"), ("rejected", "chosen")):
        for pattern in ("{}_logp", "ref_{}_logp", "{}_length"):
            flipped[pattern.format(a)] = arrays[pattern.format(b)]
    robust = {"beta": BETA, "variant": "robust", "label_smoothing": E}
    expected = (1 - E) * dpo_loss(**arrays, **robust)[0] + E * dpo_loss(**flipped, **robust)[0]
    assert_close(dpo_loss(**arrays, beta=BETA)[0], expected)


def test_metrics():
    x = make_arrays()
    final = finalize(dpo_loss(**x, beta=BETA, nll_coef=0.5)[1])
    chosen = BETA * (x["chosen_logp"].astype(float) - x["ref_chosen_logp"])
    rejected = BETA * (x["rejected_logp"].astype(float) - x["ref_rejected_logp"])
    expected = {
        "loss": -log_sigmoid(chosen - rejected) - 0.5 * x["chosen_logp"] / x["chosen_length"],
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).astype(float),
        "logps/chosen": x["chosen_logp"],
        "logps/rejected": x["rejected_logp"],
        "nll_loss": -x["chosen_logp"] / x["chosen_length"],
    }
    assert final.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(final[name], weighted_mean(value, x["weight"]))


@pytest.mark.parametrize("chosen, rejected", [(-1e4, 0.0), (0.0, -1e4)])
def test_extreme_log_ratios_neither_overflow_nor_saturate(chosen, rejected):
    arrays = make_arrays()
    arrays["chosen_logp"] = np.full((3, 4), chosen, np.float32)
    arrays["rejected_logp"] = np.full((3, 4), rejected, np.float32)
    oracle = pairwise(lambda h, _: -log_sigmoid(h))
    check_loss(lambda **x: dpo_loss(**x, beta=1.0), oracle, arrays, LOGPS)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"variant": "sigmoyd"}, "variant='sigmoyd' is not one of sigmoid"),
        ({"beta": 0.0}, r"config\.dpo\.beta=0\.0 must be a positive"),
        (
            {"variant": "robust", "label_smoothing": 0.5},
            "label_smoothing=0.5 must be at least 0 and below 0.5",
        ),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1 must be at least 0"),
        ({"variant": "hinge", "label_smoothing": 0.1}, "means nothing to variant='hinge'"),
        ({"variant": "ipo", "label_smoothing": 0.1}, "means nothing to variant='ipo'"),
        ({"variant": "ipo", "length_normalized": True}, "length_normalized with variant='ipo'"),
        ({"variant": "ipo", "target_margin": 1.0}, "target_margin=1.0 with variant='ipo'"),
        ({"target_margin": -1.0}, "target_margin=-1.0 must be 0 or more"),
        ({"reference_free": True}, "reference_free is on but"),
        ({"ref_chosen_logp": None}, "reference log-probabilities are None"),
    ],
)
def test_settings_that_mean_nothing_together_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        dpo_loss(**{**make_arrays(), "beta": BETA, **settings})


def test_beta_margin_and_smoothing_may_be_traced():
    arrays = make_arrays()

    def loss(settings):
        return dpo_loss(**arrays, **settings)[0]

    settings = {"beta": 0.3, "target_margin": 0.7, "label_smoothing": 0.2}
    value, gradients = jax.jit(jax.value_and_grad(loss))(settings)
    assert_close(value, loss(settings))
    for name, x in settings.items():
        above, below = (float(loss({**settings, name: x + step})) for step in (1e-2, -1e-2))
        np.testing.assert_allclose(gradients[name], (above - below) / 2e-2, rtol=1e-2)


@pytest.mark.parametrize(
    "settings", [{"variant": "ipo_mean"}, {"length_normalized": True}, {"nll_coef": 0.1}]
)
def test_lengths_are_asked_for_where_they_are_read(settings):
    arrays = {name: x for name, x in make_arrays().items() if not name.endswith("length")}
    with pytest.raises(ConfigError, match=r"average over tokens; pass lengths=\(chosen_length"):
        dpo_loss(**arrays, **settings)
    assert_close(dpo_loss(**arrays)[0], dpo_loss(**make_arrays())[0], 0)
