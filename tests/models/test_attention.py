"""Attention in blocks, and the TPU kernel in interpretation, against the whole score matrix."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig, abstract_params, hidden_states
from jaxalign.models import transformer as transformer_module
from jaxalign.models.attention import (
    attention,
    attention_mask,
    blockwise_attention,
    default_attention,
    soft_cap,
    splash_attention,
)
from jaxalign.parallel import MeshConfig, batch_sharding, make_mesh, use_mesh
from jaxalign.training.config import ModelSettings

from .oracle import random_params


def inputs(B=2, T=200, H=4, K=2, d=128, seed=0):
    """Packed rows: three segments and padding on the right, then padding on the left."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, T, n, d)).astype(np.float32) for n in (H, K, K))
    segments = np.zeros((B, T), np.int32)
    segments[0, :70], segments[0, 70:100], segments[0, 100:190] = 1, 2, 3
    segments[1, 13:] = 1
    positions = np.zeros((B, T), np.int32)
    for row in range(B):
        for segment in range(1, 4):
            at = np.flatnonzero(segments[row] == segment)
            positions[row, at] = np.arange(len(at))
    return (q, k, v), positions, segments


def reference(q, k, v, positions, segments, *, window, softcap):
    mask = attention_mask(positions, segments, positions, segments, window)
    return attention(q, k, v, mask, scale=0.1, softcap=softcap)


SETTINGS = [(0, 0.0), (17, 0.0), (0, 5.0), (40, 5.0)]


def compare(candidate, window, softcap, tolerance):
    """Outputs on real tokens, and the gradients of a random functional of them."""
    (q, k, v), positions, segments = inputs()
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    weights *= (segments > 0)[..., None, None]

    def value(f, *qkv):
        out = f(*qkv)
        return jnp.vdot(weights, out), out

    def run(f):
        return jax.jit(jax.value_and_grad(functools.partial(value, f), argnums=(0, 1, 2), has_aux=True))(
            q, k, v
        )

    whole = functools.partial(
        reference, positions=positions, segments=segments, window=window, softcap=softcap
    )
    ((_, want), want_grads), ((_, got), got_grads) = run(whole), run(candidate(positions, segments))
    real = segments > 0
    np.testing.assert_allclose(np.asarray(got)[real], np.asarray(want)[real], atol=tolerance)
    for mine, theirs in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=tolerance * max(1.0, float(np.abs(theirs).max())))


@pytest.mark.slow
@pytest.mark.parametrize(("window", "softcap"), SETTINGS)
@pytest.mark.parametrize("block", [64, 512])
def test_blockwise(window, softcap, block):
    def candidate(positions, segments):
        places = (positions, segments, positions, segments)
        return lambda q, k, v: blockwise_attention(
            q, k, v, *places, window=window, scale=0.1, softcap=softcap, block=block
        )

    compare(candidate, window, softcap, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "softcap"), SETTINGS)
def test_splash(window, softcap):
    def candidate(positions, segments):
        return lambda q, k, v: splash_attention(
            q, k, v, segments, window=window, scale=0.1, softcap=softcap, interpret=True
        )

    compare(candidate, window, softcap, 2e-5)


CONFIG = ModelConfig(
    vocab_size=64,
    num_layers=4,
    embed_dim=64,
    num_heads=8,
    num_kv_heads=4,
    head_dim=128,
    mlp_dim=64,
    window=40,
    layer_pattern="LG",
    attention_softcap=8.0,
)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 2, 4), (1, 2, 1, 4), (2, 1, 2, 2)], ids=str)
def test_a_model_with_the_kernel_on_a_mesh(sizes, monkeypatch):
    """Rows, heads and queries on different devices; local and global layers in one scan."""
    interpreted = functools.partial(splash_attention, interpret=True)
    monkeypatch.setattr(transformer_module, "splash_attention", interpreted)
    params = random_params(CONFIG)
    _, positions, segments = inputs(B=2, T=512)
    positions, segments = (np.tile(x, (4, 1)) for x in (positions, segments))
    tokens = np.random.default_rng(2).integers(0, 64, positions.shape).astype(np.int32)
    apply = jax.jit(hidden_states, static_argnames="config")
    want = apply(params, CONFIG, tokens, positions, segments)[0]
    mesh = make_mesh(MeshConfig(*sizes))
    with use_mesh(mesh):
        layout = jax.tree.map(lambda x: x.sharding, abstract_params(CONFIG, mesh))
        batch = jax.device_put((tokens, positions, segments), batch_sharding(mesh))
        config = dataclasses.replace(CONFIG, attention="splash")
        got = apply(jax.device_put(params, layout), config, *batch)[0]
    real = segments > 0
    np.testing.assert_allclose(np.asarray(got)[real], np.asarray(want)[real], atol=2e-4)


@pytest.mark.slow
def test_blockwise_model_decodes_and_scores_like_the_reference():
    from jaxalign.sampling.generate import SamplingConfig, generate

    params = random_params(CONFIG)
    tokens = np.random.default_rng(3).integers(0, 64, (2, 50)).astype(np.int32)
    ones, positions = np.ones_like(tokens), np.tile(np.arange(50, dtype=np.int32), (2, 1))
    outs = [
        generate(
            params,
            dataclasses.replace(CONFIG, attention=name),
            tokens,
            positions,
            ones,
            jax.random.key(0),
            sampling=SamplingConfig(max_new_tokens=12),
            stop_ids=(),
        )
        for name in ("xla", "blockwise", "splash")
    ]
    for out in outs[1:]:
        np.testing.assert_array_equal(out.tokens, outs[0].tokens)
        np.testing.assert_allclose(out.logp, outs[0].logp, atol=1e-5)


def test_the_platform_chooses():
    assert [default_attention(p) for p in ("tpu", "gpu", "cpu")] == ["splash", "blockwise", "xla"]
    assert ModelSettings().architecture(300, "tpu").attention == "splash"
    assert ModelSettings(attention="xla").architecture(300, "tpu").attention == "xla"
    with pytest.raises(ConfigError, match="is a kernel for TPUs, and this is cpu; use 'auto'"):
        ModelSettings(attention="splash").architecture(300, "cpu")


def test_a_soft_cap_bounds_and_leaves_what_is_small():
    x = np.float32([-1e9, -40.0, -1e-3, 0.0, 2.0, 1e9])
    np.testing.assert_allclose(
        soft_cap(jnp.array(x), 30.0), 30.0 * np.tanh(x.astype(np.float64) / 30.0), rtol=1e-6
    )
    for none in (None, 0.0):
        np.testing.assert_array_equal(soft_cap(jnp.array(x), none), x)
