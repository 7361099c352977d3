"""Numbers about models: intervals, likelihood, win rates."""

from jaxalign.evaluation.intervals import Interval, mean_interval, proportion_interval, win_rate
from jaxalign.evaluation.likelihood import mean_nll
from jaxalign.evaluation.preferences import pair_scores

__all__ = ["Interval", "mean_interval", "mean_nll", "pair_scores", "proportion_interval", "win_rate"]
