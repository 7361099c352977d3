"""What holds of every loss and estimator whatever the numbers: invariances, antisymmetries, bounds, directions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.evaluation.intervals import mean_interval, proportion_interval, win_rate
from jaxalign.losses import running_moments
from jaxalign.losses.advantages import gae, kl_estimate, whiten
from jaxalign.losses.grpo import GRPOObjective, group_advantages
from jaxalign.losses.ppo import value_loss
from jaxalign.losses.reward import bradley_terry_loss

from .flat import dpo_loss, grpo_loss, kto_loss, orpo_loss, policy_loss

pytestmark = pytest.mark.slow
# Drawn alike every time; the shapes are fixed, so that each function is compiled once.
often = settings(max_examples=40, deadline=None, derandomize=True, database=None)
PAIRS, ROWS, LENGTH = 6, 4, 5
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def arrays(shape, low, high):
    """Float32 arrays of a shape; all entries are drawn, so that shrinking gives small ones."""
    numbers = st.floats(low, high, width=32, allow_nan=False, allow_subnormal=False)
    count = int(np.prod(shape))
    return st.lists(numbers, min_size=count, max_size=count).map(lambda x: np.float32(x).reshape(shape))


logps = arrays((PAIRS,), -30, -0.5)
shifts = arrays((PAIRS,), -5, 5)
orders = st.permutations(range(PAIRS)).map(np.array)
masks = arrays((ROWS, LENGTH), 0, 1).map(lambda x: np.float32(x > 0.4)).filter(lambda x: x.sum(axis=1).all())
ONES = np.ones(PAIRS, np.float32)
VARIANTS = ("sigmoid", "hinge", "ipo", "robust")


def _value(loss, **keywords):
    return np.float64(jax.jit(lambda keywords: loss(**keywords)[0])(keywords))


def _dpo(variant, chosen, rejected, ref_chosen, ref_rejected, weight=ONES):
    options = {"label_smoothing": 0.1} if variant == "robust" else {}
    loss = partial(dpo_loss, variant=variant, beta=0.1, **options)
    return _value(
        loss,
        chosen_logp=chosen,
        rejected_logp=rejected,
        ref_chosen_logp=ref_chosen,
        ref_rejected_logp=ref_rejected,
        weight=weight,
    )


@pytest.mark.parametrize("variant", VARIANTS)
@often
@given(logps, logps, logps, logps, shifts, orders)
def test_dpo_reads_differences_alone_in_any_order(variant, a, b, c, d, shift, order):
    value = _dpo(variant, a, b, c, d)
    # The partition function of a prompt cancels: policy and reference may be shifted together, or both responses.
    np.testing.assert_allclose(_dpo(variant, a + shift, b, c + shift, d), value, **TOLERANCE)
    np.testing.assert_allclose(_dpo(variant, a + shift, b + shift, c, d), value, **TOLERANCE)
    np.testing.assert_allclose(_dpo(variant, a[order], b[order], c[order], d[order]), value, **TOLERANCE)


@often
@given(logps, logps, logps, logps)
def test_dpo_of_the_pairs_turned_round_differs_by_their_margin(a, b, c, d):
    """-log σ(-x) = -log σ(x) + x."""
    margin = 0.1 * np.mean((a - c) - (b - d), dtype=np.float64)
    turned = _dpo("sigmoid", b, a, d, c)
    np.testing.assert_allclose(turned - _dpo("sigmoid", a, b, c, d), margin, **TOLERANCE)
    _, metrics = dpo_loss(
        chosen_logp=a, rejected_logp=b, ref_chosen_logp=c, ref_rejected_logp=d, weight=ONES, beta=0.1
    )
    np.testing.assert_allclose(metrics["rewards/margins"].total / PAIRS, margin, **TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
@often
@given(logps, logps, logps, logps)
def test_dpo_is_bounded_and_falls_as_the_chosen_response_gains(variant, a, b, c, d):
    value = _dpo(variant, a, b, c, d)
    lower = {"sigmoid": 0.0, "hinge": 0.0, "ipo": 0.0}.get(variant, -np.inf)
    assert value >= lower
    if variant in ("sigmoid", "hinge"):
        assert _dpo(variant, a + 1, b, c, d) <= value <= _dpo(variant, a, b + 1, c, d)


@often
@given(logps, logps, shifts, orders)
def test_reward_loss_reads_differences_alone_and_is_antisymmetric(a, b, shift, order):
    value = _value(bradley_terry_loss, chosen=a, rejected=b, weight=ONES)
    moved = _value(bradley_terry_loss, chosen=a + shift, rejected=b + shift, weight=ONES)
    np.testing.assert_allclose(moved, value, **TOLERANCE)
    shuffled = _value(bradley_terry_loss, chosen=a[order], rejected=b[order], weight=ONES)
    np.testing.assert_allclose(shuffled, value, **TOLERANCE)
    turned = _value(bradley_terry_loss, chosen=b, rejected=a, weight=ONES)
    np.testing.assert_allclose(turned - value, np.mean(np.float64(a) - b), **TOLERANCE)
    assert value >= 0 and turned >= 0


@often
@given(logps, logps, st.floats(0.0625, 4, width=32))
def test_orpo_falls_with_its_odds_ratio_and_grows_with_its_weight(a, b, coef):
    lengths = np.full(PAIRS, 4.0, np.float32)
    rest = {"weight": ONES, "chosen_length": lengths, "rejected_length": lengths, "nll_length": lengths}

    def value(a, b, coef):
        return _value(partial(orpo_loss, coef=coef), chosen_logp=a, rejected_logp=b, nll=-a, **rest)

    plain = value(a, b, 0.0)
    np.testing.assert_allclose(plain, -np.mean(np.float64(a)) / 4, **TOLERANCE)
    assert value(a, b, coef) >= plain
    assert value(a, b - 1, coef) <= value(a, b, coef) + 1e-6


@often
@given(logps, logps, st.lists(st.booleans(), min_size=PAIRS, max_size=PAIRS), st.floats(0, 10, width=32))
def test_kto_is_bounded_and_moves_each_side_its_way(a, c, desirable, kl):
    """1 - σ of a difference lies between 0 and 1, and its gradient has the sign of the label."""
    label = np.array(desirable)

    def loss(logp):
        return kto_loss(logp=logp, ref_logp=c, desirable=label, weight=ONES, kl=jnp.float32(kl))[0]

    value, slope = jax.value_and_grad(loss)(jnp.asarray(a))
    assert 0 <= value <= 1
    assert np.all(np.where(label, slope <= 0, slope >= 0))


@pytest.mark.parametrize("scale", ["group", "none"])
@often
@given(
    arrays((3, 4), -10, 10),
    st.floats(0.5, 8, width=32),
    st.floats(-5, 5, width=32),
    st.permutations(range(4)),
)
def test_advantages_of_a_group_ignore_what_all_of_it_has(scale, scores, factor, shift, order):
    advantages = partial(group_advantages, objective=GRPOObjective(scale=scale))
    value = np.float64(advantages(scores)[0])
    spread = scores.std(axis=1, dtype=np.float64, ddof=1)[:, None]
    np.testing.assert_allclose(value.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(advantages(scores[:, order])[0], value[:, order], atol=1e-4)
    # Where all are nearly equal, rounding and the small number in the denominator decide.
    settled = (spread > 0.05) | (scale == "none")
    changed = np.float64(advantages(np.float32(factor * scores + shift))[0])
    expected = value if scale == "group" else factor * value
    np.testing.assert_allclose(
        np.where(settled, changed, 0), np.where(settled, expected, 0), rtol=3e-3, atol=3e-3
    )


@often
@given(arrays((ROWS, LENGTH), -3, 0), arrays((ROWS, LENGTH), -3, 0), arrays((ROWS, LENGTH), -4, 4), masks)
def test_clipping_never_makes_an_update_look_better(logp, old, advantages, mask):
    """The clipped surrogate is a lower bound of the ratio times the advantage (arXiv 1707.06347, eq. 7)."""
    clipped = _value(policy_loss, logp=logp, old_logp=old, advantages=advantages, mask=mask)
    free = np.sum(mask * np.exp(np.float64(logp) - old) * advantages) / mask.sum()
    assert clipped >= -free - 1e-4 * (1 + abs(free))
    same = _value(policy_loss, logp=old, old_logp=old, advantages=advantages, mask=mask)
    np.testing.assert_allclose(same, -np.sum(mask * np.float64(advantages)) / mask.sum(), **TOLERANCE)
    grouped = _value(grpo_loss, logp=logp, old_logp=old, advantages=advantages, mask=mask)
    np.testing.assert_allclose(grouped, clipped, **TOLERANCE)  # over all tokens they are one formula


@often
@given(arrays((ROWS, LENGTH), -3, 3), arrays((ROWS, LENGTH), -3, 3), arrays((ROWS, LENGTH), -3, 3), masks)
def test_a_clipped_value_loss_is_no_less_than_the_plain_one(values, old, returns, mask):
    clipped = _value(partial(value_loss, clip=0.2), values=values, old_values=old, returns=returns, mask=mask)
    plain = 0.5 * np.sum(mask * (np.float64(values) - returns) ** 2) / mask.sum()
    assert clipped >= plain * (1 - 1e-5) - 1e-6
    wide = _value(partial(value_loss, clip=100.0), values=values, old_values=old, returns=returns, mask=mask)
    np.testing.assert_allclose(wide, plain, **TOLERANCE)


@often
@given(arrays((ROWS, LENGTH), -3, 3), arrays((ROWS, LENGTH), -3, 3), arrays((ROWS, LENGTH), -3, 3), masks)
def test_gae_is_linear_and_its_ends_are_known(rewards, more, values, mask):
    """At λ = 1 returns are discounted sums of rewards, at λ = 0 advantages are TD errors (arXiv 1506.02438)."""
    estimate = partial(gae, mask=mask, gamma=0.9)
    first, second = (estimate(x, values * 0, lam=0.7)[0] for x in (rewards, more))
    both, _ = estimate(rewards + more, values * 0, lam=0.7)
    np.testing.assert_allclose(both, first + second, rtol=1e-4, atol=1e-4)
    advantages, returns = estimate(rewards, values, lam=1.0)
    errors, _ = estimate(rewards, values, lam=0.0)
    for row in range(ROWS):
        live = np.flatnonzero(mask[row])
        r, v = np.float64(rewards[row, live]), np.float64(values[row, live])
        total = np.array([sum(0.9 ** (k - t) * r[k] for k in range(t, len(r))) for t in range(len(r))])
        np.testing.assert_allclose(returns[row, live], total, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(advantages[row, live], total - v, rtol=1e-4, atol=1e-4)
        following = np.append(v[1:], 0.0)
        np.testing.assert_allclose(errors[row, live], r + 0.9 * following - v, rtol=1e-4, atol=1e-4)


@often
@given(arrays((ROWS, LENGTH), -8, 0), arrays((ROWS, LENGTH), -8, 0))
def test_estimators_of_kl_have_their_signs(logp, ref):
    k1, k2, k3 = (np.float64(kl_estimate(logp, ref, kind)) for kind in ("k1", "k2", "k3"))
    assert (k2 >= 0).all() and (k3 >= -1e-6).all()
    np.testing.assert_allclose(kl_estimate(ref, logp, "k1"), -k1, **TOLERANCE)
    np.testing.assert_allclose(kl_estimate(ref, logp, "k2"), k2, **TOLERANCE)
    np.testing.assert_allclose(k3, np.exp(-k1) - 1 + k1, rtol=1e-4, atol=1e-4)


@often
@given(arrays((ROWS, LENGTH), -3, 3), masks, st.floats(0.5, 4, width=32), st.floats(-5, 5, width=32))
def test_whitening_forgets_scale_and_place(x, mask, factor, shift):
    kept = np.float64(x[mask > 0])
    if kept.std() < 0.05:
        return
    white = np.float64(whiten(x, mask))
    np.testing.assert_allclose(white[mask > 0].mean(), 0, atol=1e-4)
    np.testing.assert_allclose(white[mask > 0].std(), 1, rtol=1e-3)
    np.testing.assert_allclose(whiten(np.float32(factor * x + shift), mask), white, rtol=2e-3, atol=2e-3)
    assert (white[mask == 0] == 0).all()


@often
@given(st.lists(arrays((LENGTH,), -9, 9), min_size=1, max_size=4))
def test_running_moments_are_weighted_averages_and_undo_themselves(batches):
    moments, weights = running_moments.init(), []
    for x in batches:
        moments = running_moments.update(moments, x, np.ones(LENGTH, np.float32), 0.8)
        weights = [0.8 * weight for weight in weights] + [0.2]
    share = np.array(weights) / sum(weights)
    mean = sum(w * np.mean(x, dtype=np.float64) for w, x in zip(share, batches, strict=True))
    x = np.float32([-3, 0, 5])
    there = running_moments.normalize(moments, x)
    np.testing.assert_allclose(running_moments.denormalize(moments, there), x, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(
        running_moments.denormalize(moments, np.zeros(1, np.float32)), mean, rtol=1e-4, atol=1e-4
    )


scores = st.lists(st.floats(-5, 5), min_size=2, max_size=30)


@often
@given(scores, st.randoms(use_true_random=False), st.floats(0.1, 3), st.floats(-3, 3))
def test_intervals_hold_their_mean_and_move_with_the_numbers(values, rng, factor, shift):
    mean, low, high = mean_interval(values)
    assert low <= mean <= high
    moved = mean_interval([factor * x + shift for x in values])
    np.testing.assert_allclose(moved, [factor * x + shift for x in (mean, low, high)], atol=1e-9)
    others = values.copy()
    rng.shuffle(others)
    mine, theirs = win_rate(values, others), win_rate(others, values)
    np.testing.assert_allclose(mine, [1 - theirs[0], 1 - theirs[2], 1 - theirs[1]], atol=1e-12)
    assert 0 <= mine[1] <= mine[0] <= mine[2] <= 1


@often
@given(st.integers(1, 200), st.data())
def test_a_proportion_s_interval_grows_with_its_hits(count, data):
    hits = data.draw(st.integers(0, count))
    rate, low, high = proportion_interval(hits, count)
    assert 0 <= low <= rate <= high <= 1
    if hits < count:
        assert all(np.array(proportion_interval(hits + 1, count)) >= (rate, low, high))
