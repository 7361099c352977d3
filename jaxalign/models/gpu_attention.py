"""Flash attention for GPUs that knows segments, windows, soft-caps and grouped heads: kernels of Pallas, by Triton.

FlashAttention-2 (arXiv 2307.08691): a block of queries goes over the blocks of keys with a running softmax, so that no
score is written to memory; the backward pass computes them again, in one kernel for dQ and one for dK and dV. A block
of keys that no query of the block sees, of other segments or beyond the window, is not read.

JAX's own kernel for this (`jax.experimental.pallas.ops.gpu.attention`) ignores windows and soft-caps, wants keys
repeated for every query head and computes all segments' pairs; cuDNN's packed layout wants segments at offsets that a
program knows no bound of, and has no soft-cap.

Heads have one of `models.config.FLASH_HEAD_DIMS` dimensions.

Shapes: B rows, T queries, S keys, H heads, K key/value heads (H = K * G), d head dimension.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxalign.models.attention import SAVED, View, on_own_rows

_LOG2E = 1.4426950408889634
_MASKED = -1e30


class _Settings(NamedTuple):
    scale: float
    softcap: float
    interpret: bool


def flash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    view: View,
    *,
    scale: float,
    softcap: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """`models.attention.attention` where query t sees the keys from `view.first[t]` to `view.last[t]`: [B, T, H, d].

    Args:
      q: [B, T, H, d]; k and v are [B, S, K, d].
      interpret: run the kernels' code without a GPU, for tests.
    """
    attend = functools.partial(_attend_here, settings=_Settings(scale, softcap, interpret))
    return on_own_rows(attend, q, k, v, view)


def _attend_here(q: jax.Array, k: jax.Array, v: jax.Array, view: View, *, settings: _Settings) -> jax.Array:
    """Pads rows to whole blocks, and groups the query heads by the key/value head that they share."""
    B, T, H, d = q.shape
    S, K = k.shape[1:3]
    block, _ = _blocks(q)
    wide = ((0, 0), (0, -T % block))
    # What fills up the last block sees what the last query does, and its result is dropped.
    first, last = (jnp.pad(x, wide, mode="edge") for x in (view.first, view.last))
    q = jnp.pad(q, (*wide, (0, 0), (0, 0))).reshape(B, -1, K, H // K, d)
    k, v = (jnp.pad(x, ((0, 0), (0, -S % block), (0, 0), (0, 0))) for x in (k, v))
    out: Any = _flash(q, k, v, first, last, settings)
    return out[:, :T].reshape(B, T, H, d)


def _blocks(q: jax.Array) -> tuple[int, int]:
    """Tokens of a block of queries forward; of all other blocks, which divide it. Shared memory holds several."""
    size = q.shape[-1] * q.dtype.itemsize  # bytes of a token's head
    return (128, 64) if size <= 256 else (64, 32) if size <= 512 else (32, 16)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _flash(
    q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, last: jax.Array, settings: _Settings
) -> jax.Array:
    return _forward(q, k, v, first, last, settings)[0]


def _whole(length: int, d: int) -> pl.BlockSpec:
    """All keys or values of a row and head, in a grid of (blocks, rows, heads, queries of the group)."""
    return pl.BlockSpec((None, length, None, d), lambda i, b, h, g: (b, 0, h, 0))


def _call(kernel: Any, settings: _Settings, name: str, warps: int, **options: Any) -> Any:
    return pl.pallas_call(
        kernel,
        name=f"flash_attention_{name}",
        interpret=settings.interpret,
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=2),
        **options,
    )


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, last: jax.Array, settings: _Settings
) -> tuple[jax.Array, jax.Array]:
    """The result, and of each query the logarithm to base 2 of its sum of weights, [B, K, G, T]."""
    B, T, K, G, d = q.shape
    S = k.shape[1]
    block_q, block_k = _blocks(q)
    queries = pl.BlockSpec((None, block_q, None, None, d), lambda i, b, h, g: (b, i, h, g, 0))
    seen = pl.BlockSpec((None, block_q), lambda i, b, h, g: (b, i))
    sums = pl.BlockSpec((None, None, None, block_q), lambda i, b, h, g: (b, h, g, i))
    return _call(
        functools.partial(_forward_kernel, settings=settings, block=block_k),
        settings,
        "fwd",
        4 if d <= 64 else 8,
        grid=(T // block_q, B, K, G),
        in_specs=[queries, _whole(S, d), _whole(S, d), seen, seen],
        out_specs=[queries, sums],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, K, G, T), jnp.float32),
        ],
    )(q, k, v, first, last)


def _scores(
    q: jax.Array, k: jax.Array, first: jax.Array, last: jax.Array, keys: jax.Array, settings: _Settings
) -> tuple[jax.Array, jax.Array]:
    """The scores in base 2, masked, and before the mask what the soft-cap made of them over the cap; [n, m]."""
    scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32) * settings.scale
    capped = scores
    if settings.softcap:
        # tanh, which would need a library that is not part of XLA.
        capped = 1 - 2 / (1 + jnp.exp2(scores * (2 * _LOG2E / settings.softcap)))
        scores = settings.softcap * capped
    seen = (keys[None, :] >= first[:, None]) & (keys[None, :] <= last[:, None])
    return jnp.where(seen, scores * _LOG2E, _MASKED), capped


def _forward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    first_ref: Any,
    last_ref: Any,
    out_ref: Any,
    sums_ref: Any,
    *,
    settings: _Settings,
    block: int,
) -> None:
    q, first, last = q_ref[...], first_ref[...], last_ref[...]
    n, d = q.shape

    def over(at: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, most, total = carry
        here = pl.ds(at * block, block)
        keys = at * block + jnp.arange(block)
        scores, _ = _scores(q, k_ref[here, :], first, last, keys, settings)
        now = jnp.maximum(most, scores.max(axis=1))
        weights, shrink = jnp.exp2(scores - now[:, None]), jnp.exp2(most - now)
        v = v_ref[here, :]
        out = out * shrink[:, None] + jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return out, now, total * shrink + weights.sum(axis=1)

    # A query whose keys begin later meets masked blocks first: what they add is gone once it meets a key.
    begin = (
        jnp.zeros((n, d), jnp.float32),
        jnp.full((n,), _MASKED, jnp.float32),
        jnp.zeros((n,), jnp.float32),
    )
    out, most, total = lax.fori_loop(jnp.min(first) // block, jnp.max(last) // block + 1, over, begin)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    sums_ref[...] = most + jnp.log2(total)


def _keep(q: Any, k: Any, v: Any, first: Any, last: Any, settings: _Settings) -> tuple[jax.Array, tuple]:
    out, sums = _forward(q, k, v, first, last, settings)
    out, sums = checkpoint_name(out, SAVED), checkpoint_name(sums, SAVED)
    return out, (q, k, v, first, last, out, sums)


def _backward(settings: _Settings, kept: tuple, gradient: jax.Array) -> tuple:
    q, k, v, first, last, out, sums = kept
    B, T, K, G, d = q.shape
    S = k.shape[1]
    _, block = _blocks(q)
    warps = 4
    # Of each query the sum of its gradient times its result, [B, K, G, T].
    inner = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1).transpose(0, 2, 3, 1)
    queries = pl.BlockSpec((None, block, None, None, d), lambda i, b, h, g: (b, i, h, g, 0))
    seen = pl.BlockSpec((None, block), lambda i, b, h, g: (b, i))
    of_queries = pl.BlockSpec((None, None, None, block), lambda i, b, h, g: (b, h, g, i))
    dq = _call(
        functools.partial(_dq_kernel, settings=settings, block=block),
        settings,
        "dq",
        warps,
        grid=(T // block, B, K, G),
        in_specs=[queries, _whole(S, d), _whole(S, d), seen, seen, queries, of_queries, of_queries],
        out_specs=queries,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    )(q, k, v, first, last, gradient, sums, inner)
    # The other way round: of each key the first and the last query that see it.
    places = jnp.arange(S, dtype=jnp.int32)
    find = jax.vmap(jnp.searchsorted, in_axes=(0, None))
    begins = find(last, places).astype(jnp.int32)
    ends = find(first, places + 1).astype(jnp.int32) - 1
    group = pl.BlockSpec((None, T, None, G, d), lambda j, b, h: (b, 0, h, 0, 0))
    of_group = pl.BlockSpec((None, None, G, T), lambda j, b, h: (b, h, 0, 0))
    row = pl.BlockSpec((None, T), lambda j, b, h: (b, 0))
    keys = pl.BlockSpec((None, block, None, d), lambda j, b, h: (b, j, h, 0))
    seeing = pl.BlockSpec((None, block), lambda j, b, h: (b, j))
    dk, dv = _call(
        functools.partial(_dkv_kernel, settings=settings, block=block, group=G),
        settings,
        "dkv",
        warps,
        grid=(S // block, B, K),
        in_specs=[group, keys, keys, row, row, seeing, seeing, group, of_group, of_group],
        out_specs=[keys, keys],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
    )(q, k, v, first, last, begins, ends, gradient, sums, inner)
    return dq, dk, dv, None, None


def _score_gradients(
    weights: jax.Array,
    capped: jax.Array,
    gradient: jax.Array,
    v: jax.Array,
    inner: jax.Array,
    settings: _Settings,
) -> jax.Array:
    """The gradients of the products of queries and keys, [n, m]."""
    wanted = jnp.dot(gradient, v.T, preferred_element_type=jnp.float32)
    scores = weights * (wanted - inner[:, None]) * settings.scale
    return scores * (1 - capped * capped) if settings.softcap else scores


def _dq_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    first_ref: Any,
    last_ref: Any,
    gradient_ref: Any,
    sums_ref: Any,
    inner_ref: Any,
    dq_ref: Any,
    *,
    settings: _Settings,
    block: int,
) -> None:
    q, first, last, gradient = q_ref[...], first_ref[...], last_ref[...], gradient_ref[...]
    sums, inner = sums_ref[...], inner_ref[...]

    def over(at: jax.Array, dq: jax.Array) -> jax.Array:
        here = pl.ds(at * block, block)
        k = k_ref[here, :]
        scores, capped = _scores(q, k, first, last, at * block + jnp.arange(block), settings)
        weights = jnp.exp2(scores - sums[:, None])
        change = _score_gradients(weights, capped, gradient, v_ref[here, :], inner, settings)
        return dq + jnp.dot(change.astype(k.dtype), k, preferred_element_type=jnp.float32)

    begin, end = jnp.min(first) // block, jnp.max(last) // block + 1
    dq = lax.fori_loop(begin, end, over, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = dq.astype(dq_ref.dtype)


def _dkv_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    first_ref: Any,
    last_ref: Any,
    begins_ref: Any,
    ends_ref: Any,
    gradient_ref: Any,
    sums_ref: Any,
    inner_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    settings: _Settings,
    block: int,
    group: int,
) -> None:
    k, v = k_ref[...], v_ref[...]
    keys = pl.program_id(0) * block + jnp.arange(block)
    begin, end = jnp.min(begins_ref[...]) // block, jnp.max(ends_ref[...]) // block + 1

    def over_heads(g: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def over(at: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            dk, dv = carry
            here = pl.ds(at * block, block)
            q, gradient = q_ref[here, g, :], gradient_ref[here, g, :]
            scores, capped = _scores(q, k, first_ref[here], last_ref[here], keys, settings)
            weights = jnp.exp2(scores - sums_ref[g, here][:, None])
            change = _score_gradients(weights, capped, gradient, v, inner_ref[g, here], settings)
            dk += jnp.dot(change.astype(q.dtype).T, q, preferred_element_type=jnp.float32)
            dv += jnp.dot(weights.astype(v.dtype).T, gradient, preferred_element_type=jnp.float32)
            return dk, dv

        return lax.fori_loop(begin, end, over, carry)

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = lax.fori_loop(0, group, over_heads, (zeros, zeros))
    dk_ref[...] = dk.astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)


_flash.defvjp(_keep, _backward)
