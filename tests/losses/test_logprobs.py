import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign.models.logprobs import token_kl, token_logprobs
from jaxalign.models.token_chunks import default_chunk_size

from .oracle import assert_close, finite_difference

B, T, D, V = 2, 5, 3, 7
READOUTS = [{}, {"temperature": 0.7}, {"softcap": 1.5}, {"temperature": 1.3, "softcap": 2.0}]


def problem(batch=B, length=T, width=D, vocab=V, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(batch, length, width)).astype(np.float32)
    head = rng.normal(size=(vocab, width)).astype(np.float32)
    targets = rng.integers(0, vocab, (batch, length)).astype(np.int32)
    return hidden, head, targets


def np_log_softmax(hidden, head, temperature=1.0, softcap=None):
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    logits = logits / temperature
    peak = logits.max(-1, keepdims=True)
    logsumexp = peak + np.log(np.exp(logits - peak).sum(-1, keepdims=True))
    return logits - logsumexp, logsumexp[..., 0]


def np_outputs(hidden, head, targets, **readout):
    log_probs, logsumexp = np_log_softmax(hidden, head, **readout)
    logp = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    return logp, logsumexp, -(np.exp(log_probs) * log_probs).sum(-1)


def np_kl(hidden, head, ref_hidden, ref_head, **readout):
    log_p, log_q = (
        np_log_softmax(hidden, head, **readout)[0],
        np_log_softmax(ref_hidden, ref_head, **readout)[0],
    )
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("chunk_size", [2, None])
def test_values_and_all_gradients_match_float64(readout, chunk_size):
    hidden, head, targets = problem()
    rng = np.random.default_rng(1)
    cotangents = [rng.normal(size=(B, T)).astype(np.float32) for _ in range(3)]

    def weighted(outputs):
        return sum((c * x).sum() for c, x in zip(cotangents, outputs[:3], strict=True))

    def loss(hidden, head):
        out = token_logprobs(hidden, head, targets, with_entropy=True, chunk_size=chunk_size, **readout)
        return weighted(out), out

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)
    for actual, expected in zip(out[:3], np_outputs(hidden, head, targets, **readout), strict=True):
        assert_close(actual, expected)
    oracle = partial(np_outputs, targets=targets, **readout)
    assert_close(gradients[0], finite_difference(lambda x: weighted(oracle(x, head)), hidden))
    assert_close(gradients[1], finite_difference(lambda x: weighted(oracle(hidden, x)), head))


@pytest.mark.slow
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("chunk_size", [2, None])
def test_statistics_are_as_float64_has_them_and_change_no_bit_of_anything(readout, chunk_size):
    hidden, head, targets = problem()
    targets[0] = (hidden[0] @ head.T).argmax(-1)  # some are the likeliest token

    def loss(hidden, head, **how):
        out = token_logprobs(hidden, head, targets, chunk_size=chunk_size, **readout, **how)
        return jnp.sum(out.logp * jnp.arange(1.0, T + 1)[None]) + 0.1 * out.logsumexp.sum(), out

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnames="with_statistics")
    (plain, bare), (same, out) = (gradient(hidden, head, with_statistics=how) for how in (False, True))
    assert bare.statistics is None and out.entropy is None
    for a, b in zip((*plain, bare.logp), (*same, out.logp), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    found = out.statistics
    assert_close(found.entropy, np_outputs(hidden, head, targets, **readout)[2])
    logits = np.float64(hidden) @ np.float64(head).T
    cap = readout.get("softcap")
    logits = cap * np.tanh(logits / cap) if cap else logits
    assert_close(found.mean_logit, logits.mean(-1))
    np.testing.assert_array_equal(found.is_top1, logits.argmax(-1) == targets)
    assert 0 < found.is_top1.sum() < B * T
    blind = jax.grad(lambda x: sum(s.sum() for s in loss(x, head, with_statistics=True)[1].statistics))(
        hidden
    )
    assert not np.any(blind)


@pytest.mark.parametrize("read", [0, 1, 8, 13, 32])
def test_of_tokens_that_nobody_reads_nothing_is_computed(read):
    """In chunks of 4: the values and gradients of those that are read are the same, whatever stands in the others."""
    hidden, head, targets = problem(batch=4, length=8)
    rng = np.random.default_rng(5)
    mask = np.zeros(32, np.float32)
    mask[rng.permutation(32)[:read]] = 1.5  # any number but 0
    mask = mask.reshape(4, 8)
    cotangents = rng.normal(size=(3, 4, 8)).astype(np.float32)

    def loss(hidden, head, **how):
        out = token_logprobs(
            hidden, head, targets, with_entropy=True, with_statistics=True, softcap=2.0, **how
        )
        kept = jax.tree.map(lambda x: jnp.where(mask != 0, x, 0.0), out)
        return sum((c * x).sum() for c, x in zip(cotangents, kept[:3], strict=True)), (kept, out)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnames="chunk_size")
    wanted, (all_, _) = gradient(hidden, head)
    # The last chunk of those that are read may hold some that are not.
    poison = np.where(mask[..., None] == 0, np.nan, hidden) if read % 4 == 0 else hidden
    found, (_, some) = gradient(poison, head, mask=mask, chunk_size=4)
    for a, b in zip(jax.tree.leaves((found, some)), jax.tree.leaves((wanted, all_)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not np.any(found[0][mask == 0])


def test_large_logits_keep_the_digits_of_their_differences():
    """Logits near 1,000: what is added to all of them costs no digits of the log-probabilities or their gradient."""
    hidden, head, targets = problem()
    hidden, head = (np.concatenate((x, np.ones((*x.shape[:-1], 1), np.float32)), -1) for x in (hidden, head))
    hidden[..., -1] = (
        1024.0  # a power of two: the sum of each logit is rounded to 2^-14, as are those of the oracle
    )
    logits = np.float64(np.float32(np.einsum("btd,vd->btv", hidden, head)))
    wanted = logits - logits.max(-1, keepdims=True)
    wanted = wanted - np.log(np.exp(wanted).sum(-1, keepdims=True))
    one = np.eye(V, dtype=np.float32)
    exact = (np.float32(logits), one, targets)  # the same logits, whatever order a product adds in
    out = token_logprobs(*exact, with_entropy=True)
    picked = np.take_along_axis(wanted, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(out.logp, picked, rtol=0, atol=1e-6)
    np.testing.assert_allclose(out.entropy, -(np.exp(wanted) * wanted).sum(-1), rtol=0, atol=1e-6)
    gradient = jax.grad(lambda x: token_logprobs(x, one, targets).logp.sum())(exact[0])
    np.testing.assert_allclose(gradient, one[targets] - np.exp(wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("readout", [READOUTS[0], READOUTS[3]])
@pytest.mark.parametrize("chunk_size", [2, None])
def test_kl_matches_float64_and_moves_the_policy_only(readout, chunk_size):
    hidden, head, _ = problem()
    ref_hidden, ref_head, _ = problem(width=4, seed=2)
    weight = np.random.default_rng(3).normal(size=(B, T)).astype(np.float32)

    def loss(*arrays):
        kl = token_kl(*arrays, chunk_size=chunk_size, **readout)
        return (weight * kl).sum(), kl

    arrays = (hidden, head, ref_hidden, ref_head)
    gradients, kl = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*arrays)
    assert_close(kl, np_kl(*arrays, **readout))
    rest = (ref_hidden, ref_head)
    assert_close(
        gradients[0], finite_difference(lambda x: (weight * np_kl(x, head, *rest, **readout)).sum(), hidden)
    )
    assert_close(
        gradients[1], finite_difference(lambda x: (weight * np_kl(hidden, x, *rest, **readout)).sum(), head)
    )
    assert not np.any(gradients[2]) and not np.any(gradients[3])


def test_kl_of_a_model_with_itself_is_zero():
    hidden, head, _ = problem()
    assert not np.any(token_kl(hidden, head, hidden, head))


def test_kl_is_the_expectation_of_the_sampled_log_ratio():
    hidden, head, _ = problem()
    ref_head = head + 0.3
    every_target = np.broadcast_to(np.arange(V, dtype=np.int32), (B, T, V))
    logp, ref_logp = (
        np.stack([token_logprobs(hidden, h, every_target[..., v]).logp for v in range(V)], -1)
        for h in (head, ref_head)
    )
    expected = (np.exp(logp) * (logp - ref_logp)).sum(-1)
    np.testing.assert_allclose(token_kl(hidden, head, hidden, ref_head), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_chunks_change_nothing_and_entropy_is_optional():
    hidden, head, targets = problem(length=11)
    function = jax.jit(partial(token_logprobs, with_entropy=True), static_argnames="chunk_size")
    whole = function(hidden, head, targets)
    for chunk_size in (1, 4, 10, 50):
        part = function(hidden, head, targets, chunk_size=chunk_size)
        for x, y in zip(part[:3], whole[:3], strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)
    assert token_logprobs(hidden, head, targets).entropy is None


def test_a_logit_of_ten_thousand_stays_finite():
    hidden, head, targets = problem()
    out, gradients = jax.value_and_grad(
        lambda h: token_logprobs(h, head, targets, with_entropy=True).logp.sum()
    )(hidden * 1e4)
    assert np.isfinite(out) and np.isfinite(gradients).all()


def test_bfloat16_inputs_give_float32_results_close_to_exact():
    hidden, head, targets = problem(width=64, vocab=50)
    hidden, head = (jnp.asarray(x / 4, jnp.bfloat16) for x in (hidden, head))
    exact = np_outputs(np.asarray(hidden), np.asarray(head), targets)

    def loss(hidden, head):
        out = token_logprobs(hidden, head, targets, with_entropy=True, chunk_size=2)
        return out.logp.sum(), out

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    gradients, out = gradient(hidden, head)
    for actual, expected in zip(out[:3], exact, strict=True):
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    float32, _ = gradient(hidden.astype(jnp.float32), head.astype(jnp.float32))
    for actual, expected in zip(gradients, float32, strict=True):
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_allclose(actual.astype(np.float32), expected, rtol=0.02, atol=0.01)


def test_a_target_outside_the_vocabulary_is_nan_and_can_be_masked():
    hidden, head, targets = problem()
    targets[0, 1], targets[1, 3] = -100, V

    def loss(hidden):
        logp = token_logprobs(hidden, head, targets).logp
        return jnp.where(np.isin(targets, [-100, V]), 0.0, logp).sum(), logp

    gradients, logp = jax.grad(loss, has_aux=True)(hidden)
    assert np.argwhere(np.isnan(logp)).tolist() == [[0, 1], [1, 3]]
    assert np.isfinite(gradients).all() and not np.any(gradients[0, 1])


def test_the_default_chunk_fits_64_mib_or_holds_1024_tokens():
    assert default_chunk_size(4, 2**10) == 2**12
    assert default_chunk_size(4, 2**17) == 256
    assert default_chunk_size(10_000, 2**18) == 1


def test_peak_memory_is_far_below_the_logits():
    shapes = [(4, 512, 32), (32768, 32), (4, 512)]
    arrays = [
        jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, ("float32", "float32", "int32"), strict=True)
    ]
    full = 4 * 512 * 32768 * 4

    def peak(function, *arrays):
        compiled = jax.jit(jax.grad(function, argnums=(0, 1))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def logprobs(hidden, head, targets):
        out = token_logprobs(hidden, head, targets, with_entropy=True, chunk_size=16)
        return sum(x.sum() for x in out[:3])

    def kl(hidden, head, ref_hidden, ref_head):
        return token_kl(hidden, head, ref_hidden, ref_head, chunk_size=16).sum()

    assert peak(logprobs, *arrays) < full / 5
    assert peak(kl, *arrays[:2], *arrays[:2]) < full / 5


def collectives(compiled) -> str:
    lines = compiled.as_text().splitlines()
    return "\n".join(x for x in lines if re.search(r" (all-gather|all-to-all|collective-permute)", x))


def summed(function, hidden, head, targets):
    return sum(x.sum() for x in jax.tree.leaves(function(hidden, head, targets)))


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [2, None])
@pytest.mark.parametrize("manual", [False, True])
def test_a_sharded_vocabulary_is_used_in_place(chunk_size, manual):
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    arrays = problem(batch=8, length=6, vocab=32)
    specs = (P("data"), P("tensor"), P("data"))
    sharded = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, specs, strict=True)]
    function = partial(token_logprobs, with_entropy=True, chunk_size=chunk_size)

    def on_each_shard(hidden, head, targets):
        return function(hidden, jax.lax.pcast(head, ("data",), to="varying"), targets)

    local = jax.shard_map(
        on_each_shard,
        mesh=mesh,
        in_specs=(P("data"), P(), P("data")),
        out_specs=P("data"),
        axis_names={"data"},
    )
    gradients = jax.grad(partial(summed, local if manual else function), argnums=(0, 1))
    compiled = jax.jit(gradients).lower(*sharded).compile()
    assert not collectives(compiled)
    expected = jax.jit(jax.grad(partial(summed, function), argnums=(0, 1)))(*arrays)
    for actual, wanted, spec in zip(compiled(*sharded), expected, specs, strict=False):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)
        assert actual.sharding.is_equivalent_to(NamedSharding(mesh, spec), actual.ndim)


def test_a_sharded_token_axis_stays_sharded():
    mesh = jax.make_mesh((2, 4), ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    arrays = problem(batch=2, length=16, vocab=32)
    specs = (P("data", "context"), P(), P("data", "context"))
    sharded = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, specs, strict=True)]
    function = partial(token_logprobs, with_entropy=True, chunk_size=4)
    compiled = jax.jit(jax.grad(partial(summed, function))).lower(*sharded).compile()
    assert not collectives(compiled)
    expected = jax.jit(jax.grad(partial(summed, function)))(*arrays)
    np.testing.assert_allclose(compiled(*sharded), expected, rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_named():
    hidden, head, targets = problem()
    with pytest.raises(TypeError, match="hidden is int32"):
        token_logprobs(hidden.astype(np.int32), head, targets)
    with pytest.raises(TypeError, match="targets is float32"):
        token_logprobs(hidden, head, targets.astype(np.float32))
    with pytest.raises(ValueError, match="targets has shape"):
        token_logprobs(hidden, head, targets[:, :-1])
    with pytest.raises(ValueError, match="mask has shape"):
        token_logprobs(hidden, head, targets, mask=targets[:, :-1])
    with pytest.raises(ValueError, match=r"must be \[B, T, D\] and \[V, D\]"):
        token_logprobs(hidden, head.T, targets)
    with pytest.raises(ValueError, match="temperature is 0"):
        token_logprobs(hidden, head, targets, temperature=0)
    with pytest.raises(ValueError, match="softcap is 0"):
        token_logprobs(hidden, head, targets, softcap=0)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        token_logprobs(hidden, head, targets, chunk_size=0)
    with pytest.raises(ValueError, match="must agree in B, T and V"):
        token_kl(hidden, head, hidden, head[:-1])
