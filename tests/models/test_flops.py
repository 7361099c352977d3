"""Parameters that multiply a token, and the FLOPs of a step, by published sizes and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxalign.models import ModelConfig, count_params, init_params
from jaxalign.models.flops import Work, active_params, full_work, step_flops
from jaxalign.models.presets import preset
from jaxalign.training.flops import count_work


def test_qwen3_30b_a3b_has_three_billion_active_parameters():
    config = ModelConfig(**preset("qwen3_30b_a3b"))
    attention = 2048 * 128 * (32 + 4 + 4 + 32)
    experts, router = 8 * 3 * 2048 * 768, 2048 * 128
    head = 151_936 * 2048
    assert active_params(config) == 48 * (attention + experts + router) + head == 3_041_656_832
    # The rest of the 30.5 billion that its model card names: experts that a token passes by, the lookup, norms.
    idle, norms = 48 * 120 * 3 * 2048 * 768, 48 * (2 * 2048 + 2 * 128) + 2048
    assert active_params(config) + idle + head + norms == 30_532_122_624


@pytest.mark.parametrize(("name", "published"), [("llama3_1_8b", 8_030_261_248), ("qwen3_0_6b", 596_049_920)])
def test_a_dense_model_multiplies_all_but_its_norms_and_its_lookup(name, published):
    config = ModelConfig(**preset(name))
    norms = config.embed_dim * (2 * config.num_layers + 1)
    if config.qk_norm == "head":
        norms += 2 * config.head_dim * config.num_layers
    lookup = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
    assert active_params(config) == published - norms - lookup


TINY = ModelConfig(vocab_size=50, num_layers=3, embed_dim=16, num_heads=4, head_dim=4, mlp_dim=24)


@pytest.mark.slow
def test_a_model_that_uses_all_of_its_experts_multiplies_all_of_its_matrices():
    config = dataclasses.replace(TINY, num_experts=5, experts_per_token=5)
    norms = config.embed_dim * (2 * config.num_layers + 1)
    assert active_params(config) == count_params(init_params(jax.random.key(0), config)) - norms
    one_less = dataclasses.replace(config, experts_per_token=4)
    assert active_params(config) - active_params(one_less) == 3 * 3 * 16 * 24


def test_a_scalar_model_has_a_vector_where_others_have_a_vocabulary():
    assert active_params(TINY) - active_params(TINY, scalar=True) == 49 * 16
    wide = dataclasses.replace(TINY, vocab_size=100_000)
    assert active_params(wide, scalar=True) == active_params(TINY, scalar=True)


def test_a_step_is_three_forward_passes():
    tokens, pairs = 7, 12
    work = Work(tokens, pairs, pairs, tokens)
    forward = 2 * active_params(TINY) * tokens + 4 * 3 * 4 * 4 * pairs
    assert step_flops(TINY, work, passes=1) == forward
    assert step_flops(TINY, work) == 3 * forward
    head = 2 * 49 * 16
    assert step_flops(TINY, work, scalar=True, passes=1) == forward - head * tokens
    assert step_flops(TINY, work._replace(logits=4), passes=1) == forward - 2 * 50 * 16 * 3


def test_layers_with_a_window_see_fewer_pairs():
    config = dataclasses.replace(TINY, window=4, layer_pattern="LLG")
    whole, matrices = 9 * 10 / 2, 2 * active_params(TINY) * 9
    near = 1 + 2 + 3 + 6 * 4
    assert step_flops(config, full_work(config, 1, 9), passes=1) == matrices + 4 * 4 * 4 * (2 * near + whole)
    packed = count_work(config, jnp.ones((1, 9), jnp.int32), jnp.array([[0, 1, 2, 3, 4, 5, 0, 1, 2]]))
    assert tuple(map(float, packed)) == (9, 21 + 6, (1 + 2 + 3 + 4 + 4 + 4) + 6, 9)
    places = jnp.array([[0, 1, 2, 3, 4, 5, 0, 1, 2]])
    read = count_work(config, jnp.ones((1, 9), jnp.int32), places, jnp.array([[0, 0, 1.0, 1, 1, 1, 0, 1, 0]]))
    assert read == packed._replace(logits=5)
