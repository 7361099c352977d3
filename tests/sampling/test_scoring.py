"""Scores against the NumPy decoder: alignment, masking, packing and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.oracle import decode, random_params

from jaxalign.data.batch import segment_sums
from jaxalign.models.scoring import (
    exact_kl,
    predicted,
    score_scalar,
    score_tokens,
    segment_rewards,
)

LENGTHS = (6, 1, 4)


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(2)
    return [rng.integers(0, 48, n).astype(np.int32) for n in LENGTHS]


@pytest.fixture(scope="module")
def scalar_params(config, params):
    kernel = np.random.default_rng(3).normal(size=config.embed_dim).astype(np.float32)
    return {"transformer": params, "head": {"kernel": kernel, "bias": np.float32(0.3)}}


def rows(*layouts, length=14):
    """[B, T] tokens, positions, segments from rows of sequences; None is one padding slot with a real token's id."""
    batch = np.zeros((3, len(layouts), length), np.int32)
    batch[0] = 9
    for b, layout in enumerate(layouts):
        start = number = 0
        for part in layout:
            if part is None:
                start += 1
                continue
            at, number = slice(start, start := start + len(part)), number + 1
            batch[:, b, at] = np.stack((part, np.arange(len(part)), np.full(len(part), number)))
    return tuple(batch)


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def aligned(per_sequence, segments):
    """[T] from a list of arrays [n]: element t - 1 of a sequence is put at its token t, everything else is 0."""
    out = np.zeros(segments.shape)
    for number, x in enumerate(per_sequence, 1):
        places = np.flatnonzero(segments == number)
        out[places[1:]] = x[: len(places) - 1]
    return out


def packed(parts):
    return rows([*parts], [None, None, *parts], [None, parts[0], parts[2]])


def held(parts):
    return [parts, parts, [parts[0], parts[2]]]


def test_predicted_is_every_token_but_the_first_of_each_segment(parts):
    *_, segments = rows([None, *parts])
    want = [0, *[0, 1, 1, 1, 1, 1], *[0], *[0, 1, 1, 1], 0, 0]
    np.testing.assert_array_equal(predicted(segments)[0], np.array(want, bool))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_score_tokens_matches_float64_decoder(config, params, parts, temperature):
    batch = packed(parts)
    got = score_tokens(params, config, *batch, temperature=temperature, with_entropy=True)
    for b, sequences in enumerate(held(parts)):
        logits = [decode(params, config, part)[1] / temperature for part in sequences]
        logp = [log_softmax(x) for x in logits]
        want = {
            "logp": [x[np.arange(len(s) - 1), s[1:]] for x, s in zip(logp, sequences, strict=True)],
            "logsumexp": [x[:, 0] - y[:, 0] for x, y in zip(logits, logp, strict=True)],
            "entropy": [-(np.exp(x) * x).sum(-1) for x in logp],
        }
        for name, values in want.items():
            np.testing.assert_allclose(
                getattr(got, name)[b], aligned(values, batch[2][b]), rtol=1e-5, atol=1e-5, err_msg=name
            )


@pytest.mark.slow
def test_exact_kl_matches_float64_decoder_and_is_zero_against_itself(config, params, parts):
    reference = random_params(config, seed=8)
    batch = packed(parts)
    got = exact_kl(params, reference, config, *batch, temperature=0.7)
    for b, sequences in enumerate(held(parts)):
        kls = []
        for part in sequences:
            log_p, log_q = (log_softmax(decode(x, config, part)[1] / 0.7) for x in (params, reference))
            kls.append((np.exp(log_p) * (log_p - log_q)).sum(-1))
        np.testing.assert_allclose(got[b], aligned(kls, batch[2][b]), rtol=1e-5, atol=1e-5)
    assert got.max() > 0.1
    np.testing.assert_array_equal(exact_kl(params, params, config, *batch), np.zeros(batch[0].shape))


def test_token_values_are_those_of_the_state_before_the_token(config, params, scalar_params, parts):
    batch = packed(parts)
    got = score_scalar(scalar_params, config, *batch).values
    head = scalar_params["head"]
    for b, sequences in enumerate(held(parts)):
        values = [
            decode(params, config, part)[0] @ head["kernel"].astype(np.float64) + 0.3 for part in sequences
        ]
        np.testing.assert_allclose(got[b], aligned(values, batch[2][b]), rtol=1e-5, atol=1e-5)


def test_rewards_do_not_depend_on_padding_packing_or_batch(config, params, scalar_params, parts):
    kernel = scalar_params["head"]["kernel"].astype(np.float64)
    a, b, c = (decode(params, config, part)[0][-1] @ kernel + 0.3 for part in parts)
    first, second, third = parts
    layouts = [
        ([first], [a, 0, 0]),
        ([None, None, first], [a, 0, 0]),
        ([first, second, third], [a, b, c]),
        ([None, third, None, first], [c, a, 0]),
        ([second, first], [b, a, 0]),
        ([None], [0, 0, 0]),
    ]
    score = jax.jit(segment_rewards, static_argnames=("config", "num_segments"))
    got = score(scalar_params, config, *rows(*(held for held, _ in layouts)), num_segments=3)
    np.testing.assert_allclose(got, [scores for _, scores in layouts], rtol=1e-5, atol=1e-5)
    alone = score(scalar_params, config, *rows([third], length=4), num_segments=1)
    np.testing.assert_allclose(alone, [[c]], rtol=1e-5, atol=1e-5)


def test_segment_sums_add_up_each_segment():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7)).astype(np.float32)
    segments = np.array([[1, 1, 2, 2, 2, 3, 0], [0, 0, 1, 1, 3, 3, 3]], np.int32)
    want = [[x[b][segments[b] == s].astype(np.float64).sum() for s in (1, 2, 3, 4)] for b in range(2)]
    np.testing.assert_allclose(segment_sums(x, segments, 4), want, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_first_tokens_and_padding_carry_no_gradient(config, params, parts):
    batch = rows([None, None, *parts], length=14)
    real = np.asarray(predicted(batch[2])).astype(np.float32)

    @jax.jit
    def gradient(weights):
        return jax.grad(lambda p: jnp.vdot(weights, score_tokens(p, config, *batch).logp))(params)

    zero, masked, unmasked = (gradient(w) for w in (1 - real, real, np.ones_like(real)))
    assert all(not np.any(g) for g in jax.tree.leaves(zero))
    jax.tree.map(np.testing.assert_array_equal, masked, unmasked)
    assert any(np.any(g) for g in jax.tree.leaves(masked))
