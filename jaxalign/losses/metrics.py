"""Metrics that stay exact when a batch is split: each carries what merging it with its other slices needs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.losses.numerics import keep, require_float32

# A scalar: traced, on a device, or on the host.
Scalar = Any


class Mean(NamedTuple):
    """A weighted mean as its two sums, Σ weight · x and Σ weight."""

    total: Scalar
    weight: Scalar


class Difference(NamedTuple):
    """A difference of two weighted means over different entries, as the two sums of each; 0 if one is empty."""

    total: Scalar
    weight: Scalar
    less_total: Scalar
    less_weight: Scalar


class Max(NamedTuple):
    """A maximum; -inf when nothing was counted."""

    value: Scalar


class Min(NamedTuple):
    """A minimum; +inf when nothing was counted."""

    value: Scalar


class Std(NamedTuple):
    """A standard deviation, of n - 1 degrees of freedom, as Σ weight, the mean, and Σ weight · (x - mean)²."""

    weight: Scalar
    mean: Scalar
    squares: Scalar


class Last(NamedTuple):
    """What holds at a time, such as a learning rate: of several, the one that came last."""

    value: Scalar


Metric = Mean | Difference | Max | Min | Std | Last
Metrics = dict[str, Metric]

_REDUCTIONS = {Mean: "sum", Difference: "sum", Max: "max", Min: "min"}


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


def deviation(std: Std, xp: Any = jnp) -> Any:
    """The value of a standard deviation; 0 of fewer than two entries."""
    return xp.sqrt(std.squares / xp.maximum(std.weight - 1, 1))


def normalized(mean: Mean, normalizer: jax.Array | None = None) -> jax.Array:
    """The loss value of a mean: total / normalizer, or total / own weight when `normalizer` is None.

    `normalizer` is the weight sum of the whole global batch (float32 scalar): with it the values, and the
    gradients, of the slices of a batch add up to those of the batch. A zero denominator gives 0.
    """
    if normalizer is not None:
        require_float32(normalizer=normalizer)
    return _quotient(mean.total, mean.weight if normalizer is None else normalizer, jnp)


def _quotient(total: Any, weight: Any, xp: Any) -> Any:
    return xp.where(weight == 0, 0.0, total / xp.where(weight == 0, 1.0, weight))


def merge(stacked: Metrics, xp: Any = jnp) -> Metrics:
    """Reduce metrics whose arrays are stacked over a leading axis, as `lax.scan` over slices gives them.

    Args:
      xp: the module that computes: jax.numpy, or numpy for float64 on the host.
    """
    return {name: _merged(metric, xp) for name, metric in stacked.items()}


def _merged(metric: Metric, xp: Any) -> Metric:
    if isinstance(metric, Last):
        return Last(metric.value[-1])
    if isinstance(metric, Std):
        weight = xp.sum(metric.weight, axis=0)
        mean = _quotient(xp.sum(metric.mean * metric.weight, axis=0), weight, xp)
        # Chan, Golub and LeVeque 1983: sums of squares about zero would lose the digits of a small deviation.
        between = xp.sum(metric.weight * xp.square(metric.mean - mean), axis=0)
        return Std(weight, mean, xp.sum(metric.squares, axis=0) + between)
    return type(metric)(*(getattr(xp, _REDUCTIONS[type(metric)])(field, axis=0) for field in metric))


def finalize(metrics: Metrics, xp: Any = jnp) -> dict[str, jax.Array]:
    """The numbers to log; a metric that counted nothing is 0, never NaN. `xp` is as in `merge`."""
    return {name: _final(metric, xp) for name, metric in metrics.items()}


def _final(metric: Metric, xp: Any) -> Any:
    if isinstance(metric, Mean):
        return _quotient(*metric, xp)
    if isinstance(metric, Difference):
        both = (metric.weight != 0) & (metric.less_weight != 0)
        return xp.where(both, _quotient(*metric[:2], xp) - _quotient(*metric[2:], xp), 0.0)
    if isinstance(metric, Std):
        return deviation(metric, xp)
    if isinstance(metric, Last):
        return metric.value
    nothing = -xp.inf if isinstance(metric, Max) else xp.inf
    return xp.where(metric.value == nothing, 0.0, metric.value)
