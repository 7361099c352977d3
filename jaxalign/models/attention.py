"""Attention over packed, padded and cached sequences.

Rules say who may see whom, in training and in decoding alike: the same segment, a key position not after the
query's, and in a layer with a window not too long before it. Padding is segment 0; it sees only padding, so
that no row of the softmax is empty.

Five implementations follow these rules: `attention` holds the whole matrix of scores; `blockwise_attention` in plain
XLA, `jaxalign.models.tpu_attention` and `jaxalign.models.gpu_attention`, kernels for TPUs and GPUs, and
`jaxalign.models.block_sparse`, which is for CPUs, take memory that grows with the length and not its square.

Shapes: B rows, T queries, S keys, H heads, K key/value heads (H = K * G), d head dimension.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxalign.parallel.sharding import dividing, laid_out, shards, spec

QUERY_BLOCK = 512
# What a rematerialisation policy may keep of the kernel.
SAVED = "attention_residuals"


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Scores or logits bounded to (-cap, cap): cap · tanh(x / cap) (Gemma 2, arXiv 2408.00118 §2).

    0 or None leaves them as they are.
    """
    return cap * jnp.tanh(x / cap) if cap else x


@flax.struct.dataclass
class View:
    """Which keys every query sees: those of its row at the places `first` to `last`. Both int32 [B, T].

    Neither falls along a row.
    """

    first: jax.Array
    last: jax.Array


def see(segment_ids: jax.Array, window: int | jax.Array = 0) -> View:
    """Every token sees its own segment up to itself, and padding itself alone.

    Args:
      segment_ids: int32 [B, T]; the tokens of a segment are neighbours, in order.
      window: as of `attention_mask`.
    """
    places = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32), segment_ids.shape)
    begins = (jnp.diff(segment_ids, axis=1, prepend=-1) != 0) | (segment_ids == 0)
    first = jax.lax.cummax(jnp.where(begins, places, 0), axis=1)
    if not isinstance(window, int) or window:
        # Before the sum: a window beyond all places may be the largest integer there is.
        first = jnp.maximum(first, places - (jnp.minimum(window, places.shape[1]) - 1))
    return View(first, places)


def attention_mask(
    q_positions: jax.Array,
    q_segments: jax.Array,
    k_positions: jax.Array,
    k_segments: jax.Array,
    window: int | jax.Array = 0,
) -> jax.Array:
    """[B, T, S] bool, True where query t may see key s, from int32 [B, T] and [B, S].

    Args:
      window: a token sees itself and the `window` - 1 tokens before it; 0: all before it. Positive if traced.
    """
    same = q_segments[:, :, None] == k_segments[:, None, :]
    distance = q_positions[:, :, None] - k_positions[:, None, :]
    near = distance >= 0
    if not isinstance(window, int) or window:
        near &= distance < window
    return same & near


def on_own_rows(
    attend: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, view: View
) -> jax.Array:
    """attend(q, k, v, view) by every device on its own rows, heads and queries, and the keys of whole rows.

    Args:
      attend: takes q [B, T, H, d], k and v [B, S, K, d] and the view of the queries, and returns [B, T, H, d].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if laid_out() or q.shape[0] % shards(mesh, "batch"):
        return attend(q, k, v, view)
    rows, tokens, heads, _ = spec(*dividing(mesh, q, ("batch", "length", "act_heads", None)))
    queries, keys = PartitionSpec(rows, tokens, heads), PartitionSpec(rows, None, heads)
    seen = PartitionSpec(rows, tokens)
    both: Any = seen
    layouts = (queries, keys, keys, View(both, both))
    return jax.shard_map(attend, in_specs=layouts, out_specs=queries, check_vma=False)(q, k, v, view)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    scale: float,
    softcap: float = 0.0,
    heads_first: bool = False,
) -> jax.Array:
    """Softmax attention with grouped heads: q [B, T, H, d], k and v [B, S, K, d], mask [B, T, S] -> [B, T, H, d].

    The reference that the compiler fuses; scores and softmax in float32. Memory grows as T * S.

    Args:
      scale: scores are multiplied by it.
      softcap: see `soft_cap`, which is applied to the scores.
      heads_first: k and v are [B, K, S, d], as a cache has them.
    """
    B, T, H, d = q.shape
    K, keys = (k.shape[1], "bksd") if heads_first else (k.shape[2], "bskd")
    q = q.reshape(B, T, K, H // K, d) * scale
    scores = jnp.einsum(f"btkgd,{keys}->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = soft_cap(scores, softcap)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum(f"bkgts,{keys}->btkgd", weights, v).reshape(B, T, H, d)


def blockwise_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_positions: jax.Array,
    q_segments: jax.Array,
    k_positions: jax.Array,
    k_segments: jax.Array,
    *,
    window: jax.Array | int,
    scale: float,
    softcap: float = 0.0,
    heads_first: bool = False,
    block: int = QUERY_BLOCK,
) -> jax.Array:
    """`attention` a block of queries at a time, computed again in the backward pass: [B, T, H, d].

    Args:
      window: as in `attention_mask`.
      heads_first: as in `attention`.
      block: queries held against all keys at once.
    """
    T = q.shape[1]
    settings: Any = {"scale": scale, "softcap": softcap, "heads_first": heads_first}
    if block >= T:
        mask = attention_mask(q_positions, q_segments, k_positions, k_segments, window)
        return attention(q, k, v, mask, **settings)
    count = -(-T // block)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, count * block - T)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(queries: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, positions, segments = queries
        mask = attention_mask(positions, segments, k_positions, k_segments, window)
        return attention(q, k, v, mask, **settings)

    out = jax.lax.map(one, (split(q), split(q_positions), split(q_segments)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], count * block, *q.shape[2:])[:, :T]
