"""The model on 8 devices, however they are arranged, computes what it computes on one."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from models.oracle import random_params

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig, abstract_params, init_params
from jaxalign.models.scoring import score_tokens
from jaxalign.parallel import MeshConfig, batch_sharding, make_mesh, parse_rules, use_mesh
from jaxalign.plan import hlo
from jaxalign.plan.collectives import find_collectives

CONFIG = ModelConfig(
    vocab_size=48,
    embed_dim=32,
    num_heads=16,
    num_kv_heads=8,
    head_dim=4,
    mlp_dim=64,
    max_length=32,
    norm="layer",
    positions="learned",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tie_embeddings=False,
)
B, T = 8, 12


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 48, (B, T)).astype(np.int32)
    segments = np.repeat([[1] * 5 + [2] * 4 + [0] * 3], B, 0).astype(np.int32)
    positions = np.repeat([[*range(5), *range(4), 0, 0, 0]], B, 0).astype(np.int32)
    return tokens, positions, segments


@jax.jit
def loss(params, tokens, positions, segments):
    """A number that every parameter moves, with its gradient, and the log-probabilities it comes from."""

    def mean(params):
        logp = score_tokens(params, CONFIG, tokens, positions, segments).logp
        return -logp.mean(), logp

    return jax.value_and_grad(mean, has_aux=True)(params)


@functools.cache
def on_one_device():
    return jax.device_get(loss(random_params(CONFIG), *batch()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 2, 1, 4), (1, 2, 2, 2), (2, 1, 1, 1, 4)],
    ids=str,
)
def test_forward_and_gradient_equal_one_device(sizes):
    mesh = make_mesh(MeshConfig(*sizes))
    with use_mesh(mesh):
        layout = jax.tree.map(lambda x: x.sharding, abstract_params(CONFIG, mesh))
        params = jax.device_put(random_params(CONFIG), layout)
        got = loss(params, *jax.device_put(batch(), batch_sharding(mesh)))
    assert len(got[0][0].sharding.device_set) == 8
    want = on_one_device()
    for (path, a), b in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        atol = 1e-5 * max(1.0, np.abs(a).max())
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_every_parameter_lies_where_the_table_says():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    into, out = P(None, "fsdp", "tensor", None), P(None, "tensor", None, "fsdp")
    norm = {"scale": P(None, None), "bias": P(None, None)}
    head, whole = {"kernel": into, "bias": P(None, "tensor", None)}, {"bias": P(None, "fsdp")}
    wide = {"kernel": P(None, "fsdp", "tensor"), "bias": P(None, "tensor")}
    want = {
        "embedding": P("tensor", "fsdp"),
        "unembedding": P("tensor", "fsdp"),
        "position_embedding": P(None, "fsdp"),
        "final_norm": {"scale": P(None), "bias": P(None)},
        "layers": {
            "attention_norm": norm,
            "attention": {"query": head, "key": head, "value": head, "out": {"kernel": out, **whole}},
            "mlp_norm": norm,
            "mlp": {"gate": wide, "up": wide, "down": {"kernel": P(None, "tensor", "fsdp"), **whole}},
        },
    }
    abstract = abstract_params(CONFIG, mesh, scalar=True)
    assert jax.tree.map(lambda x: x.sharding.spec, abstract["transformer"]) == want
    assert jax.tree.map(lambda x: x.sharding.spec, abstract["head"]) == {"kernel": P(), "bias": P()}
    assert {x.dtype for x in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_sharded_initialisation_draws_the_same_numbers_and_splits_them():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    config = ModelConfig(vocab_size=48, num_layers=2, embed_dim=32, mlp_dim=64)
    make = functools.partial(init_params, config=config, scalar=True)
    with use_mesh(mesh):
        layout = jax.tree.map(lambda x: x.sharding, abstract_params(config, mesh, scalar=True))
        split = jax.jit(make, out_shardings=layout)(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, split, jax.jit(make)(jax.random.key(3)))
    kernel = split["transformer"]["layers"]["mlp"]["up"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16, 32)}


@pytest.mark.parametrize(
    ("switches", "sizes", "message"),
    [
        (
            {"num_kv_heads": 2, "num_heads": 8},
            (1, 1, 8),
            "config.model.num_kv_heads=2 is not divisible by config.mesh.tensor=8; use 8, or config.mesh.tensor=2",
        ),
        (
            {"num_heads": 6, "num_kv_heads": 6},
            (1, 2, 4),
            "config.model.num_heads=6 is not divisible by config.mesh.tensor=4; use 4 or 8, or config.mesh.tensor=2",
        ),
        (
            {"embed_dim": 30},
            (1, 4, 2),
            "config.model.embed_dim=30 is not divisible by config.mesh.fsdp=4; use 28 or 32, or config.mesh.fsdp=2",
        ),
        (
            {"vocab_size": 511},
            (1, 2, 4),
            "config.model.vocab_size=511 is not divisible by config.mesh.tensor=4; "
            "use 508 or 512, or config.mesh.tensor=1",
        ),
        (
            {"mlp_dim": 65},
            (4, 1, 2),
            "config.model.mlp_dim=65 is not divisible by config.mesh.tensor=2; use 64 or 66, or config.mesh.tensor=1",
        ),
    ],
)
def test_model_that_does_not_divide_is_refused(switches, sizes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        abstract_params(ModelConfig(**switches), make_mesh(MeshConfig(*sizes)))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("mlp=fsdp", "config.mesh.rules: mlp and embed both lie along fsdp, and meet in one array; give one"),
        ("embed=,mlp=fsdp", "config.mesh.rules: mlp and batch both lie along fsdp"),
        ("embed=,mlp=,expert=context", "config.mesh.rules: expert and length both lie along context"),
        # Each axis once in a layout, though there is but one device along it.
        ("embed=tensor", "config.mesh.rules: vocab and embed both lie along tensor"),
        ("decode_embed=tensor", "config.mesh.rules: vocab and decode_embed both lie along tensor"),
        ("act_embed=fsdp", "config.mesh.rules: batch and act_embed both lie along fsdp"),
        ("act_kv_heads=data", "config.mesh.rules: batch and act_kv_heads both lie along data"),
        ("length=tensor", "config.mesh.rules: length and act_heads both lie along tensor"),
    ],
)
def test_rules_that_cannot_be_are_refused(rules, message):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, context=2, expert=2))
    with use_mesh(mesh, parse_rules(rules)), pytest.raises(ConfigError, match=re.escape(message)):
        abstract_params(MOE, mesh)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("layers=data", "config.model.num_layers=2 is not divisible by config.mesh.data=4; use 4, or"),
        ("head_dim=data", "config.model.head_dim=6 is not divisible by config.mesh.data=4; use 4 or 8, or"),
        ("norm=data", "config.model.embed_dim=30 is not divisible by config.mesh.data=4; use 28 or 32, or"),
        (
            "position=data",
            "config.model.max_length=33 is not divisible by config.mesh.data=4; use 32 or 36, or",
        ),
    ],
)
def test_axes_that_rules_alone_split_divide_as_well(rules, message):
    model = dataclasses.replace(CONFIG, embed_dim=30, head_dim=6, max_length=33)
    with use_mesh(make_mesh(MeshConfig(4, tensor=2)), parse_rules(rules)) as mesh:
        with pytest.raises(ConfigError, match=re.escape(message)):
            abstract_params(model, mesh)
        if rules == "position=data":  # rotary positions have no table
            abstract_params(dataclasses.replace(model, positions="rope"), mesh)


MOE = dataclasses.replace(
    CONFIG, num_experts=4, experts_per_token=2, mlp_bias=False, norm="rms", positions="rope", mlp_dim=16
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "rules"),
    [
        ((1, 4, 1, 1, 2), ""),
        ((1, 2, 2, 1, 2), ""),
        ((1, 1, 1, 2, 4), ""),
        ((8, 1, 1, 1, 1), ""),
        ((1, 2, 1, 2, 2), "embed=context+fsdp"),
        ((1, 2, 2, 1, 2), "embed="),
    ],
    ids=str,
)
def test_mixture_of_experts_equals_one_device(sizes, rules):
    @functools.partial(jax.jit, static_argnums=0)
    def loss(name, params, *batch):
        def mean(params):
            scored = score_tokens(params, MOE, *batch)
            return -scored.logp.mean() + scored.router.mean(), scored.logp

        return jax.value_and_grad(mean, has_aux=True)(params)

    params = random_params(MOE)
    want = jax.device_get(loss("one", params, *batch()))
    mesh = make_mesh(MeshConfig(*sizes))
    with use_mesh(mesh, parse_rules(rules)):
        layout = jax.tree.map(lambda x: x.sharding, abstract_params(MOE, mesh))
        got = loss("many", jax.device_put(params, layout), *jax.device_put(batch(), batch_sharding(mesh)))
    for (path, a), b in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        atol = 1e-5 * max(1.0, np.abs(a).max())
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_no_layer_keeps_gathered_experts_and_their_gradients_are_scattered():
    """A device of fsdp 8 must not hold a layer's experts whole for the backward pass, nor sum their gradients whole."""
    sizes = {"num_experts": 8, "mlp_dim": 256, "num_layers": 6, "embed_dim": 64}
    config = dataclasses.replace(CONFIG, mlp_bias=False, out_bias=False, remat="none", **sizes)
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))

    def total(params, *batch):
        return score_tokens(params, config, *batch).logp.sum()

    with use_mesh(mesh):
        rows = batch_sharding(mesh)
        arguments = [jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=rows)] * 3
        abstract = abstract_params(config, mesh)
        layout = jax.tree.map(lambda x: x.sharding, abstract)
        compiled = jax.jit(jax.grad(total), out_shardings=layout).lower(abstract, *arguments).compile()
    experts = 4 * 3 * config.num_experts * config.embed_dim * config.mlp_dim  # bytes of a layer's
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * experts
    summed = [
        x.payload
        for x in find_collectives(hlo.parse(compiled.as_text()), mesh)
        if x.kind == "all-reduce" and x.payload >= experts / 3
    ]
    assert summed == []
