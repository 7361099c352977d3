"""What models say of given sequences: log-probabilities, values and rewards, aligned with the tokens.

Everything is aligned with the token it is about: `logp[b, t]` is the log-probability of `tokens[b, t]` given the
earlier tokens of its segment, and `values[b, t]` the value of the state before that token. Entries at the first
token of a segment and at padding are 0 and carry no gradient.

Shapes: B rows, T tokens, S segments a row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.models import (
    ModelConfig,
    Params,
    hidden_states,
    hidden_states_and_router,
    scalar_head,
    unembedding,
)
from jaxalign.models.embedding import TABLE
from jaxalign.models.logprobs import token_kl, token_logprobs
from jaxalign.parallel.sharding import split_rows


class TokenScores(NamedTuple):
    """What a language model says of tokens: each float32 [B, T], in nats; `entropy` when it was asked for."""

    logp: jax.Array
    logsumexp: jax.Array
    entropy: jax.Array | None
    router: jax.Array | None  # of a mixture of experts: `hidden_states_and_router`


def predicted(segment_ids: jax.Array) -> jax.Array:
    """[B, T] bool: the token has an earlier token in its own segment."""
    same = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
    return jnp.pad(same, ((0, 0), (1, 0)))


def _align(x: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Moves what position t - 1 says of the next token to position t."""
    return jnp.where(predicted(segment_ids), jnp.pad(x[:, :-1], ((0, 0), (1, 0))), 0.0)


def score_tokens(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> TokenScores:
    """Log-probabilities (log-sum-exp, and entropy when asked) of every token: float32 [B, T] each.

    Args:
      tokens, positions, segment_ids: int32 [B, T]; segment 0 is padding.
      temperature: logits are divided by it, as they were when the tokens were sampled.
    """
    hidden, router = hidden_states_and_router(params, config, tokens, positions, segment_ids)
    read = functools.partial(
        token_logprobs,
        temperature=temperature,
        softcap=config.final_softcap or None,
        with_entropy=with_entropy,
    )
    following = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    scored = split_rows(read, None, TABLE, None)(hidden, unembedding(params, config), following)
    return TokenScores(*(None if x is None else _align(x, segment_ids) for x in scored), router)


def exact_kl(
    params: Params,
    ref_params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    temperature: float = 1.0,
) -> jax.Array:
    """KL(policy || reference) of the whole next-token distribution before every token: float32 [B, T], nats."""
    hidden, _ = hidden_states(params, config, tokens, positions, segment_ids)
    ref_hidden, _ = hidden_states(ref_params, config, tokens, positions, segment_ids)
    read = functools.partial(token_kl, temperature=temperature, softcap=config.final_softcap or None)
    heads = unembedding(params, config), unembedding(ref_params, config)
    kl = split_rows(read, None, TABLE, None, TABLE)(hidden, heads[0], ref_hidden, heads[1])
    return _align(kl, segment_ids)


def token_values(
    params: Params, config: ModelConfig, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """A scalar model's value of the state before every token: float32 [B, T]."""
    return routed_values(params, config, tokens, positions, segment_ids)[0]


def routed_values(
    params: Params, config: ModelConfig, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """`token_values`, and the router losses of a mixture of experts: see `hidden_states_and_router`."""
    hidden, router = hidden_states_and_router(params["transformer"], config, tokens, positions, segment_ids)
    return _align(scalar_head(params["head"], hidden), segment_ids), router


def segment_rewards(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    num_segments: int,
) -> jax.Array:
    """A scalar model's score at the last token of segments 1..S: float32 [B, S], 0 for absent segments."""
    return routed_rewards(params, config, tokens, positions, segment_ids, num_segments)[0]


def routed_rewards(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    num_segments: int,
) -> tuple[jax.Array, jax.Array | None]:
    """`segment_rewards`, and the router losses of a mixture of experts: see `hidden_states_and_router`."""
    hidden, router = hidden_states_and_router(params["transformer"], config, tokens, positions, segment_ids)
    scores = scalar_head(params["head"], hidden)
    # The last token is found by segment and position, never by a token's id: padding and packing cannot move it.
    member = segment_ids[:, None, :] == jnp.arange(1, num_segments + 1, dtype=jnp.int32)[None, :, None]
    order = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.int32)[None, None, :]
    last = jnp.max(jnp.where(member, order, 0), axis=-1)
    picked = jnp.take_along_axis(scores, jnp.maximum(last - 1, 0), axis=1)
    return jnp.where(last > 0, picked, 0.0), router


def segment_sums(x: jax.Array, segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """Sums of x [B, T] over segments 1..S: float32 [B, S]."""
    member = jax.nn.one_hot(segment_ids - 1, num_segments, dtype=x.dtype)
    return jnp.einsum("bt,bts->bs", x, member, precision=jax.lax.Precision.HIGHEST)
