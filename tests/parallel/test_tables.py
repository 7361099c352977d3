"""Tables that many tokens share: values and gradients on any mesh, and what is sent for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models import ModelConfig, abstract_params, init_params, logprobs
from jaxalign.models.embedding import TABLE, embed
from jaxalign.models.logprobs import token_logprobs
from jaxalign.parallel import MeshConfig, batch_sharding, make_mesh, parse_rules, split_rows, use_mesh
from jaxalign.parallel.sharding import spec
from jaxalign.plan import hlo
from jaxalign.plan.collectives import find_collectives
from jaxalign.sampling.generate import SamplingConfig, generate

V, D, B, T = 64, 32, 16, 8
MESHES = {
    "data8": MeshConfig(data=8),
    "fsdp8": MeshConfig(data=1, fsdp=8),
    "data2-fsdp2-tensor2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp2-context2-tensor2": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
}


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (B, T)).astype(np.int32)
    tokens[:, 1] = 7  # one token that every row has
    table, weights = rng.normal(size=(V, D)), rng.normal(size=(B, T, D))
    return tokens, table.astype(np.float32), weights.astype(np.float32)


def placed(mesh, table):
    return jax.device_put(table, jax.sharding.NamedSharding(mesh, spec(*TABLE)))


@pytest.mark.parametrize("name", MESHES)
def test_rows_and_their_gradients(name, numbers):
    tokens, table, weights = numbers

    def f(table, tokens, weights):
        return jnp.sum(embed(table, TABLE, tokens, "float32") * weights)

    with use_mesh(make_mesh(MESHES[name])) as mesh:
        rows = batch_sharding(mesh)
        value, gradient = jax.jit(jax.value_and_grad(f))(
            placed(mesh, table), jax.device_put(tokens, rows), jax.device_put(weights, rows)
        )
    wanted = np.zeros((V, D))
    np.add.at(wanted, tokens, weights.astype(np.float64))
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5)
    assert float(value) == pytest.approx(float((table[tokens].astype(np.float64) * weights).sum()), rel=1e-5)


@pytest.mark.parametrize(
    "rules", ["vocab=fsdp+tensor,embed=", "embed=fsdp+tensor,vocab=", "vocab=tensor+fsdp,embed="]
)
def test_any_split_of_a_table_gives_its_rows(rules, numbers):
    tokens, table, weights = numbers

    def f(table, tokens, weights):
        return jnp.sum(embed(table, TABLE, tokens, "float32") * weights)

    mesh = make_mesh(MESHES["data2-fsdp2-tensor2"])
    with use_mesh(mesh, parse_rules(rules)):
        rows = batch_sharding(mesh)
        arguments = placed(mesh, table), jax.device_put(tokens, rows), jax.device_put(weights, rows)
        got = jax.jit(lambda *args: jax.value_and_grad(f)(*args))(*arguments)
    wanted = jax.value_and_grad(f)(table, tokens, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)


def test_a_frequent_token_is_summed_in_float32():
    tokens = jnp.zeros((1, 4096), jnp.int32)

    def f(table):
        return jnp.sum(embed(table, TABLE, tokens, "bfloat16").astype(jnp.float32))

    gradient = jax.grad(f)(jnp.zeros((4, 8)))
    # Summed one by one in bfloat16 the ones would stop counting at 256.
    np.testing.assert_array_equal(gradient[0], 4096.0)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MESHES)
def test_log_probabilities_and_the_gradient_of_their_matrix(name, masked, numbers, monkeypatch):
    tokens, table, weights = numbers
    # Devices have unequal numbers of tokens to read, some of them none.
    mask = jnp.where(jnp.arange(T)[None] < jnp.arange(B)[:, None], jnp.float32(1), 0)
    more = (mask,) * masked
    monkeypatch.setattr(logprobs, "LEAST_CHUNK", 2)
    monkeypatch.setattr(logprobs, "default_chunk_size", lambda batch, vocab: 2)

    def read(hidden, head, tokens, *mask):
        return token_logprobs(hidden, head, tokens, mask=mask[0] if mask else None)

    def f(head, hidden, tokens):
        found = split_rows(read, None, TABLE, None, *[None] * masked)(hidden, head, tokens, *more)
        return jnp.sum(found.logp)

    alone = jax.value_and_grad(f, argnums=(0, 1))(table, weights, tokens)
    with use_mesh(make_mesh(MESHES[name])) as mesh:
        rows = batch_sharding(mesh)
        got = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(
            placed(mesh, table), jax.device_put(weights, rows), jax.device_put(tokens, rows)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, alone)


def test_a_table_is_gathered_once_and_its_gradient_reduce_scattered(numbers):
    tokens, table, weights = numbers

    def f(table, hidden, tokens):
        return jnp.sum(split_rows(token_logprobs, None, TABLE, None)(hidden, table, tokens).logp)

    with use_mesh(make_mesh(MESHES["data2-fsdp2-tensor2"])) as mesh:
        rows = batch_sharding(mesh)
        step = jax.jit(jax.grad(f), out_shardings=jax.sharding.NamedSharding(mesh, spec(*TABLE)))
        args = placed(mesh, table), jax.device_put(weights, rows), jax.device_put(tokens, rows)
        found = find_collectives(hlo.parse(step.lower(*args).compile().as_text()), mesh)
    half = V * D * 4 / 2  # the tensor axis splits the vocabulary
    sent = sorted((x.kind, x.axes, x.payload) for x in found if x.payload >= half / 2)
    assert sent == [
        ("all-gather", ("fsdp",), half),
        ("all-reduce", ("data",), half / 2),
        ("reduce-scatter", ("fsdp",), half),
    ]


@pytest.mark.slow
def test_sampling_gathers_parameters_before_its_loop():
    config = ModelConfig(
        vocab_size=V, num_layers=3, embed_dim=D, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64
    )
    sampling, key = SamplingConfig(max_new_tokens=5), jax.random.key(1)
    prompts = np.ones((B, T), np.int32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))

    with use_mesh(make_mesh(MESHES["fsdp8"])) as mesh:
        abstract = abstract_params(config, mesh)
        rows = [jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=batch_sharding(mesh))] * 3
        lowered = generate.lower(abstract, config, *rows, key, sampling=sampling, stop_ids=())
    program = hlo.parse(lowered.compile().as_text())
    found = find_collectives(program, mesh, unknown_trips=sampling.max_new_tokens)
    gathers = [x for x in found if x.kind == "all-gather"]
    params = init_params(key, config)
    matrices = sum(x.nbytes for x in jax.tree.leaves(params) if x.ndim > 2) + V * D * 4
    assert {x.times for x in gathers} == {1}
    assert sum(x.payload for x in gathers) == matrices

    with use_mesh(mesh):
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        rows = [jax.device_put(x, batch_sharding(mesh)) for x in (prompts, positions, prompts)]
        split = generate(
            jax.device_put(params, shardings), config, *rows, key, sampling=sampling, stop_ids=()
        )
    alone = generate(params, config, prompts, positions, prompts, key, sampling=sampling, stop_ids=())
    np.testing.assert_array_equal(split.tokens, alone.tokens)
    np.testing.assert_allclose(split.logp, alone.logp, rtol=1e-5, atol=1e-5)
