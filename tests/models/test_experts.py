"""Router losses against loops over sequences and tokens, and what they must not depend on; grouped products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models import ModelConfig, hidden_states_and_router
from jaxalign.models.experts import grouped_product, megablox_product, router_losses

from .oracle import random_params

CONFIG = ModelConfig(
    vocab_size=31, embed_dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=24, num_experts=4
)


def np_losses(logits, chosen, segments):
    """Switch Transformer eq. 4-6 on each sequence, and ST-MoE eq. 5, summed over tokens, in float64."""
    balance = z = 0.0
    for row, picks, ids in zip(logits.astype(np.float64), chosen, segments, strict=True):
        for segment in set(ids[ids > 0].tolist()):
            at = np.flatnonzero(ids == segment)
            p = np.exp(row[at]) / np.exp(row[at]).sum(-1, keepdims=True)
            load = np.array([(picks[at] == e).sum() for e in range(row.shape[-1])]) / len(at)
            balance += len(at) * row.shape[-1] * (load * p.mean(0)).sum()
            z += (np.log(np.exp(row[at]).sum(-1)) ** 2).sum()
    return balance, z


def test_router_losses_match_loops():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 9, 5)).astype(np.float32)
    chosen = np.argsort(-logits, axis=-1)[..., :2].astype(np.int32)
    segments = np.array([[1] * 4 + [2] * 5, [0] * 3 + [1] * 6, [1, 2, 2, 3, 3, 3, 0, 0, 0]], np.int32)
    got = jax.jit(router_losses)(logits, chosen, segments)
    np.testing.assert_allclose(got, np_losses(logits, chosen, segments), rtol=1e-5)


def test_even_load_costs_k_a_token():
    chosen = jnp.array([[[0, 1], [2, 3], [0, 1], [2, 3]]], jnp.int32)
    balance, z = router_losses(jnp.zeros((1, 4, 4)), chosen, jnp.ones((1, 4), jnp.int32))
    assert balance == pytest.approx(4 * 2) and z == pytest.approx(4 * np.log(4) ** 2, rel=1e-6)


@pytest.mark.slow
def test_losses_of_packed_and_padded_sequences_are_those_of_each_alone():
    params = random_params(CONFIG)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 31, (1, 11)).astype(np.int32)
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 2], np.int32)
    positions = np.array([[*range(5), *range(4), 0, 0]], np.int32)
    apply = jax.jit(hidden_states_and_router, static_argnames="config")
    _, packed = apply(params, CONFIG, tokens, positions, segments)
    alone = sum(
        apply(params, CONFIG, *(x[:, at] for x in (tokens, positions)), np.ones((1, n), np.int32))[1]
        for at, n in ((slice(0, 5), 5), (slice(5, 9), 4))
    )
    np.testing.assert_allclose(packed, alone, rtol=1e-5)


@pytest.mark.slow
def test_gradient_reaches_every_expert_and_the_router():
    params = random_params(CONFIG)
    tokens = np.random.default_rng(2).integers(0, 31, (2, 12)).astype(np.int32)
    positions = np.tile(np.arange(12, dtype=np.int32), (2, 1))

    @jax.jit
    def gradient(params):
        def value(params):
            hidden, router = hidden_states_and_router(params, CONFIG, tokens, positions, np.ones_like(tokens))
            return jnp.sum(jnp.sin(hidden)) + router.sum()

        return jax.grad(value)(params)

    layer = gradient(params)["layers"]["mlp"]
    for name in ("gate", "up", "down"):
        assert (np.abs(layer[name]["kernel"]).max((2, 3)) > 0).all(), name
    assert (np.abs(layer["router"]["kernel"]).max(1) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(100, 0, 333, 1, 200), (0, 0, 0, 0, 0), (700, 0, 0, 0, 0)])
def test_the_kernel_of_experts_gives_each_group_its_matrix(sizes):
    """Against float64 NumPy, group by group; rows after the last group are 0 and move no gradient."""
    rng = np.random.default_rng(0)
    m, k, n = 700, 64, 96
    rows, matrices, weights = rng.normal(size=(m, k)), rng.normal(size=(5, k, n)), rng.normal(size=(m, n))
    out, to_rows, to_matrices = np.zeros((m, n)), np.zeros((m, k)), np.zeros((5, k, n))
    begin = 0
    for group, size in enumerate(sizes):
        part = slice(begin, begin + size)
        out[part] = rows[part] @ matrices[group]
        to_rows[part] = weights[part] @ matrices[group].T
        to_matrices[group] = rows[part].T @ weights[part]
        begin += size

    kernel = functools.partial(megablox_product, interpret=True)
    arguments = [jnp.array(x, jnp.float32) for x in (rows, matrices)]
    groups = jnp.array(sizes, jnp.int32)
    for product in (kernel, grouped_product):
        got, back = jax.vjp(functools.partial(product, sizes=groups), *arguments)
        for mine, wanted in zip(
            (got, *back(jnp.array(weights, jnp.float32))), (out, to_rows, to_matrices), strict=True
        ):
            np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-4)
