"""Attention over packed, padded and cached sequences.

Two rules say who may see whom, in training and in decoding alike: the same segment, and a key position not
after the query's. Padding is segment 0; it sees only padding, so that no row of the softmax is empty.

Shapes: B rows, T queries, S keys, H heads, K key/value heads (H = K * G), d head dimension.
"""

import jax
import jax.numpy as jnp


def attention_mask(
    q_positions: jax.Array, q_segments: jax.Array, k_positions: jax.Array, k_segments: jax.Array
) -> jax.Array:
    """[B, T, S] bool, True where query t may see key s, from int32 [B, T] and [B, S]."""
    same = q_segments[:, :, None] == k_segments[:, None, :]
    return same & (k_positions[:, None, :] <= q_positions[:, :, None])


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention with grouped heads: q [B, T, H, d], k and v [B, S, K, d], mask [B, T, S] -> [B, T, H, d].

    The reference that the compiler fuses; scores and softmax in float32. Memory grows as T * S.
    """
    B, T, H, d = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, H // K, d) * (d**-0.5)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(B, T, H, d)


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, T, 1, head_dim / 2] of RoPE (arXiv 2104.09864) in float32: bfloat16 cannot count past 256."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the halves (x1, x2) of the last dimension, the pairing of GPT-NeoX and Llama checkpoints."""
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((x1 * cos - x2 * sin, x2 * cos + x1 * sin), axis=-1).astype(x.dtype)
