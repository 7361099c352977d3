"""Sequences that wait for a slot are sampled as if all had one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models import ModelConfig, abstract_params, init_params
from jaxalign.parallel import MeshConfig, batch_sharding, make_mesh, use_mesh
from jaxalign.sampling.generate import Completions, SamplingConfig, generate

KEY = jax.random.key(11)
STOPS = (3, 7, 11, 15, 19, 23)  # an eighth of the vocabulary


def sample(params, config, prompts, samples=1, **settings) -> Completions:
    sampling = SamplingConfig(**{"max_new_tokens": 24, "temperature": 0.9} | settings)
    return generate(params, config, *prompts, KEY, sampling=sampling, stop_ids=STOPS, samples=samples)


def assert_same(got: Completions, want: Completions) -> None:
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_array_equal(got.stopped, want.stopped)
    np.testing.assert_allclose(got.logp, want.logp, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("slots", "samples", "settings"),
    [
        (1, 1, {}),
        pytest.param(
            4, 1, {"top_p": 0.9, "repetition_penalty": 1.3, "min_new_tokens": 3}, marks=pytest.mark.slow
        ),
        pytest.param(2, 3, {}, marks=pytest.mark.slow),
        pytest.param(5, 3, {"repetition_penalty": 1.3}, marks=pytest.mark.slow),
        pytest.param(7, 2, {"temperature": 0.0}, marks=pytest.mark.slow),
        pytest.param(100, 2, {}, marks=pytest.mark.slow),
    ],
)
def test_tokens_do_not_depend_on_the_slots(config, params, prompts, slots, samples, settings):
    want = sample(params, config, prompts, samples, **settings)
    assert len(np.unique(want.mask.sum(1))) > 2, "all end alike: the comparison would be weak"
    assert_same(sample(params, config, prompts, samples, slots=slots, **settings), want)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"scan_layers": False, "num_layers": 2}, {"window": 4}])
def test_layers_of_every_kind(changes, prompts):
    small = {
        "vocab_size": 48,
        "embed_dim": 16,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "mlp_dim": 32,
    }
    config = ModelConfig(**small | {"max_length": 128, "num_layers": 1} | changes)
    params = init_params(jax.random.key(2), config)
    assert_same(sample(params, config, prompts, 2, slots=3), sample(params, config, prompts, 2))


@pytest.mark.slow
def test_prompts_that_are_not_there_take_no_slot(config, params, prompts):
    tokens, positions, segments = (np.array(x) for x in prompts)
    for row in (0, 3, 5):
        tokens[row], positions[row], segments[row] = 0, 0, 0
    gaps = (tokens, positions, segments)
    got = sample(params, config, gaps, 2, slots=2)
    assert_same(got, sample(params, config, gaps, 2))
    assert got.stopped[0] and not got.mask[0].any() and got.mask[2].any()


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 2])
def test_eight_devices_keep_a_queue_each(config, params, prompts, samples):
    prompts = tuple(np.concatenate((x, x, x[:4])) for x in prompts)
    run = functools.partial(sample, samples=samples, slots=4)
    want = run(params, config, prompts)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with use_mesh(mesh):
        layout = jax.tree.map(lambda x: x.sharding, abstract_params(config, mesh))
        got = run(jax.device_put(params, layout), config, jax.device_put(prompts, batch_sharding(mesh)))
    assert_same(got, want)


@pytest.mark.slow
def test_rows_that_cannot_be_dealt_out_evenly_to_the_devices_are_sampled_all_at_once(config, params, prompts):
    assert len(prompts[0]) % 4  # shards of the batch
    want = sample(params, config, prompts, slots=4)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with use_mesh(mesh):
        layout = jax.tree.map(lambda x: x.sharding, abstract_params(config, mesh))
        got = sample(jax.device_put(params, layout), config, prompts, slots=4)
    assert_same(got, want)
    assert got.places == len(got.mask) * got.mask.sum(axis=1).max()


@pytest.mark.slow
def test_slots_are_full_where_lengths_are_geometric():
    """Mean 64, cut at 512: a model to which all of 64 tokens are alike, of which one stops."""
    config = ModelConfig(
        vocab_size=64, embed_dim=8, num_heads=1, num_kv_heads=1, num_layers=1, mlp_dim=8, max_length=520
    )
    params = jax.tree.map(jnp.zeros_like, init_params(jax.random.key(0), config))
    prompts = (np.ones((1024, 1), np.int32), np.zeros((1024, 1), np.int32), np.ones((1024, 1), np.int32))
    sampling = SamplingConfig(max_new_tokens=512, slots=16)
    out = generate(params, config, *prompts, KEY, sampling=sampling, stop_ids=(5,))
    lengths = np.asarray(out.mask.sum(1))
    assert lengths.mean() == pytest.approx(64, rel=0.1) and lengths.max() > 300
    assert 0.9 <= lengths.sum() / float(out.places) <= 1
