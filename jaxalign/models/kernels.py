"""Attention whose memory grows with the length, not its square: a TPU kernel, and plain XLA in blocks of queries.

Both follow the rules of attention.py. Shapes as there: B rows, T queries, S keys, H heads, K key/value heads. Also the
product of experts, for which TPUs need a kernel, too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import gmm
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask,
)
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.models.attention import attention, attention_mask
from jaxalign.parallel.sharding import alone, dividing, shards, spec

QUERY_BLOCK = 512
_ROWS_OF_A_TILE, _SIDE_OF_A_TILE = 512, 1024  # of the product of experts
_LANES = 128  # the kernel's blocks are multiples of it
SAVED = "attention_residuals"  # what a rematerialisation policy may keep of the kernel


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
    block: int = QUERY_BLOCK,
) -> jax.Array:
    """`attention` a block of queries at a time, computed again in the backward pass: [B, T, H, d].

    Args:
      window: as in `attention_mask`.
      block: queries held against all keys at once.
    """
    T = q.shape[1]
    if block >= T:
        mask = attention_mask(q_positions, q_segments, k_positions, k_segments, window)
        return attention(q, k, v, mask, scale=scale, softcap=softcap)
    count = -(-T // block)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, count * block - T)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(queries: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, positions, segments = queries
        mask = attention_mask(positions, segments, k_positions, k_segments, window)
        return attention(q, k, v, mask, scale=scale, softcap=softcap)

    out = jax.lax.map(one, (split(q), split(q_positions), split(q_segments)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], count * block, *q.shape[2:])[:, :T]


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    *,
    window: int,
    scale: float,
    softcap: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """JAX's splash attention for TPUs, each device on its own rows, heads and queries: [B, T, H, d].

    Only for whole sequences: queries and keys are the same tokens, and the tokens of a segment are neighbours in
    order, so that places in the row can stand for positions.

    Args:
      window: a token sees itself and the `window` - 1 before it; 0: all before it.
      interpret: run the kernel's code without a TPU, for tests.
    """
    T, H = q.shape[1:3]
    mesh = jax.sharding.get_abstract_mesh()
    names = ("batch", "length", "act_heads", None)
    names = names if alone() else dividing(mesh, q, names)
    parts = 1 if alone() or names[1] is None else shards(mesh, "length")
    length = -(-T // (_LANES * parts)) * _LANES * parts
    widen = ((0, 0), (0, length - T), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x, widen).swapaxes(1, 2) for x in (q * scale, k, v))
    segments = jnp.pad(segment_ids, widen[:2])
    kernel = _kernel(
        length, H, window, softcap, 1 if alone() else shards(mesh, "act_heads"), parts, interpret
    )
    if alone():
        return _apply(kernel, q, k, v, segments, segments).swapaxes(1, 2)[:, :T]
    rows, heads = spec("batch")[0], spec("act_heads")[0]
    along = spec("length")[0] if names[1] else None
    queries, keys = PartitionSpec(rows, heads, along, None), PartitionSpec(rows, heads, None, None)
    places = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(heads, along)))
    out = jax.shard_map(
        _apply,
        in_specs=(places, queries, keys, keys, PartitionSpec(rows, along), PartitionSpec(rows, None)),
        out_specs=queries,
        check_vma=False,
    )(kernel, q, k, v, segments, segments)
    return out.swapaxes(1, 2)[:, :T]


def _apply(
    kernel: splash_kernel.SplashAttentionKernel,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    k_segments: jax.Array,
) -> jax.Array:
    def row(q: jax.Array, k: jax.Array, v: jax.Array, mine: jax.Array, theirs: jax.Array) -> jax.Array:
        return kernel(q, k, v, splash_kernel.SegmentIds(mine, theirs))

    return jax.vmap(row)(q, k, v, q_segments, k_segments).astype(q.dtype)


def _kernel(
    length: int, heads: int, window: int, softcap: float, head_shards: int, parts: int, interpret: bool
) -> splash_kernel.SplashAttentionKernel:
    shape = (length, length)
    mask = (
        splash_mask.LocalMask(shape, (window - 1, 0), 0, shard_count=parts)
        if window
        else splash_mask.CausalMask(shape, shard_count=parts)
    )
    block = next(size for size in (512, 384, 256, 128) if length // parts % size == 0)
    sizes = splash_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash_kernel.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=head_shards,
        q_seq_shards=parts,
        attn_logits_soft_cap=softcap or None,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )


@jax.custom_vjp
def grouped_product(rows: jax.Array, matrices: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows [m, k] in consecutive groups of int32 `sizes` [g], each times its own of the matrices [g, k, n]: [m, n].

    Rows after the last group give 0. On TPUs this is the Megablox kernel (arXiv 2211.15841), as XLA's own
    `ragged_dot` multiplies every row by every matrix there.
    """
    return jax.lax.platform_dependent(rows, matrices, sizes, tpu=megablox_product, default=jax.lax.ragged_dot)


def _grouped_forward(rows: jax.Array, matrices: jax.Array, sizes: jax.Array) -> tuple[jax.Array, tuple]:
    return grouped_product(rows, matrices, sizes), (rows, matrices, sizes)


def _grouped_backward(residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    def of(product: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
        def backward(rows: jax.Array, matrices: jax.Array, sizes: jax.Array, gradient: jax.Array) -> Any:
            return jax.vjp(lambda *both: product(*both, sizes), rows, matrices)[1](gradient)

        return backward

    return *jax.lax.platform_dependent(
        *residuals, gradient, tpu=of(megablox_product), default=of(jax.lax.ragged_dot)
    ), None


grouped_product.defvjp(_grouped_forward, _grouped_backward)


def megablox_product(
    rows: jax.Array, matrices: jax.Array, sizes: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """`grouped_product` by the kernel; `interpret` runs its code without a TPU, for tests."""
    (m, k), n = rows.shape, matrices.shape[2]
    padding = -m % _ROWS_OF_A_TILE
    # What the kernel leaves unwritten may be anything, in the backward pass too.
    inside = (jnp.arange(m + padding) < jnp.sum(sizes))[:, None]
    rows = jnp.where(inside, jnp.pad(rows, ((0, padding), (0, 0))), 0)
    tiles = (_ROWS_OF_A_TILE, min(k, _SIDE_OF_A_TILE), min(n, _SIDE_OF_A_TILE))
    out = gmm(rows, matrices, sizes, rows.dtype, tiles, interpret=interpret)
    return jnp.where(inside, out, 0)[:m]


def default_attention(platform: str) -> str:
    """What `config.model.attention="auto"` means on a platform of `jax.Device.platform`."""
    return {"tpu": "splash", "gpu": "blockwise", "cuda": "blockwise", "rocm": "blockwise"}.get(
        platform, "xla"
    )
