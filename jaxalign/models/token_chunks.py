"""Walking the tokens of a batch in chunks: all of them, or those that are read, which are brought to the front.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_CHUNK_BYTES = 64 * 2**20
_CHUNK_TOKENS = 1024
# Where some tokens are left out: the smallest chunk, and into how many all tokens are cut. On average half a chunk is
# computed for nothing.
LEAST_CHUNK, CHUNKS = 512, 16


class Front(NamedTuple):
    """An order of the N = B T tokens by which those that are read stand in front; the others cost nothing."""

    order: jax.Array  # int32 [N]: the token in each place
    rank: jax.Array  # int32 [N]: the place of each token
    read: jax.Array  # bool [B, T]
    count: jax.Array  # int32 []: tokens that are read


def default_chunk_size(batch: int, vocab: int) -> int:
    """Tokens per row and chunk: as many as fill 64 MiB with float32 logits, or 1024 in all rows if those are more.

    Every chunk adds a matrix as large as the head to the head's gradient: with fewer tokens, that sum would cost
    more than the products that it is of.
    """
    return max(1, _CHUNK_BYTES // (4 * batch * vocab), -(-_CHUNK_TOKENS // batch))


def bring_to_front(read: jax.Array) -> Front:
    """The order by which the tokens that are read, bool [B, T], stand in front; each group keeps its order."""
    flat = read.reshape(-1).astype(jnp.int32)
    count = flat.sum()
    rank = jnp.where(flat == 1, jnp.cumsum(flat) - 1, count + jnp.cumsum(1 - flat) - 1)
    order = jnp.zeros_like(rank).at[rank].set(jnp.arange(flat.size, dtype=jnp.int32), unique_indices=True)
    return Front(order, rank, read, count)


def _scan_front(step: Callable, carry: Any, arrays: Any, chunk_size: int, front: Front) -> tuple[Any, Any]:
    """`scan_tokens` in the order of `front`; chunks without a token that is read are skipped, with outputs of 0."""
    rows, size = front.read.shape, front.read.size
    count = -(-size // chunk_size)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.take(x.reshape(size, *x.shape[2:]), front.order, axis=0, mode="clip")
        x = jnp.pad(x, [(0, count * chunk_size - size)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(count, 1, chunk_size, *x.shape[1:])

    def join(x: jax.Array) -> jax.Array:
        x = x.reshape(count * chunk_size, *x.shape[3:])[front.rank].reshape(*rows, *x.shape[3:])
        return jnp.where(front.read.reshape(*rows, *(1,) * (x.ndim - 2)), x, 0.0)

    def some(carry: Any, numbered: tuple) -> tuple[Any, Any]:
        number, chunk = numbered
        outputs = jax.eval_shape(step, carry, chunk)[1]

        def skip(carry: Any, _: Any) -> tuple[Any, Any]:
            return carry, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outputs)

        return lax.cond(number * chunk_size < front.count, step, skip, carry, chunk)

    numbers = jnp.arange(count, dtype=jnp.int32)
    carry, outputs = lax.scan(some, carry, (numbers, jax.tree.map(split, arrays)))
    return carry, jax.tree.map(join, outputs)


def scan_tokens(
    step: Callable, carry: Any, arrays: Any, chunk_size: int, front: Front | None = None
) -> tuple[Any, Any]:
    """`lax.scan` of step(carry, chunk) -> (carry, outputs) over the token axis of arrays [B, T, ...].

    Chunk k of n holds tokens k, k + n, k + 2n, …: a token axis that is sharded stays sharded inside every
    chunk. With a `front`, chunks are of tokens in its order, those of all rows as one.
    """
    if front is not None:
        return _scan_front(step, carry, arrays, chunk_size, front)
    length = jax.tree.leaves(arrays)[0].shape[1]
    if chunk_size >= length:
        return step(carry, arrays)
    count = -(-length // chunk_size)
    chunk_size = -(-length // count)
    padding = count * chunk_size - length

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunk_size, count, *x.shape[2:]), 2, 0)

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(x.shape[0], count * chunk_size, *x.shape[3:])[:, :length]

    carry, outputs = lax.scan(step, carry, jax.tree.map(split, arrays))
    return carry, jax.tree.map(join, outputs)
