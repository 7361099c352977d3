"""Metrics that stay exact when a batch is split: each carries what merging it with its other slices needs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.losses.numerics import keep, require_float32


class Mean(NamedTuple):
    """A weighted mean as its two sums, Σ weight · x and Σ weight."""

    total: jax.Array
    weight: jax.Array


class Difference(NamedTuple):
    """A difference of two weighted means over different entries, as the two sums of each; 0 if one is empty."""

    total: jax.Array
    weight: jax.Array
    less_total: jax.Array
    less_weight: jax.Array


class Max(NamedTuple):
    """A maximum; -inf when nothing was counted."""

    value: jax.Array


class Min(NamedTuple):
    """A minimum; +inf when nothing was counted."""

    value: jax.Array


class Std(NamedTuple):
    """A standard deviation, of n - 1 degrees of freedom, as Σ weight, the mean, and Σ weight · (x - mean)²."""

    weight: jax.Array
    mean: jax.Array
    squares: jax.Array


Metric = Mean | Difference | Max | Min | Std
Metrics = dict[str, Metric]

_REDUCTIONS = {Mean: jnp.sum, Difference: jnp.sum, Max: jnp.max, Min: jnp.min}


def masked_mean(x: jax.Array, mask: jax.Array) -> Mean:
    """Mean of `x` weighted by `mask` (same shape, >= 0); entries of weight zero may hold anything."""
    require_float32(x=x, mask=mask)
    return Mean(jnp.sum(keep(x, mask) * mask), jnp.sum(mask))


def masked_max(x: jax.Array, mask: jax.Array) -> Max:
    """Largest `x` where `mask` is not zero."""
    require_float32(x=x, mask=mask)
    return Max(jnp.max(keep(x, mask, -jnp.inf), initial=-jnp.inf))


def masked_min(x: jax.Array, mask: jax.Array) -> Min:
    """Smallest `x` where `mask` is not zero."""
    require_float32(x=x, mask=mask)
    return Min(jnp.min(keep(x, mask, jnp.inf), initial=jnp.inf))


def masked_std(x: jax.Array, mask: jax.Array) -> Std:
    """Standard deviation of `x` where `mask`, of ones and zeros, is one."""
    mean = normalized(masked_mean(x, mask))
    return Std(jnp.sum(mask), mean, jnp.sum(jnp.square(keep(x, mask) - mean) * mask))


def normalized(mean: Mean, normalizer: jax.Array | None = None) -> jax.Array:
    """The loss value of a mean: total / normalizer, or total / own weight when `normalizer` is None.

    `normalizer` is the weight sum of the whole global batch (float32 scalar): with it the values, and the
    gradients, of the slices of a batch add up to those of the batch. A zero denominator gives 0.
    """
    if normalizer is not None:
        require_float32(normalizer=normalizer)
    denominator = mean.weight if normalizer is None else normalizer
    return jnp.where(denominator == 0, 0.0, mean.total / jnp.where(denominator == 0, 1.0, denominator))


def merge(stacked: Metrics) -> Metrics:
    """Reduce metrics whose arrays are stacked over a leading axis, as `lax.scan` over slices gives them."""
    return {name: _merged(metric) for name, metric in stacked.items()}


def _merged(metric: Metric) -> Metric:
    if isinstance(metric, Std):
        weight = jnp.sum(metric.weight, axis=0)
        mean = normalized(Mean(jnp.sum(metric.mean * metric.weight, axis=0), weight))
        # Chan, Golub and LeVeque 1983: sums of squares about zero would lose the digits of a small deviation.
        between = jnp.sum(metric.weight * jnp.square(metric.mean - mean), axis=0)
        return Std(weight, mean, jnp.sum(metric.squares, axis=0) + between)
    return type(metric)(*(_REDUCTIONS[type(metric)](field, axis=0) for field in metric))


def finalize(metrics: Metrics) -> dict[str, jax.Array]:
    """The numbers to log; a metric that counted nothing is 0, never NaN."""
    return {name: _final(metric) for name, metric in metrics.items()}


def _final(metric: Metric) -> jax.Array:
    if isinstance(metric, Mean):
        return normalized(metric)
    if isinstance(metric, Difference):
        both = (metric.weight != 0) & (metric.less_weight != 0)
        return jnp.where(both, normalized(Mean(*metric[:2])) - normalized(Mean(*metric[2:])), 0.0)
    if isinstance(metric, Std):
        return jnp.sqrt(metric.squares / jnp.maximum(metric.weight - 1, 1))
    nothing = -jnp.inf if isinstance(metric, Max) else jnp.inf
    return jnp.where(metric.value == nothing, 0.0, metric.value)
