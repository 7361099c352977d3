"""Tokens to hidden states, and hidden states to what is read from them: logits, or one number each.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.models.attention import soft_cap
from jaxalign.models.cache import Cache
from jaxalign.models.config import ModelConfig, Params
from jaxalign.models.experts import ROUTER
from jaxalign.models.frozen import weight
from jaxalign.models.packed import Whole
from jaxalign.models.transformer import Transformer


def hidden_states(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    cache: Cache | None = None,
    whole: Whole | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Applies the transformer: int32 [B, T] each -> hidden [B, T, D] and the cache after it.

    Without positions and segment_ids every row is one sequence without padding. `whole` are the rows that attention
    sees where these share tokens.

    Raises:
      ValueError: tokens, positions and segment_ids differ in shape, which would broadcast silently.
    """
    arrays = _complete(tokens, positions, segment_ids)
    out: Any = Transformer(config).apply({"params": params}, *arrays, cache, whole)
    return out


def hidden_states_and_router(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    whole: Whole | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Hidden states [B, T, D], and `router_losses` averaged over layers: float32 [2], None of a dense model."""
    if not config.num_experts:
        return hidden_states(params, config, tokens, positions, segment_ids, whole=whole)[0], None
    arrays = _complete(tokens, positions, segment_ids)
    out: Any = Transformer(config).apply({"params": params}, *arrays, None, whole, mutable=[ROUTER])
    (hidden, _), sown = out
    return hidden, sown[ROUTER]["layers"]["mlp"]["losses"].mean(0)


def logits(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
) -> jax.Array:
    """Logits of the token after each token: float32 [B, T, V]; arguments as for `hidden_states`."""
    hidden, _ = hidden_states(params, config, tokens, positions, segment_ids)
    return readout(hidden, unembedding(params, config), config.final_softcap)


def readout(hidden: jax.Array, head: jax.Array, softcap: float | None = None) -> jax.Array:
    """Float32 logits [..., V] of hidden states [..., D] by a head [V, D].

    `softcap` bounds them, see `attention.soft_cap`; 0 or None leaves them.
    """
    out = jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)
    return soft_cap(out, softcap)


def unembedding(params: Params, config: ModelConfig) -> jax.Array:
    """The matrix [V, D] whose product with a hidden state is the logits, in the compute dtype."""
    return weight(params["embedding" if config.tie_embeddings else "unembedding"], config.dtype)


def scalar_head(head: Params, hidden: jax.Array) -> jax.Array:
    """One float32 number per hidden state (a value or a reward): [B, T, D] -> [B, T]."""
    kernel = head["kernel"].astype(hidden.dtype)
    return jnp.einsum("btd,d->bt", hidden, kernel, preferred_element_type=jnp.float32) + head["bias"]


def _complete(
    tokens: jax.Array, positions: jax.Array | None, segment_ids: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1], dtype=jnp.int32), tokens.shape)
    if segment_ids is None:
        segment_ids = jnp.ones(tokens.shape, jnp.int32)
    if not (tokens.ndim == 2 and tokens.shape == positions.shape == segment_ids.shape):
        raise ValueError(
            f"tokens {tokens.shape}, positions {positions.shape} and segment_ids {segment_ids.shape} "
            "must have the same shape [B, T]"
        )
    return tokens, positions, segment_ids
