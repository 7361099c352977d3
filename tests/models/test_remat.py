"""Rematerialisation changes memory, never numbers; scanned layers keep the program's size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models import ModelConfig, hidden_states

from .oracle import random_params

CONFIG = ModelConfig(
    vocab_size=31, num_layers=4, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=64
)
T = 64


def batch():
    tokens = np.random.default_rng(0).integers(0, 31, (2, T)).astype(np.int32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (2, T))
    return tokens, positions, np.ones((2, T), np.int32)


def loss(params, config):
    hidden, _ = hidden_states(params, config, *batch())
    weights = np.random.default_rng(1).normal(size=hidden.shape).astype(np.float32)
    return jnp.vdot(weights, hidden)


@functools.cache
def compiled(remat):
    config = dataclasses.replace(CONFIG, remat=remat)
    return jax.jit(jax.value_and_grad(functools.partial(loss, config=config))).lower(params()).compile()


@functools.cache
def params():
    return random_params(CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "attention", "dots", "dots_no_batch"])
def test_values_and_gradients_equal_those_without_remat(remat):
    want, got = compiled("none")(params()), compiled(remat)(params())
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        scale = np.abs(a).max()
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.slow
def test_full_remat_keeps_less_than_none():
    kept = {remat: compiled(remat).memory_analysis().temp_size_in_bytes for remat in ("none", "full")}
    assert kept["full"] < 0.7 * kept["none"]


# Steps balance the rounding of float32 values against the curvature; the loss is linear in the last norm.
@pytest.mark.parametrize(("name", "step"), [("embedding", 1e-3), ("layers", 1e-3), ("final_norm", 0.1)])
def test_gradient_matches_a_central_difference(name, step):
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params()[name])

    def along(distance):
        moved = jax.tree.map(lambda x, d: x + distance * d, params()[name], direction)
        value, grads = compiled("full")({**params(), name: moved})
        slopes = jax.tree.map(np.vdot, grads[name], direction)
        return float(value), sum(jax.tree.leaves(slopes))

    slope = (along(step)[0] - along(-step)[0]) / (2 * step)
    np.testing.assert_allclose(along(0.0)[1], slope, rtol=1e-2)


def test_the_program_does_not_grow_with_depth():
    def equations(num_layers):
        config = dataclasses.replace(CONFIG, num_layers=num_layers)
        return str(jax.make_jaxpr(functools.partial(loss, config=config))(random_params(config))).count("\n")

    assert equations(2) == equations(9)
