"""Decoding one sequence a token at a time, for a reader who waits for it."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ConfigError
from jaxalign.models import Cache, ModelConfig, Params, hidden_states, init_cache
from jaxalign.models.finite import check_finite, check_ids
from jaxalign.sampling.generate import SamplingConfig, choose, first_seen, last_logits, note_seen


@functools.partial(jax.jit, static_argnames=("config", "length"))
def _prefill(
    params: Params, config: ModelConfig, tokens: jax.Array, segment_ids: jax.Array, length: int
) -> tuple[jax.Array, Cache]:
    positions = jnp.maximum(jnp.cumsum(segment_ids, axis=1) - 1, 0)
    cache = init_cache(config, 1, length)
    hidden, after = hidden_states(params, config, tokens, positions, segment_ids, cache)
    assert after is not None  # since there was one before
    return last_logits(params, config, hidden), after


@functools.partial(jax.jit, static_argnames=("config", "sampling", "stop_ids"), donate_argnames="cache")
def _next(
    params: Params,
    config: ModelConfig,
    logits: jax.Array,
    cache: Cache,
    position: jax.Array,
    key: jax.Array,
    sampling: SamplingConfig,
    number: jax.Array,
    stop_ids: tuple[int, ...],
    seen: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array, Cache, jax.Array | None]:
    token, logp = choose(logits, key[None], sampling, number, stop_ids, seen)
    one = jnp.ones((1, 1), jnp.int32)
    hidden, after = hidden_states(params, config, token[:, None], position * one, one, cache)
    assert after is not None  # since there was one before
    return token[0], logp, last_logits(params, config, hidden), after, note_seen(seen, token)


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

    Prompts are padded to a power of two, so that the turns of a conversation share a few compilations. The sequence
    ends where the positions that the model is made for do, if `sampling.max_new_tokens` would go past them.

    Raises:
      ConfigError: the prompt leaves no position for a token, or has one that the model does not know.
      NonFiniteError: the model gives no numbers to sample by.
    """
    check_ids(prompt, config)
    slots = max(16, 1 << (len(prompt) - 1).bit_length())
    N = sampling.max_new_tokens
    _, longest = config.sampling_limit
    if len(prompt) >= longest:
        raise ConfigError(
            f"the conversation, of {len(prompt)} tokens, leaves nothing of the model's {longest} positions for a "
            "reply; begin a new one"
        )
    tokens, segments = np.zeros((1, slots), np.int32), np.zeros((1, slots), np.int32)
    tokens[0, slots - len(prompt) :], segments[0, slots - len(prompt) :] = prompt, 1
    row = jax.random.fold_in(key, 0)
    logits, cache = _prefill(params, config, tokens, segments, slots + N)
    seen = first_seen(config, sampling, jnp.asarray(tokens), jnp.asarray(segments))
    for i in range(min(N, longest - len(prompt))):
        position, own = jnp.int32(len(prompt) + i), jax.random.fold_in(row, i)
        token, logp, logits, cache, seen = _next(
            params, config, logits, cache, position, own, sampling, jnp.int32(i), stop_ids, seen
        )
        check_finite(logp, config.dtype, lambda _: "the reply", "token")
        yield int(token)
        if int(token) in stop_ids:
            return
