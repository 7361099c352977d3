"""Running mean and variance of returns, to train a value function on a normalised scale (arXiv 2404.10719).

Exponential moving averages of x and x² with the bias of their zero start divided out, as in Adam.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.losses.metrics import masked_mean, normalized
from jaxalign.losses.numerics import keep, require_float32

_MIN_VARIANCE = 1e-5


class RunningMoments(NamedTuple):
    """Float32 scalars: the two averages and the weight they have gathered so far, 0 before any data."""

    mean: jax.Array
    mean_sq: jax.Array
    debias: jax.Array


def init() -> RunningMoments:
    """Moments that have seen nothing; `normalize` and `denormalize` are then the identity."""
    return RunningMoments(*(jnp.zeros((), jnp.float32) for _ in range(3)))


def update(moments: RunningMoments, x: jax.Array, mask: jax.Array, decay: float) -> RunningMoments:
    """Move the averages by 1 - decay towards the masked mean of `x` and x² (float32, any shape).

    An all-zero mask changes nothing. Raises TypeError or ValueError for wrong arrays.
    """
    mean = masked_mean(x, mask)
    mean_sq = masked_mean(jnp.square(keep(x, mask)), mask)
    seen = RunningMoments(normalized(mean), normalized(mean_sq), jnp.ones((), jnp.float32))
    return jax.tree.map(
        lambda old, new: jnp.where(mean.weight == 0, old, decay * old + (1.0 - decay) * new), moments, seen
    )


def normalize(moments: RunningMoments, x: jax.Array) -> jax.Array:
    """(x - mean) / standard deviation; the variance is held above 1e-5. Raises TypeError unless float32."""
    require_float32(x=x)
    mean, deviation = _mean_and_deviation(moments)
    return (x - mean) / deviation


def denormalize(moments: RunningMoments, x: jax.Array) -> jax.Array:
    """The inverse of `normalize`: x · standard deviation + mean. Raises TypeError unless float32."""
    require_float32(x=x)
    mean, deviation = _mean_and_deviation(moments)
    return x * deviation + mean


def _mean_and_deviation(moments: RunningMoments) -> tuple[jax.Array, jax.Array]:
    empty = moments.debias == 0
    gathered = jnp.where(empty, 1.0, moments.debias)
    mean = moments.mean / gathered
    variance = jnp.where(empty, 1.0, moments.mean_sq / gathered - jnp.square(mean))
    return mean, jnp.sqrt(jnp.maximum(variance, _MIN_VARIANCE))
