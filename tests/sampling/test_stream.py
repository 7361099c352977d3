"""A stream is the completion that `generate` samples, token by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError, NonFiniteError
from jaxalign.models import ModelConfig, init_params
from jaxalign.sampling.generate import SamplingConfig, generate
from jaxalign.sampling.stream import stream

KEY = jax.random.key(5)


def first_prompt(prompts):
    return np.asarray(prompts[0][0])[np.asarray(prompts[2][0]) > 0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_k": 9, "min_p": 0.01, "repetition_penalty": 1.4, "min_new_tokens": 9},
    ],
)
def test_streams_row_zero_of_generate(config, params, prompts, settings):
    sampling = SamplingConfig(max_new_tokens=24, **settings)
    whole = generate(params, config, *prompts, KEY, sampling=sampling, stop_ids=(3, 7))
    wanted = np.asarray(whole.tokens[0])[np.asarray(whole.mask[0]) > 0].tolist()
    got = stream(params, config, first_prompt(prompts), KEY, sampling=sampling, stop_ids=(3, 7))
    assert list(got) == wanted


def test_a_prompt_longer_than_the_first_power_of_two(config, params):
    length = 17
    prompt = np.random.default_rng(length).integers(1, 48, length)
    sampling = SamplingConfig(max_new_tokens=3, temperature=0.0)
    arrays = (prompt[None], np.arange(length)[None], np.ones((1, length)))
    whole = generate(params, config, *map(np.int32, arrays), KEY, sampling=sampling, stop_ids=())
    got = list(stream(params, config, prompt.tolist(), KEY, sampling=sampling, stop_ids=()))
    assert got == whole.tokens[0].tolist()


@pytest.mark.slow
def test_ends_with_the_stop_token(config, params, prompts):
    sampling = SamplingConfig(max_new_tokens=8, temperature=0.0)
    free = list(stream(params, config, first_prompt(prompts), KEY, sampling=sampling, stop_ids=()))
    stop = free[3]
    cut = list(stream(params, config, first_prompt(prompts), KEY, sampling=sampling, stop_ids=(stop,)))
    assert len(free) == 8 and cut == free[: free.index(stop) + 1]


@pytest.mark.slow
def test_ends_where_the_positions_of_the_model_do(config, params, prompts):
    sampling = SamplingConfig(max_new_tokens=8, temperature=0.0)
    prompt = first_prompt(prompts)
    short = dataclasses.replace(config, positions="learned", max_length=len(prompt) + 3)
    learned = init_params(KEY, short)
    long = dataclasses.replace(short, max_length=64)
    more = learned | {
        "position_embedding": jnp.zeros((64, short.embed_dim))
        .at[: len(prompt) + 3]
        .set(learned["position_embedding"])
    }
    cut = list(stream(learned, short, prompt, KEY, sampling=sampling, stop_ids=()))
    free = list(stream(more, long, prompt, KEY, sampling=sampling, stop_ids=()))
    assert len(cut) == 3 and cut == free[:3]


def test_a_prompt_that_fills_the_model_is_refused():
    config = ModelConfig(positions="learned", max_length=16)
    sampling = SamplingConfig(max_new_tokens=10)
    with pytest.raises(ConfigError, match="of 16 tokens, leaves nothing of the model's 16 positions"):
        next(stream({}, config, [1] * 16, KEY, sampling=sampling, stop_ids=()))


def test_a_model_that_gives_no_numbers_is_refused():
    config = ModelConfig(vocab_size=32, embed_dim=16, num_layers=1, max_length=32)
    broken = jax.tree.map(lambda x: x * jnp.nan, init_params(KEY, config))
    sampling = SamplingConfig(max_new_tokens=4)
    with pytest.raises(
        NonFiniteError, match="the reply: the model gives NaN or infinity, computed in float32"
    ):
        next(stream(broken, config, [1, 2, 3], KEY, sampling=sampling, stop_ids=()))
