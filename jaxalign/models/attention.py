"""Attention over packed, padded and cached sequences.

Rules say who may see whom, in training and in decoding alike: the same segment, a key position not after the
query's, and in a layer with a window not too long before it. Padding is segment 0; it sees only padding, so
that no row of the softmax is empty.

Shapes: B rows, T queries, S keys, H heads, K key/value heads (H = K * G), d head dimension.
"""

import jax
import jax.numpy as jnp


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
      softcap: scores become softcap * tanh(scores / softcap) (arXiv 2408.00118 §2); 0: they do not.
    """
    B, T, H, d = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, H // K, d) * scale
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(B, T, H, d)
