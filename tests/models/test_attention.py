"""Attention in blocks, and the kernels for TPUs and GPUs in interpretation, against the whole score matrix."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig, abstract_params, hidden_states
from jaxalign.models import tpu_attention as module
from jaxalign.models import transformer as transformer_module
from jaxalign.models.attention import (
    View,
    attention,
    attention_mask,
    blockwise_attention,
    see,
    soft_cap,
)
from jaxalign.models.block_sparse import attend_in_blocks, block_sparse_attention
from jaxalign.models.config import best_on
from jaxalign.models.gpu_attention import flash_attention
from jaxalign.models.tpu_attention import splash_attention
from jaxalign.parallel import MeshConfig, batch_sharding, make_mesh, use_mesh
from jaxalign.training.config import ModelSettings
from jaxalign.training.supervised import computed_alike

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
@pytest.mark.parametrize(("block", "together"), [(16, 3), (64, 16), (512, 1)])
def test_block_sparse(window, softcap, block, together):
    def candidate(positions, segments):
        view = see(segments, window)
        settings = {"scale": 0.1, "softcap": softcap, "block": block, "together": together}
        return lambda q, k, v: attend_in_blocks(q, k, v, view, **settings)

    compare(candidate, window, softcap, 1e-5)


def test_a_token_sees_its_own_segment_up_to_itself():
    segments = np.int32([[1, 1, 1, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(see(segments).first, [[0, 0, 0, 3, 3, 5, 6], [0, 1, 2, 2, 2, 2, 2]])
    np.testing.assert_array_equal(see(segments).last, [np.arange(7)] * 2)
    np.testing.assert_array_equal(
        see(segments, window=2).first, [[0, 0, 1, 3, 3, 5, 6], [0, 1, 2, 2, 3, 4, 5]]
    )


def test_no_block_is_read_that_nobody_sees():
    """Whatever lies in it: a number that is none would spread to all that reads it."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 64, 2, 8)).astype(np.float32) for _ in range(3))
    segments = np.repeat(np.int32([[1, 2, 3, 4]]), 16, axis=1)
    whole = functools.partial(attend_in_blocks, scale=1.0, softcap=0.0, block=16, together=1)
    want = whole(q, k, v, see(segments))
    k[:, 16:32], v[:, 48:] = np.nan, np.nan
    got = np.asarray(whole(q, k, v, see(segments)))
    np.testing.assert_array_equal(got[:, :16], want[:, :16])
    np.testing.assert_array_equal(got[:, 32:48], want[:, 32:48])
    assert np.isnan(got[:, 16:32]).all() and np.isnan(got[:, 48:]).all()


def test_block_sparse_in_bfloat16_is_as_near_as_the_whole_matrix():
    (q, k, v), positions, segments = inputs()
    real = segments > 0
    exact = np.asarray(reference(q, k, v, positions, segments, window=0, softcap=0.0))[real]
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    whole = reference(q, k, v, positions, segments, window=0, softcap=0.0)
    got = block_sparse_attention(q, k, v, see(segments), scale=0.1)
    assert got.dtype == jnp.bfloat16
    errors = [np.abs(np.float32(x)[real] - exact).max() for x in (got, whole)]
    assert errors[0] <= 1.5 * errors[1]


def test_queries_may_be_a_part_of_the_row():
    """As on a mesh that splits tokens: what a query sees is said by places of the keys."""
    (q, k, v), _, segments = inputs()
    view = see(segments)
    want = block_sparse_attention(q, k, v, view, scale=0.1)
    for part in (slice(0, 50), slice(50, 100), slice(100, 200)):
        mine = View(view.first[:, part], view.last[:, part])
        got = attend_in_blocks(q[:, part], k, v, mine, scale=0.1, softcap=0.0, block=32, together=2)
        np.testing.assert_allclose(got, want[:, part], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("window", "softcap"), SETTINGS)
def test_splash(window, softcap, fused, monkeypatch):
    if fused:
        monkeypatch.setattr(module, "FUSED_BLOCK", 128)

    def candidate(positions, segments):
        return lambda q, k, v: splash_attention(
            q, k, v, segments, window=window, scale=0.1, softcap=softcap, block=128, interpret=True
        )

    compare(candidate, window, softcap, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_splash_reads_only_blocks_of_segments_that_a_query_is_in(fused, monkeypatch):
    """The keys and queries of other segments, in blocks of their own, may be anything, backward too."""
    T = 512
    if fused:
        monkeypatch.setattr(module, "FUSED_BLOCK", 128)
        T = 1024  # two blocks of keys are held at a time
    segments = np.repeat(np.int32([[1, 2, 2, 0]]), T // 4, axis=1)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, T, n, 16)).astype(np.float32) for n in (2, 1, 1))
    mine = slice(T // 4, 3 * T // 4)

    def loss(q, k, v, attend):
        return jnp.sum(jnp.square(attend(q, k, v)[:, mine]))

    def splash(q, k, v):
        return splash_attention(q, k, v, segments, window=0, scale=0.3, block=128, interpret=True)

    def plain(q, k, v):
        places = np.arange(T)[None]
        return attention(q, k, v, attention_mask(places, segments, places, segments), scale=0.3)

    wanted = jax.grad(functools.partial(loss, attend=plain), argnums=(0, 1, 2))(q, k, v)
    for x in (q, k, v):
        x[:, : T // 4] = np.nan
    found = jax.grad(functools.partial(loss, attend=splash), argnums=(0, 1, 2))(q, k, v)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a[:, mine], b[:, mine], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "softcap"), SETTINGS)
def test_flash(window, softcap):
    """Blocks of 64 keys and of 128 queries; a window may be traced."""

    def candidate(positions, segments):
        view = jax.jit(see)(segments, window) if window else see(segments)
        return lambda q, k, v: flash_attention(q, k, v, view, scale=0.1, softcap=softcap, interpret=True)

    compare(candidate, window, softcap, 2e-5)


def test_a_view_is_what_the_mask_shows():
    _, positions, segments = inputs()
    places = np.arange(segments.shape[1])
    for window in (0, 1, 17, np.iinfo(np.int32).max):
        first, last = (np.asarray(x)[..., None] for x in jax.tree.leaves(see(segments, window)))
        mask = np.asarray(attention_mask(positions, segments, positions, segments, window))
        real = segments > 0
        np.testing.assert_array_equal(((places >= first) & (places <= last))[real], mask[real])
        # Each token sees itself, and neither end falls: no sum of weights is 0, and a block's range is its ends'.
        assert (
            (first <= last).all() and (last[..., 0] == places).all() and (np.diff(first, axis=1) >= 0).all()
        )


def test_flash_reads_only_blocks_that_a_query_sees():
    """Keys of other segments, in blocks of their own, may be anything, even what no number survives."""
    T, q, k = 256, *(np.ones((1, 256, n, 16), np.float32) for n in (2, 1))
    segments = np.repeat(np.int32([[1, 2]]), T // 2, axis=1)
    v = np.arange(T, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 1, 16), np.float32)
    spoiled = k.copy()
    spoiled[:, : T // 2] = np.nan
    out = flash_attention(q, spoiled, v, see(segments), scale=1.0, interpret=True)
    want = (np.arange(T // 2, T) + T // 2) / 2  # the mean of the values from the segment's first on
    np.testing.assert_allclose(np.asarray(out)[0, T // 2 :, 1, 3], want, rtol=1e-5)


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
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        *(
            (kind, sizes)
            for kind in ("splash", "block_sparse")
            for sizes in [(8, 1, 1), (1, 2, 4), (2, 1, 2, 2)]
        ),
        ("splash", (1, 2, 1, 4)),
        ("flash", (1, 2, 2, 2)),
    ],
    ids=str,
)
def test_a_model_on_a_mesh(kind, sizes, monkeypatch):
    """Rows, heads and queries on different devices; local and global layers in one scan."""
    for attend in (splash_attention, flash_attention):
        interpreted = functools.partial(attend, interpret=True)
        monkeypatch.setattr(transformer_module, attend.__name__, interpreted)
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
        config = dataclasses.replace(CONFIG, attention=kind)
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
        for name in ("xla", "blockwise", "splash", "block_sparse")
    ]
    for out in outs[1:]:
        np.testing.assert_array_equal(out.tokens, outs[0].tokens)
        np.testing.assert_allclose(out.logp, outs[0].logp, atol=1e-5)


def test_the_platform_chooses():
    kinds = [
        best_on(platform, 2, 128)["attention"] for platform in ("tpu", "gpu", "cuda", "rocm", "cpu", "other")
    ]
    assert kinds == ["splash", "flash", "flash", "blockwise", "block_sparse", "xla"]
    assert best_on("gpu", 2, 80)["attention"] == "blockwise"
    assert best_on("cpu", 12, 16)["scan_layers"] is False
    assert best_on("cpu", 13, 16)["scan_layers"] is best_on("tpu", 2, 16)["scan_layers"] is True
    assert ModelSettings(head_dim=96).architecture(300, "gpu").attention == "blockwise"
    saved = dataclasses.replace(CONFIG, head_dim=80)
    assert ModelSettings().architecture(300, "gpu", saved).attention == "blockwise"
    assert ModelSettings().architecture(300, "tpu").attention == "splash"
    assert ModelSettings(attention="xla").architecture(300, "tpu").attention == "xla"
    with pytest.raises(ConfigError, match="is a kernel for TPUs, and this is cpu; use 'auto'"):
        ModelSettings(attention="splash").architecture(300, "cpu")
    with pytest.raises(ConfigError, match="is a kernel for GPUs, and this is tpu; use 'auto'"):
        ModelSettings(attention="flash").architecture(300, "tpu")
    with pytest.raises(
        ConfigError, match=r"attention='flash' cannot do config\.model\.head_dim=80, only 16, 32"
    ):
        ModelSettings(attention="flash", head_dim=80).architecture(300, "gpu")


@pytest.mark.parametrize(("asked", "own", "others"), [("auto", "flash", "blockwise"), ("xla", "xla", "xla")])
def test_another_model_keeps_the_kernel_that_can_do_its_heads(asked, own, others):
    """A student with heads of 64 and a teacher with heads of 96, as Phi-3 has, on a GPU."""
    settings = ModelSettings(attention=asked, dtype="bfloat16")
    student = settings.architecture(300, "gpu", dataclasses.replace(CONFIG, head_dim=64))
    teacher = dataclasses.replace(CONFIG, head_dim=96, **best_on("gpu", CONFIG.num_layers, 96))
    run: Any = SimpleNamespace(model=student, config=SimpleNamespace(model=settings))
    read = computed_alike(teacher, run)
    assert (student.attention, read.attention, read.dtype) == (own, others, "bfloat16")
    assert read == dataclasses.replace(teacher, attention=others, dtype="bfloat16")


def test_a_soft_cap_bounds_and_leaves_what_is_small():
    x = np.float32([-1e9, -40.0, -1e-3, 0.0, 2.0, 1e9])
    np.testing.assert_allclose(
        soft_cap(jnp.array(x), 30.0), 30.0 * np.tanh(x.astype(np.float64) / 30.0), rtol=1e-6
    )
    for none in (None, 0.0):
        np.testing.assert_array_equal(soft_cap(jnp.array(x), none), x)
