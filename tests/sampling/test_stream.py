"""A stream is the completion that `generate` samples, token by token."""

import re

import jax
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
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


@pytest.mark.slow
def test_ends_with_the_stop_token(config, params, prompts):
    sampling = SamplingConfig(max_new_tokens=8, temperature=0.0)
    free = list(stream(params, config, first_prompt(prompts), KEY, sampling=sampling, stop_ids=()))
    stop = free[3]
    cut = list(stream(params, config, first_prompt(prompts), KEY, sampling=sampling, stop_ids=(stop,)))
    assert len(free) == 8 and cut == free[: free.index(stop) + 1]


def test_too_long_for_the_table_is_refused():
    config = ModelConfig(positions="learned", max_length=16)
    sampling = SamplingConfig(max_new_tokens=10)
    with pytest.raises(
        ConfigError, match=re.escape("a prompt of 7 tokens and sampling.max_new_tokens=10 need")
    ):
        next(stream({}, config, [1] * 7, KEY, sampling=sampling, stop_ids=()))
