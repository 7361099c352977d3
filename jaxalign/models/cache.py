"""The key-value cache of decoding: an explicit argument and result, never a hidden collection."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxalign.models.config import ModelConfig
from jaxalign.parallel.sharding import is_one_device

Stack = jax.Array | tuple[jax.Array, ...]


@flax.struct.dataclass
class Cache:
    """Keys and values of every layer for the first `index` of S slots.

    Prompts are padded on the left, so all rows write the same slot and one update serves the batch. A slot
    that holds padding, or nothing yet, has segment 0 and is seen by no real token.
    """

    # [L, B, K, S, d] in the compute dtype: what a head reads lies together. Of layers that are not scanned [B, K, S, d]
    # each, so that a layer reads its own where they lie.
    k: Stack
    v: Stack
    positions: jax.Array  # [B, S] int32
    segment_ids: jax.Array  # [B, S] int32
    index: jax.Array  # int32 scalar: the next slot to write

    def write(self, layer: jax.Array, k: jax.Array, v: jax.Array) -> tuple["Cache", jax.Array, jax.Array]:
        """The cache with keys and values [B, T, K, d] of T more tokens of a layer, and all of that layer, [B, K, S, d].

        Layers that are not scanned take turns: each finds its own in front and puts them at the end.
        """

        def put(stack: Any, new: jax.Array) -> tuple[Any, jax.Array]:
            new = new.swapaxes(1, 2)
            if isinstance(stack, tuple):
                first, *rest = stack
                own = jax.lax.dynamic_update_slice(first, new, (0, 0, self.index, 0))
                return (*rest, own), own
            stack = jax.lax.dynamic_update_slice(stack, new[None], (layer, 0, 0, self.index, 0))
            return stack, jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)

        (ks, k), (vs, v) = put(self.k, k), put(self.v, v)
        return dataclasses.replace(self, k=ks, v=vs), k, v


def is_unrolled(config: ModelConfig) -> bool:
    """True where layers are compiled one by one; recomputing them is for a loop alone, as layouts over devices are."""
    return not config.scan_layers and config.remat == "none" and is_one_device()


def init_cache(config: ModelConfig, batch_size: int, length: int) -> Cache:
    """An empty cache for `length` tokens a row; writing past its end would overwrite its last slots."""
    shape = (batch_size, config.num_kv_heads, length, config.head_dim)

    def empty() -> Stack:
        if is_unrolled(config):
            return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))
        return jnp.zeros((config.num_layers, *shape), config.dtype)

    return Cache(
        k=empty(),
        v=empty(),
        positions=jnp.zeros((batch_size, length), jnp.int32),
        segment_ids=jnp.zeros((batch_size, length), jnp.int32),
        index=jnp.zeros((), jnp.int32),
    )
