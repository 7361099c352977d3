"""Splash attention, JAX's kernel for TPUs, with blocks of other segments left out; for the rules see `attention`.

Shapes: B rows, T tokens, H heads, d head dimension.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask,
)
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.models.attention import SAVED
from jaxalign.parallel.sharding import dividing, is_one_device, shards, spec

# The kernel's blocks are multiples of it.
_LANES = 128
# From this many tokens of a block on, the kernel's backward pass is one.
FUSED_BLOCK = 1024
# So many rows of a device have a kernel each in the program.
_UNROLLED = 4


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    *,
    window: int,
    scale: float,
    softcap: float = 0.0,
    block: int = 512,
    interpret: bool = False,
) -> jax.Array:
    """JAX's splash attention for TPUs, each device on its own rows, heads and queries: [B, T, H, d].

    Only for whole sequences: queries and keys are the same tokens, and the tokens of a segment are neighbours in
    order, so that places in the row can stand for positions. Blocks of scores between segments are skipped.

    Args:
      window: a token sees itself and the `window` - 1 before it; 0: all before it.
      block: tokens of a block, at most. Small ones skip more of a packed row; from `FUSED_BLOCK` on the backward pass
        is one kernel of 5 products in place of two of 7, which writes dQ once for each block of keys.
      interpret: run the kernel's code without a TPU, for tests.
    """
    T, H = q.shape[1:3]
    mesh = jax.sharding.get_abstract_mesh()
    names = ("batch", "length", "act_heads", None)
    names = names if is_one_device() else dividing(mesh, q, names)
    parts = 1 if is_one_device() or names[1] is None else shards(mesh, "length")
    length = -(-T // (_LANES * parts)) * _LANES * parts
    widen = ((0, 0), (0, length - T), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x, widen) for x in (q, k, v))
    segments = jnp.pad(segment_ids, widen[:2])
    kernel = _kernel(
        length,
        H,
        window,
        softcap,
        1 if is_one_device() else shards(mesh, "act_heads"),
        parts,
        block,
        interpret,
    )
    if is_one_device():
        return _apply(kernel, q, k, v, segments, segments, scale=scale)[:, :T]
    rows, heads = spec("batch")[0], spec("act_heads")[0]
    along = spec("length")[0] if names[1] else None
    queries, keys = PartitionSpec(rows, along, heads), PartitionSpec(rows, None, heads)
    places = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(heads, along)))
    out = jax.shard_map(
        functools.partial(_apply, scale=scale),
        in_specs=(places, queries, keys, keys, PartitionSpec(rows, along), PartitionSpec(rows, None)),
        out_specs=queries,
        check_vma=False,
    )(kernel, q, k, v, segments, segments)
    return out[:, :T]


def _apply(
    kernel: splash_kernel.SplashAttentionKernel,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    k_segments: jax.Array,
    *,
    scale: float,
) -> jax.Array:
    def row(q: jax.Array, k: jax.Array, v: jax.Array, mine: jax.Array, theirs: jax.Array) -> Any:
        # The kernel has heads before tokens. To take a row and to turn it round are one copy, if they come together.
        q, k, v = (x.swapaxes(0, 1) for x in (q * scale, k, v))
        own: Any = _skip_other_segments(kernel, mine, theirs)
        return own(q, k, v, splash_kernel.SegmentIds(mine, theirs)).swapaxes(0, 1)

    # Each row has a map of its own. To a kernel whose maps differ JAX brings the rows by a loop that copies them.
    if len(q) <= _UNROLLED:
        return jnp.stack([row(*each) for each in zip(q, k, v, q_segments, k_segments, strict=True)]).astype(
            q.dtype
        )
    return jax.vmap(row)(q, k, v, q_segments, k_segments).astype(q.dtype)


def _skip_other_segments(
    kernel: splash_kernel.SplashAttentionKernel, mine: jax.Array, theirs: jax.Array
) -> splash_kernel.SplashAttentionKernel:
    """The kernel for a row whose queries and keys have these segments, [T] and [S].

    The segments of a block lie between its lowest and its highest. Where those of two blocks do not meet, neither sees
    the other, and the kernel's map of blocks says that there is nothing to do.
    """
    sizes = kernel.kwargs["block_sizes"]

    def ends(segments: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
        blocks = segments.reshape(-1, block)
        return blocks.min(1), blocks.max(1)

    def narrow(info: Any, block_q: int, block_kv: int, *, by_keys: bool) -> Any:
        if info is None:
            return None
        # The map is of blocks of queries along one axis and some of those of keys along the other, which are numbered
        # in `data_next`; in the kernel for keys it is the other way round.
        listed = info.data_next.astype(jnp.int32)
        (q_low, q_high), (k_low, k_high) = ends(mine, block_q), ends(theirs, block_kv)
        if by_keys:
            q_low, q_high, k_low, k_high = (
                q_low[listed],
                q_high[listed],
                k_low[None, None],
                k_high[None, None],
            )
        else:
            k_low, k_high = k_low[listed], k_high[listed]
            q_low, q_high = (x[None, :, None] for x in (q_low, q_high))
        meet = (k_low <= q_high) & (k_high >= q_low)
        return info._replace(block_mask=jnp.where(meet, info.block_mask, 0).astype(info.block_mask.dtype))

    return splash_kernel.SplashAttentionKernel(
        narrow(kernel.fwd_mask_info, sizes.block_q, sizes.block_kv, by_keys=False),
        narrow(kernel.dq_mask_info, sizes.block_q_dq, sizes.block_kv_dq, by_keys=False),
        narrow(kernel.dkv_mask_info, sizes.block_q_dkv, sizes.block_kv_dkv, by_keys=True),
        **kernel.kwargs,
    )


def _kernel(
    length: int,
    heads: int,
    window: int,
    softcap: float,
    head_shards: int,
    parts: int,
    block: int,
    interpret: bool,
) -> splash_kernel.SplashAttentionKernel:
    shape = (length, length)
    mask = (
        splash_mask.LocalMask(shape, (window - 1, 0), 0, shard_count=parts)
        if window
        else splash_mask.CausalMask(shape, shard_count=parts)
    )
    largest = block // _LANES * _LANES
    size = next(size for size in range(largest, 0, -_LANES) if length // parts % size == 0)
    fused = size >= FUSED_BLOCK
    # Of each block of keys that is held at a time the fused kernel writes its part of dQ.
    held = 2 * size if fused and length // parts % (2 * size) == 0 else size
    sizes = splash_kernel.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=held,
        block_kv_dkv_compute=size,
        block_q_dq=None if fused else size,
        block_kv_dq=None if fused else size,
        use_fused_bwd_kernel=fused,
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
