"""Rotary positions (arXiv 2104.09864) and the ways to stretch them over longer contexts."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.models.config import ModelConfig


def rotary(
    config: ModelConfig, positions: jax.Array, segment_ids: jax.Array, *, local: bool = False
) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, T, 1, rotary_dim / 2] of tokens at positions of their segments, int32 [B, T].

    Of "longrope" (arXiv 2402.13753) a sequence that is longer than the original context has other frequencies than one
    that is not, as in transformers; how long it is, its last position so far says.
    """
    angles = rotary_angles(positions, *rotary_frequencies(config, local=local))
    if config.rope_scaling != "longrope":
        return angles
    of_long = rotary_angles(positions, *rotary_frequencies(config, local=local, long=True))
    count = positions.shape[1] + 1
    longest = jax.vmap(lambda x, ids: jax.ops.segment_max(x, ids, num_segments=count))(positions, segment_ids)
    is_long = jnp.take_along_axis(longest, segment_ids, axis=1) >= config.rope_original_length
    cos, sin = (jnp.where(is_long[:, :, None, None], b, a) for a, b in zip(angles, of_long, strict=True))
    return cos, sin


def rotary_frequencies(
    config: ModelConfig, *, local: bool = False, long: bool = False
) -> tuple[np.ndarray, float]:
    """Radians a token of each rotated pair, float32 [rotary_dim / 2], and what cos and sin are multiplied by.

    Scaling: "linear" divides all frequencies by the factor (arXiv 2306.15595); "llama3" those whose wavelength
    is long against the original context, with a ramp between (arXiv 2407.21783; as in the released code);
    "yarn" likewise by the number of turns, and raises the attention scores (arXiv 2309.00071 §3.2-3.4); "longrope"
    each by a factor of its own, and raises the scores too (arXiv 2402.13753; as in the released code).

    Args:
      local: those of layers with a window, which may have a base of their own and are then not scaled.
      long: those of sequences longer than the original context, where these have others.
    """
    own_base = local and config.rope_local_theta > 0
    theta = config.rope_local_theta if own_base else config.rope_theta
    dim = config.rotary_dim
    frequency = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    scaling = "none" if own_base else config.rope_scaling
    scale = 1.0
    if scaling == "linear":
        frequency = frequency / config.rope_factor
    elif scaling == "llama3":
        turns = config.rope_original_length * frequency / (2 * np.pi)
        low, high = config.rope_low_frequency, config.rope_high_frequency
        kept = np.clip((turns - low) / (high - low), 0, 1)
        frequency = frequency * (kept + (1 - kept) / config.rope_factor)
    elif scaling == "yarn":
        ramp = _yarn_ramp(config, theta, dim)
        frequency = frequency * (ramp / config.rope_factor + (1 - ramp))
        scale = config.rope_attention_factor or (0.1 * math.log(config.rope_factor) + 1.0)
    elif scaling == "longrope":
        frequency = frequency / np.array(config.rope_long_factors if long else config.rope_short_factors)
        stretch = math.log(max(config.rope_factor, 1.0)) / math.log(config.rope_original_length)
        scale = config.rope_attention_factor or math.sqrt(1.0 + stretch)
    return frequency.astype(np.float32), scale


def _yarn_ramp(config: ModelConfig, theta: float, dim: int) -> np.ndarray:
    """0 for pairs that turn more than beta_fast times in the original context, 1 for fewer than beta_slow."""

    def pair_with(turns: float) -> float:
        return dim * math.log(config.rope_original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_with(config.rope_beta_fast)), 0)
    high = min(math.ceil(pair_with(config.rope_beta_slow)), dim - 1)
    return np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0, 1)


def rotary_angles(
    positions: jax.Array, frequency: np.ndarray, scale: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, T, 1, rotary_dim / 2] in float32: bfloat16 cannot count past 256."""
    angles = positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the first dimensions of every head, x [B, T, H, d].

    Their halves are paired, (x1, x2), as in GPT-NeoX's and Llama's checkpoints; the rest passes through.
    """
    half = cos.shape[-1]
    x1, x2, rest = jnp.split(x, (half, 2 * half), axis=-1)
    x1, x2 = x1.astype(jnp.float32), x2.astype(jnp.float32)
    turned = jnp.concatenate((x1 * cos - x2 * sin, x2 * cos + x1 * sin), axis=-1).astype(x.dtype)
    return jnp.concatenate((turned, rest), axis=-1) if rest.shape[-1] else turned
