"""Decoding one sequence a token at a time, for a reader who waits for it."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ConfigError
from jaxalign.models import Cache, ModelConfig, Params, hidden_states, init_cache
from jaxalign.sampling.generate import SamplingConfig, choose, last_logits


@functools.partial(jax.jit, static_argnames=("config", "length"))
def _prefill(
    params: Params, config: ModelConfig, tokens: jax.Array, segment_ids: jax.Array, length: int
) -> tuple[jax.Array, Cache]:
    positions = jnp.maximum(jnp.cumsum(segment_ids, axis=1) - 1, 0)
    cache = init_cache(config, 1, length)
    hidden, after = hidden_states(params, config, tokens, positions, segment_ids, cache)
    assert after is not None  # since there was one before
    return last_logits(params, config, hidden), after


@functools.partial(jax.jit, static_argnames=("config", "sampling"), donate_argnames="cache")
def _next(
    params: Params,
    config: ModelConfig,
    logits: jax.Array,
    cache: Cache,
    position: jax.Array,
    key: jax.Array,
    sampling: SamplingConfig,
) -> tuple[jax.Array, jax.Array, Cache]:
    token, _ = choose(logits, key[None], sampling)
    one = jnp.ones((1, 1), jnp.int32)
    hidden, after = hidden_states(params, config, token[:, None], position * one, one, cache)
    assert after is not None  # since there was one before
    return token[0], last_logits(params, config, hidden), after


def stream(
    params: Params,
    config: ModelConfig,
    prompt: Sequence[int],
    key: jax.Array,
    *,
    sampling: SamplingConfig,
    stop_ids: tuple[int, ...],
) -> Iterator[int]:
    """Yields the ids that `generate` would sample for row 0, each as soon as it is known, the stop id included.

    Prompts are padded to a power of two, so that the turns of a conversation share a few compilations.

    Raises:
      ConfigError: prompt and completion are longer than what the model is made for.
    """
    slots = max(16, 1 << (len(prompt) - 1).bit_length())
    N = sampling.max_new_tokens
    if len(prompt) + N > config.max_length:
        raise ConfigError(
            f"a prompt of {len(prompt)} tokens and sampling.max_new_tokens={N} need more positions than the model's "
            f"{config.max_length}; lower max_new_tokens, or begin a new conversation"
        )
    tokens, segments = np.zeros((1, slots), np.int32), np.zeros((1, slots), np.int32)
    tokens[0, slots - len(prompt) :], segments[0, slots - len(prompt) :] = prompt, 1
    row = jax.random.fold_in(key, 0)
    logits, cache = _prefill(params, config, tokens, segments, slots + N)
    for i in range(N):
        position = jnp.int32(len(prompt) + i)
        token, logits, cache = _next(
            params, config, logits, cache, position, jax.random.fold_in(row, i), sampling
        )
        yield int(token)
        if int(token) in stop_ids:
            return
