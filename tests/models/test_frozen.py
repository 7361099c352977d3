"""Frozen models: rounded, in host memory, and what that does to numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig, abstract_params, hidden_states, init_params
from jaxalign.models.frozen import FrozenConfig, Quantized, abstract_keep, keep, quantize
from jaxalign.parallel import MeshConfig, make_mesh, use_mesh

SMALL = {
    "vocab_size": 64,
    "num_layers": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 64,
    "init_std": 0.2,
}
MODELS = {"dense": ModelConfig(**SMALL), "experts": ModelConfig(**SMALL, num_experts=4, experts_per_token=2)}
MESHES = {"one": MeshConfig(data=1), "fsdp4-tensor2": MeshConfig(data=1, fsdp=4, tensor=2)}


def test_no_entry_moves_by_more_than_half_a_step_of_its_row():
    x = np.random.default_rng(0).normal(size=(3, 5, 40)).astype(np.float32)
    x[0, 0] = 0.0
    got = quantize(jnp.array(x))
    back = np.asarray(got.values, np.float64) * np.asarray(got.scale, np.float64)
    largest = np.abs(x).max(-1, keepdims=True)
    assert got.values.dtype == jnp.int8
    assert np.all(np.abs(back - x) <= largest / 254 * (1 + 1e-5))
    np.testing.assert_allclose(np.abs(back).max(-1), largest[..., 0], rtol=1e-6)  # the largest is kept


def model_on(mesh, config):
    make = functools.partial(init_params, jax.random.key(0), config)

    shardings = jax.tree.map(lambda x: x.sharding, abstract_params(config, mesh))
    return jax.jit(make, out_shardings=shardings)()


def outputs(params, config):
    tokens = jax.random.randint(jax.random.key(1), (8, 12), 0, config.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32), tokens.shape)
    run = jax.jit(lambda p: hidden_states(p, config, tokens, positions, jnp.ones_like(tokens))[0])
    return np.asarray(run(params), np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", MODELS)
def test_rounded_models_say_nearly_the_same(kind, mesh):
    config = MODELS[kind]
    devices = jax.devices()[: 1 if mesh == "one" else 8]
    with use_mesh(make_mesh(MESHES[mesh], devices)) as where:
        params = model_on(where, config)
        exact = outputs(params, config)
        for dtype, least, most in (("bfloat16", 1e-4, 0.02), ("int8", 1e-4, 0.05)):
            kept = keep(params, FrozenConfig(dtype=dtype))
            error = np.abs(outputs(kept, config) - exact).mean() / np.abs(exact).mean()
            assert least < error < most, (dtype, error)
            sizes = sum(x.nbytes for x in jax.tree.leaves(kept)) / sum(
                x.nbytes for x in jax.tree.leaves(params)
            )
            assert sizes < {"bfloat16": 0.53, "int8": 0.36}[dtype]  # a scale for every 8 to 64 entries


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_host_memory_changes_no_bit(dtype):
    config = MODELS["dense"]
    with use_mesh(make_mesh(MESHES["one"], jax.devices()[:1])) as where:
        params = model_on(where, config)
        here = keep(params, FrozenConfig(dtype=dtype))
        there = keep(params, FrozenConfig(dtype=dtype, offload=True))
        kernel = there["layers"]["mlp"]["up"]["kernel"]
        values = kernel.values if isinstance(kernel, Quantized) else kernel
        assert values.sharding.memory_kind == "pinned_host"
        np.testing.assert_array_equal(outputs(there, config), outputs(here, config))


def test_shapes_and_shardings_are_known_before_there_are_weights():
    config = MODELS["dense"]
    with use_mesh(make_mesh(MESHES["fsdp4-tensor2"])) as where:
        params = model_on(where, config)
        frozen = FrozenConfig(dtype="int8")
        told, kept = abstract_keep(params, frozen), keep(params, frozen)
        assert jax.tree.structure(told) == jax.tree.structure(kept)
        for a, b in zip(jax.tree.leaves(told), jax.tree.leaves(kept), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        up = kept["layers"]["mlp"]["up"]["kernel"]
        assert up.values.sharding.spec == params["layers"]["mlp"]["up"]["kernel"].sharding.spec
        assert up.values.addressable_shards[0].data.shape == (2, 32 // 4, 64 // 2)


@pytest.mark.slow
def test_vectors_and_routers_stay_as_they_are():
    config = MODELS["experts"]
    params = init_params(jax.random.key(0), config)
    with use_mesh(make_mesh(MESHES["one"], jax.devices()[:1])) as where:
        kept = keep(model_on(where, config), FrozenConfig(dtype="int8"))
    np.testing.assert_array_equal(
        kept["layers"]["mlp"]["router"]["kernel"], params["layers"]["mlp"]["router"]["kernel"]
    )
    assert isinstance(kept["layers"]["mlp"]["up"]["kernel"], Quantized)
    assert kept["final_norm"]["scale"].dtype == jnp.float32


def test_an_unknown_type_is_refused():
    with pytest.raises(
        ConfigError, match=r"config.frozen.dtype='int4' is not one of float32, bfloat16, int8"
    ):
        FrozenConfig(dtype="int4")
