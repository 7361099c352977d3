"""The key-value cache of decoding: an explicit argument and result, never a hidden collection."""

import flax.struct
import jax
import jax.numpy as jnp

from jaxalign.models.config import ModelConfig


@flax.struct.dataclass
class Cache:
    """Keys and values of every layer for the first `index` of S slots.

    Prompts are padded on the left, so all rows write the same slot and one update serves the batch. A slot
    that holds padding, or nothing yet, has segment 0 and is seen by no real token.
    """

    k: jax.Array  # [L, B, S, K, d] in the compute dtype
    v: jax.Array  # [L, B, S, K, d]
    positions: jax.Array  # [B, S] int32
    segment_ids: jax.Array  # [B, S] int32
    index: jax.Array  # int32 scalar: the next slot to write


def init_cache(config: ModelConfig, batch_size: int, length: int) -> Cache:
    """An empty cache for `length` tokens a row; writing past its end would overwrite its last slots."""
    shape = (config.num_layers, batch_size, length, config.num_kv_heads, config.head_dim)
    return Cache(
        k=jnp.zeros(shape, config.dtype),
        v=jnp.zeros(shape, config.dtype),
        positions=jnp.zeros((batch_size, length), jnp.int32),
        segment_ids=jnp.zeros((batch_size, length), jnp.int32),
        index=jnp.zeros((), jnp.int32),
    )
