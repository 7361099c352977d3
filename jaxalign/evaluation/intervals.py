"""Means with 95 % intervals. The unit of sampling is a question, so intervals say what other questions would give."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

LEVEL = 0.975  # of two-sided 95 % intervals
Z = special.ndtri(LEVEL)

Interval = tuple[float, float, float]  # mean, lower end, upper end
NOTHING: Interval = (float("nan"), float("nan"), float("nan"))


def mean_interval(values: Sequence[float] | Any) -> Interval:
    """Mean of n independent values and Student's interval, mean ± t s / √n with n - 1 degrees of freedom.

    One value has no interval: both ends are NaN; no value has no mean either.
    """
    x = np.asarray(values, np.float64)
    if x.size < 2:
        return (float(x.mean()), *NOTHING[1:]) if x.size else NOTHING
    half = special.stdtrit(x.size - 1, LEVEL) * x.std(ddof=1) / np.sqrt(x.size)
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


def ratio_interval(numerators: Sequence[float] | Any, denominators: Sequence[float] | Any) -> Interval:
    """A ratio of two sums over n independent units, Σa / Σb, as nats over tokens are, and its interval.

    Long units weigh more in it than in a mean of ratios. Its standard error is that of the mean of a - r·b, over the
    mean of b (Cochran, Sampling Techniques, 1977, eq. 2.39), with Student's quantile. One unit has no interval.
    """
    a, b = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if not b.sum() > 0:
        return NOTHING
    ratio = float(a.sum() / b.sum())
    if a.size < 2:
        return (ratio, *NOTHING[1:])
    spread = np.sqrt(np.sum((a - ratio * b) ** 2) / (a.size - 1) / a.size) / b.mean()
    half = float(special.stdtrit(a.size - 1, LEVEL) * spread)
    return ratio, ratio - half, ratio + half


def proportion_interval(hits: float, count: int) -> Interval:
    """A proportion and its Wilson score interval (Wilson 1927), right near 0 and 1 too; NaN for a count of 0.

    Raises:
      ValueError: there are fewer than no hits, or more than `count`.
    """
    if not 0 <= hits <= count:
        raise ValueError(f"{hits} hits of {count}: there must be between none and all")
    if count == 0:
        return NOTHING
    p = hits / count
    centre = (p + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * np.sqrt(p * (1 - p) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    # Rounding may put an end beyond the proportion, which is never outside.
    return float(p), max(0.0, min(float(centre - half), p)), min(1.0, max(float(centre + half), p))


def win_rate(mine: Sequence[float] | Any, theirs: Sequence[float] | Any) -> Interval:
    """How often my score is higher on the same question, a tie counting half, and Wilson's interval of that share.

    Ties vary less than wins and losses, so with many of them the interval is wider than it must be.

    Raises:
      ValueError: the two have not one score each for every question.
    """
    a, b = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"scores of shapes {a.shape} and {b.shape}: give one for every question to both")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a score is not a finite number, so it is neither higher nor lower")
    return proportion_interval(float(np.sum(0.5 + 0.5 * np.sign(a - b))), a.size)
