"""Numbers about models: intervals, likelihood, win rates."""

from jaxalign.evaluation.intervals import (
    Interval,
    mean_interval,
    proportion_interval,
    ratio_interval,
    win_rate,
)
from jaxalign.evaluation.likelihood import likelihood, mean_nll
from jaxalign.evaluation.preferences import pair_scores

__all__ = [
    "Interval",
    "likelihood",
    "mean_interval",
    "mean_nll",
    "pair_scores",
    "proportion_interval",
    "ratio_interval",
    "win_rate",
]
