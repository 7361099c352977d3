"""Attention that computes only the blocks of scores in which somebody sees somebody.

Packed rows hold many short sequences, and a token sees only its own: of all pairs of tokens few are needed. Queries and
keys lie in blocks of neighbours. A block of queries goes back over the blocks of keys, from its own to the first that
any of its tokens sees, with a running softmax (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention, arXiv
2205.14135), so that memory grows with the length. The backward pass computes the weights again.

Blocks of queries are worked off a few at a time. All of these take as many turns as the one that goes back furthest, so
they are sorted by that.

Shapes: B rows, T queries, S keys, H heads, K key/value heads (H = K * G), d head dimension; N blocks of queries and
M of keys, of n places each; c blocks of queries at a time.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.models.attention import View, attention, on_own_rows, soft_cap

BLOCK = 32
# Of rows up to this long the whole matrix of scores is as fast, and compiles sooner.
SHORT = 4 * BLOCK
# Blocks of queries at a time: fewer share their turns more evenly, more make larger products.
TOGETHER = 16


class _Settings(NamedTuple):
    rows: int
    softcap: float
    block: int
    together: int


def block_sparse_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    view: View,
    *,
    scale: float,
    softcap: float = 0.0,
    block: int = BLOCK,
    together: int = TOGETHER,
) -> jax.Array:
    """`attention` where query t sees the keys from `view.first[t]` to `view.last[t]`: [B, T, H, d].

    Every device works on its own rows, and sorts the blocks of these alone.

    Args:
      q: [B, T, H, d]; k and v are [B, S, K, d].
      scale, softcap: as of `attention`.
      block: places of a block.
      together: blocks of queries worked off at a time.
    """
    if q.shape[1] <= SHORT:
        places = jnp.arange(k.shape[1], dtype=jnp.int32)[None, None]
        seen = (places >= view.first[..., None]) & (places <= view.last[..., None])
        return attention(q, k, v, seen, scale=scale, softcap=softcap)
    settings = {"scale": scale, "softcap": softcap, "block": block, "together": together}
    return on_own_rows(functools.partial(attend_in_blocks, **settings), q, k, v, view)


def attend_in_blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    view: View,
    *,
    scale: float,
    softcap: float,
    block: int,
    together: int,
) -> jax.Array:
    """`block_sparse_attention` on one device, of rows of any length."""
    B, T, H, d = q.shape
    K = k.shape[2]
    count = -(-T // block)
    settings = _Settings(B, softcap, block, min(together, B * count))
    q = _split(q * scale, block).reshape(B * count, block, K, H // K, d).transpose(0, 2, 3, 1, 4)
    k, v = (_split(x, block).swapaxes(1, 2) for x in (k, v))
    # What fills up a row's last block sees one key, so that no sum of weights is 0.
    filled = ((0, 0), (0, count * block - T))
    first, last = (jnp.pad(x, filled, mode="edge").reshape(-1, block) for x in (view.first, view.last))
    out: Any = _attend(q, k, v, first, last, settings)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, count * block, H, d)[:, :T]


def _split(x: jax.Array, block: int) -> jax.Array:
    """[B, T, heads, d] -> [N, n, heads, d], the last block of a row filled up with zeros."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
    return x.reshape(-1, block, *x.shape[2:])


class _Chunk(NamedTuple):
    """Some blocks of queries that are worked off together."""

    ids: jax.Array  # [c] which; the last chunk is filled up with one that it has
    into: jax.Array  # [c] where results go: the same, and nowhere (N) for what fills up
    first: jax.Array  # [c, n] of the keys that each query sees
    last: jax.Array  # [c, n]
    nearest: jax.Array  # [c] block of keys, counted within the row, that is read first
    start: jax.Array  # [c] the row's first block of keys
    turns: jax.Array  # how many blocks of keys are read


def _chunks(first: jax.Array, last: jax.Array, keys_per_row: int, settings: _Settings) -> _Chunk:
    """All blocks of queries in chunks, stacked; those that read most blocks of keys come first."""
    N, c = len(first), settings.together
    nearest = last.max(axis=1) // settings.block
    turns = nearest - first.min(axis=1) // settings.block + 1
    order = jnp.argsort(-turns).astype(jnp.int32)
    numbers = jnp.arange(-(-N // c) * c, dtype=jnp.int32).reshape(-1, c)
    ids = order[jnp.minimum(numbers, N - 1)]
    start = ids // (N // settings.rows) * keys_per_row
    into = jnp.where(numbers < N, ids, N)
    return _Chunk(ids, into, first[ids], last[ids], nearest[ids], start, turns[ids[:, 0]])


def _turn(chunk: _Chunk, turn: jax.Array, settings: _Settings) -> tuple[jax.Array, jax.Array]:
    """The blocks of keys [c] that a chunk reads at a turn, and which of them are seen: bool [c, 1, 1, n, n]."""
    near = chunk.nearest - turn
    places = near[:, None] * settings.block + jnp.arange(settings.block, dtype=jnp.int32)[None]
    seen = places[:, None, :] >= chunk.first[:, :, None]
    seen &= places[:, None, :] <= chunk.last[:, :, None]
    seen &= (chunk.into == chunk.ids)[:, None, None]
    # Before the row's first block nothing is seen, whatever is read in its place.
    return chunk.start + jnp.maximum(near, 0), seen[:, None, None]


def _score(q: jax.Array, k: jax.Array, seen: jax.Array, softcap: float) -> tuple[jax.Array, jax.Array]:
    """Scores [c, K, G, n, n] float32 of queries [c, K, G, n, d] and keys [c, K, n, d], with and without the mask."""
    scores = _contract("ckqd,ckjd->ckqj", q, k).reshape(*q.shape[:4], -1)
    scores = soft_cap(scores, softcap)
    return jnp.where(seen, scores, jnp.finfo(jnp.float32).min), scores


def _contract(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """An einsum in float32 in which the groups and places of queries, dimensions 2 and 3, are one."""
    x, y = (a.reshape(*a.shape[:2], -1, a.shape[-1]) for a in (x, y))
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, last: jax.Array, settings: _Settings
) -> jax.Array:
    """q [N, K, G, n, d], k and v [M, K, n, d], first and last [N, n] -> [N, K, G, n, d]."""
    return _forward(q, k, v, first, last, settings)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, last: jax.Array, settings: _Settings
) -> tuple[jax.Array, tuple]:
    chunks = _chunks(first, last, len(k) // settings.rows, settings)

    def work(carry: tuple[jax.Array, jax.Array], chunk: _Chunk) -> tuple[tuple, None]:
        out, logsumexp = carry
        queries = q[chunk.ids]

        def turn(number: jax.Array, carry: tuple) -> tuple:
            largest, total, mixed = carry
            at, seen = _turn(chunk, number, settings)
            scores, _ = _score(queries, k[at], seen, settings.softcap)
            new = jnp.maximum(largest, scores.max(axis=-1))
            weights, shrunk = jnp.exp(scores - new[..., None]), jnp.exp(largest - new)
            more = _contract("ckqj,ckjd->ckqd", weights.astype(v.dtype), v[at]).reshape(mixed.shape)
            return new, total * shrunk + weights.sum(axis=-1), mixed * shrunk[..., None] + more

        nothing = jnp.zeros(queries.shape[:4], jnp.float32)
        start = (nothing + jnp.finfo(jnp.float32).min, nothing, jnp.zeros(queries.shape, jnp.float32))
        largest, total, mixed = lax.fori_loop(0, chunk.turns, turn, start)
        out = out.at[chunk.into].set((mixed / total[..., None]).astype(q.dtype), mode="drop")
        return (out, logsumexp.at[chunk.into].set(largest + jnp.log(total), mode="drop")), None

    start = (jnp.zeros_like(q), jnp.zeros(q.shape[:4], jnp.float32))
    (out, logsumexp), _ = lax.scan(work, start, chunks)
    return out, (q, k, v, out, logsumexp, chunks)


def _backward(settings: _Settings, saved: tuple, d_out: jax.Array) -> tuple:
    q, k, v, out, logsumexp, chunks = saved
    # d scores = weights (d weights - sum of weights times d weights), and that sum is the one of out times d out.
    dot = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)

    def work(carry: tuple, chunk: _Chunk) -> tuple[tuple, None]:
        d_q, d_k, d_v = carry
        queries, d, within, sums = (x[chunk.ids] for x in (q, d_out, dot, logsumexp))

        def turn(number: jax.Array, carry: tuple) -> tuple:
            d_queries, d_k, d_v = carry
            at, seen = _turn(chunk, number, settings)
            keys, values = k[at], v[at]
            masked, scores = _score(queries, keys, seen, settings.softcap)
            weights = jnp.exp(masked - sums[..., None])
            d_v = d_v.at[at].add(_contract("ckqj,ckqd->ckjd", weights.astype(v.dtype), d))
            d_weights = _contract("ckqd,ckjd->ckqj", d, values).reshape(weights.shape)
            d_scores = weights * (d_weights - within[..., None])
            if settings.softcap:
                d_scores = d_scores * (1.0 - jnp.square(scores / settings.softcap))
            d_scores = d_scores.astype(q.dtype)
            d_k = d_k.at[at].add(_contract("ckqj,ckqd->ckjd", d_scores, queries))
            more = _contract("ckqj,ckjd->ckqd", d_scores, keys).reshape(d_queries.shape)
            return d_queries + more, d_k, d_v

        start = (jnp.zeros(queries.shape, jnp.float32), d_k, d_v)
        d_queries, d_k, d_v = lax.fori_loop(0, chunk.turns, turn, start)
        return (d_q.at[chunk.into].set(d_queries.astype(q.dtype), mode="drop"), d_k, d_v), None

    start = (jnp.zeros_like(q), jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    (d_q, d_k, d_v), _ = lax.scan(work, start, chunks)
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_attend.defvjp(_forward, _backward)
