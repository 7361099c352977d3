"""Divergences of distillation, against float64 and against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models.logprobs import token_divergence, token_kl

from .oracle import assert_close, finite_difference
from .test_logprobs import np_log_softmax, problem

KINDS = [("reverse_kl", 0.5), ("forward_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]


def np_divergence(hidden, head, ref_hidden, ref_head, kind, beta, temperature, softcap, ref_softcap):
    log_p, _ = np_log_softmax(hidden, head, temperature, softcap)
    log_q, _ = np_log_softmax(ref_hidden, ref_head, temperature, ref_softcap)
    p, q = np.exp(log_p), np.exp(log_q)
    if kind == "reverse_kl":
        return (p * np.log(p / q)).sum(-1)
    if kind == "forward_kl":
        return (q * np.log(q / p)).sum(-1)
    m = beta * q + (1 - beta) * p
    return beta * (q * np.log(q / m)).sum(-1) + (1 - beta) * (p * np.log(p / m)).sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize("kind, beta", KINDS)
@pytest.mark.parametrize("chunk_size", [2, None])
@pytest.mark.parametrize("softcap, ref_softcap", [(None, None), (2.0, 3.0), (None, 1.5)])
def test_values_and_gradients_match_float64_and_move_the_policy_only(
    kind, beta, chunk_size, softcap, ref_softcap
):
    hidden, head, _ = problem()
    rest = problem(width=4, seed=2)[:2]
    weight = np.random.default_rng(3).normal(size=hidden.shape[:2]).astype(np.float32)
    settings = {
        "kind": kind,
        "beta": beta,
        "temperature": 1.3,
        "softcap": softcap,
        "ref_softcap": ref_softcap,
    }

    def loss(*arrays):
        divergence = token_divergence(*arrays, chunk_size=chunk_size, **settings)
        return (weight * divergence).sum(), divergence

    def oracle(hidden, head):
        return (weight * np_divergence(hidden, head, *rest, **settings)).sum()

    arrays = (hidden, head, *rest)
    gradients, divergence = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*arrays)
    assert_close(divergence, np_divergence(*arrays, **settings))
    assert_close(gradients[0], finite_difference(lambda x: oracle(x, head), hidden))
    assert_close(gradients[1], finite_difference(lambda x: oracle(hidden, x), head))
    assert not np.any(gradients[2]) and not np.any(gradients[3])


def test_the_reverse_kl_is_token_kl_to_the_bit():
    hidden, head, _ = problem()
    rest = problem(width=4, seed=2)[:2]
    a = token_divergence(hidden, head, *rest, temperature=0.7, softcap=2.0, ref_softcap=2.0)
    np.testing.assert_array_equal(a, token_kl(hidden, head, *rest, temperature=0.7, softcap=2.0))


def test_the_forward_kl_is_the_reverse_with_the_models_exchanged():
    policy, teacher = problem()[:2], problem(width=4, seed=2)[:2]
    forward = token_divergence(*policy, *teacher, kind="forward_kl")
    np.testing.assert_allclose(forward, token_kl(*teacher, *policy), rtol=1e-5)


def test_jsd_is_symmetric_at_one_half_bounded_and_approaches_both_kls():
    policy, teacher = problem()[:2], problem(width=4, seed=2)[:2]

    def jsd(a, b, beta):
        return token_divergence(*a, *b, kind="jsd", beta=beta)

    np.testing.assert_allclose(jsd(policy, teacher, 0.5), jsd(teacher, policy, 0.5), rtol=1e-5)
    sharp = (policy[0] * np.float32(1e3), policy[1])
    assert np.all(jsd(sharp, teacher, 0.5) <= np.log(2) + 1e-6)
    # The limits are reached the faster the closer the models are.
    policy, teacher = ((hidden * np.float32(0.2), head) for hidden, head in (policy, teacher))
    forward = token_divergence(*policy, *teacher, kind="forward_kl")
    np.testing.assert_allclose(jsd(policy, teacher, 0.01) / 0.01, forward, rtol=0.02)
    np.testing.assert_allclose(jsd(policy, teacher, 0.99) / 0.01, token_kl(*policy, *teacher), rtol=0.02)


@pytest.mark.parametrize("kind, beta", KINDS)
def test_of_a_model_with_itself_is_zero_and_still(kind, beta):
    arrays = problem()[:2]

    def loss(*policy):
        divergence = token_divergence(*policy, *arrays, kind=kind, beta=beta)
        return divergence.sum(), divergence

    gradients, divergence = jax.grad(loss, argnums=(0, 1), has_aux=True)(*arrays)
    for x in (divergence, *gradients):
        np.testing.assert_allclose(x, 0, atol=1e-6)


@pytest.mark.parametrize("kind, beta", KINDS)
def test_logits_of_ten_thousand_stay_finite(kind, beta):
    hidden, head, _ = problem()
    teacher = problem(width=4, seed=2)[:2]

    def loss(hidden):
        return token_divergence(hidden, head, *teacher, kind=kind, beta=beta).sum()

    value, gradient = jax.value_and_grad(loss)(hidden * 1e4)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind, beta", KINDS)
def test_chunks_and_masked_slices_change_nothing(kind, beta):
    """Slices of the rows with a global normalizer add up, values and gradients of the head alike."""
    hidden, head, _ = problem(batch=4, length=11)
    ref_hidden, ref_head, _ = problem(batch=4, length=11, width=4, seed=2)
    mask = (np.random.default_rng(3).random((4, 11)) < 0.5).astype(np.float32)

    def loss(head, rows, chunk_size):
        divergence = token_divergence(
            hidden[rows], head, ref_hidden[rows], ref_head, kind=kind, beta=beta, chunk_size=chunk_size
        )
        return jnp.sum(divergence * mask[rows]) / mask.sum()

    run = jax.value_and_grad(loss)
    whole = run(head, slice(None), None)
    for chunk_size in (1, 4, 10):
        parts = [run(head, slice(i, i + 2), chunk_size) for i in (0, 2)]
        for actual, expected in zip(jax.tree.map(lambda a, b: a + b, *parts), whole, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_bad_settings_are_named():
    arrays = problem()[:2] * 2
    with pytest.raises(ValueError, match="kind is 'kl'; choose one of reverse_kl, forward_kl, jsd"):
        token_divergence(*arrays, kind="kl")
    for beta in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"beta is {beta}; give a number between 0 and 1, or choose"):
            token_divergence(*arrays, kind="jsd", beta=beta)
    with pytest.raises(ValueError, match="ref_softcap is 0"):
        token_divergence(*arrays, ref_softcap=0)
