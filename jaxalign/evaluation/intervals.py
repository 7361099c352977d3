"""Means with 95 % intervals. The unit of sampling is a question, so intervals say what other questions would give."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Z = 1.959964  # two-sided 95 % of the normal distribution

Interval = tuple[float, float, float]  # mean, lower end, upper end


def mean_interval(values: Sequence[float] | Any) -> Interval:
    """Mean of independent values and its normal-approximation interval, mean ± 1.96 s / √n.

    One value has no interval: both ends are NaN.
    """
    x = np.asarray(values, np.float64)
    if x.size < 2:
        return float(x.mean()), float("nan"), float("nan")
    half = Z * x.std(ddof=1) / np.sqrt(x.size)
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


def proportion_interval(hits: float, count: int) -> Interval:
    """A proportion and its Wilson score interval (Wilson 1927), right near 0 and 1 too."""
    p = hits / count
    centre = (p + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * np.sqrt(p * (1 - p) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return float(p), float(centre - half), float(centre + half)


def win_rate(mine: Sequence[float], theirs: Sequence[float]) -> Interval:
    """How often my score is higher on the same question; a tie counts half."""
    difference = np.asarray(mine, np.float64) - np.asarray(theirs, np.float64)
    return mean_interval(0.5 + 0.5 * np.sign(difference))
