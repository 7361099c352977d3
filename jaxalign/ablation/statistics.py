"""What a few seeds say of an effect: Student's intervals and tests, and Holm's correction for several of them.

Values are one a seed, and independent. A seed is a world, an initialisation and an order of the data together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

NOTHING = (float("nan"), float("nan"), float("nan"))
Values = Sequence[float] | Any


def interval(values: Values, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student's interval of n values; of one value the ends are infinite, as nothing is known of them."""
    x = np.asarray(values, np.float64)
    if not x.size:
        return NOTHING
    if x.size == 1:
        return float(x[0]), -np.inf, np.inf
    half = float(special.stdtrit(x.size - 1, (1 + level) / 2) * x.std(ddof=1) / np.sqrt(x.size))
    return float(x.mean()), float(x.mean()) - half, float(x.mean()) + half


def prediction_interval(values: Values, level: float = 0.99) -> tuple[float, float]:
    """Where one more value lies: mean ± t s √(1 + 1/n)."""
    x = np.asarray(values, np.float64)
    if x.size < 2:
        return -np.inf, np.inf
    half = float(special.stdtrit(x.size - 1, (1 + level) / 2) * x.std(ddof=1) * np.sqrt(1 + 1 / x.size))
    return float(x.mean()) - half, float(x.mean()) + half


def p_above(values: Values, bound: float) -> float:
    """The p-value of Student's one-sided test that the mean is above `bound`; 1 for fewer than two values.

    Values that are all equal leave no doubt: 0 above the bound, else 1.
    """
    x = np.asarray(values, np.float64)
    if x.size < 2:
        return 1.0
    error = x.std(ddof=1) / np.sqrt(x.size)
    if error == 0:
        return float(x.mean() <= bound)
    return float(special.stdtr(x.size - 1, (bound - x.mean()) / error))


def p_below(values: Values, bound: float) -> float:
    """As `p_above`, that the mean is below."""
    return p_above(-np.asarray(values, np.float64), -bound)


def holm(p_values: Values) -> list[float]:
    """Adjusted p-values by Holm's step-down method (Holm 1979): below α is an effect at level α for all together."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted.tolist()
