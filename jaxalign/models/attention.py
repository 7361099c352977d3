"""Attention over packed, padded and cached sequences.

Rules say who may see whom, in training and in decoding alike: the same segment, a key position not after the
query's, and in a layer with a window not too long before it. Padding is segment 0; it sees only padding, so
that no row of the softmax is empty.

Three implementations follow these rules: `attention` holds the whole matrix of scores; `blockwise_attention` in plain
XLA and `splash_attention`, a kernel for TPUs, take memory that grows with the length and not its square.

Shapes: B rows, T queries, S keys, H heads, K key/value heads (H = K * G), d head dimension.
"""

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

from jaxalign.parallel.sharding import dividing, is_one_device, shards, spec

QUERY_BLOCK = 512
# The kernel's blocks are multiples of it.
_LANES = 128
# What a rematerialisation policy may keep of the kernel.
SAVED = "attention_residuals"


def default_attention(platform: str) -> str:
    """What `config.model.attention="auto"` means on a platform of `jax.Device.platform`."""
    on_gpus = dict.fromkeys(("gpu", "cuda", "rocm"), "blockwise")
    return ({"tpu": "splash"} | on_gpus).get(platform, "xla")


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Scores or logits bounded to (-cap, cap): cap · tanh(x / cap) (Gemma 2, arXiv 2408.00118 §2).

    0 or None leaves them as they are.
    """
    return cap * jnp.tanh(x / cap) if cap else x


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


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, scale: float, softcap: float = 0.0
) -> jax.Array:
    """Softmax attention with grouped heads: q [B, T, H, d], k and v [B, S, K, d], mask [B, T, S] -> [B, T, H, d].

    The reference that the compiler fuses; scores and softmax in float32. Memory grows as T * S.

    Args:
      scale: scores are multiplied by it.
      softcap: see `soft_cap`, which is applied to the scores.
    """
    B, T, H, d = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, H // K, d) * scale
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = soft_cap(scores, softcap)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(B, T, H, d)


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
    names = names if is_one_device() else dividing(mesh, q, names)
    parts = 1 if is_one_device() or names[1] is None else shards(mesh, "length")
    length = -(-T // (_LANES * parts)) * _LANES * parts
    widen = ((0, 0), (0, length - T), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x, widen).swapaxes(1, 2) for x in (q * scale, k, v))
    segments = jnp.pad(segment_ids, widen[:2])
    kernel = _kernel(
        length, H, window, softcap, 1 if is_one_device() else shards(mesh, "act_heads"), parts, interpret
    )
    if is_one_device():
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
    def row(q: jax.Array, k: jax.Array, v: jax.Array, mine: jax.Array, theirs: jax.Array) -> Any:
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
