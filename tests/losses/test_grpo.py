import jax
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.losses import GRPOObjective, finalize, group_advantages, grpo_normalizer, merge

from .flat import grpo_loss, policy_loss
from .oracle import assert_close, check_loss, weighted_mean

LOW, HIGH, BETA, NEW_TOKENS = 0.15, 0.3, 0.2, 11


def make_arrays():
    rng = np.random.default_rng(0)
    arrays = {
        name: -rng.uniform(1, 1.6, (4, 7)).astype(np.float32) for name in ("logp", "old_logp", "ref_logp")
    }
    arrays["advantages"] = rng.normal(size=4).astype(np.float32)
    arrays["mask"] = (rng.random((4, 7)) < 0.6).astype(np.float32)
    arrays["mask"][1] = 0
    return arrays


def sequence_mean(x, mask):
    """Mean over the tokens of each sequence that has any; 0 for one that has none."""
    return np.sum(x * mask, 1) / np.maximum(np.sum(mask, 1), 1)


def np_ratio(x, importance):
    log_ratio = (x["logp"] - x["old_logp"]) * x["mask"]
    if importance == "token":
        return np.exp(log_ratio)
    total = log_ratio.sum(1) if importance == "sequence_sum" else sequence_mean(log_ratio, x["mask"])
    return np.exp(total)[:, None] * np.ones_like(log_ratio)


def np_surrogate(x, importance):
    ratio, advantages = np_ratio(x, importance), x["advantages"][:, None]
    return -np.minimum(ratio * advantages, np.clip(ratio, 1 - LOW, 1 + HIGH) * advantages)


def np_kl(x):
    ratio = np.exp(x["ref_logp"] - x["logp"])
    return ratio - np.log(ratio) - 1


def np_mean(token_loss, mask, loss_type):
    if loss_type == "grpo":
        return sequence_mean(token_loss, mask)[mask.any(1)].mean()
    places = mask.any(1).sum() * NEW_TOKENS
    return np.sum(token_loss * mask) / (places if loss_type == "dr_grpo" else mask.sum())


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("importance", ["token", "sequence_mean", "sequence_sum"])
def test_value_and_gradients(loss_type, importance):
    arrays = make_arrays()
    settings = {
        "clip": LOW,
        "clip_high": HIGH,
        "beta": BETA,
        "loss_type": loss_type,
        "importance": importance,
    }
    normalizer = grpo_normalizer(arrays["mask"], GRPOObjective(loss_type=loss_type), NEW_TOKENS)
    assert_close(normalizer, {"grpo": 3, "dr_grpo": 3 * NEW_TOKENS}.get(loss_type, arrays["mask"].sum()))

    def oracle(**x):
        return np_mean(np_surrogate(x, importance) + BETA * np_kl(x), x["mask"], loss_type)

    check_loss(lambda **x: grpo_loss(**x, **settings, normalizer=normalizer), oracle, arrays, ["logp"])
    if loss_type != "dr_grpo":
        check_loss(lambda **x: grpo_loss(**x, **settings), oracle, arrays, ["logp"])


@pytest.mark.parametrize("importance", ["token", "sequence_mean", "sequence_sum"])
def test_metrics(importance):
    arrays = make_arrays()
    x = {name: a.astype(np.float64) for name, a in arrays.items()}
    settings = {"clip": LOW, "clip_high": HIGH, "beta": BETA, "importance": importance}
    final = finalize(grpo_loss(**arrays, **settings)[1])
    ratio, advantages, sampled = np_ratio(x, importance), x["advantages"][:, None], x["mask"].any(1)
    low = ((ratio < 1 - LOW) & (advantages < 0)).astype(float)
    high = ((ratio > 1 + HIGH) & (advantages > 0)).astype(float)

    def mean(values):
        if importance == "token":
            return weighted_mean(values, x["mask"])
        return sequence_mean(values, x["mask"])[sampled].mean()

    expected = {
        "loss/policy_avg": weighted_mean(np_surrogate(x, importance), x["mask"]),
        "policy/approxkl_avg": weighted_mean((x["logp"] - x["old_logp"]) ** 2 / 2, x["mask"]),
        "val/ratio": mean(ratio),
        "val/ratio_sq": mean(ratio**2),
        "clip_ratio/low_mean": mean(low),
        "clip_ratio/high_mean": mean(high),
        "clip_ratio/region_mean": mean(low + high),
        "clip_ratio/low_min": sequence_mean(low, x["mask"])[sampled].min(),
        "clip_ratio/high_max": sequence_mean(high, x["mask"])[sampled].max(),
        "kl": weighted_mean(np_kl(x), x["mask"]),
    }
    assert final.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(final[name], value)
    assert importance != "token" or 0 < final["clip_ratio/region_mean"] < 1
    assert "kl" not in grpo_loss(**{**arrays, "ref_logp": None})[1]


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("importance", ["token", "sequence_mean", "sequence_sum"])
def test_slices_with_the_global_normalizer_add_up(loss_type, importance):
    arrays = make_arrays()
    settings = {"beta": BETA, "loss_type": loss_type, "importance": importance}
    total = grpo_normalizer(arrays["mask"], GRPOObjective(loss_type=loss_type), NEW_TOKENS)

    def run(rows):
        def value(logp):
            return grpo_loss(**rows | {"logp": logp}, **settings, normalizer=total)

        return jax.value_and_grad(value, has_aux=True)(rows["logp"])

    (whole, metrics), gradient = run(arrays)
    parts = [run({name: x[i : i + 2] for name, x in arrays.items()}) for i in (0, 2)]
    assert_close(sum(value for (value, _), _ in parts), whole)
    assert_close(np.concatenate([part[1] for part in parts]), gradient)
    merged = finalize(merge(jax.tree.map(lambda *x: np.stack(x), *(m for (_, m), _ in parts))))
    for name, value in finalize(metrics).items():
        assert_close(merged[name], value)


def test_the_token_mean_is_the_loss_of_ppo():
    arrays = make_arrays()
    del arrays["ref_logp"]
    wide = arrays | {"advantages": np.repeat(arrays["advantages"][:, None], 7, axis=1)}
    expected = policy_loss(**wide, clip=LOW, clip_high=HIGH)[0]
    for given in (arrays, wide):
        assert grpo_loss(**given, clip=LOW, clip_high=HIGH)[0] == expected


def test_before_the_first_update_every_ratio_is_one_and_the_kl_zero():
    x = make_arrays()
    x["old_logp"] = x["ref_logp"] = x["logp"]
    for importance in ("token", "sequence_mean", "sequence_sum"):
        final = finalize(grpo_loss(**x, beta=BETA, importance=importance)[1])
        assert_close(final["val/ratio"], 1, 1e-6)
        assert final["kl"] == final["policy/approxkl_avg"] == final["clip_ratio/region_mean"] == 0


@pytest.mark.slow
def test_rloo_moves_the_policy_by_reinforce_with_a_leave_one_out_baseline():
    """arXiv 2402.14740: the gradient of -mean of (R_i - mean of the others) log π(y_i)."""
    arrays = make_arrays()
    arrays["mask"][1] = 1
    arrays["old_logp"] = arrays["logp"]
    scores = np.array([[1.0, 0.2], [-0.4, 3.0]], np.float32)
    rloo = {"baseline": "leave_one_out", "scale": "none", "loss_type": "grpo", "importance": "sequence_sum"}
    advantages, _ = group_advantages(scores, GRPOObjective(**rloo))
    gradient = jax.grad(
        lambda logp: grpo_loss(**arrays | {"logp": logp, "advantages": advantages.reshape(-1)}, **rloo)[0]
    )(arrays["logp"])
    expected = np.array([0.8, -0.8, -3.4, 3.4])[:, None] * arrays["mask"]
    assert_close(gradient, -expected / 4)


def test_only_the_policy_gets_a_gradient():
    x = make_arrays()
    wrt = {name: x.pop(name) for name in ("old_logp", "advantages", "ref_logp")}
    gradients = jax.grad(lambda wrt: grpo_loss(**wrt, **x, beta=BETA)[0])(wrt)
    assert not any(np.any(g) for g in gradients.values())


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages(baseline, scale):
    scores = np.random.default_rng(0).normal(3, 2, (5, 4)).astype(np.float32)
    scores[2] = 0.1
    advantages, metrics = group_advantages(scores, GRPOObjective(baseline=baseline, scale=scale))
    x = scores.astype(np.float64)
    others = (x.sum(1, keepdims=True) - x) / 3
    expected = x - (others if baseline == "leave_one_out" else x.mean(1, keepdims=True))
    if scale != "none":
        deviation = x.std(1, ddof=1, keepdims=True) if scale == "group" else x.std(ddof=1)
        expected = expected / (deviation + 1e-4)
    assert_close(advantages, expected)
    final = finalize(metrics)
    assert final.keys() == {"reward", "reward_std", "frac_reward_zero_std"}
    assert_close(final["reward"], x.mean())
    assert_close(final["reward_std"], x.std(ddof=1))
    assert_close(final["frac_reward_zero_std"], 1 / 5)


def test_groups_that_fill_up_a_batch_count_for_nothing():
    scores = np.random.default_rng(0).normal(3, 2, (5, 4)).astype(np.float32)
    scores[1] = 0.1
    live = np.ones(scores.shape, np.float32)
    live[3:] = scores[3:] = 0
    for scale in ("group", "batch", "none"):
        mine, _ = group_advantages(scores, GRPOObjective(scale=scale), live=live)
        alone, _ = group_advantages(scores[:3], GRPOObjective(scale=scale))
        np.testing.assert_allclose(mine[:3], alone, rtol=1e-6)
    _, got = group_advantages(scores, GRPOObjective(), live=live)
    _, wanted = group_advantages(scores[:3], GRPOObjective())
    got, wanted = finalize(got), finalize(wanted)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_close(got[name], value)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_scores_have_no_advantage_though_their_mean_is_rounded(scale):
    scores = np.full((2, 7), 1000.1, np.float32)
    assert not np.any(group_advantages(scores, GRPOObjective(scale=scale))[0])


def test_beta_may_be_traced():
    arrays = make_arrays()
    gradient = jax.jit(jax.grad(lambda beta: grpo_loss(**arrays, beta=beta)[0]))(np.float32(BETA))
    x = {name: a.astype(np.float64) for name, a in arrays.items()}
    assert_close(gradient, weighted_mean(np_kl(x), x["mask"]))


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"loss_type": "drgrpo"},
            r"config\.grpo\.loss_type='drgrpo' is not one of grpo, dapo, bnpo, dr_",
        ),
        ({"importance": "sequence"}, r"importance='sequence' is not one of token, sequence_mean, seq"),
        ({"baseline": "none"}, "baseline='none' is not one of mean, leave_one_out"),
        ({"scale": True}, "scale=True is not one of group, batch, none"),
        ({"beta": -0.1}, r"config\.grpo\.beta=-0\.1 must be 0 or more"),
        ({"clip": 0.0}, r"config\.grpo\.clip=0\.0 must be a positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        GRPOObjective(**settings)


def test_errors_name_the_section_of_the_stage():
    class RLOOConfig(GRPOObjective, at="config.rloo"):
        pass

    with pytest.raises(ConfigError, match=r"config\.rloo\.beta=-1"):
        RLOOConfig(beta=-1)


def test_missing_and_misshapen_arguments_are_refused():
    arrays = make_arrays() | {"ref_logp": None}
    with pytest.raises(ConfigError, match=r"config\.grpo\.beta=0\.1 needs a reference; pass ref_logp"):
        grpo_loss(**arrays, beta=0.1)
    with pytest.raises(ConfigError, match="reads max_new_tokens; pass normalizer="):
        grpo_loss(**arrays, loss_type="dr_grpo")
    with pytest.raises(ValueError, match=r"shapes differ: .* advantages \(3,\)"):
        grpo_loss(**arrays | {"advantages": np.zeros(3, np.float32)})
    for shape in ((4,), (4, 1)):
        with pytest.raises(ConfigError, match="sample a prompt at least twice"):
            group_advantages(np.zeros(shape, np.float32), GRPOObjective())
